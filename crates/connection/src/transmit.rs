//! The sending half of a connection: messages into segments, segments into work requests.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use secure_rdma_rdma::{
    Completion, Error, PathMtu, QueuePair, RKey, Region, RemoteSlice, Result, SendFlags, SendOperation,
    SendRequest, Slice, WorkId,
};
use smallvec::SmallVec;

use crate::credit::Credits;
use crate::framing::{Header, Kind, LENGTH_PREFIX};
use crate::pool::{SendPool, Slot, Waiting};

/// Work requests that are posted in one list.
const LIST: usize = 32;

/// What a waiting message costs beside its bytes.
const MESSAGE_COST: usize = 64;

/// What a connection has to send.
#[derive(Debug)]
pub(crate) struct Transmit {
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
    in_flight: VecDeque<InFlight>,
    /// Buffers of requests that the device refused.
    unposted: Vec<Slot>,
    next_work: u64,
    next_message: u64,
    end_id: u64,
    done: u64,
    /// Messages that the peer's device has acknowledged.
    acknowledged: u64,
    /// Work requests that may be outstanding. Two of the queue's are kept free: a probe and the drain marker.
    most_in_flight: usize,
    /// Send buffers that may be outstanding: a peer that grants many credits and acknowledges nothing must not hold
    /// what others need.
    most_slots: usize,
    slots: usize,
    /// Bytes per segment: what both the peer's receive buffers and our send buffers hold.
    segment: usize,
    /// Whether the pool knows that a buffer is wanted here.
    asked_for_buffer: bool,
    pub(crate) max_message: u64,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) segments: u64,
    pub(crate) waits_for_credit: u64,
    pub(crate) waits_for_buffer: u64,
    pub(crate) probes: u64,
}

#[derive(Debug)]
struct Outgoing {
    id: u64,
    bytes: Vec<u8>,
    sent: usize,
    /// Whether a segment of it has been posted. A message of 0 bytes has `sent` 0 either way.
    begun: bool,
    end: bool,
}

#[derive(Debug)]
struct InFlight {
    work: WorkId,
    slot: Option<Slot>,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Segment,
    Credit,
    /// The last segment of this message.
    Finishes(u64),
    Proof,
    Probe,
    DrainMarker,
}

/// What a send completion meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// A part of a message, or credits.
    Part,
    /// Every message up to this id has reached the peer's device.
    Message,
    /// The own proof of path.
    Proof,
    /// Everything that was posted before ERR has been flushed.
    Drained,
}

impl Transmit {
    /// `max_send` is the depth of the send queue, `most_slots` the share of the send buffers.
    pub(crate) fn new(max_send: u32, most_slots: u16) -> Self {
        Self {
            queue: VecDeque::new(),
            queued_bytes: 0,
            in_flight: VecDeque::new(),
            unposted: Vec::new(),
            next_work: 0,
            next_message: 0,
            end_id: 0,
            done: 0,
            acknowledged: 0,
            most_in_flight: (max_send as usize).saturating_sub(2).max(1),
            most_slots: usize::from(most_slots).max(1),
            slots: 0,
            segment: 0,
            asked_for_buffer: false,
            max_message: 0,
            counters: Counters::default(),
        }
    }

    /// Takes over the peer's terms.
    pub(crate) fn adopt(&mut self, segment: usize, max_message: u64) {
        self.segment = segment;
        self.max_message = max_message;
    }

