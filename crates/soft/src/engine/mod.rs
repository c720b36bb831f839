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

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use secure_rdma_rdma::{
    Access, AsyncEvent, Completion, Entropy, Error, ErrorCode, LKey, Memory, PostError, QpAttr, QpState, Qpn,
    RKey, ReceiveRequest, Result, SendRequest,
};
use secure_rdma_roce::Packet;

mod acknowledge;
mod admit;
mod batching;
mod completer;
mod config;
mod congestion;
mod counters;
mod defects;
mod duplicates;
mod execute;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod keys;
mod local;
mod local_operations;
mod packetizer;
mod path;
mod posting;
mod queue_pair;
mod receive_queue;
mod regions;
mod requester;
mod requests;
mod resources;
mod responder;
mod retired;
mod retransmission;
mod schedule;
mod sequence;
mod states;
#[cfg(test)]
mod tests;
mod timers;
mod window;
mod work;

pub use config::{Config, QueuePairCaps};
pub use counters::Counters;
#[cfg(feature = "defects")]
pub use defects::Defect;
pub use path::{Arrival, Path, Transmit};
pub use receive_queue::ReceiveQueueId;
pub use regions::{Keys, WindowId};
pub use retired::Retired;

use keys::QueuePairNumbers;
use packetizer::Batch;
use queue_pair::{QueuePair, Shared};
use receive_queue::ReceiveQueues;
use regions::Regions;
use schedule::Schedule;
use timers::Timers;
use window::{BudgetId, Budgets};

/// One device's transport.
pub struct Engine {
    entropy: Arc<dyn Entropy>,
    numbers: QueuePairNumbers,
    queue_pairs: FxHashMap<Qpn, Box<QueuePair>>,
    shared: Shared,
    /// The latest time that was told.
    now: Option<Instant>,
}

impl Engine {
    /// An engine without queue pairs.
    ///
    /// # Errors
    /// [`ErrorCode::Entropy`]; [`ErrorCode::InvalidArgument`] for a configuration that makes no sense.
    pub fn new(config: Config, entropy: Arc<dyn Entropy>) -> Result<Self> {
        config.check()?;
        let shared = Shared {
            counters: Counters::default(),
            regions: Regions::new(Arc::clone(&entropy))?,
            receive_queues: ReceiveQueues::default(),
            budgets: Budgets::new(config.receive_buffer),
            unpaced: 0,
            backlog: false,
            gaps: Vec::new(),
            schedule: Schedule::default(),
            timers: Timers::default(),
            events: VecDeque::new(),
            retired: Retired::default(),
            ack_hold: Duration::ZERO,
            config,
        };
        let queue_pairs = FxHashMap::default();
        Ok(Self { entropy, numbers: QueuePairNumbers::new(), queue_pairs, shared, now: None })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

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

    /// Posts receives to a shared receive queue, in order.
    ///
    /// # Errors
    /// [`PostError`] with the number that was posted; [`ErrorCode::QueueFull`] when there is no room.
    pub fn post_shared_receive(
        &mut self,
        queue: ReceiveQueueId,
        requests: &[ReceiveRequest],
    ) -> std::result::Result<(), PostError> {
        self.shared.receive_queues.post(queue, requests, &self.shared.regions)
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
    pub fn destroy_queue_pair(&mut self, qpn: Qpn) {
        let Some(mut queue_pair) = self.queue_pairs.remove(&qpn) else { return };
        let peer = queue_pair.budget();
        queue_pair.reset(&mut self.shared);
        self.let_in(peer);
        if let Some(now) = self.now {
            self.numbers.release(now, qpn);
        }
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

    // -- posting ----------------------------------------------------------------------------------------------------

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
        self.told(now);
        let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) else {
            return Err(PostError { posted: 0, error: unknown() });
        };
        let done = queue_pair.post_send(&mut self.shared, requests);
        queue_pair.settle(&mut self.shared, now);
        done
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
        match self.queue_pairs.get_mut(&qpn) {
            Some(queue_pair) => queue_pair.post_receive(&mut self.shared, requests),
            None => Err(PostError { posted: 0, error: unknown() }),
        }
    }

    // -- the wire ---------------------------------------------------------------------------------------------------

    /// Takes one packet: a UDP payload, BTH to ICRC. Whatever the bytes are, the worst is a drop and a count.
    pub fn handle_packet(&mut self, now: Instant, arrival: &Arrival, udp_payload: &[u8]) {
        self.told(now);
        let packet = match Packet::new_checked(udp_payload) {
            Ok(packet) => packet,
            Err(malformed) => return admit::count_malformed(&mut self.shared.counters, malformed),
        };
        let queue_pair = Qpn::new(packet.dest_qpn()).and_then(|qpn| self.queue_pairs.get_mut(&qpn));
        let Some(queue_pair) = queue_pair else {
            self.shared.counters.dropped_qpn += 1;
            return;
        };
        queue_pair.handle_packet(&mut self.shared, now, arrival, &packet, udp_payload);
        queue_pair.settle(&mut self.shared, now);
        let peer = queue_pair.budget();
        self.let_in(peer);
    }

    /// Whether a peer knows nothing of the own receive buffer, and may send more than it holds: rxe and NICs do. Then
    /// [`Engine::set_backlog`] and [`Engine::note_overflow`] are of use.
    #[must_use]
    pub fn has_unpaced_peers(&self) -> bool {
        self.shared.unpaced > 0
    }

    /// Tells whether more packets have come than those that are handled next. To such a peer NAKs for missing packets wait
    /// until there are none: what it sends again at once finds room in the receive buffer then.
    pub fn set_backlog(&mut self, now: Instant, backlog: bool) {
        self.told(now);
        self.shared.backlog = backlog;
        if backlog {
            return;
        }
        for qpn in std::mem::take(&mut self.shared.gaps) {
            let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) else { continue };
            queue_pair.end_backlog(&mut self.shared, now);
            queue_pair.settle(&mut self.shared, now);
        }
    }

