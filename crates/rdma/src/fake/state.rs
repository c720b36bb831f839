//! One queue pair's part of the world: attributes, queues and completions.

use std::collections::VecDeque;
use std::sync::Weak;
use std::time::Instant;

use super::world::World;
use crate::{
    Access, AddressVector, AsyncEvent, Completion, CompletionKind, PathMtu, QpAttr, QpState, Qpn,
    QueuePairConfig, QueuePairHandler, ReceiveRequest, SendRequest, WcStatus, WorkId,
};

/// Which queue pair: numbers are unique per device only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct QpKey {
    pub(super) device: usize,
    pub(super) qpn: Qpn,
}

pub(super) struct State {
    pub(super) state: QpState,
    pub(super) max_send: usize,
    pub(super) max_receive: usize,
    pub(super) max_sge: usize,
    /// The protection domain; 0 is the device's own.
    pub(super) domain: u64,
    /// The shared receive queue, by its number.
    pub(super) shared: Option<u64>,
    pub(super) handler: Weak<dyn QueuePairHandler>,
    pub(super) path: Path,
    pub(super) sends: VecDeque<SendRequest>,
    /// What was carried out, where the device hears of no answer.
    pub(super) unanswered: VecDeque<SendRequest>,
    pub(super) receives: VecDeque<ReceiveRequest>,
    pub(super) completions: VecDeque<Completion>,
    pub(super) events: VecDeque<AsyncEvent>,
    /// How many times in a row the oldest request has had no answer at all.
    pub(super) silences: u32,
    /// How many RNR NAKs the oldest request has met.
    pub(super) rnr_naks: u32,
    pub(super) wait_until: Option<Instant>,
    pub(super) in_line_to_send: bool,
    pub(super) in_line_to_tell: bool,
}

/// What transitions have set.
#[derive(Default)]
pub(super) struct Path {
    pub(super) port: u8,
    pub(super) access: Access,
    pub(super) address: Option<AddressVector>,
    pub(super) mtu: Option<PathMtu>,
    pub(super) peer: Option<Qpn>,
    /// The PSN that the next request from the peer must carry.
    pub(super) expected_psn: u32,
    /// The PSN that the next own request carries.
    pub(super) next_psn: u32,
    pub(super) timeout: u8,
    pub(super) retry_count: u8,
    pub(super) rnr_retry: u8,
    pub(super) min_rnr_timer: u8,
    pub(super) initiator_depth: u8,
    pub(super) responder_resources: u8,
}

impl Path {
    fn set(&mut self, attr: &QpAttr) {
        fn put<T: Clone>(place: &mut T, value: Option<&T>) {
            if let Some(value) = value {
                place.clone_from(value);
            }
        }
        put(&mut self.port, attr.port.as_ref());
        put(&mut self.access, attr.access.as_ref());
        self.address = attr.address.clone().or_else(|| self.address.take());
        self.mtu = attr.path_mtu.or(self.mtu);
        self.peer = attr.dest_qpn.or(self.peer);
        put(&mut self.expected_psn, attr.rq_psn.map(crate::Psn::expose).as_ref());
        put(&mut self.next_psn, attr.sq_psn.map(crate::Psn::expose).as_ref());
        put(&mut self.timeout, attr.timeout.as_ref());
        put(&mut self.retry_count, attr.retry_count.as_ref());
        put(&mut self.rnr_retry, attr.rnr_retry.as_ref());
        put(&mut self.min_rnr_timer, attr.min_rnr_timer.as_ref());
        put(&mut self.initiator_depth, attr.max_rd_atomic.as_ref());
        put(&mut self.responder_resources, attr.max_dest_rd_atomic.as_ref());
    }
}

impl State {
    pub(super) fn new(config: &QueuePairConfig, domain: u64, shared: Option<u64>) -> Self {
        Self {
            state: QpState::Reset,
            max_send: config.max_send as usize,
            max_receive: config.max_receive as usize,
            max_sge: config.max_sge as usize,
            domain,
            shared,
            handler: config.handler.clone(),
            path: Path::default(),
            sends: VecDeque::new(),
            unanswered: VecDeque::new(),
            receives: VecDeque::new(),
            completions: VecDeque::new(),
            events: VecDeque::new(),
            silences: 0,
            rnr_naks: 0,
            wait_until: None,
            in_line_to_send: false,
            in_line_to_tell: false,
        }
    }