    /// Ids of messages start at 1; every id up to this one is acknowledged (or was withdrawn).
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// What waiting messages cost: their bytes and, so that empty ones are bounded too, something each.
    pub(crate) fn queued_cost(&self) -> usize {
        self.queued_bytes + self.queue.len() * MESSAGE_COST
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether the peer's device has acknowledged every message. The end of the direction is none.
    pub(crate) fn is_delivered(&self) -> bool {
        self.acknowledged == self.counters.messages
    }

    /// Whether no message waits or is unacknowledged. Probes and credits do not count.
    pub(crate) fn is_idle(&self) -> bool {
        let counts = |posted: &InFlight| !matches!(posted.what, What::Probe | What::Credit);
        self.queue.is_empty() && !self.in_flight.iter().any(counts)
    }

    /// Queues a message. The caller has checked the limits.
    pub(crate) fn enqueue(&mut self, message: &[u8]) -> u64 {
        self.counters.messages += 1;
        self.counters.bytes += message.len() as u64;
        self.queued_bytes += message.len();
        self.push(message.to_vec(), false)
    }

    /// Queues the end of this direction.
    pub(crate) fn enqueue_end(&mut self) -> u64 {
        self.end_id = self.push(Vec::new(), true);
        self.end_id
    }

    /// The id of the end, once it is queued.
    pub(crate) fn end_id(&self) -> u64 {
        self.end_id
    }

    fn push(&mut self, bytes: Vec<u8>, end: bool) -> u64 {
        self.next_message += 1;
        let id = self.next_message;
        self.queue.push_back(Outgoing { id, bytes, sent: 0, begun: false, end });
        id
    }

    /// Takes a message back that has not begun.
    pub(crate) fn withdraw(&mut self, id: u64) -> bool {
        let Ok(at) = self.queue.binary_search_by_key(&id, |message| message.id) else { return false };
        if self.queue[at].begun || self.queue[at].end {
            return false;
        }
        if let Some(message) = self.queue.remove(at) {
            self.queued_bytes -= message.bytes.len();
            self.counters.messages -= 1;
            self.counters.bytes -= message.bytes.len() as u64;
        }
        true
    }

    /// Forgets what has not been posted.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.queued_bytes = 0;
    }

    /// Posts what credits, buffers and queue allow.
    pub(crate) fn pump(
        &mut self,
        queue_pair: &dyn QueuePair,
        credits: &mut Credits,
        pool: &SendPool,
        waiting: impl Fn() -> Weak<dyn Waiting>,
    ) -> Result<()> {
        loop {
            let mut list: SmallVec<[SendRequest; LIST]> = SmallVec::new();
            while list.len() < LIST && self.in_flight.len() < self.most_in_flight {
                match self.next_segment(credits, pool, &waiting)? {
                    Some(request) => list.push(request),
                    None => break,
                }
            }
            let full = list.len() == LIST;
            self.post(queue_pair, &list)?;
            if !full {
                return Ok(());
            }
        }
    }

    fn next_segment(
        &mut self,
        credits: &mut Credits,
        pool: &SendPool,
        waiting: &impl Fn() -> Weak<dyn Waiting>,
    ) -> Result<Option<SendRequest>> {
        let Some(message) = self.queue.front_mut() else {
            return Ok(credits.should_return().then(|| self.credit_segment(credits)));
        };
        if !credits.may_send_data() {
            self.counters.waits_for_credit += 1;
            return Ok(credits.should_return().then(|| self.credit_segment(credits)));
        }
        let left = message.bytes.len() - message.sent;
        let (kind, prefix) = match (message.end, message.begun) {
            (true, _) => (Kind::End, 0),
            (false, false) if left <= self.segment => (Kind::Only, 0),
            (false, false) => (Kind::First, LENGTH_PREFIX),
            (false, true) if left <= self.segment => (Kind::Last, 0),
            (false, true) => (Kind::Middle, 0),
        };
        let payload = left.min(self.segment.saturating_sub(prefix));
        let slot = if prefix + payload == 0 {
            None
        } else {
            if self.slots >= self.most_slots {
                // One of its own will come back.
                return Ok(None);
            }
            let wanted = (!self.asked_for_buffer).then(waiting);
            let Some(slot) = pool.take_or_wait(wanted) else {
                self.counters.waits_for_buffer += u64::from(!self.asked_for_buffer);
                self.asked_for_buffer = true;
                return Ok(None);
            };
            if prefix > 0 {
                slot.write(0, &(message.bytes.len() as u64).to_le_bytes())?;
            }
            slot.write(prefix, &message.bytes[message.sent..message.sent + payload])?;
            self.slots += 1;
            Some(slot)
        };
        message.sent += payload;
        message.begun = true;
        self.queued_bytes -= payload;
        let mut what = What::Segment;
        if matches!(kind, Kind::Only | Kind::Last | Kind::End) {
            what = What::Finishes(message.id);
            self.queue.pop_front();
        }
        let header = Header { kind, credits: credits.spend() };
        let local = slot.iter().map(|slot| Slice::new(&slot.region, slot.offset, prefix + payload)).collect();
        Ok(Some(self.segment(header, slot, local, what)))
    }

