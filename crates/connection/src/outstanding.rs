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

    /// The first message or operation of which something is outstanding that is not proven to have arrived.
    pub(crate) fn first_id(&self) -> Option<u64> {
        let unproven = |request: &&Request| request.proven_at > self.peer_received;
        self.requests.iter().filter(unproven).find_map(|request| request.id)
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

#[cfg(test)]
mod tests {
    use secure_rdma_rdma::{CompletionKind, ErrorCode, WcStatus};

    use super::*;

    fn completed(outstanding: &mut Outstanding, work: u64, status: WcStatus) -> (Done, Option<u64>) {
        let (id, kind) = (WorkId(work), CompletionKind::Send);
        let completion =
            Completion { id, kind, status, byte_len: 0, immediate: None, invalidated: None, vendor_error: 0 };
        let (done, failed, request) = outstanding.complete(&completion).unwrap();
        (done, request.id.filter(|_| failed))
    }

    /// A message of two segments, a long WRITE with immediate, a READ, and a message.
    fn several() -> Outstanding {
        let mut outstanding = Outstanding::default();
        let requests = [
            (What::Proof, None, Shown::Receive),
            (What::Part, Some(1), Shown::Receive),
            (What::Last, Some(1), Shown::Receive),
            (What::Probe, None, Shown::Answer),
            (What::Part, Some(2), Shown::LaterReceive),
            (What::Last, Some(2), Shown::Receive),
            (What::Last, Some(3), Shown::Answer),
            (What::Last, Some(4), Shown::Receive),
        ];
        for (what, id, shown) in requests {
            outstanding.push(what, None, (id, None), shown);
        }
        outstanding
    }

    #[test]
    fn what_is_proven_is_done_before_it_is_flushed() {
        for (received, first) in [(0, 1), (1, 1), (2, 1), (3, 2), (4, 3), (5, 3)] {
            let mut outstanding = several();
            outstanding.peer_received(received).unwrap();
            // A count that goes back says nothing new.
            outstanding.peer_received(received / 2).unwrap();
            assert_eq!(outstanding.first_id(), Some(first), "{received} receives");
        }
        assert_eq!(several().peer_received(6).unwrap_err().code(), ErrorCode::PeerViolation);
    }

    #[test]
    fn what_is_proven_has_not_failed_whatever_its_completion_says() {
        for status in [WcStatus::WR_FLUSH_ERR, WcStatus::RETRY_EXC_ERR] {
            let mut outstanding = several();
            outstanding.peer_received(4).unwrap();
            let all: Vec<_> = (0..8).map(|work| completed(&mut outstanding, work, status)).collect();
            let whole = |id| if id == 3 || id == 4 { (Done::Part, Some(id)) } else { (Done::Whole, None) };
            let none = (Done::Part, None);
            let expected = [(Done::Proof, None), none, whole(1), none, none, whole(2), whole(3), whole(4)];
            assert_eq!(all, expected);
        }
    }

    #[test]
    fn what_the_device_refused_is_not_outstanding() {
        let mut outstanding = several();
        let refused = outstanding.refused(2);
        assert_eq!(refused.iter().map(|request| request.id).collect::<Vec<_>>(), [Some(3), Some(4)]);
        outstanding.peer_received(4).unwrap();
        assert_eq!((outstanding.first_id(), outstanding.len()), (None, 6));
    }
}
