//! R_Keys: which the peer is told of, which a request goes to, rightly or wrongly, and the memory windows that are bound
//! and invalidated.

use std::sync::Arc;

use secure_rdma_rdma::{Access, MemoryWindow, RKey, SendOperation, SendRequest, Slice};

use super::super::endpoint::Grant;
use super::super::host::{CLOSED, OPEN, REGION, WindowUse};
use super::super::memory::{Piece, Pieces};
use super::super::requests::{Kind, Posted};
use super::super::responder::Opening;
use super::super::scenario::Fault;
use super::super::world::World;
use super::GUARD;

impl World {
    /// Tells the peer of an endpoint's host which regions it may use.
    pub(super) fn grant_regions(&mut self, index: usize) {
        let host = &self.hosts[self.endpoints[index].host];
        let mut grants = Vec::new();
        for region in [OPEN, host.readable] {
            let shadow = &host.shadows.regions[region];
            grants.push(Grant {
                rkey: shadow.rkey,
                address: shadow.address + GUARD as u64,
                length: REGION - 2 * GUARD,
                write: shadow.access.contains(Access::REMOTE_WRITE),
                read: true,
                atomic: shadow.access.contains(Access::REMOTE_ATOMIC),
                window: false,
            });
        }
        let peer = self.endpoints[index].peer;
        self.endpoints[peer].grants.extend(grants);
    }

    /// A window is bound: the peer is told.
    pub fn granted(&mut self, host: usize, index: usize, rkey: u32) {
        let opening = self.hosts[host].openings[&rkey];
        let peer = self.endpoints[index].peer;
        self.endpoints[peer].grants.push(Grant {
            rkey,
            address: self.hosts[host].shadows.regions[opening.region].address + opening.offset as u64,
            length: opening.length,
            write: opening.access.contains(Access::REMOTE_WRITE),
            read: opening.access.contains(Access::REMOTE_READ),
            atomic: opening.access.contains(Access::REMOTE_ATOMIC),
            window: true,
        });
    }

    /// Where a request of `length` bytes goes.
    pub(super) fn target(
        &mut self,
        index: usize,
        length: usize,
        fits: impl Fn(&Grant) -> bool,
    ) -> Option<(u64, u32)> {
        let endpoint = &self.endpoints[index];
        let random = &mut self.random;
        if length == 0 && random.chance(500_000) {
            // Neither key nor address is looked at.
            return Some((random.u64(), random.u64() as u32));
        }
        if self.scenario.has(Fault::WrongKeys) && random.chance(6_000) {
            // A key of nobody, one that was ended, or one that is another connection's.
            let strangers: Vec<(u64, u32)> = self
                .endpoints
                .iter()
                .enumerate()
                .filter(|(other, stranger)| *other != index && stranger.host == endpoint.host)
                .flat_map(|(_, stranger)| &stranger.grants)
                .filter(|grant| grant.window && fits(grant))
                .map(|grant| (grant.address, grant.rkey))
                .collect();
            let (address, rkey) = match random.below(3) {
                0 if !endpoint.ended.is_empty() => random.pick(&endpoint.ended),
                1 if !strangers.is_empty() => random.pick(&strangers),
                _ => (endpoint.grants.first()?.address, random.u64() as u32),
            };
            return Some((address, rkey));
        }
        let wrong = self.scenario.has(Fault::WrongBounds) && random.chance(3_000);
        let grants: Vec<Grant> = endpoint
            .grants
            .iter()
            .filter(|grant| grant.length >= length && (wrong || fits(grant)))
            .copied()
            .collect();
        if grants.is_empty() {
            return None;
        }
        let grant = random.pick(&grants);
        let mut address = grant.address.wrapping_add(random.below((grant.length - length) as u64 + 1));
        if wrong && random.chance(500_000) {
            let beyond = GUARD as u64 + 1 + random.below(100);
            let end = grant.address.wrapping_add(grant.length as u64 + GUARD as u64);
            address = random.pick(&[
                grant.address.wrapping_sub(beyond),
                end.wrapping_sub(beyond % 8),
                u64::MAX - 3,
                0,
            ]);
        }
        Some((address, grant.rkey))
    }

    pub(super) fn bind(&mut self, index: usize, fence: bool) -> Option<SendRequest> {
        let host = self.endpoints[index].host;
        let here = &mut self.hosts[host];
        let window = here.windows.iter().position(|held| held.state == WindowUse::Free)?;
        let id = here.windows[window].window.id;
        let rkey = here.node.next_window_key(id);
        let region = self.random.pick(&[OPEN, CLOSED]);
        let length = self.random.range(64, 20_000) as usize;
        let offset = GUARD + self.random.index(REGION - 2 * GUARD - length);
        let rights = [Access::REMOTE_WRITE, Access::REMOTE_READ, Access::REMOTE_ATOMIC];
        let mut access = self.random.pick(&rights) | self.random.pick(&rights);
        if !access.contains(Access::REMOTE_READ) && self.random.chance(500_000) {
            access |= Access::REMOTE_READ;
        }
        let opening = Opening { region, offset, length, access, bound: Some(index), window: Some(window) };
        here.binding.insert(rkey, opening);
        here.windows[window].state = WindowUse::Binding;
        here.windows[window].owner = index;
        let target = Slice::new(here.shadows.regions[region].region.as_ref().unwrap(), offset, length);
        let operation = SendOperation::Bind {
            window: Arc::clone(&here.windows[window].window) as Arc<dyn MemoryWindow>,
            rkey: RKey::new(rkey),
            target,
            access,
        };
        let range = Pieces::from_slice(&[Piece { region, offset, length }]);
        Some(self.note(index, Kind::Bind { window, rkey }, range, fence, Some(operation)))
    }

    pub(super) fn invalidate(&mut self, index: usize) -> Option<SendRequest> {
        let (host, peer) = (self.endpoints[index].host, self.endpoints[index].peer);
        let bound = self.hosts[host]
            .windows
            .iter()
            .position(|held| held.owner == index && matches!(held.state, WindowUse::Bound(_)))?;
        let WindowUse::Bound(rkey) = self.hosts[host].windows[bound].state else { return None };
        let uses = |posted: &Posted| match posted.kind {
            Kind::Write { rkey: used, .. } | Kind::Read { rkey: used, .. } => used == rkey,
            Kind::CompareSwap { rkey: used, .. } | Kind::FetchAdd { rkey: used, .. } => used == rkey,
            _ => false,
        };
        if self.endpoints[peer].requester.sends.iter().any(uses) && !self.random.chance(20_000) {
            return None;
        }
        if let Some(at) = self.endpoints[peer].grants.iter().position(|grant| grant.rkey == rkey) {
            let Grant { address, rkey, .. } = self.endpoints[peer].grants.remove(at);
            self.endpoints[peer].ended.push((address, rkey));
        }
        self.hosts[host].windows[bound].state = WindowUse::Ending(rkey);
        Some(self.note(index, Kind::Invalidate { rkey }, Pieces::new(), false, None))
    }
}
