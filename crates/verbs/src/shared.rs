//! Shared receive queues (SRQ). Not used on rxe: see `listing`.

use std::any::Any;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex};

use rdma_sys::{ibv_post_srq_recv, ibv_srq, ibv_srq_attr, ibv_srq_init_attr};
use secure_rdma_rdma::{Error, ErrorCode, PostError, ReceiveQueue, ReceiveRequest, Result, Slice, WorkId};

use crate::core::{Owner, lock};
use crate::errno;
use crate::memlock;
use crate::posting::ReceiveList;

/// Pieces that a receive of a shared queue may have, where the device allows as many.
const MAX_SGE: u32 = 4;

/// A shared receive queue of the driver's. Its queue pairs hold it, and it is destroyed after the last of them.
pub(crate) struct SharedQueue {
    srq: NonNull<ibv_srq>,
    list: Mutex<ReceiveList>,
    owner: Arc<Owner>,
}

// SAFETY: libibverbs is thread-safe, and the queue is not tied to a thread.
unsafe impl Send for SharedQueue {}
// SAFETY: libibverbs is thread-safe, and the list has its lock.
unsafe impl Sync for SharedQueue {}

/// The handle that [`secure_rdma_rdma::Device::create_receive_queue`] gives.
pub(crate) struct VerbsReceiveQueue(Arc<SharedQueue>);

/// Makes a queue for `capacity` receives, or none where the device has none.
pub(crate) fn create(owner: &Arc<Owner>, capacity: u32) -> Result<Option<Arc<dyn ReceiveQueue>>> {
    owner.check()?;
    match owner.limits.max_shared_receives {
        0 => Ok(None),
        most => make(owner, capacity, most).map(Some),
    }
}

/// Makes a queue for `capacity` receives, at the most `most`.
pub(crate) fn make(owner: &Arc<Owner>, capacity: u32, most: u32) -> Result<Arc<dyn ReceiveQueue>> {
    owner.check()?;
    if capacity == 0 || capacity > most {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            format!("a shared receive queue of {capacity}: {} takes 1 to {most}", owner.name),
        ));
    }
    let max_sge = owner.shared.max_sge.clamp(1, MAX_SGE);
    let attr = ibv_srq_attr { max_wr: capacity, max_sge, srq_limit: 0 };
    let mut init = ibv_srq_init_attr { srq_context: ptr::null_mut(), attr };
    // SAFETY: the domain is open, and `init` is a valid structure.
    let srq = unsafe { (owner.verbs().ibv_create_srq)(owner.domain.domain(), &raw mut init) };
    let Some(srq) = NonNull::new(srq) else {
        let errno = errno::last();
        return Err(no_queue(owner, capacity, errno));
    };
    let list = Mutex::new(ReceiveList::new(capacity, max_sge));
    Ok(Arc::new(VerbsReceiveQueue(Arc::new(SharedQueue { srq, list, owner: Arc::clone(owner) }))))
}

fn no_queue(owner: &Owner, capacity: u32, errno: i32) -> Error {
    let what = format!("a shared receive queue of {capacity} on {}", owner.name);
    if errno == libc::ENOMEM
        && let Some(message) = memlock::explain(&what, capacity as usize * 64)
    {
        return Error::new(ErrorCode::Memlock, message).with_syscall("ibv_create_srq", errno);
    }
    errno::error(ErrorCode::Resource, &format!("{what} cannot be made"), "ibv_create_srq", errno)
}

impl SharedQueue {
    /// The queue inside a handle, where it is of this device.
    pub(crate) fn of(queue: &dyn ReceiveQueue, owner: &Owner) -> Result<Arc<Self>> {
        queue
            .as_any()
            .downcast_ref::<VerbsReceiveQueue>()
            .filter(|queue| ptr::eq(&raw const **queue.0.owner, &raw const **owner))
            .map(|queue| Arc::clone(&queue.0))
            .ok_or_else(|| {
                let message = format!("the shared receive queue is not one of {}", owner.name);
                Error::new(ErrorCode::InvalidArgument, message)
            })
    }

    /// The driver's queue, valid as long as `self`.
    pub(crate) fn raw(&self) -> *mut ibv_srq {
        self.srq.as_ptr()
    }

    /// Ends a receive that one of the queue pairs has completed.
    pub(crate) fn complete(&self, wr_id: u64, retired: &mut Vec<Slice>) -> Option<WorkId> {
        lock(&self.list).complete(wr_id, retired)
    }

    /// Posts a receive again whose completion went down with its queue pair: whoever posted it to the shared queue
    /// finds it still posted.
    pub(crate) fn post_again(&self, wr_id: u64) {
        lock(&self.list).post_again(wr_id, |first, bad| {
            // SAFETY: the queue lives as long as `self`, and the chain until the call returns.
            unsafe { ibv_post_srq_recv(self.raw(), first, bad) }
        });
    }
}

impl Drop for SharedQueue {
    fn drop(&mut self) {
        if self.owner.opener.is_current() {
            // SAFETY: the queue was made by `make`, and its queue pairs, which hold it, are destroyed.
            unsafe { (self.owner.verbs().ibv_destroy_srq)(self.raw()) };
        }
    }
}

impl ReceiveQueue for VerbsReceiveQueue {
    fn post_receive(&self, requests: &[ReceiveRequest]) -> std::result::Result<(), PostError> {
        let queue = &self.0;
        queue.owner.opener.check().map_err(|error| PostError { posted: 0, error })?;
        lock(&queue.list).post(&queue.owner, None, requests, "ibv_post_srq_recv", |first, bad| {
            // SAFETY: the queue lives as long as `self`, and the chain until the call returns.
            unsafe { ibv_post_srq_recv(queue.raw(), first, bad) }
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
