//! The requester: which request, or which part of one, is sent next, and when it is sent again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{Psn, QpAttr};
use secure_rdma_rdma::{QpState, SendFlags, SendOperation, WcStatus};

use super::config::Config;
use super::packetizer::Batch;
use super::path::Flows;
use super::queue_pair::{QueuePair, Shared};
use super::requests::Part;
use super::sequence::Sequence;
use super::timers::{RoundTrip, timeout_of};
use super::window::{BudgetId, CongestionWindow, charge};
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
    /// READs and atomics on the wire, as the ranges of PSNs that were asked for.
    pub(super) reads: VecDeque<(u64, u64)>,
    pub(super) limits: Limits,
    pub(super) window: CongestionWindow,
    /// Packets since the last that asked for an acknowledgement.
    unasked: u32,
    /// What this queue pair has in flight to the peer's receive buffer, and to the own.
    pub(super) charged: (u64, u64),
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

/// When what is outstanding is sent again, and when it is given up.
pub(super) struct Clock {
    /// When the oldest outstanding request was first sent, or the last progress was made.
    pub(super) progress: Option<Instant>,
    /// The retransmission timer.
    deadline: Option<Instant>,
    /// How often it ran out since the last progress.
    expired: u32,
    /// The end of the wait that an RNR NAK asked for.
    pub(super) rnr_until: Option<Instant>,
    pub(super) rnr_naks: u32,
    pub(super) round_trip: RoundTrip,
    /// A PSN that was sent once, and when.
    pub(super) probe: Option<(u64, Instant)>,
}

impl Requester {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            sequence: Sequence::default(),
            works: VecDeque::new(),
            posted: 0,
            oldest: 0,
            newest: 0,
            next: 0,
            cursor: (0, 0),
            reads: VecDeque::new(),
            limits: Limits::default(),
            window: CongestionWindow::new(config.initial_window, config.max_window),
            unasked: 0,
            charged: (0, 0),
            clock: Clock {
                progress: None,
                deadline: None,
                expired: 0,
                rnr_until: None,
                rnr_naks: 0,
                round_trip: RoundTrip::new(),
                probe: None,
            },
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

