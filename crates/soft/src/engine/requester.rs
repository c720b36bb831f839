//! The requester: which request, or which part of one, is sent next, and when it is sent again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{Psn, QpAttr};
use secure_rdma_rdma::{QpState, SendFlags, WcStatus};

use super::config::Config;
use super::defects::Defect;
use super::packetizer::Batch;
use super::path::Flows;
use super::queue_pair::{QueuePair, Shared};
use super::requests::Part;
use super::retransmission::Clock;
use super::sequence::Sequence;
use super::timers::timeout_of;
use super::window::{BudgetId, CongestionWindow, batched_charge, charge};
use super::work::Work;

/// The send queue, and where on it the requester is. PSNs are counts (see [`Sequence`]).
pub(super) struct Requester {
    pub(super) sequence: Sequence,
    pub(super) works: VecDeque<Work>,
    /// The first PSN of the next request to be posted.
    pub(super) posted: u64,
    /// The oldest PSN that is not acknowledged. Always within the first work, or at its start.
    pub(super) oldest: u64,
    /// One past the newest PSN that was ever sent, READ responses that were asked for among them.
    pub(super) newest: u64,
    /// The PSN to be sent next: older than `newest` after going back.
    pub(super) next: u64,
    /// Where `next` is: the index of a work, and a packet within it.
    pub(super) cursor: (usize, u32),
    /// The PSN at which a READ has been sent again with its key, and now goes without.
    pub(super) named: Option<u64>,
    /// READs and atomics on the wire, as the ranges of PSNs that were asked for.
    pub(super) reads: VecDeque<(u64, u64)>,
    pub(super) limits: Limits,
    pub(super) window: CongestionWindow,
    /// Packets since the last that asked for an acknowledgement.
    pub(super) unasked: u32,
    /// Whether the packets of a long message, and the responses to a long READ, come in batches.
    pub(super) batches: bool,
    /// The most packets in one batch.
    pub(super) max_segments: usize,
    /// What this queue pair has in flight to the peer's receive buffer, and to the own.
    pub(super) charged: (u64, u64),
    /// Up to which PSN that is so. A packet that is sent again takes no more: its first copy may still be there.
    pub(super) charged_to: u64,
    pub(super) clock: Clock,
    /// Where a NAK has made us go back to: another that says the same is of the same loss.
    pub(super) went_back: Option<u64>,
}

/// What RTR→RTS sets.
#[derive(Default)]
pub(super) struct Limits {
    pub(super) timeout: Option<Duration>,
    pub(super) retry_count: u8,
    pub(super) rnr_retry: u8,
    pub(super) max_rd_atomic: u8,
}

impl Requester {
    /// What packets of `work` with `bytes` bytes of payload in all take of a receive buffer. Those of a long message come
    /// in batches; a short message may come alone.
    pub(super) fn charge(&self, work: &Work, packets: u64, bytes: u64) -> u64 {
        if self.batches && work.packets > 1 { batched_charge(packets, bytes) } else { charge(packets, bytes) }
    }

    pub(super) fn new(config: &Config) -> Self {
        Self {
            sequence: Sequence::default(),
            works: VecDeque::new(),
            posted: 0,
            oldest: 0,
            newest: 0,
            next: 0,
            cursor: (0, 0),
            named: None,
            reads: VecDeque::new(),
            limits: Limits::default(),
            window: CongestionWindow::new(config.initial_window, config.max_window),
            unasked: 0,
            batches: config.batches,
            max_segments: config.max_segments,
            charged: (0, 0),
            charged_to: 0,
            clock: Clock::new(),
            went_back: None,
        }
    }

    /// Takes what a transition sets.
    pub(super) fn set(&mut self, attr: &QpAttr) {
        let limits = &mut self.limits;
        if let Some(code) = attr.timeout {
            limits.timeout = timeout_of(code);
        }
        limits.retry_count = attr.retry_count.unwrap_or(limits.retry_count);
        limits.rnr_retry = attr.rnr_retry.unwrap_or(limits.rnr_retry);
        limits.max_rd_atomic = attr.max_rd_atomic.unwrap_or(limits.max_rd_atomic);
        if let Some(psn) = attr.sq_psn {
            self.start_at(psn);
        }
    }

    fn start_at(&mut self, psn: Psn) {
        self.sequence = Sequence::new(psn);
    }

    /// Sends that have not completed.
    pub(super) fn outstanding(&self) -> usize {
        self.works.len()
    }

    /// Whether there is a request at the cursor.
    pub(super) fn has_more(&self) -> bool {
        self.cursor.0 < self.works.len()
    }

    /// Whether a turn to send may bring something, with `places` in the peer's receive buffer.
    pub(super) fn wants_to_send(&self, state: QpState, mtu: usize, places: u64) -> bool {
        let Some(work) = self.works.get(self.cursor.0) else { return false };
        let open = self.window_size().saturating_sub(self.in_flight());
        matches!(state, QpState::Rts | QpState::Sqd)
            && self.clock.rnr_until.is_none()
            && open > 0
            && if work.is_local() {
                work.done
            } else {
                (self.may_begin(work, state) && !self.waits_for_batch(work, mtu, places.min(open)))
                    || self.fails(work)
            }
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.next.saturating_sub(self.oldest)
    }