    fn credit_segment(&mut self, credits: &mut Credits) -> SendRequest {
        let header = Header { kind: Kind::Credit, credits: credits.spend() };
        self.segment(header, None, SmallVec::new(), What::Credit)
    }

    fn segment(
        &mut self,
        header: Header,
        slot: Option<Slot>,
        local: SmallVec<[Slice; 1]>,
        what: What,
    ) -> SendRequest {
        self.counters.segments += 1;
        let id = self.track(slot, what);
        SendRequest {
            id,
            operation: SendOperation::Send { immediate: Some(header.to_immediate()) },
            local,
            flags: SendFlags::empty(),
        }
    }

    fn track(&mut self, slot: Option<Slot>, what: What) -> WorkId {
        let work = WorkId(self.next_work);
        self.next_work += 1;
        self.in_flight.push_back(InFlight { work, slot, what });
        work
    }

    /// Sends the proof of path: one message, the first bytes of `pattern`, that fills a packet of the path MTU.
    pub(crate) fn prove(
        &mut self,
        queue_pair: &dyn QueuePair,
        credits: &mut Credits,
        pattern: &Arc<Region>,
        path_mtu: PathMtu,
    ) -> Result<()> {
        let header = Header { kind: Kind::Proof, credits: credits.spend() };
        let local = smallvec::smallvec![Slice::new(pattern, 0, path_mtu.bytes())];
        let request = self.segment(header, None, local, What::Proof);
        self.post(queue_pair, &[request])
    }

    /// A buffer came back: the pool must be asked anew.
    pub(crate) fn buffer_came(&mut self) {
        self.asked_for_buffer = false;
    }

    /// Sends a WRITE of no bytes, which the peer's device acknowledges by itself: neither key nor address of such a
    /// WRITE are looked at (IBTA C9-88; rxe alike).
    pub(crate) fn probe(&mut self, queue_pair: &dyn QueuePair) -> Result<()> {
        self.counters.probes += 1;
        let id = self.track(None, What::Probe);
        let remote = RemoteSlice { address: 0, rkey: RKey::new(0) };
        self.post(queue_pair, &[empty(id, SendOperation::Write { remote, immediate: None })])
    }

    /// Posts a request behind everything else to a queue pair in ERR: its flush says that all else has been flushed.
    pub(crate) fn mark_drain(&mut self, queue_pair: &dyn QueuePair) -> Result<()> {
        let id = self.track(None, What::DrainMarker);
        self.post(queue_pair, &[empty(id, SendOperation::Send { immediate: None })])
    }

    fn post(&mut self, queue_pair: &dyn QueuePair, list: &[SendRequest]) -> Result<()> {
        if list.is_empty() {
            return Ok(());
        }
        queue_pair.post_send(list).map_err(|refused| {
            // What was not posted will not complete. Its buffers come back with the next completion.
            let lost = list.len() - refused.posted;
            let unposted = self.in_flight.split_off(self.in_flight.len() - lost);
            self.unposted.extend(unposted.into_iter().filter_map(|posted| posted.slot));
            refused.error
        })
    }

    /// Takes a send completion. Requests of a queue pair complete in the order of posting.
    pub(crate) fn complete(&mut self, completion: &Completion, free: &mut Vec<Slot>) -> Result<Done> {
        let Some(posted) = self.in_flight.pop_front().filter(|posted| posted.work == completion.id) else {
            return Err(Error::internal("a send completion came out of order"));
        };
        let before = free.len();
        free.extend(posted.slot);
        free.append(&mut self.unposted);
        self.slots -= free.len() - before;
        Ok(match posted.what {
            What::Finishes(id) if completion.status.is_success() => {
                self.done = id;
                self.acknowledged += u64::from(id != self.end_id);
                Done::Message
            }
            What::Proof if completion.status.is_success() => Done::Proof,
            What::DrainMarker => Done::Drained,
            _ => Done::Part,
        })
    }
}

fn empty(id: WorkId, operation: SendOperation) -> SendRequest {
    SendRequest { id, operation, local: SmallVec::new(), flags: SendFlags::empty() }
}
