//! The control path: what makes, moves and ends regions, windows, receive queues and queue pairs.

use std::sync::Arc;
use std::time::Instant;

use secure_rdma_rdma::{Access, Error, ErrorCode, LKey, Memory, QpAttr, QpState, Qpn, RKey, Result};

use super::queue_pair::QueuePair;
use super::{Engine, Keys, Path, QueuePairCaps, ReceiveQueueId, WindowId, unknown};

impl Engine {
    // -- memory -----------------------------------------------------------------------------------------------------

    /// Registers memory at a random address, with random keys.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] for rights that need LOCAL_WRITE without it, [`ErrorCode::Entropy`].
    pub fn register(&mut self, memory: Arc<Memory>, access: Access) -> Result<Keys> {
        self.shared.regions.register(memory, access)
    }

    /// Ends a registration and all windows bound to it: the next packet that names its keys is refused.
    pub fn deregister(&mut self, lkey: LKey) {
        self.shared.regions.deregister(lkey);
    }

    /// Makes a type 2 memory window, bound to nothing. What [`secure_rdma_rdma::MemoryWindow::as_any`] of the device's
    /// window gives must be this [`WindowId`]: by that the engine knows it when it is bound.
    pub fn create_window(&mut self) -> WindowId {
        self.shared.regions.create_window()
    }

    /// Draws the key for the next bind of a window.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] where there is no such window, [`ErrorCode::Entropy`].
    pub fn next_window_key(&mut self, window: WindowId) -> Result<RKey> {
        self.shared.regions.next_key(window)
    }

    /// Ends a window and its binding.
    pub fn destroy_window(&mut self, window: WindowId) {
        self.shared.regions.destroy_window(window);
    }

    // -- receive queues and queue pairs -------------------------------------------------------------------------------

    /// Makes a receive queue that many queue pairs share.
    ///
    /// # Errors
    /// [`ErrorCode::Resource`].
    pub fn create_receive_queue(&mut self, capacity: u32) -> Result<ReceiveQueueId> {
        self.shared.receive_queues.create(capacity)
    }

    /// Ends a shared receive queue; what was posted is forgotten. Queue pairs that still use it have no receives any
    /// more.
    pub fn destroy_receive_queue(&mut self, queue: ReceiveQueueId) {
        self.shared.receive_queues.destroy(queue, &mut self.shared.retired);
    }

    /// Makes a queue pair in RESET, with a random number that no queue pair had within the last two hours.
    ///
    /// # Errors
    /// [`ErrorCode::Resource`], [`ErrorCode::Entropy`]; [`ErrorCode::InvalidArgument`] for a shared receive queue that does
    /// not exist.
    pub fn create_queue_pair(&mut self, now: Instant, caps: QueuePairCaps) -> Result<Qpn> {
        self.told(now);
        if self.queue_pairs.len() >= self.shared.config.max_queue_pairs as usize {
            let message = format!("the device has {} queue pairs, its limit", self.queue_pairs.len());
            return Err(Error::new(ErrorCode::Resource, message));
        }
        if caps.receive_queue.is_some_and(|queue| !self.shared.receive_queues.exists(queue)) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "the shared receive queue has been destroyed",
            ));
        }
        let qpn = self.numbers.draw(now, self.entropy.as_ref())?;
        self.queue_pairs.insert(qpn, Box::new(QueuePair::new(qpn, caps, &self.shared.config)));
        Ok(qpn)
    }

    /// Ends a queue pair; what was posted is forgotten without completions, and so are those not polled.
    pub fn destroy_queue_pair(&mut self, now: Instant, qpn: Qpn) {
        self.told(now);
        let Some(mut queue_pair) = self.queue_pairs.remove(&qpn) else { return };
        let peer = queue_pair.budget();
        queue_pair.reset(&mut self.shared);
        self.let_in(peer);
        self.numbers.release(now, qpn);
    }

    /// A queue pair's state.
    #[must_use]
    pub fn state(&self, qpn: Qpn) -> Option<QpState> {
        self.queue_pairs.get(&qpn).map(|queue_pair| queue_pair.state)
    }

    /// Moves a queue pair, and gives the state that it is in then. [`secure_rdma_rdma::transition`] is asked first. An
    /// address vector (INIT→RTR, SQD→SQD) comes with its `path`.
    ///
    /// # Errors
    /// [`ErrorCode::Transition`] by name, [`ErrorCode::Modify`] for values out of range. The state is unchanged then.
    pub fn modify(&mut self, now: Instant, qpn: Qpn, attr: &QpAttr, path: Option<Path>) -> Result<QpState> {
        self.told(now);
        let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) else { return Err(unknown()) };
        let peer = queue_pair.budget();
        let state = queue_pair.modify(&mut self.shared, attr, path);
        queue_pair.settle(&mut self.shared, now);
        self.let_in(peer);
        state
    }
}
