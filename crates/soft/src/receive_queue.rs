//! Shared receive queues.

use std::any::Any;
use std::sync::Arc;

use secure_rdma_rdma::{Error, ErrorCode, PostError, ReceiveQueue, ReceiveRequest, Result};

use crate::core::{Grave, Owner};
use crate::engine::ReceiveQueueId;

/// A receive queue that many queue pairs share. Each of them holds a count on it.
pub(crate) struct SoftReceiveQueue {
    owner: Arc<Owner>,
    id: ReceiveQueueId,
}

impl SoftReceiveQueue {
    pub(crate) fn create(owner: &Arc<Owner>, capacity: u32) -> Result<Arc<dyn ReceiveQueue>> {
        owner.check()?;
        let most = owner.limits.max_shared_receives;
        if capacity == 0 || capacity > most {
            return Err(Error::new(
                ErrorCode::Resource,
                format!("a shared receive queue of {capacity}: {} takes 1 to {most}", owner.name),
            ));
        }
        let id = owner.with(|state| state.engine.create_receive_queue(capacity))?;
        Ok(Arc::new(Self { owner: Arc::clone(owner), id }))
    }

    /// The engine's queue behind a handle, where it is of this device.
    pub(crate) fn id_of(queue: &dyn ReceiveQueue, owner: &Owner) -> Result<ReceiveQueueId> {
        queue
            .as_any()
            .downcast_ref::<Self>()
            .filter(|queue| std::ptr::eq(&raw const **queue.owner, &raw const **owner))
            .map(|queue| queue.id)
            .ok_or_else(|| {
                let message = format!("the shared receive queue is not one of {}", owner.name);
                Error::new(ErrorCode::InvalidArgument, message)
            })
    }
}

impl ReceiveQueue for SoftReceiveQueue {
    fn post_receive(&self, requests: &[ReceiveRequest]) -> std::result::Result<(), PostError> {
        self.owner.check().map_err(|error| PostError { posted: 0, error })?;
        let posted = self.owner.state().engine.post_shared_receive(self.id, requests);
        self.owner.settle_graves();
        posted
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for SoftReceiveQueue {
    fn drop(&mut self) {
        self.owner.inter(Grave::ReceiveQueue(self.id));
    }
}
