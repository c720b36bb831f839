//! How much may be in flight: a congestion window for each queue pair, a budget for each receive buffer.

use std::collections::VecDeque;
use std::net::SocketAddr;

use rustc_hash::FxHashMap;
use secure_rdma_rdma::Qpn;

/// The unacknowledged PSNs that a queue pair may have: halved on loss, one after a timeout, grown by acknowledgement (as
/// TCP's, RFC 5681, but in packets and between fixed bounds).
pub(super) struct CongestionWindow {
    size: u32,
    most: u32,
    /// Below this each acknowledged packet adds one, above it each acknowledged window.
    threshold: u32,
    /// Acknowledged packets that have not grown the window yet.
    acknowledged: u32,
    /// Losses of what was sent before this count are the same loss.
    recover: u64,
    /// The size before a timeout, until it is known whether that came too early.
    before_timeout: Option<u32>,
}

/// The smallest window: a forged CNP, or loss, cannot bring a queue pair below.
const LEAST: u32 = 2;

impl CongestionWindow {
    pub(super) fn new(initial: u32, most: u32) -> Self {
        let most = most.max(LEAST);
        let size = initial.clamp(LEAST, most);
        Self { size, most, threshold: most, acknowledged: 0, recover: 0, before_timeout: None }
    }

    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// What it never grows beyond.
    pub(super) fn most(&self) -> u32 {
        self.most
    }

    pub(super) fn on_acknowledged(&mut self, packets: u64) {
        if self.size == self.most {
            return;
        }
        let packets = u32::try_from(packets).unwrap_or(u32::MAX);
        if self.size < self.threshold {
            self.size = self.size.saturating_add(packets).min(self.threshold).min(self.most);
            return;
        }
        self.acknowledged = self.acknowledged.saturating_add(packets);
        if self.acknowledged >= self.size {
            self.acknowledged = 0;
            self.size = (self.size + 1).min(self.most);
        }
    }

    /// Nothing was answered for a whole timeout. One packet asks whether anything arrived: if everything did, its
    /// answer says so, and nothing more is sent again.
    pub(super) fn on_timeout(&mut self, newest: u64) {
        if self.before_timeout.is_none() {
            self.before_timeout = Some(self.size);
            self.threshold = (self.size / 2).max(LEAST);
        }
        self.size = 1;
        self.acknowledged = 0;
        self.recover = newest;
    }

    /// What was not sent again was acknowledged: the timeout came too early (as by RFC 3522, Eifel).
    pub(super) fn on_late_answer(&mut self) {
        if let Some(size) = self.before_timeout.take() {
            self.size = size;
        }
    }

    /// Something was acknowledged.
    pub(super) fn on_progress(&mut self) {
        self.before_timeout = None;
    }

    /// Something in flight was lost, or a switch on the way was full: everything up to `newest` was sent before.
    pub(super) fn on_loss(&mut self, oldest: u64, newest: u64) {
        if oldest >= self.recover {
            self.size = (self.size / 2).max(LEAST);
            self.threshold = self.size;
            self.acknowledged = 0;
            self.recover = newest;
        }
    }
}

/// What a datagram that comes alone takes of a socket's receive buffer beside twice its bytes. The kernel counts what it
/// allocates (`skb->truesize`): 256 bytes for its own structure, and the datagram with headers and 320 bytes behind it,
/// rounded up to a power of two. On loopback 4096 bytes of payload take 8448 bytes, 256 take 1280.
const OVERHEAD: u64 = 1056;

/// What a datagram in a batch takes beside its bytes, also where the batch is cut before it arrives: the payload lies in
/// pages then, and is counted as it is.
const BATCHED_OVERHEAD: u64 = 832;

/// What `packets` packets of a batch with `bytes` bytes of payload in all take of a receive buffer at the most.
pub(super) fn batched_charge(packets: u64, bytes: u64) -> u64 {
    packets.saturating_mul(BATCHED_OVERHEAD).saturating_add(bytes)
}

/// The most payload of a packet. One may be in flight in any case.
const LARGEST: u64 = 4096;