    /// How many PSNs may be outstanding: one more than there are READs of no bytes first, since the acknowledgement of what is
    /// behind them does for all.
    fn window_size(&self) -> u64 {
        let first = self.works.iter().take(usize::from(self.limits.max_rd_atomic));
        let needless = first.take_while(|work| work.asks_for_nothing()).count() as u64;
        let least = if needless > 0 { (needless + 1).min(u64::from(self.window.most())) } else { 0 };
        u64::from(self.window.size()).max(least)
    }

    /// Whether `work`, at which the cursor stands, may be sent now, as far as its predecessors and the state decide.
    fn may_begin(&self, work: &Work, state: QpState) -> bool {
        if work.failed.is_some() {
            return false;
        }
        if self.next < self.newest {
            return true;
        }
        // IBTA 10.8.3.3: a fence waits for earlier READs and atomics. In SQD only what was begun goes on.
        let begins = self.cursor.1 == 0;
        let fenced = work.request.flags.contains(SendFlags::FENCE) && !self.reads.is_empty();
        let depth = self.reads.len() < usize::from(self.limits.max_rd_atomic);
        !(begins && (fenced || state == QpState::Sqd)) && (depth || !work.is_answered())
    }

    /// Whether its turn would bring nothing but a failure, not known yet.
    fn fails(&self, work: &Work) -> bool {
        work.failed.is_none() && self.impossible(work).is_some()
    }

    /// Why a READ or an atomic cannot be sent at all.
    fn impossible(&self, work: &Work) -> Option<WcStatus> {
        if !work.is_answered() {
            None
        } else if self.limits.max_rd_atomic == 0 {
            Some(WcStatus::LOC_QP_OP_ERR)
        } else if !work.writable && work.length > 0 {
            Some(WcStatus::LOC_PROT_ERR)
        } else {
            None
        }
    }

    /// Whether the next packet has its room in the receive buffers already.
    pub(super) fn repeats(&self) -> bool {
        self.next < self.charged_to
    }

    /// Whether `work`, at which the cursor stands, goes once more without its key: a READ of no bytes that goes again, with
    /// nothing behind it.
    ///
    /// No key of it is looked at (IBTA C9-88), but rxe drops a READ that comes again with another key than it has kept: Linux
    /// 6.1 what it named, 6.12 none. Of both copies either answers one. Where something is behind, the acknowledgement of that
    /// will do, and 6.12 refuses what comes without a key. The one with it goes first: 6.1 refuses to answer twice what it has
    /// first had without.
    fn goes_without_key(&self, work: &Work) -> bool {
        let last = self.next < self.newest && self.next.saturating_add(1) == self.newest;
        last && work.asks_for_nothing() && self.named != Some(self.next)
    }

    /// Moves the cursor past `packets` PSNs.
    pub(super) fn step(&mut self, packets: u64) {
        self.next = self.next.saturating_add(packets);
        self.newest = self.newest.max(self.next);
        let (index, packet) = self.cursor;
        let packet = u64::from(packet).saturating_add(packets);
        let whole = self.works.get(index).is_none_or(|work| packet >= u64::from(work.packets));
        self.cursor = if whole { (index + 1, 0) } else { (index, u32::try_from(packet).unwrap_or(u32::MAX)) };
    }

    /// Sends everything from the oldest PSN that is not acknowledged again: go-back-N (IBTA 9.7.5.1.1).
    pub(super) fn go_back(&mut self, shared: &mut Shared) {
        self.next = self.oldest;
        self.named = None;
        let first = self.works.front().map_or(self.oldest, |work| work.first);
        self.cursor = (0, u32::try_from(self.oldest.saturating_sub(first)).unwrap_or(u32::MAX));
        self.unasked = 0;
        self.clock.probe = None;
        shared.counters.completer_retry_err += 1;
    }

    /// Gives back everything: nothing of it can be in flight any more.
    pub(super) fn release_all(&mut self, shared: &mut Shared, flows: &Flows) {
        self.release(shared, flows, self.charged);
        self.charged_to = self.oldest;
    }

    /// Gives back what is not in flight any more.
    pub(super) fn release(&mut self, shared: &mut Shared, flows: &Flows, (peer, own): (u64, u64)) {
        let (peer, own) = (peer.min(self.charged.0), own.min(self.charged.1));
        self.charged = (self.charged.0 - peer, self.charged.1 - own);
        for (id, charge) in [(flows.budget, peer), (BudgetId::Own, own)] {
            if charge > 0 {
                shared.budgets.give_back(id, charge);
            }
        }
    }