    /// Whether a turn to send may bring something.
    pub(super) fn wants_to_send(&self, state: QpState) -> bool {
        let Some(work) = self.works.get(self.cursor.0) else { return false };
        matches!(state, QpState::Rts | QpState::Sqd)
            && self.clock.rnr_until.is_none()
            && self.in_flight() < u64::from(self.window.size())
            && if work.is_local() { work.done } else { self.may_begin(work, state) || self.fails(work) }
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.next.saturating_sub(self.oldest)
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
    pub(super) fn go_back(&mut self, shared: &mut Shared, flows: &Flows) {
        self.next = self.oldest;
        let first = self.works.front().map_or(self.oldest, |work| work.first);
        self.cursor = (0, u32::try_from(self.oldest.saturating_sub(first)).unwrap_or(u32::MAX));
        self.unasked = 0;
        self.clock.probe = None;
        self.release(shared, flows, self.charged);
        shared.counters.completer_retry_err += 1;
    }

    /// Gives back what is not in flight any more.
    pub(super) fn release(&mut self, shared: &mut Shared, flows: &Flows, (peer, own): (u64, u64)) {
        let (peer, own) = (peer.min(self.charged.0), own.min(self.charged.1));
        self.charged = (self.charged.0 - peer, self.charged.1 - own);
        for (id, charge) in [(BudgetId::Peer(flows.path.peer), peer), (BudgetId::Own, own)] {
            if charge > 0 {
                shared.budgets.give_back(id, charge);
            }
        }
    }

    // -- timers -----------------------------------------------------------------------------------------------------

    /// Something was acknowledged: everything that counts failures begins anew.
    pub(super) fn progressed(&mut self, now: Instant) {
        self.clock.progress = Some(now);
        self.clock.deadline = None;
        self.clock.expired = 0;
        self.clock.rnr_until = None;
        self.clock.rnr_naks = 0;
        self.went_back = None;
        if let Some((count, sent)) = self.clock.probe
            && count < self.oldest
        {
            self.clock.probe = None;
            self.clock.round_trip.measured(now.saturating_duration_since(sent));
        }
    }

    /// Starts the timer where something is outstanding and it does not run, and stops it where nothing is.
    pub(super) fn rearm(&mut self, now: Instant, config: &Config) {
        let clock = &mut self.clock;
        let Some(timeout) =
            self.limits.timeout.filter(|_| self.oldest < self.newest && clock.rnr_until.is_none())
        else {
            clock.deadline = None;
            if self.oldest >= self.newest {
                clock.progress = None;
            }
            return;
        };
        let progress = *clock.progress.get_or_insert(now);
        if clock.deadline.is_some() {
            return;
        }
        let after = |start: Instant, wait: Duration| start.checked_add(wait).unwrap_or(start);
        let death = after(progress, timeout.saturating_mul(u32::from(self.limits.retry_count) + 1));
        let next = if config.adaptive_timeout {
            let wait = clock.round_trip.timeout(config.min_timeout);
            after(now, wait.saturating_mul(1 << clock.expired.min(16)).min(timeout))
        } else {
            after(progress, timeout.saturating_mul(clock.expired.saturating_add(1)))
        };
        clock.deadline = Some(next.min(death));
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clock.rnr_until.or(self.clock.deadline)
    }

    fn is_dead(&self, now: Instant) -> bool {
        let (Some(progress), Some(timeout)) = (self.clock.progress, self.limits.timeout) else {
            return false;
        };
        let span = timeout.saturating_mul(u32::from(self.limits.retry_count) + 1);
        now.saturating_duration_since(progress) >= span
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

    pub(super) fn stop_timers(&mut self) {
        self.clock.deadline = None;
        self.clock.rnr_until = None;
        self.clock.progress = None;
    }
}

impl QueuePair {
    /// The requester's timer came up, or its wait after an RNR NAK is over, or neither.
    pub(super) fn requester_timeout(&mut self, shared: &mut Shared, now: Instant) {
        let requester = &mut self.requester;
        if requester.clock.rnr_until.is_some_and(|until| until <= now) {
            requester.clock.rnr_until = None;
            requester.clock.progress = Some(now);
            requester.clock.expired = 0;
        }
        if requester.clock.rnr_until.is_some()
            || requester.clock.deadline.is_none_or(|deadline| deadline > now)
        {
            return;
        }
        let Some(flows) = &self.flows else { return };
        requester.clock.deadline = None;
        shared.counters.timeouts += 1;
        if requester.is_dead(now) {
            shared.counters.retry_exceeded_err += 1;
            return self.fail_first(shared, WcStatus::RETRY_EXC_ERR);
        }
        requester.clock.expired = requester.clock.expired.saturating_add(1);
        requester.went_back = None;
        requester.window.on_loss(requester.oldest, requester.newest);
        requester.go_back(shared, flows);
    }

    /// Appends packets of requests as far as the windows allow.
    pub(super) fn send_requests(&mut self, shared: &mut Shared, now: Instant, batch: &mut Batch<'_>) {
        let Some(flows) = &self.flows else { return };
        let requester = &mut self.requester;
        let peer = BudgetId::Peer(flows.path.peer);
        let mut room = (shared.budgets.room(peer), shared.budgets.room(BudgetId::Own));
        let charged = requester.charged;
        let mut short_of = None;
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
            let window = u64::from(requester.window.size());
            let in_flight = requester.in_flight();
            if !requester.may_begin(work, self.state) || in_flight >= window {
                break;
            }
            let again = requester.next < requester.newest;
            let depth = requester.limits.max_rd_atomic;
            let part = Part::next(requester, work, flows.mtu, window - in_flight, depth, room.1);
            let length = part.packet_length(work);
            if !batch.fits(length) {
                break;
            }
            if part.charge.0 > room.0 || part.charge.1 > room.1 {
                short_of = Some(match part.charge {
                    (charge, _) if charge > room.0 => (peer, charge),
                    (_, charge) => (BudgetId::Own, charge),
                });
                break;
            }
            room = (room.0 - part.charge.0, room.1 - part.charge.1);

            // An acknowledgement is asked for at the end of a message, every so often within one, and before the window
            // or the budget stops us: else nothing would tell that they may move on.
            let interval = shared.config.ack_interval.min(requester.window.size() / 2).max(1);
            let stops = in_flight + part.packets >= window || room.0 < charge(1, flows.mtu as u64);
            let asks = part.ends || requester.unasked + 1 >= interval || stops;
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
            requester.charged.0 = requester.charged.0.saturating_add(part.charge.0);
            requester.charged.1 = requester.charged.1.saturating_add(part.charge.1);
            requester.step(part.packets);
        }
        shared.budgets.take(peer, requester.charged.0 - charged.0);
        shared.budgets.take(BudgetId::Own, requester.charged.1 - charged.1);
        if let Some((id, charge)) = short_of
            && batch.is_empty()
        {
            self.standing.waiting = true;
            shared.budgets.wait(id, self.qpn, charge);
        }
    }

    /// Carries out local operations whose turn it is, and ends those at the front of the send queue.
    pub(super) fn run_local_operations(&mut self, shared: &mut Shared) {
        if !matches!(self.state, QpState::Rts | QpState::Sqd) {
            return;
        }
        loop {
            if self.end_first(shared) {
                continue;
            }
            let index = self.requester.cursor.0;
            let (newest, next) = (self.requester.newest, self.requester.next);
            let Some(work) = self.requester.works.get_mut(index) else { return };
            if !work.is_local() || next < newest || work.failed.is_some() {
                return;
            }
            if !work.done {
                let fenced =
                    work.request.flags.contains(SendFlags::FENCE) && !self.requester.reads.is_empty();
                // A LOCAL_INV waits for everything before it (IBTA 10.6.5.1; so does rxe, `rxe_requester`).
                let waits = matches!(work.request.operation, SendOperation::Invalidate { .. }) && index > 0;
                if fenced || waits || self.state == QpState::Sqd {
                    return;
                }
                match run(self.qpn, shared, work) {
                    Ok(()) => work.done = true,
                    Err(status) => work.failed = Some(status),
                }
            }
            if work.done {
                self.requester.step(0);
            }
        }
    }

    /// Ends the first work if it is a local operation that is done, or has failed. Tells whether there was one.
    fn end_first(&mut self, shared: &mut Shared) -> bool {
        let Some(first) = self.requester.works.front() else { return false };
        match first.failed {
            Some(status) => {
                self.fail_first(shared, status);
                true
            }
            None if first.done => {
                self.complete_first(shared);
                true
            }
            None => false,
        }
    }
}

/// Carries out a bind or an invalidation.
fn run(qpn: secure_rdma_rdma::Qpn, shared: &mut Shared, work: &Work) -> Result<(), WcStatus> {
    const MW_BIND_ERR: WcStatus = WcStatus(6);
    match &work.request.operation {
        SendOperation::Bind { window, rkey, target, access } => {
            let id = window.as_any().downcast_ref().copied().ok_or(MW_BIND_ERR)?;
            let lkey = target.region.lkey();
            shared
                .regions
                .bind(qpn, id, *rkey, lkey, target.offset, target.length, *access)
                .map_err(|_| MW_BIND_ERR)?;
            shared.counters.binds += 1;
        }
        SendOperation::Invalidate { rkey } => {
            shared.regions.invalidate(qpn, *rkey).map_err(|_| WcStatus::LOC_QP_OP_ERR)?;
            shared.counters.invalidates += 1;
        }
        _ => {}
    }
    Ok(())
}
