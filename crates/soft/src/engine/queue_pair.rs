//! A queue pair: its parts, and what all of them share.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    Access, AsyncEvent, Completion, CompletionKind, QpState, Qpn, RKey, Slice, WcStatus, WorkId,
};
use smallvec::SmallVec;

use super::config::{Config, QueuePairCaps};
use super::congestion::Notices;
use super::counters::Counters;
use super::defects::Defect;
use super::packetizer::Batch;
use super::path::{Flows, Transmit};
use super::receive_queue::{PostedReceive, ReceiveQueues};
use super::regions::Regions;
use super::requester::Requester;
use super::responder::Responder;
use super::retired::Retired;
use super::schedule::{Schedule, Standing};
use super::timers::Timers;
use super::window::{BudgetId, Budgets};

/// How many entries of an empty queue an idle queue pair keeps room for.
const KEPT: usize = 64;

/// What the queue pairs of an engine share.
pub(super) struct Shared {
    pub(super) config: Config,
    /// How long an acknowledgement may stay behind now.
    pub(super) ack_hold: Duration,
    pub(super) counters: Counters,
    pub(super) regions: Regions,
    pub(super) receive_queues: ReceiveQueues,
    pub(super) budgets: Budgets,
    /// Queue pairs whose peer knows nothing of the own receive buffer.
    pub(super) unpaced: usize,
    /// Whether packets have come that are still to be handled.
    pub(super) backlog: bool,
    /// Queue pairs with a gap that is to be reported behind them.
    pub(super) gaps: Vec<Qpn>,
    pub(super) schedule: Schedule,
    pub(super) timers: Timers,
    pub(super) events: VecDeque<(Qpn, AsyncEvent)>,
    pub(super) retired: Retired,
}

/// One queue pair. What it does is in the files of its parts; each entry from outside ends with [`QueuePair::settle`].
pub(super) struct QueuePair {
    pub(super) qpn: Qpn,
    pub(super) caps: QueuePairCaps,
    pub(super) state: QpState,
    /// What the peer may do.
    pub(super) access: Access,
    /// From RTR on.
    pub(super) flows: Option<Flows>,
    pub(super) requester: Requester,
    pub(super) responder: Responder,
    /// Of the own receive queue.
    pub(super) receives: VecDeque<PostedReceive>,
    pub(super) notices: Notices,
    completions: VecDeque<Completion>,
    /// Completions not polled yet, which still take room in their queue.
    sends_unpolled: u32,
    receives_unpolled: u32,
    pub(super) standing: Standing,
    /// Whether the last batch began with requests.
    requests_first: bool,
    /// Whether an answer had no room in the last batch.
    answers_late: bool,
    /// The earliest entry among the timers.
    scheduled: Option<Instant>,
}

impl QueuePair {
    pub(super) fn new(qpn: Qpn, caps: QueuePairCaps, config: &Config) -> Self {
        Self {
            qpn,
            caps,
            state: QpState::Reset,
            access: Access::empty(),
            flows: None,
            requester: Requester::new(config),
            responder: Responder::default(),
            receives: VecDeque::new(),
            notices: Notices::default(),
            completions: VecDeque::new(),
            sends_unpolled: 0,
            receives_unpolled: 0,
            standing: Standing::default(),
            requests_first: false,
            answers_late: false,
            scheduled: None,
        }
    }

    // -- room and completions ---------------------------------------------------------------------------------------

    /// Whether another send can be posted: its completion has room then, too.
    pub(super) fn has_send_room(&self) -> bool {
        self.requester.outstanding() + (self.sends_unpolled as usize) < self.caps.max_send as usize
    }

    pub(super) fn has_receive_room(&self) -> bool {
        let coming = usize::from(self.responder.receive.is_some());
        self.receives.len() + coming + (self.receives_unpolled as usize) < self.caps.max_receive as usize
    }

    /// Takes the oldest receive. Of a shared queue only while the completion has room.
    pub(super) fn take_receive(&mut self, shared: &mut Shared) -> Option<PostedReceive> {
        match self.caps.receive_queue {
            None => self.receives.pop_front(),
            Some(_) if self.receives_unpolled >= self.caps.max_receive => None,
            Some(queue) => shared.receive_queues.take(queue),
        }
    }

    /// Ends a send.
    pub(super) fn complete_send(
        &mut self,
        shared: &mut Shared,
        id: WorkId,
        local: SmallVec<[Slice; 1]>,
        status: WcStatus,
        byte_len: u32,
    ) {
        if shared.config.planted(Defect::CountNeverReleased) && id.0 % 61 == 7 {
            std::mem::forget(local);
        } else {
            shared.retired.slices(local);
        }
        self.sends_unpolled += 1;
        self.completed(shared, completion(id, CompletionKind::Send, status, byte_len));
    }

    /// Ends a receive with an error.
    pub(super) fn fail_receive(&mut self, shared: &mut Shared, receive: PostedReceive, status: WcStatus) {
        self.complete_receive(shared, receive, completion_of_receive(status));
    }

    /// Ends a receive; `how` is its completion but for the number.
    pub(super) fn complete_receive(&mut self, shared: &mut Shared, receive: PostedReceive, how: Completion) {
        shared.retired.slices(receive.local);
        self.receives_unpolled += 1;
        self.completed(shared, Completion { id: receive.id, ..how });
    }

