//! Send requests: a random one is drawn, noted in the model, and made for the engine.

use secure_rdma_rdma::{RKey, RemoteSlice, SendFlags, SendOperation, SendRequest, WorkId};

use super::super::endpoint::Grant;
use super::super::host::{CLOSED, OPEN, REGION, WindowUse};
use super::super::memory::{Piece, Pieces};
use super::super::requests::{Kind, Posted};
use super::super::scenario::Fault;
use super::super::world::World;
use super::posting::pieces;
use super::{GUARD, LONGEST};

impl World {
    fn length(&mut self, longest: usize) -> usize {
        let mtu = self.endpoints[0].plan.terms.path_mtu;
        let random = &mut self.random;
        let many = if self.scenario.has(Fault::LongMessages) { 40 } else { 3 };
        let length = match random.below(10) {
            0 => 0,
            1 => 1,
            2..=4 => random.index(64),
            5 => mtu,
            6 => (random.range(1, many) as usize * mtu + 1).saturating_sub(random.index(3)),
            7 => random.index(mtu),
            8 => random.index(many as usize * mtu),
            _ => random.index(2 * mtu),
        };
        length.min(longest)
    }

    /// A random request, noted in the model. `None` where nothing fits.
    pub(super) fn request(&mut self, index: usize) -> Option<SendRequest> {
        let scenario = &self.scenario;
        let mut kinds: Vec<u8> = vec![0, 0, 0, 1, 2, 2, 2, 3];
        if scenario.has(Fault::Reads) {
            kinds.extend([4, 4, 4]);
        }
        if scenario.has(Fault::Atomics) {
            kinds.extend([5, 6, 6]);
        }
        if scenario.has(Fault::Windows) {
            kinds.extend([7, 8, 9]);
        }
        let choice = self.random.pick(&kinds);
        let fence = self.scenario.has(Fault::Fences) && self.random.chance(200_000);
        let immediate = self.random.u64() as u32;
        let host = self.endpoints[index].host;
        let all = [OPEN, CLOSED, self.hosts[host].readable];
        let (kind, sources, length): (Kind, &[usize], usize) = match choice {
            0 => (Kind::Send { immediate: None }, &all, self.length(LONGEST)),
            1 => (Kind::Send { immediate: Some(immediate) }, &all, self.length(LONGEST)),
            2 | 3 => {
                let length = self.length(REGION / 2 + 1);
                let (address, rkey) = self.target(index, length, |grant| grant.write)?;
                let immediate = (choice == 3).then_some(immediate);
                (Kind::Write { address, rkey, immediate }, &all, length)
            }
            4 => {
                let length = self.length(REGION / 2 + 1);
                let (address, rkey) = self.target(index, length, |grant| grant.read)?;
                (Kind::Read { address, rkey }, &[OPEN, CLOSED], length)
            }
            5 | 6 => {
                let (address, rkey) = self.target(index, 16, |grant| grant.atomic)?;
                let address = address.wrapping_add(7) & !7;
                // Small numbers, so that comparisons sometimes hold.
                let (compare, swap) = (self.random.below(4), self.random.below(4));
                let kind = match choice {
                    5 => Kind::CompareSwap { address, rkey, compare, swap },
                    _ => Kind::FetchAdd { address, rkey, add: self.random.u64() },
                };
                (kind, &[OPEN, CLOSED], 8)
            }
            7 => {
                let peer_host = self.endpoints[self.endpoints[index].peer].host;
                let at = self.endpoints[index].grants.iter().position(|grant| grant.window)?;
                let Grant { address, rkey, .. } = self.endpoints[index].grants.remove(at);
                self.endpoints[index].ended.push((address, rkey));
                for held in &mut self.hosts[peer_host].windows {
                    if held.state == WindowUse::Bound(rkey) {
                        held.state = WindowUse::Ending(rkey);
                    }
                }
                (Kind::SendInvalidate { rkey }, &all, self.length(LONGEST))
            }
            8 => return self.bind(index, fence),
            _ => return self.invalidate(index),
        };
        let pieces = match kind.is_atomic() {
            true => {
                let whole = pieces(&mut self.random, &self.scenario, sources, 8);
                let first = whole[0];
                Pieces::from_slice(&[Piece {
                    length: 8,
                    offset: first.offset.min(REGION - GUARD - 8),
                    ..first
                }])
            }
            false => pieces(&mut self.random, &self.scenario, sources, length),
        };
        // READs before a key ends are answered first.
        let fence = fence || matches!(kind, Kind::SendInvalidate { .. }) && self.random.chance(900_000);
        Some(self.note(index, kind, pieces, fence, None))
    }

    /// Enters a request into the model, and makes the real one.
    pub(super) fn note(
        &mut self,
        index: usize,
        kind: Kind,
        local: Pieces,
        fence: bool,
        bind: Option<SendOperation>,
    ) -> SendRequest {
        let endpoint = &mut self.endpoints[index];
        let shadows = &mut self.hosts[endpoint.host].shadows;
        let id = self.next_id;
        self.next_id += 1;
        let remote = |address, rkey| RemoteSlice { address, rkey: RKey::new(rkey) };
        let operation = match kind {
            Kind::Send { immediate } => SendOperation::Send { immediate },
            Kind::SendInvalidate { rkey } => SendOperation::SendInvalidate { rkey: RKey::new(rkey) },
            Kind::Write { address, rkey, immediate } => {
                SendOperation::Write { remote: remote(address, rkey), immediate }
            }
            Kind::Read { address, rkey } => SendOperation::Read { remote: remote(address, rkey) },
            Kind::CompareSwap { address, rkey, compare, swap } => {
                SendOperation::CompareSwap { remote: remote(address, rkey), compare, swap }
            }
            Kind::FetchAdd { address, rkey, add } => {
                SendOperation::FetchAdd { remote: remote(address, rkey), add }
            }
            Kind::Bind { .. } => bind.unwrap(),
            Kind::Invalidate { rkey } => SendOperation::Invalidate { rkey: RKey::new(rkey) },
        };
        let mut flags = SendFlags::empty();
        flags.set(SendFlags::FENCE, fence);
        // The range of a bind is named by its operation, and holds a count like any other.
        let mut slices = shadows.slices(&local);
        if kind.is_local() {
            slices.clear();
        }
        let request = SendRequest { id: WorkId(id), operation, local: slices, flags };
        let length = local.iter().map(|piece| piece.length).sum();
        endpoint.requester.post(Posted {
            id,
            kind,
            local,
            length,
            fence,
            first: 0,
            count: 0,
            placed: 0,
            done: false,
            refused: None,
            not_ready: 0,
            original: None,
        });
        request
    }
}
