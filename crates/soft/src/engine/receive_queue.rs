//! Receive queues: a queue pair's own, and shared ones.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use secure_rdma_rdma::{Error, ErrorCode, PostError, ReceiveRequest, Result, Slice, WorkId};
use smallvec::SmallVec;

use super::local;
use super::regions::Regions;
use super::retired::Retired;

/// Names a shared receive queue of an engine. None is given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReceiveQueueId(u32);

/// Scatter/gather entries that a receive of a shared queue may have.
pub(super) const SHARED_MAX_SGE: u32 = 32;

/// A receive that waits for a message, or into which one is coming.
pub(super) struct PostedReceive {
    pub(super) id: WorkId,
    pub(super) local: SmallVec<[Slice; 1]>,
    pub(super) length: u32,
    /// Whether the regions have LOCAL_WRITE. Judged only when bytes come (LOC_PROT_ERR), as by rxe.
    pub(super) writable: bool,
}

impl PostedReceive {
    /// Judges a receive.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`].
    pub(super) fn new(request: &ReceiveRequest, regions: &Regions, max_sge: u32) -> Result<Self> {
        let local::Judged { length, writable } = local::check(&request.local, regions, max_sge)?;
        Ok(Self { id: request.id, local: local::copy(&request.local), length, writable })
    }
}

/// The error of a queue without room.
pub(super) fn full(queue: &str) -> Error {
    Error::new(ErrorCode::QueueFull, format!("the {queue} queue has no room: wait for completions"))
}

struct SharedQueue {
    capacity: u32,
    posted: VecDeque<PostedReceive>,
}

/// The shared receive queues of an engine.
#[derive(Default)]
pub(super) struct ReceiveQueues {
    queues: FxHashMap<u32, SharedQueue>,
    next: u32,
}

impl ReceiveQueues {
    /// # Errors
    /// [`ErrorCode::Resource`] after 2^32 queues.
    pub(super) fn create(&mut self, capacity: u32) -> Result<ReceiveQueueId> {
        let id = self.next;
        self.next = id
            .checked_add(1)
            .ok_or_else(|| Error::new(ErrorCode::Resource, "the device has made 2^32 receive queues"))?;
        self.queues.insert(id, SharedQueue { capacity: capacity.max(1), posted: VecDeque::new() });
        Ok(ReceiveQueueId(id))
    }

    pub(super) fn destroy(&mut self, id: ReceiveQueueId, retired: &mut Retired) {
        for receive in self.queues.remove(&id.0).map(|queue| queue.posted).unwrap_or_default() {
            retired.slices(receive.local);
        }
    }

    pub(super) fn exists(&self, id: ReceiveQueueId) -> bool {
        self.queues.contains_key(&id.0)
    }

    pub(super) fn post(
        &mut self,
        id: ReceiveQueueId,
        requests: &[ReceiveRequest],
        regions: &Regions,
    ) -> std::result::Result<(), PostError> {
        let Some(queue) = self.queues.get_mut(&id.0) else {
            let error = Error::new(ErrorCode::InvalidArgument, "the shared receive queue has been destroyed");
            return Err(PostError { posted: 0, error });
        };
        for (posted, request) in requests.iter().enumerate() {
            if queue.posted.len() >= queue.capacity as usize {
                return Err(PostError { posted, error: full("shared receive") });
            }
            let receive = PostedReceive::new(request, regions, SHARED_MAX_SGE)
                .map_err(|error| PostError { posted, error })?;
            queue.posted.push_back(receive);
        }
        Ok(())
    }

    /// The oldest receive of a queue.
    pub(super) fn take(&mut self, id: ReceiveQueueId) -> Option<PostedReceive> {
        self.queues.get_mut(&id.0)?.posted.pop_front()
    }
}
