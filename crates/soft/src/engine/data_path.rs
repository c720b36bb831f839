//! The data path: posting, packets, timeouts, batches to send, and news of what is done.

use std::time::{Duration, Instant};

use secure_rdma_rdma::{AsyncEvent, Completion, PostError, Qpn, ReceiveRequest, SendRequest};
use secure_rdma_roce::Packet;

use super::packetizer::Batch;
use super::{Arrival, Engine, ReceiveQueueId, Retired, Transmit, admit, unknown};

impl Engine {
    // -- posting ----------------------------------------------------------------------------------------------------

    /// Posts sends, in order.
    ///
    /// # Errors
    /// [`PostError`] with the number that was posted; [`ErrorCode::QueueFull`](secure_rdma_rdma::ErrorCode::QueueFull)
    /// when `max_send` are outstanding or their completions were not polled.
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
    /// [`PostError`] with the number that was posted; [`ErrorCode::QueueFull`](secure_rdma_rdma::ErrorCode::QueueFull)
    /// when there is no room, [`ErrorCode::InvalidArgument`](secure_rdma_rdma::ErrorCode::InvalidArgument) where the
    /// receive queue is shared.
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

    /// Posts receives to a shared receive queue, in order.
    ///
    /// # Errors
    /// [`PostError`] with the number that was posted; [`ErrorCode::QueueFull`](secure_rdma_rdma::ErrorCode::QueueFull)
    /// when there is no room.
    pub fn post_shared_receive(
        &mut self,
        queue: ReceiveQueueId,
        requests: &[ReceiveRequest],
    ) -> std::result::Result<(), PostError> {
        self.shared.receive_queues.post(queue, requests, &self.shared.regions)
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
        self.release_answers(now, now);
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
    /// behind for a moment ([`Config::ack_hold`](super::Config::ack_hold)).
    pub fn set_watched(&mut self, watched: bool) {
        self.shared.ack_hold = if watched { self.shared.config.ack_hold } else { Duration::ZERO };
    }

    /// Nobody looks for a while: acknowledgements that have stayed behind until now go out, since to wake for one takes longer
    /// than it may stay. Tells whether there are any.
    pub fn end_holds(&mut self, now: Instant) -> bool {
        self.told(now);
        let end = now.checked_add(self.shared.config.ack_hold).unwrap_or(now);
        self.release_answers(now, end)
    }

    fn release_answers(&mut self, now: Instant, end: Instant) -> bool {
        let mut any = false;
        while let Some(qpn) = self.shared.schedule.pop_held(end) {
            let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) else { continue };
            queue_pair.standing.held = false;
            queue_pair.release_answers(&mut self.shared, now, end);
            any = true;
        }
        any
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

    /// Whether [`Engine::poll_completions`] or [`Engine::poll_event`] is likely to have something.
    #[must_use]
    pub fn has_news(&self) -> bool {
        self.shared.schedule.has_news() || !self.shared.events.is_empty()
    }

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
}
