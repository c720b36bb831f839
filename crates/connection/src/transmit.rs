//! The sending half of a connection: messages and operations in one order, from one sequence of ids.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use secure_rdma_rdma::{Completion, Error, QueuePair, Result, SendOperation};

use crate::framing::MESSAGE_COST;
use crate::outgoing::{Body, Outgoing};
use crate::outstanding::{Done, LocalId};
use crate::pool::Slot;
use crate::posting::{Outlet, Posting};

/// Operations that may wait to be posted, with outcomes that nobody has asked for.
pub(crate) const MOST_OPERATIONS: usize = 16_384;

/// What a connection has to send.
#[derive(Debug)]
pub(crate) struct Transmit {
    posting: Posting,
    queue: VecDeque<Outgoing<'static>>,
    /// Messages in `queue`, the end among them, and their bytes that are not posted.
    queued_messages: usize,
    queued_bytes: usize,
    /// Work of the own device alone, which goes before all else.
    local: VecDeque<(LocalId, SendOperation)>,
    next_local: u64,
    next_id: u64,
    end_id: Option<u64>,
    /// What followed was given up before it was posted.
    cut: Option<u64>,
    /// The last id before the first that failed with the connection.
    frozen: Option<u64>,
    /// What [`Transmit::advanced`] has told.
    told: u64,
    /// What atomics gave, and operations that failed alone.
    outcomes: HashMap<u64, Result<u64>>,
    /// What was given up before it was posted. It may hold regions last, and goes where no lock is held.
    pub(crate) retired: Vec<Outgoing<'static>>,
    pub(crate) max_message: u64,
    pub(crate) counters: Counters,
}

/// What was given to be sent.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) operations: u64,
}

impl Transmit {
    pub(crate) fn new(posting: Posting) -> Self {
        Self {
            posting,
            queue: VecDeque::new(),
            queued_messages: 0,
            queued_bytes: 0,
            local: VecDeque::new(),
            next_local: 0,
            next_id: 0,
            end_id: None,
            cut: None,
            frozen: None,
            told: 0,
            outcomes: HashMap::new(),
            retired: Vec::new(),
            max_message: 0,
            counters: Counters::default(),
        }
    }

    /// Takes over the peer's terms.
    pub(crate) fn adopt(&mut self, segment: usize, max_message: u64) {
        self.posting.adopt(segment);
        self.max_message = max_message;
    }

    /// Ids start at 1. Everything up to this one is over: acknowledged, withdrawn, or failed alone.
    pub(crate) fn done(&self) -> u64 {
        let queued = || self.queue.front().map(|out| out.id);
        let open = self.posting.first_id().or(self.cut).or_else(queued).unwrap_or(self.next_id + 1);
        self.frozen.unwrap_or(u64::MAX).min(open - 1)
    }

    /// Whether [`Transmit::done`] has come further since this was last asked.
    pub(crate) fn advanced(&mut self) -> bool {
        let done = self.done();
        std::mem::replace(&mut self.told, done) != done
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// What waiting messages cost: their bytes and, so that empty ones are bounded too, something each.
    pub(crate) fn queued_cost(&self) -> usize {
        self.queued_bytes + self.queued_messages * MESSAGE_COST
    }

    /// Operations that wait to be posted, with outcomes that nobody has asked for.
    pub(crate) fn pending_operations(&self) -> usize {
        self.queue.len() - self.queued_messages + self.outcomes.len()
    }

    pub(crate) fn posting(&self) -> &Posting {
        &self.posting
    }

    /// For what has no place in the order: probes, the proof of path, the drain marker.
    pub(crate) fn posting_mut(&mut self) -> &mut Posting {
        &mut self.posting
    }

    /// Whether the peer's device has acknowledged every message and operation. The end of the direction is none.
    pub(crate) fn is_delivered(&self) -> bool {
        self.done() >= self.end_id.map_or(self.next_id, |end| end - 1)
    }

    /// Whether no message or operation waits or is unacknowledged. Probes, credits and local work do not count.
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.posting.outstanding().is_idle()
    }

    /// Queues the end of this direction.
    pub(crate) fn enqueue_end(&mut self) -> u64 {
        self.next_id += 1;
        self.end_id = Some(self.next_id);
        self.queued_messages += 1;
        self.queue.push_back(Outgoing::new(self.next_id, Body::End));
        self.next_id
    }

    /// The id of the end, once it is queued.
    pub(crate) fn end_id(&self) -> u64 {
        self.end_id.unwrap_or_default()
    }

    /// Takes something back that has not begun.
    pub(crate) fn withdraw(&mut self, id: u64) -> bool {
        let Ok(at) = self.queue.binary_search_by_key(&id, |out| out.id) else { return false };
        if self.queue[at].begun || matches!(self.queue[at].body, Body::End) {
            return false;
        }
        let Some(out) = self.queue.remove(at) else { return false };
        match &out.body {
            Body::Message { bytes, .. } => {
                self.queued_messages -= 1;
                self.queued_bytes -= bytes.len();
                self.counters.messages -= 1;
                self.counters.bytes -= bytes.len() as u64;
            }
            _ => self.counters.operations -= 1,
        }
        self.retired.push(out);
        true
    }

    /// Forgets what has not been posted.
    pub(crate) fn clear(&mut self) {
        self.cut = self.cut.or(self.queue.front().map(|out| out.id));
        self.retired.extend(self.queue.drain(..));
        self.local.clear();
        self.queued_messages = 0;
        self.queued_bytes = 0;
    }

