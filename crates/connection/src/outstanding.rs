//! Work requests that have not completed, in the order of posting, and what their completions mean.

use std::collections::VecDeque;

use secure_rdma_rdma::{Completion, Error, Result, WorkId};

use crate::framing::violation;
use crate::pool::Slot;

/// The work requests of one send queue.
#[derive(Debug, Default)]
pub(crate) struct Outstanding {
    requests: VecDeque<Request>,
    next_work: u64,
    /// Receives of the peer that requests have taken, and how many of them it says that it has seen taken.
    receives: u64,
    peer_received: u64,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct Request {
    work: WorkId,
    pub(crate) slot: Option<Slot>,
    what: What,
    /// The message or operation that it belongs to.
    pub(crate) id: Option<u64>,
    /// The grant of the peer that it uses.
    grant: Option<u32>,
    /// How many of its receives the peer has seen taken when it has carried this out.
    proven_at: u64,
}

/// What work of the own device alone is called by whoever asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LocalId(pub(crate) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Not the last of its message or operation.
    Part,
    /// The last of its message or operation.
    Last,
    /// An atomic, whose answer lands in the slot. Nobody asks for it any more if it is not `wanted`.
    Atomic {
        wanted: bool,
    },
    Credit,
    Proof,
    Probe,
    Local(LocalId),
    DrainMarker,
}

/// What of the peer shows that it has carried a request out. It does so in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// That the receive which it takes was taken.
    Receive,
    /// That one was taken which a later request takes.
    LaterReceive,
    /// Its answer alone: more comes back than an acknowledgement, or nothing goes out.
    Answer,
}

/// What a send completion meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Done {
    /// A part of something, or credits.
    Part,
    /// A message or an operation has been carried out, as its last work request tells.
    Whole,
    /// An atomic has been carried out; this is what the 8 bytes held before, if anyone asks.
    Atomic { id: u64, before: Option<u64> },
    /// The own proof of path.
    Proof,
    /// This work of the own device alone.
    Local(LocalId),
    /// Everything that was posted before ERR has been flushed.
    Drained,
}

impl Outstanding {
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    /// The first message or operation of which something is outstanding.
    pub(crate) fn first_id(&self) -> Option<u64> {
        self.requests.iter().find_map(|request| request.id)
    }

    /// Whether one uses this grant of the peer.
    pub(crate) fn names_grant(&self, grant: u32) -> bool {
        self.requests.iter().any(|request| request.grant == Some(grant))
    }

    /// Whether none is of a message or an operation, nor the proof of path.
    pub(crate) fn is_idle(&self) -> bool {
        let counts = |request: &Request| request.id.is_some() || request.what == What::Proof;
        !self.requests.iter().any(counts)
    }

    /// Nobody will ask what the atomic `id` gives.
    pub(crate) fn disregard(&mut self, id: u64) {
        let of_id = |request: &&mut Request| request.id == Some(id);
        for request in self.requests.iter_mut().filter(of_id) {
            if let What::Atomic { wanted } = &mut request.what {
                *wanted = false;
            }
        }
    }

    /// The slot of the last one.
    pub(crate) fn last_slot(&self) -> Option<&Slot> {
        self.requests.back().and_then(|request| request.slot.as_ref())
    }

    pub(crate) fn push(
        &mut self,
        what: What,
        slot: Option<Slot>,
        (id, grant): (Option<u64>, Option<u32>),
        shown: Shown,
    ) -> WorkId {
        let work = WorkId(self.next_work);
        self.next_work += 1;
        let proven_at = if shown == Shown::Answer { u64::MAX } else { self.receives + 1 };
        self.receives += u64::from(shown == Shown::Receive);
        self.requests.push_back(Request { work, slot, what, id, grant, proven_at });
        work
    }

    /// Takes out the last `count`, which the device has refused and will not complete.
    pub(crate) fn refused(&mut self, count: usize) -> VecDeque<Request> {
        self.requests.split_off(self.requests.len().saturating_sub(count))
    }

    /// The peer says how many of its receives it has seen taken.
    ///
    /// # Errors
    /// `ERR_RDMA_PEER_VIOLATION` if there were not as many.
    pub(crate) fn peer_received(&mut self, count: u64) -> Result<()> {
        if count > self.receives {
            return Err(violation("that it has received more than was sent"));
        }
        self.peer_received = self.peer_received.max(count);
        Ok(())
    }

    /// Takes out the one that has completed: requests of a queue pair complete in the order of posting. Gives what that
    /// meant, and whether it has failed: not one whose acknowledgement alone is missing, where the peer says that it has
    /// arrived.
    pub(crate) fn complete(&mut self, completion: &Completion) -> Result<(Done, bool, Request)> {
        let Some(request) = self.requests.pop_front().filter(|request| request.work == completion.id) else {
            return Err(Error::internal("a send completion came out of order"));
        };
        let success = completion.status.is_success() || request.proven_at <= self.peer_received;
        let done = match request.what {
            What::DrainMarker => Done::Drained,
            _ if !success => Done::Part,
            What::Last => Done::Whole,
            What::Atomic { wanted } => {
                let mut before = [0; size_of::<u64>()];
                if let Some(slot) = &request.slot {
                    slot.region.memory().read(slot.offset, &mut before)?;
                }
                let before = wanted.then_some(u64::from_ne_bytes(before));
                Done::Atomic { id: request.id.unwrap_or_default(), before }
            }
            What::Proof => Done::Proof,
            What::Local(id) => Done::Local(id),
            What::Part | What::Credit | What::Probe => Done::Part,
        };
        Ok((done, !success, request))
    }
}