/// What `packets` packets that come alone, with `bytes` bytes of payload in all, take of a receive buffer at the most.
pub(super) fn charge(packets: u64, bytes: u64) -> u64 {
    packets.saturating_mul(OVERHEAD).saturating_add(bytes.saturating_mul(2))
}

/// What a receive buffer holds, and what is on the way to it.
struct Budget {
    limit: u64,
    in_flight: u64,
    users: u32,
    /// Who waits, and for how much.
    waiting: VecDeque<(Qpn, u64)>,
}

/// Names a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BudgetId {
    /// The own socket's receive buffer: what READs ask for.
    Own,
    /// A peer device's, by its place.
    Peer(usize),
    /// That of a peer that told nothing of it.
    Unknown,
}

/// The budgets of an engine. One of a peer device is shared by all queue pairs that send to it.
pub(super) struct Budgets {
    own: Option<Budget>,
    /// Each at its place for as long as it has users.
    peers: Vec<Option<Budget>>,
    /// The places.
    places: FxHashMap<SocketAddr, usize>,
    /// How many queue pairs wait for room in any of them.
    waiting: usize,
}

impl Budgets {
    pub(super) fn new(own: Option<u32>) -> Self {
        Self { own: own.map(Budget::new), peers: Vec::new(), places: FxHashMap::default(), waiting: 0 }
    }

    /// A queue pair with this peer comes. Of different limits the smallest holds.
    pub(super) fn join(&mut self, peer: SocketAddr, limit: u32) -> BudgetId {
        let place = *self.places.entry(peer).or_insert_with(|| {
            let free = self.peers.iter().position(Option::is_none);
            free.unwrap_or_else(|| {
                self.peers.push(None);
                self.peers.len() - 1
            })
        });
        if let Some(at) = self.peers.get_mut(place) {
            let budget = at.get_or_insert_with(|| Budget::new(limit));
            budget.limit = budget.limit.min(usable(limit));
            budget.users += 1;
        }
        BudgetId::Peer(place)
    }

    /// A queue pair with this peer goes.
    pub(super) fn leave(&mut self, peer: SocketAddr) {
        let Some(at) = self.places.get(&peer).and_then(|place| self.peers.get_mut(*place)) else { return };
        let Some(budget) = at else { return };
        budget.users = budget.users.saturating_sub(1);
        if budget.users == 0 {
            self.waiting = self.waiting.saturating_sub(budget.waiting.len());
            *at = None;
            self.places.remove(&peer);
        }
    }

    fn get(&mut self, id: BudgetId) -> Option<&mut Budget> {
        match id {
            BudgetId::Own => self.own.as_mut(),
            BudgetId::Peer(place) => self.peers.get_mut(place)?.as_mut(),
            BudgetId::Unknown => None,
        }
    }

    /// How much more may be in flight; at least something while nothing is.
    pub(super) fn room(&mut self, id: BudgetId) -> u64 {
        match self.get(id) {
            None => u64::MAX,
            Some(budget) if budget.in_flight == 0 => budget.limit.max(charge(1, LARGEST)),
            Some(budget) => budget.limit.saturating_sub(budget.in_flight),
        }
    }

    pub(super) fn take(&mut self, id: BudgetId, charge: u64) {
        if let Some(budget) = self.get(id) {
            budget.in_flight = budget.in_flight.saturating_add(charge);
        }
    }

    pub(super) fn give_back(&mut self, id: BudgetId, charge: u64) {
        if let Some(budget) = self.get(id) {
            budget.in_flight = budget.in_flight.saturating_sub(charge);
        }
    }

    /// Whether queue pairs wait for room.
    pub(super) fn is_crowded(&self) -> bool {
        self.waiting > 0
    }

    /// Puts a queue pair in the line of those that wait for room for `charge`.
    pub(super) fn wait(&mut self, id: BudgetId, qpn: Qpn, charge: u64) {
        if let Some(budget) = self.get(id) {
            budget.waiting.push_back((qpn, charge));
            self.waiting += 1;
        }
    }