    fn completed(&mut self, shared: &mut Shared, completion: Completion) {
        if completion.status == WcStatus::WR_FLUSH_ERR {
            shared.counters.flushed += 1;
        }
        if shared.config.planted(Defect::CompletionLost) && completion.id.0 % 61 == 7 {
            return;
        }
        self.completions.push_back(completion);
        shared.schedule.news(self.qpn, &mut self.standing);
    }

    /// Hands all completions out. Tells whether there were any.
    pub(super) fn poll_completions(&mut self, into: &mut Vec<Completion>) -> bool {
        let any = !self.completions.is_empty();
        into.extend(self.completions.drain(..));
        if self.completions.capacity() > KEPT {
            self.completions = VecDeque::new();
        }
        (self.sends_unpolled, self.receives_unpolled) = (0, 0);
        any
    }

    /// Forgets all completions.
    pub(super) fn forget_completions(&mut self) {
        self.completions = VecDeque::new();
        (self.sends_unpolled, self.receives_unpolled) = (0, 0);
    }

    // -- taking turns -----------------------------------------------------------------------------------------------

    /// Does what has become possible, and takes a place in the lines for what is to be done later.
    pub(super) fn settle(&mut self, shared: &mut Shared, now: Instant) {
        self.run_local_operations(shared);
        self.queue_up(shared);
        self.requester.rearm(now, &shared.config);
        if let Some(deadline) = self.requester.deadline() {
            shared.timers.set(self.qpn, &mut self.scheduled, deadline);
        }
    }

    /// The receive buffer that its requests go to.
    pub(super) fn budget(&self) -> Option<BudgetId> {
        self.flows.as_ref().map(|flows| flows.budget)
    }

    fn queue_up(&mut self, shared: &mut Shared) {
        if self.responder.answers_soon() || self.notices.is_due() {
            shared.schedule.urgent(self.qpn, &mut self.standing);
        }
        // What is sent again takes no more room, so it waits for none: else what it has taken would stay taken.
        let waits = !self.requester.has_more() || (self.standing.waiting && !self.requester.repeats());
        let wants = |flows: &Flows| {
            let room = shared.budgets.room(flows.budget);
            let places = self.requester.places(room, shared.budgets.is_crowded(), flows.mtu);
            self.requester.wants_to_send(self.state, flows.mtu, places)
        };
        let requests = !waits && self.flows.as_ref().is_some_and(wants);
        if requests || self.responder.answers_reads() {
            shared.schedule.ready(self.qpn, &mut self.standing);
        }
    }

    /// The queue pair's turn to send one batch.
    pub(super) fn transmit(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        mut batch: Batch<'_>,
    ) -> Option<Transmit> {
        self.send_notice(shared, &mut batch);
        let notice = !batch.is_empty();
        let sends = !notice && matches!(self.state, QpState::Rts | QpState::Sqd);
        // READ responses and requests take turns, so that a peer who reads without end does not hold up our requests.
        // Acknowledgements come after requests: what was posted may answer what is acknowledged, and where there is room
        // in one batch for both the peer wakes once. For want of room they go first the next time.
        let reads = self.responder.answers_reads();
        self.requests_first = if reads { !self.requests_first } else { !self.answers_late };
        if sends && self.requests_first {
            self.send_requests(shared, now, &mut batch);
        }
        let requests = !notice && !batch.is_empty();
        if !(notice || (requests && reads) || self.holds_answers(shared, now, requests)) {
            self.send_answers(shared, &mut batch);
        }
        self.answers_late = requests && !reads && self.responder.answers_soon();
        if sends && !self.requests_first && batch.is_empty() {
            self.send_requests(shared, now, &mut batch);
        }
        batch.seal();
        self.settle(shared, now);
        let flows = self.flows.as_ref().filter(|_| !batch.is_empty())?;
        shared.counters.sent_pkts += batch.segments() as u64;
        Some(flows.transmit(self.qpn, &batch, notice, shared.config.ecn))
    }

    /// Its entry among the timers came up.
    pub(super) fn handle_timeout(&mut self, shared: &mut Shared, now: Instant, entry: Instant) {
        if self.scheduled.is_some_and(|scheduled| scheduled <= entry) {
            self.scheduled = None;
        }
        self.requester_timeout(shared, now);
        self.requester.rest(KEPT);
        self.settle(shared, now);
    }

    /// Bytes that it takes, without what is in use.
    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        size_of::<Self>()
            + self.completions.capacity() * size_of::<Completion>()
            + self.receives.capacity() * size_of::<PostedReceive>()
            + self.requester.memory()
            + self.responder.memory()
    }
}

/// A completion of which only these are known.
pub(super) fn completion(id: WorkId, kind: CompletionKind, status: WcStatus, byte_len: u32) -> Completion {
    Completion { id, kind, status, byte_len, immediate: None, invalidated: None, vendor_error: 0 }
}

fn completion_of_receive(status: WcStatus) -> Completion {
    completion(WorkId(0), CompletionKind::Receive, status, 0)
}

/// The completion of a message that has come.
pub(super) fn received(
    kind: CompletionKind,
    byte_len: u32,
    immediate: Option<u32>,
    invalidated: Option<RKey>,
) -> Completion {
    Completion { immediate, invalidated, ..completion(WorkId(0), kind, WcStatus::SUCCESS, byte_len) }
}