    /// Packets that came to this host were dropped, since the receive buffer was full, and all others have been handled.
    /// Nothing says whose they were.
    pub fn note_overflow(&mut self, now: Instant) {
        self.told(now);
        for queue_pair in self.queue_pairs.values_mut() {
            if queue_pair.note_overflow(&mut self.shared, now) {
                queue_pair.settle(&mut self.shared, now);
            }
        }
    }

    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.told(now);
        while let Some(qpn) = self.shared.schedule.pop_held(now) {
            let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) else { continue };
            queue_pair.standing.held = false;
            queue_pair.release_answers(&mut self.shared, now);
        }
        while let Some((qpn, at)) = self.shared.timers.pop(now) {
            let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) else { continue };
            queue_pair.handle_timeout(&mut self.shared, now, at);
            let peer = queue_pair.budget();
            self.let_in(peer);
        }
    }

    /// When [`Engine::handle_timeout`] is to be called next. Nothing may turn out to be due then.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.shared.timers.next().into_iter().chain(self.shared.schedule.next_held()).min()
    }

    /// Tells whether a thread looks again and again for what arrives, and for timeouts. Then acknowledgements may stay
    /// behind for a moment ([`Config::ack_hold`]).
    pub fn set_watched(&mut self, watched: bool) {
        self.shared.ack_hold = if watched { self.shared.config.ack_hold } else { Duration::ZERO };
    }

    /// Whether [`Engine::poll_transmit`] is likely to have something.
    #[must_use]
    pub fn wants_to_transmit(&self) -> bool {
        !self.shared.schedule.is_empty()
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
        self.told(now);
        let most = max_segments.min(self.shared.config.max_segments).max(1);
        while let Some((qpn, urgent)) = self.shared.schedule.next_sender() {
            let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) else { continue };
            queue_pair.standing.leave(urgent);
            let transmit = queue_pair.transmit(&mut self.shared, now, Batch::new(buffer, most));
            let peer = queue_pair.budget();
            self.let_in(peer);
            if transmit.is_some() {
                return transmit;
            }
        }
        None
    }

    // -- news -------------------------------------------------------------------------------------------------------

    /// Appends to `into` all completions of one queue pair, oldest first, and tells whose they are.
    pub fn poll_completions(&mut self, into: &mut Vec<Completion>) -> Option<Qpn> {
        while let Some(qpn) = self.shared.schedule.next_news() {
            let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) else { continue };
            queue_pair.standing.news = false;
            if queue_pair.poll_completions(into) {
                return Some(qpn);
            }
        }
        None
    }

    /// What happened that no work request asked for.
    pub fn poll_event(&mut self) -> Option<(Qpn, AsyncEvent)> {
        loop {
            let (qpn, event) = self.shared.events.pop_front()?;
            if self.queue_pairs.contains_key(&qpn) {
                return Some((qpn, event));
            }
        }
    }

    /// Exchanges `into`, which should be empty, for what finished requests held: slices and windows. Drop it where no
    /// lock is held: with the last slice goes a region, and its registration calls [`Engine::deregister`].
    pub fn take_retired(&mut self, into: &mut Retired) {
        std::mem::swap(&mut self.shared.retired, into);
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn told(&mut self, now: Instant) {
        self.now = Some(self.now.map_or(now, |latest| latest.max(now)));
    }

    /// Gives a queue pair that waits for room in a receive buffer its turn, where there is room again.
    #[inline]
    fn let_in(&mut self, peer: Option<BudgetId>) {
        if self.shared.budgets.is_waited_for() {
            self.let_one_in(peer);
        }
    }

    #[cold]
    fn let_one_in(&mut self, peer: Option<BudgetId>) {
        for id in peer.into_iter().chain([BudgetId::Own]) {
            while let Some(qpn) = self.shared.budgets.next_waiting(id) {
                if let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) {
                    queue_pair.standing.waiting = false;
                    self.shared.schedule.ready(qpn, &mut queue_pair.standing);
                    break;
                }
            }
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("queue_pairs", &self.queue_pairs.len()).finish_non_exhaustive()
    }
}

fn unknown() -> Error {
    Error::new(ErrorCode::InvalidArgument, "the queue pair has been destroyed")
}