    /// Queues `bodies`, and posts of them at once, without copying what need not wait, what credits, buffers and queue
    /// allow. The caller has checked the limits. Answers their ids.
    pub(crate) fn post<'a>(
        &mut self,
        bodies: impl IntoIterator<Item = Body<'a>>,
        queue_pair: &dyn QueuePair,
        outlet: &mut Outlet<'_>,
    ) -> (Range<u64>, Result<()>) {
        let first = self.next_id + 1;
        let mut made = Ok(());
        for body in bodies {
            self.next_id += 1;
            match &body {
                Body::Message { bytes, .. } => {
                    self.counters.messages += 1;
                    self.counters.bytes += bytes.len() as u64;
                }
                _ => self.counters.operations += 1,
            }
            let mut out = Outgoing::new(self.next_id, body);
            if made.is_ok() && self.queue.is_empty() {
                match self.make(&mut out, outlet) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => made = Err(error),
                }
            }
            self.queued_messages += usize::from(!out.is_operation());
            self.queued_bytes += out.unsent();
            self.queue.push_back(out.into_owned());
        }
        let pumped = self.pump(queue_pair, outlet);
        (first..self.next_id + 1, made.and(pumped))
    }

    /// Makes work requests of `out` as far as possible; whether all are made.
    fn make(&mut self, out: &mut Outgoing<'_>, outlet: &mut Outlet<'_>) -> Result<bool> {
        while self.posting.has_room() {
            match self.posting.next(out, outlet)? {
                Some(true) => return Ok(true),
                Some(false) => {}
                None => return Ok(false),
            }
        }
        Ok(false)
    }

    /// What does not wait for its turn: local work, and credits that nothing carries.
    fn make_what_goes_first(&mut self, outlet: &mut Outlet<'_>) -> Result<()> {
        while self.posting.has_room()
            && let Some((id, operation)) = self.local.pop_front()
        {
            self.posting.local(id, operation)?;
        }
        // Operations carry no credits, and there may be enough of them to fill the queue for ever.
        let carried =
            matches!(self.queue.front(), Some(Outgoing { body: Body::Message { .. } | Body::End, .. }))
                && outlet.credits.may_send_data();
        if outlet.credits.should_return() && !carried && self.posting.has_room() {
            self.posting.credit_segment(outlet.credits)?;
        }
        Ok(())
    }

    /// Posts what credits, buffers and queue allow, in one list.
    pub(crate) fn pump(&mut self, queue_pair: &dyn QueuePair, outlet: &mut Outlet<'_>) -> Result<()> {
        let made = self.make_queued(outlet);
        // What was made before a failure is posted all the same: its completions give the buffers back.
        self.posting.post(queue_pair)?;
        made
    }

    fn make_queued(&mut self, outlet: &mut Outlet<'_>) -> Result<()> {
        self.make_what_goes_first(outlet)?;
        while self.posting.has_room()
            && let Some(front) = self.queue.front_mut()
        {
            let before = front.unsent();
            let made = self.posting.next(front, outlet)?;
            self.queued_bytes -= before - front.unsent();
            match made {
                Some(true) => {
                    let out = self.queue.pop_front();
                    self.queued_messages -= usize::from(out.is_some_and(|out| !out.is_operation()));
                }
                Some(false) => {}
                None => break,
            }
        }
        if outlet.credits.should_return() && self.posting.has_room() {
            self.posting.credit_segment(outlet.credits)?;
        }
        Ok(())
    }

    /// Queues a bind or an invalidation, which needs neither credits nor buffers: [`Done::Local`] tells that it is done.
    pub(crate) fn enqueue_local(&mut self, operation: SendOperation) -> LocalId {
        let id = LocalId(self.next_local);
        self.next_local += 1;
        self.local.push_back((id, operation));
        id
    }

    /// Whether something that is posted uses this grant of the peer.
    pub(crate) fn names_grant(&self, grant: u32) -> bool {
        self.posting.outstanding().names_grant(grant)
    }

    /// Ends with `error` what uses this grant of the peer and is not posted yet, also the rest of what is posted in part.
    pub(crate) fn settle_grant(&mut self, grant: u32, error: &Error) {
        for out in std::mem::take(&mut self.queue) {
            if out.grant() != Some(grant) {
                self.queue.push_back(out);
                continue;
            }
            if out.wanted {
                self.outcomes.insert(out.id, Err(error.clone()));
            }
            self.retired.push(out);
        }
    }

    /// Takes what an atomic gave, or why an operation failed alone.
    pub(crate) fn outcome(&mut self, id: u64) -> Option<Result<u64>> {
        if id > self.done() { None } else { self.outcomes.remove(&id) }
    }

    /// Whether there are any.
    pub(crate) fn has_outcomes(&self) -> bool {
        !self.outcomes.is_empty()
    }

    /// Takes all of them, up to [`Transmit::done`], which comes first.
    pub(crate) fn outcomes(&mut self) -> (u64, Vec<(u64, Result<u64>)>) {
        let done = self.done();
        (done, self.outcomes.extract_if(|id, _| *id <= done).collect())
    }

    /// Nobody will ask for the outcome of `id`: withdrawn if it has not begun.
    pub(crate) fn disregard(&mut self, id: u64) {
        if self.withdraw(id) || self.outcomes.remove(&id).is_some() {
            return;
        }
        if let Ok(at) = self.queue.binary_search_by_key(&id, |out| out.id) {
            self.queue[at].wanted = false;
        }
        self.posting.outstanding_mut().disregard(id);
    }

    /// Takes a send completion.
    pub(crate) fn complete(&mut self, completion: &Completion, free: &mut Vec<Slot>) -> Result<Done> {
        let (done, failed) = self.posting.complete(completion, free)?;
        if let Some(id) = failed {
            self.frozen.get_or_insert(id - 1);
        }
        if let Done::Atomic { id, before: Some(before) } = done {
            self.outcomes.insert(id, Ok(before));
        }
        Ok(done)
    }
}
