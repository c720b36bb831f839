//! Posting: receives and sends, from and to which pieces of memory, and what must be refused.

use secure_rdma_rdma::{
    ErrorCode, RKey, ReceiveRequest, RemoteSlice, SendFlags, SendOperation, SendRequest, Slice, WorkId,
};

use super::super::endpoint::Stage;
use super::super::host::{CLOSED, OPEN, REGION};
use super::super::memory::{Piece, Pieces};
use super::super::network::{MICROSECOND, MILLISECOND, SECOND};
use super::super::random::Random;
use super::super::requests::Receive;
use super::super::scenario::{Fault, Scenario};
use super::super::world::{Action, Checked, World};
use super::{GUARD, LONGEST};

impl World {
    /// Receives were consumed: more are posted, at once or late.
    pub fn want_receives(&mut self, index: usize) {
        if self.endpoints[index].receives_due {
            return;
        }
        self.endpoints[index].receives_due = true;
        let late = self.scenario.has(Fault::LateReceives) && !self.healed;
        let after = if late { self.random.below(5 * MILLISECOND) } else { MICROSECOND };
        self.schedule(after, Action::Receives(index));
    }

    pub(super) fn post_receives(&mut self, index: usize) {
        if self.endpoints[index].stage != Stage::Up {
            return;
        }
        let host = self.endpoints[index].host;
        let wanted = if self.scenario.has(Fault::LateReceives) { 4 } else { 16 };
        loop {
            let here = &mut self.hosts[host];
            let posted = here
                .shared
                .as_ref()
                .map_or(self.endpoints[index].receives.len(), |(_, receives)| receives.len());
            if posted >= wanted {
                return;
            }
            let short = self.scenario.has(Fault::ShortReceives) && self.random.chance(10_000) && !self.healed;
            let length = if short { self.random.index(1000) } else { LONGEST + self.random.index(1000) };
            let pieces = pieces(&mut self.random, &self.scenario, &[OPEN, CLOSED], length);
            let id = self.next_id;
            self.next_id += 1;
            let request = ReceiveRequest { id: WorkId(id), local: here.shadows.slices(&pieces) };
            let receive = Receive { id, local: pieces, length };
            if let Some((queue, receives)) = &mut here.shared {
                here.node.engine().unwrap().post_shared_receive(*queue, &[request]).unwrap();
                receives.push_back(receive);
            } else {
                here.node.post_receive(self.endpoints[index].qpn, &[request]);
                self.endpoints[index].receives.push_back(receive);
            }
        }
    }

    pub(super) fn work(&mut self, index: usize) -> Checked {
        let pause = if self.random.chance(40_000) {
            self.random.range(1, 90) * SECOND
        } else {
            let mean =
                self.random.pick(&[20 * MICROSECOND, 200 * MICROSECOND, 2 * MILLISECOND, 40 * MILLISECOND]);
            self.random.exponential(mean)
        };
        self.schedule(pause, Action::Work(index));
        let stage = self.endpoints[index].stage;
        if stage == Stage::Down || stage == Stage::Error && !self.random.chance(300_000) {
            return Ok(());
        }
        let count = self.random.range(1, 8) as usize;
        let mut requests = Vec::new();
        for _ in 0..count.min(self.endpoints[index].room()) {
            if let Some(request) = self.request(index) {
                requests.push(request);
            }
        }
        let (now, host, qpn) = (self.instant(), self.endpoints[index].host, self.endpoints[index].qpn);
        if let Err(error) = self.hosts[host].node.post_send(now, qpn, &requests) {
            return self.fail(5, format!("a request cannot be posted: {error}"));
        }
        drop(requests);
        self.after(host)?;
        self.flush(host)?;
        self.misuse(index)
    }

    /// Requests that must be refused when they are posted, and change nothing.
    fn misuse(&mut self, index: usize) -> Checked {
        let endpoint = &self.endpoints[index];
        if endpoint.stage != Stage::Up {
            return Ok(());
        }
        let (host, qpn, now) = (endpoint.host, endpoint.qpn, self.instant());
        let remote = RemoteSlice { address: 4097, rkey: RKey::new(1) };
        let full = endpoint.room() == 0;
        let region = self.hosts[host].shadows.regions[CLOSED].region.clone().unwrap();
        let (operation, slice, code) = if full {
            (SendOperation::Send { immediate: None }, Slice::new(&region, 0, 1), ErrorCode::QueueFull)
        } else if self.scenario.has(Fault::Misaligned) {
            let slice = Slice::new(&region, 0, 8);
            (SendOperation::FetchAdd { remote, add: 1 }, slice, ErrorCode::InvalidArgument)
        } else if self.scenario.has(Fault::WrongBounds) {
            let slice = Slice::new(&region, REGION - 7, 8);
            (SendOperation::Send { immediate: None }, slice, ErrorCode::InvalidArgument)
        } else {
            return Ok(());
        };
        let request = SendRequest {
            id: WorkId(0),
            operation,
            local: smallvec::smallvec![slice],
            flags: SendFlags::empty(),
        };
        let Some(engine) = self.hosts[host].node.engine() else { return Ok(()) };
        match engine.post_send(now, qpn, &[request]) {
            Err(error) if error.posted == 0 && error.error.code() == code => {
                self.coverage.hit("refused when posted");
                Ok(())
            }
            _ => self.fail(9, "a request that must be refused when it is posted was not"),
        }
    }
}

/// `length` bytes of one of these regions, in up to four pieces that do not overlap.
pub(super) fn pieces(random: &mut Random, scenario: &Scenario, regions: &[usize], length: usize) -> Pieces {
    let region = random.pick(regions);
    let offset = GUARD + random.index(REGION - 2 * GUARD - length + 1);
    let whole = Piece { region, offset, length };
    if length == 0 && random.chance(500_000) {
        return Pieces::new();
    }
    if !scenario.has(Fault::Gather) || length < 4 || random.chance(300_000) {
        return Pieces::from_slice(&[whole]);
    }
    let mut cuts = [random.index(length), random.index(length), random.index(length)];
    cuts.sort_unstable();
    let ends = [0, cuts[0], cuts[1], cuts[2], length];
    let mut pieces: Pieces = ends
        .windows(2)
        .map(|ends| Piece { region, offset: offset + ends[0], length: ends[1] - ends[0] })
        .collect();
    let turn = random.index(4);
    pieces.rotate_left(turn);
    pieces
}