    /// Gives memory back while there is nothing to do.
    pub(super) fn rest(&mut self, kept: usize) {
        if self.works.is_empty() && self.works.capacity() > kept / 4 {
            self.works = VecDeque::new();
        }
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.works.capacity() * size_of::<Work>() + self.reads.capacity() * size_of::<(u64, u64)>()
    }
}

impl QueuePair {
    /// Appends packets of requests as far as the windows allow.
    pub(super) fn send_requests(&mut self, shared: &mut Shared, now: Instant, batch: &mut Batch<'_>) {
        let Some(flows) = &self.flows else { return };
        let requester = &mut self.requester;
        let peer = flows.budget;
        let mut room = (shared.budgets.room(peer), shared.budgets.room(BudgetId::Own));
        let charged = requester.charged;
        let mut short_of = None;
        let waited_for = shared.budgets.is_crowded();
        while requester.clock.rnr_until.is_none()
            && let Some(work) = requester.works.get(requester.cursor.0)
            && (!work.is_local() || work.done)
        {
            if work.is_local() {
                requester.step(0);
                continue;
            }
            if let Some(status) = requester.impossible(work) {
                if let Some(work) = requester.works.get_mut(requester.cursor.0) {
                    work.failed.get_or_insert(status);
                }
                break;
            }
            let over = shared.config.planted(Defect::WindowOffByOne);
            let window = requester.window_size() + u64::from(over);
            let in_flight = requester.in_flight();
            if !requester.may_begin(work, self.state) || in_flight >= window {
                break;
            }
            let places = requester.places(room.0, waited_for, flows.mtu).min(window - in_flight);
            if batch.is_empty() && requester.waits_for_batch(work, flows.mtu, places) {
                break;
            }
            let again = requester.next < requester.newest;
            let once_more = requester.goes_without_key(work);
            let depth = requester.limits.max_rd_atomic;
            let part = Part::next(requester, work, flows.mtu, window - in_flight, depth, room.1);
            let length = part.packet_length(work);
            if !batch.fits(length) {
                break;
            }
            let new = if requester.repeats() { (0, 0) } else { part.charge };
            // Who stands in the line takes nothing past it.
            if new.0 > room.0 || new.1 > room.1 || (self.standing.waiting && new != (0, 0)) {
                short_of = Some(match new {
                    (charge, _) if charge > room.0 => (peer, charge),
                    (_, charge) => (BudgetId::Own, charge),
                });
                break;
            }
            room = (room.0 - new.0, room.1 - new.1);

            // An acknowledgement is asked for at the end of a message, every so often within one, and before the window
            // or the budget stops us: else nothing would tell that they may move on. Where others wait, the next batch may
            // be long in coming, too.
            let interval = shared.config.ack_interval.min(requester.window.size() / 2).max(1);
            let last_charged = self.standing.waiting && requester.next + part.packets >= requester.charged_to;
            let stops =
                last_charged || in_flight + part.packets >= window || room.0 < charge(1, flows.mtu as u64);
            let crowded = shared.schedule.is_crowded() || shared.budgets.is_crowded();
            let ends = batch.ends_with(length)
                && (crowded
                    || requester.asks_after_batch(work, flows.mtu, places.saturating_sub(1), interval));
            let asks = part.ends || requester.unasked + 1 >= interval || stops || ends;
            if !part.push(work, flows, requester.sequence.psn(requester.next), asks, batch) {
                if let Some(work) = requester.works.get_mut(requester.cursor.0) {
                    work.failed = Some(WcStatus::LOC_PROT_ERR);
                }
                break;
            }
            shared.counters.sent_bytes += part.bytes as u64;
            shared.counters.retransmitted_pkts += u64::from(again);
            if !again && work.is_answered() {
                requester.reads.push_back((requester.next, requester.next.saturating_add(part.packets)));
            }
            if asks && !again && requester.clock.probe.is_none() {
                requester.clock.probe = Some((requester.next, now));
            }
            requester.unasked = if asks { 0 } else { requester.unasked + 1 };
            requester.charged.0 = requester.charged.0.saturating_add(new.0);
            requester.charged.1 = requester.charged.1.saturating_add(new.1);
            if shared.config.planted(Defect::CountReleasedEarly)
                && part.ends
                && let Some(work) = requester.works.get_mut(requester.cursor.0)
            {
                shared.retired.slices(std::mem::take(&mut work.request.local));
            }
            requester.charged_to = requester.charged_to.max(requester.next.saturating_add(part.packets));
            if once_more {
                requester.named = Some(requester.next);
            } else {
                requester.step(part.packets);
            }
        }
        shared.budgets.take(peer, requester.charged.0 - charged.0);
        shared.budgets.take(BudgetId::Own, requester.charged.1 - charged.1);
        if let Some((id, charge)) = short_of
            && batch.is_empty()
            && !self.standing.waiting
        {
            self.standing.waiting = true;
            shared.budgets.wait(id, self.qpn, charge);
        }
    }
}
