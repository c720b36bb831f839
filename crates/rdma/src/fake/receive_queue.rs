//! The shared receive queue as its owner sees it.

use std::any::Any;
use std::sync::Arc;

use super::device::FakeDevice;
use super::queue_pair::{full, gone};
use super::region::check_slices;
use super::settings::Call;
use crate::{PostError, ReceiveQueue, ReceiveRequest, Result};

pub(super) struct FakeReceiveQueue {
    pub(super) device: Arc<FakeDevice>,
    pub(super) number: u64,
}

impl ReceiveQueue for FakeReceiveQueue {
    fn post_receive(&self, requests: &[ReceiveRequest]) -> std::result::Result<(), PostError> {
        let mut world = self.device.handle.lock();
        let device = &mut world.devices[self.device.id()];
        if let Some(error) =
            device.ordered_failure(Call::PostReceive).or_else(|| device.gone.then(|| gone(&device.info.name)))
        {
            return Err(PostError { posted: 0, error });
        }
        let keys = Arc::clone(&device.keys);
        let max_sge = device.info.limits.max_sge as usize;
        let Some(queue) = world.receive_queues.get_mut(&self.number) else { return Ok(()) };
        for (posted, request) in requests.iter().enumerate() {
            let room = || -> Result<()> {
                check_slices(&request.local, (&keys, 0), max_sge, u32::MAX)?;
                if queue.requests.len() < queue.capacity {
                    Ok(())
                } else {
                    Err(full("receive", queue.capacity))
                }
            };
            room().map_err(|error| PostError { posted, error })?;
            queue.requests.push_back(request.clone());
        }
        Ok(())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for FakeReceiveQueue {
    fn drop(&mut self) {
        let forgotten = self.device.handle.lock().receive_queues.remove(&self.number);
        // Its regions go when the lock is free again.
        drop(forgotten);
    }
}
