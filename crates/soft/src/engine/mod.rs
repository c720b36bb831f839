//! The transport: a RoCEv2 reliable connection engine without socket, clock or thread.
//!
//! Everything that it knows comes in by a call, and nothing happens between calls. A caller
//!
//! 1. hands in what arrived ([`Engine::handle_packet`]) and the time when it has come to [`Engine::poll_timeout`]
//!    ([`Engine::handle_timeout`]),
//! 2. then asks for what is to be sent ([`Engine::poll_transmit`]) until there is no more,
//! 3. and for what is done ([`Engine::poll_completions`], [`Engine::poll_event`]),
//! 4. and lets go of what finished requests held ([`Engine::take_retired`]) where no lock is held.
//!
//! The same calls with the same entropy give the same answers.

#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use secure_rdma_rdma::{
    Access, AsyncEvent, Completion, Entropy, Error, ErrorCode, LKey, Memory, PostError, QpAttr, QpState, Qpn,
    RKey, ReceiveRequest, Result, SendRequest,
};

mod config;
mod counters;
#[allow(dead_code, reason = "regions and queue pairs come next")]
mod keys;
mod path;
mod receive_queue;
#[allow(dead_code, reason = "the responder comes next")]
mod regions;
mod retired;

pub use config::{Config, QueuePairCaps};
pub use counters::Counters;
pub use path::{Arrival, Path, Transmit};
pub use receive_queue::ReceiveQueueId;
pub use regions::{Keys, WindowId};
pub use retired::Retired;

/// One device's transport.
pub struct Engine {
    counters: Counters,
    config: Config,
    entropy: Arc<dyn Entropy>,
    retired: Retired,
}