    /// Whether any queue pair waits for room anywhere.
    pub(super) fn is_waited_for(&self) -> bool {
        self.waiting > 0
    }

    /// The next in line, if there is room for it. Each one that has had its turn lets in another, so that a thousand are not
    /// woken for the room of one.
    pub(super) fn next_waiting(&mut self, id: BudgetId) -> Option<Qpn> {
        let room = self.room(id);
        let budget = self.get(id)?;
        let (_, charge) = budget.waiting.front()?;
        if *charge > room && budget.in_flight > 0 {
            return None;
        }
        let (next, _) = budget.waiting.pop_front()?;
        self.waiting = self.waiting.saturating_sub(1);
        Some(next)
    }
}

fn usable(limit: u32) -> u64 {
    u64::from(limit) / 4 * 3
}

impl Budget {
    /// Up to a quarter of a receive buffer stays taken after it was read (`udp_rmem_release` in the kernel's net/ipv4/udp.c).
    fn new(limit: u32) -> Self {
        Self { limit: usable(limit), in_flight: 0, users: 0, waiting: VecDeque::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_halves_once_per_loss_and_grows_by_acknowledgement() {
        let mut window = CongestionWindow::new(64, 128);
        window.on_acknowledged(64);
        assert_eq!(window.size(), 128);
        window.on_loss(100, 200);
        window.on_loss(150, 228);
        assert_eq!(window.size(), 64, "what was sent before the first loss was noticed is the same loss");
        window.on_loss(200, 264);
        assert_eq!(window.size(), 32);
        window.on_acknowledged(31);
        assert_eq!(window.size(), 32);
        window.on_acknowledged(1);
        assert_eq!(window.size(), 33);
        (1..20).for_each(|n| window.on_loss(1000 * n, 1000 * n + 1));
        assert_eq!(window.size(), LEAST);
    }

    #[test]
    fn a_timeout_leaves_one_packet_and_is_undone_if_it_came_too_early() {
        let mut window = CongestionWindow::new(64, 128);
        window.on_timeout(64);
        window.on_timeout(64);
        assert_eq!(window.size(), 1);
        window.on_late_answer();
        assert_eq!(window.size(), 64);
        window.on_timeout(64);
        window.on_progress();
        window.on_late_answer();
        window.on_acknowledged(1);
        assert_eq!(window.size(), 2, "it was not too early");
        (0..10).for_each(|_| window.on_acknowledged(10));
        assert_eq!(window.size(), 33, "quickly to half of what it was, slowly from there");
    }

    #[test]
    fn a_budget_is_shared_by_those_with_the_same_peer() {
        let peer: SocketAddr = "10.0.0.1:4791".parse().unwrap();
        let mut budgets = Budgets::new(None);
        assert_eq!(budgets.room(BudgetId::Own), u64::MAX);
        let id = budgets.join(peer, 20_000);
        assert_eq!(budgets.join(peer, 13_336), id);
        budgets.take(id, 9_002);
        assert_eq!(budgets.room(id), 1_000, "the smaller limit holds");
        let (one, other) = (Qpn::new(0x100).unwrap(), Qpn::new(0x101).unwrap());
        budgets.wait(id, one, 1_500);
        budgets.wait(id, other, 1_500);
        assert_eq!(budgets.next_waiting(id), None, "there is some room, but not enough");
        budgets.take(id, 2_000);
        assert_eq!((budgets.room(id), budgets.next_waiting(id)), (0, None));
        budgets.give_back(id, 3_002);
        assert_eq!((budgets.next_waiting(id), budgets.next_waiting(id)), (Some(one), Some(other)));
        budgets.leave(peer);
        let next = budgets.join("10.0.0.2:4791".parse().unwrap(), 4_000);
        assert_ne!(next, id, "its place is not free yet");
        budgets.leave(peer);
        assert_eq!(budgets.room(id), u64::MAX);
        assert_eq!((budgets.join(peer, 20_000), budgets.room(id)), (id, 15_000));
    }
}