    /// In SQD only what was begun is finished.
    pub(super) fn has_something_to_send(&self) -> bool {
        let begun = self.silences > 0 || self.rnr_naks > 0;
        !self.sends.is_empty() && (self.state == QpState::Rts || (self.state == QpState::Sqd && begun))
    }

    /// Whether requests of the peer are answered.
    pub(super) fn answers(&self) -> bool {
        matches!(self.state, QpState::Rtr | QpState::Rts | QpState::Sqd)
    }

    /// Room for send work requests: what is completed but not told still has its place, so that no completion
    /// can be lost.
    pub(super) fn send_room(&self) -> usize {
        let untold = self.completions.iter().filter(|done| done.kind == CompletionKind::Send).count();
        self.max_send.saturating_sub(self.sends.len() + self.unanswered.len() + untold)
    }

    /// The same for receives of its own receive queue.
    pub(super) fn receive_room(&self) -> usize {
        let untold = self.completions.iter().filter(|done| done.kind != CompletionKind::Send).count();
        self.max_receive.saturating_sub(self.receives.len() + untold)
    }

    pub(super) fn take_completions(&mut self, most: usize) -> Vec<Completion> {
        let count = self.completions.len().min(most);
        self.completions.drain(..count).collect()
    }
}

/// A failed or flushed work request's completion: nothing else of it means anything.
pub(super) fn failed(id: WorkId, kind: CompletionKind, status: WcStatus) -> Completion {
    Completion { id, kind, status, byte_len: 0, immediate: None, invalidated: None, vendor_error: 0 }
}

impl World {
    /// Adds a completion. A completion queue has `max_send + max_receive` places; only receives of a shared queue
    /// can exceed them.
    pub(super) fn complete(&mut self, key: QpKey, completion: Completion) {
        if self.devices[key.device].stalled {
            return;
        }
        let Some(state) = self.queue_pairs.get_mut(&key) else { return };
        if state.completions.len() >= state.max_send + state.max_receive {
            let first = state.state != QpState::Err;
            self.tally.overruns += 1;
            if first {
                self.raise(key, AsyncEvent::CompletionQueueError);
                self.move_to_error(key);
            }
            return;
        }
        state.completions.push_back(completion);
        self.want_to_tell(key);
    }

    /// Carries out a transition that has been checked.
    pub(super) fn move_to(&mut self, key: QpKey, to: QpState, attr: &QpAttr) {
        match to {
            QpState::Err => return self.move_to_error(key),
            QpState::Reset => self.forget(key),
            _ => {}
        }
        if let Some(state) = self.queue_pairs.get_mut(&key) {
            state.state = to;
            state.path.set(attr);
        }
        self.want_to_send(key);
    }

    /// ERR: everything posted completes with a flush error, the send queue first, each in order.
    pub(super) fn move_to_error(&mut self, key: QpKey) {
        self.stop_waiting(key);
        let Some(state) = self.queue_pairs.get_mut(&key) else { return };
        state.state = QpState::Err;
        state.silences = 0;
        state.rnr_naks = 0;
        self.flush(key);
    }

    /// Flushes what is on the queues of a queue pair in ERR.
    pub(super) fn flush(&mut self, key: QpKey) {
        let Some(state) = self.queue_pairs.get_mut(&key) else { return };
        let unanswered = std::mem::take(&mut state.unanswered);
        let (sends, receives) = (std::mem::take(&mut state.sends), std::mem::take(&mut state.receives));
        for request in unanswered.into_iter().chain(sends) {
            self.complete(key, failed(request.id, CompletionKind::Send, WcStatus::WR_FLUSH_ERR));
        }
        for request in receives {
            self.complete(key, failed(request.id, CompletionKind::Receive, WcStatus::WR_FLUSH_ERR));
        }
    }

    /// RESET: everything is forgotten without completions.
    fn forget(&mut self, key: QpKey) {
        self.stop_waiting(key);
        if let Some(state) = self.queue_pairs.get_mut(&key) {
            state.sends.clear();
            state.unanswered.clear();
            state.receives.clear();
            state.completions.clear();
            state.path = Path::default();
            state.silences = 0;
            state.rnr_naks = 0;
        }
    }
}