impl Engine {
    /// An engine without queue pairs.
    ///
    /// # Errors
    /// [`ErrorCode::Entropy`]; [`ErrorCode::InvalidArgument`] for a configuration that makes no sense.
    pub fn new(config: Config, entropy: Arc<dyn Entropy>) -> Result<Self> {
        Ok(Self { config, entropy, counters: Counters::default(), retired: Retired::default() })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Registers memory at a random address, with random keys.
    ///
    /// # Errors
    /// [`ErrorCode::Resource`] when there are no more keys, [`ErrorCode::Entropy`].
    pub fn register(&mut self, memory: Arc<Memory>, access: Access) -> Result<Keys> {
        let _ = (access, &self.entropy);
        drop(memory);
        Err(unfinished())
    }

    /// Ends a registration and all windows bound to it: the next packet that names its keys is refused.
    pub fn deregister(&mut self, lkey: LKey) {
        let _ = lkey;
    }

    /// Makes a type 2 memory window, bound to nothing. What [`secure_rdma_rdma::MemoryWindow::as_any`] of the device's
    /// window gives must be this [`WindowId`]: by that the engine knows it when it is bound.
    ///
    /// # Errors
    /// [`ErrorCode::Resource`].
    pub fn create_window(&mut self) -> Result<WindowId> {
        Err(unfinished())
    }

    /// Draws the key for the next bind of a window.
    ///
    /// # Errors
    /// [`ErrorCode::Resource`] when there are no more keys or no such window.
    pub fn next_window_key(&mut self, window: WindowId) -> Result<RKey> {
        let _ = window;
        Err(unfinished())
    }

    /// Ends a window and its binding.
    pub fn destroy_window(&mut self, window: WindowId) {
        let _ = window;
    }

    /// Makes a receive queue that many queue pairs share.
    ///
    /// # Errors
    /// [`ErrorCode::Resource`].
    pub fn create_receive_queue(&mut self, capacity: u32) -> Result<ReceiveQueueId> {
        let _ = capacity;
        Err(unfinished())
    }

    /// Ends a shared receive queue; what was posted is forgotten. Queue pairs that still use it have no receives any
    /// more.
    pub fn destroy_receive_queue(&mut self, queue: ReceiveQueueId) {
        let _ = queue;
    }

    /// Posts receives to a shared receive queue, in order.
    ///
    /// # Errors
    /// [`PostError`] with the number that was posted; [`ErrorCode::QueueFull`] when there is no room.
    pub fn post_shared_receive(
        &mut self,
        queue: ReceiveQueueId,
        requests: &[ReceiveRequest],
    ) -> std::result::Result<(), PostError> {
        let _ = (queue, requests);
        Err(PostError { posted: 0, error: unfinished() })
    }

    /// Makes a queue pair in RESET, with a random number that no queue pair had within the last two hours.
    ///
    /// # Errors
    /// [`ErrorCode::Resource`], [`ErrorCode::Entropy`].
    pub fn create_queue_pair(&mut self, now: Instant, caps: QueuePairCaps) -> Result<Qpn> {
        let _ = (now, caps);
        Err(unfinished())
    }

    /// Ends a queue pair; what was posted is forgotten without completions, and so are those not polled.
    pub fn destroy_queue_pair(&mut self, qpn: Qpn) {
        let _ = qpn;
    }

    /// A queue pair's state.
    #[must_use]
    pub fn state(&self, qpn: Qpn) -> Option<QpState> {
        let _ = qpn;
        None
    }

    /// Moves a queue pair, and gives the state that it is in then. [`secure_rdma_rdma::transition`] is asked first. An
    /// address vector (INIT→RTR, SQD→SQD) comes with its `path`.
    ///
    /// # Errors
    /// [`ErrorCode::Transition`] by name, [`ErrorCode::Modify`] for values out of range. The state is unchanged then.
    pub fn modify(&mut self, now: Instant, qpn: Qpn, attr: &QpAttr, path: Option<Path>) -> Result<QpState> {
        let _ = (now, qpn, attr, path);
        Err(unfinished())
    }

    /// Posts sends, in order.
    ///
    /// # Errors
    /// [`PostError`] with the number that was posted; [`ErrorCode::QueueFull`] when `max_send` are outstanding or their
    /// completions were not polled.
    pub fn post_send(
        &mut self,
        now: Instant,
        qpn: Qpn,
        requests: &[SendRequest],
    ) -> std::result::Result<(), PostError> {
        let _ = (now, qpn, requests);
        Err(PostError { posted: 0, error: unfinished() })
    }

    /// Posts receives to the queue pair's own receive queue, in order.
    ///
    /// # Errors
    /// [`PostError`] with the number that was posted; [`ErrorCode::QueueFull`] when there is no room,
    /// [`ErrorCode::InvalidArgument`] where the receive queue is shared.
    pub fn post_receive(
        &mut self,
        qpn: Qpn,
        requests: &[ReceiveRequest],
    ) -> std::result::Result<(), PostError> {
        let _ = (qpn, requests);
        Err(PostError { posted: 0, error: unfinished() })
    }

    /// Takes one packet: a UDP payload, BTH to ICRC. Whatever the bytes are, the worst is a drop and a count.
    pub fn handle_packet(&mut self, now: Instant, arrival: &Arrival, udp_payload: &[u8]) {
        let _ = (now, arrival, udp_payload);
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// When [`Engine::handle_timeout`] is to be called next. Nothing may turn out to be due then.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// Appends one batch of at most `max_segments` packets to `buffer`: segments of equal length, of which only the last
    /// may be shorter, the ICRC of segment i made for IPv4 ID i, at most 64 KiB less the headers. `None`: nothing can be
    /// sent now.
    pub fn poll_transmit(
        &mut self,
        now: Instant,
        max_segments: usize,
        buffer: &mut Vec<u8>,
    ) -> Option<Transmit> {
        let _ = (now, max_segments, buffer);
        None
    }

    /// Appends to `into` all completions of one queue pair, oldest first, and tells whose they are.
    pub fn poll_completions(&mut self, into: &mut Vec<Completion>) -> Option<Qpn> {
        let _ = into;
        None
    }

    /// What happened that no work request asked for.
    pub fn poll_event(&mut self) -> Option<(Qpn, AsyncEvent)> {
        None
    }

    /// Exchanges `into`, which should be empty, for what finished requests held: slices and windows. Drop it where no
    /// lock is held: with the last slice goes a region, and its registration calls [`Engine::deregister`].
    pub fn take_retired(&mut self, into: &mut Retired) {
        std::mem::swap(&mut self.retired, into);
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

fn unfinished() -> Error {
    Error::new(ErrorCode::Internal, "the engine cannot do this yet")
}
