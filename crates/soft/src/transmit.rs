//! Sending: what the engine has, in its order, from whichever thread made it.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::errno::Errno;
use secure_rdma_roce::{Endpoints, IcrcContext};

use crate::capture::{Direction, Headers};
use crate::core::{Core, try_lock};
use crate::engine::Transmit;
use crate::ports::Place;
use crate::socket::{Message, Socket};
use crate::traffic::add;

/// Batches in a row from one call, before the caller has its thread back and the service thread goes on.
const TURN: usize = 16;

/// Segments that every kernel since Linux 4.18 takes in one call; newer ones take 128.
const MOST_SEGMENTS: usize = 64;

/// Destinations to remember as taking no batches; beyond, all are forgotten and found out again.
const MOST_PLAIN: usize = 4096;

/// What the sending thread works with.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    buffer: Vec<u8>,
    /// A batch in the buffer that the socket did not take, from this byte on.
    unsent: Option<(Transmit, usize)>,
    /// Destinations for which the kernel refused to cut a batch: an interface without checksum offload, say.
    plain: HashSet<IpAddr>,
}

/// How sending ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// There is nothing more to send.
    Empty,
    /// The socket at that place takes no more for now.
    Blocked(Place),
    /// There may be more.
    Turn,
}

impl Core {
    /// Sends what there is to send. Never blocks: if another thread is sending it takes that over, and if a socket takes
    /// no more, whoever looks for packets looks for that, too.
    /// It is `now`, or a moment later.
    pub(crate) fn flush(&self, now: Instant) {
        let mut now = Some(now);
        loop {
            if self.is_blocked() {
                self.wanted.store(true, Ordering::SeqCst);
                if self.is_blocked() {
                    return;
                }
            }
            let Some(mut outgoing) = self.outgoing() else { return };
            if self.wanted.load(Ordering::SeqCst) {
                self.wanted.store(false, Ordering::SeqCst);
            }
            let ended = self.drain(&mut outgoing, now.take());
            if let Ended::Blocked(at) = ended {
                // Before another finds the next socket full.
                self.set_blocked(Some(at));
                add(&self.traffic.send_waits, 1);
            }
            drop(outgoing);
            if ended != Ended::Empty {
                self.wanted.store(true, Ordering::SeqCst);
                if !self.is_serving() {
                    self.wake();
                }
                return;
            }
            // Another thread had something to send meanwhile.
            if !self.wanted.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// The right to send, or whoever has it is told to go on: he looks at `wanted` after letting go.
    fn outgoing(&self) -> Option<MutexGuard<'_, Outgoing>> {
        try_lock(&self.outgoing).or_else(|| {
            self.wanted.store(true, Ordering::SeqCst);
            try_lock(&self.outgoing)
        })
    }

    fn drain(&self, outgoing: &mut Outgoing, mut now: Option<Instant>) -> Ended {
        let mut more = true;
        for _ in 0..TURN {
            if !more && outgoing.unsent.is_none() {
                return Ended::Empty;
            }
            let (transmit, from) = match outgoing.unsent.take() {
                Some(unsent) => unsent,
                None => {
                    outgoing.buffer.clear();
                    let now = now.take().unwrap_or_else(Instant::now);
                    let mut state = self.state();
                    let transmit = state.engine.poll_transmit(now, MOST_SEGMENTS, &mut outgoing.buffer);
                    more = state.engine.wants_to_transmit();
                    // Who cannot be sent fails.
                    let news = state.engine.has_news();
                    let wake = self.note_timeout(&mut state);
                    drop(state);
                    self.settle_graves();
                    if news {
                        self.announce();
                    }
                    if wake && !self.is_serving() {
                        self.wake();
                    }
                    match transmit {
                        Some(transmit) => {
                            self.capture_sent(&transmit, &outgoing.buffer);
                            (transmit, 0)
                        }
                        None => return Ended::Empty,
                    }
                }
            };
            let Some((place, socket)) = self.ports.sender(transmit.source) else {
                add(&self.traffic.unsent_packets, transmit.segments());
                continue;
            };
            if let Some(from) = self.send(socket, outgoing, &transmit, from) {
                outgoing.unsent = Some((transmit, from));
                return Ended::Blocked(place);
            }
        }
        Ended::Turn
    }

    /// Sends a batch from byte `from` on. `Some` says from where on the socket did not take it.
    fn send(
        &self,
        socket: &Socket,
        outgoing: &mut Outgoing,
        transmit: &Transmit,
        from: usize,
    ) -> Option<usize> {
        let segments = transmit.segments();
        let whole = from == 0
            && (segments == 1
                || (self.segmentation
                    && (outgoing.plain.is_empty() || !outgoing.plain.contains(&transmit.destination.ip()))));
        if !whole {
            return self.send_singly(socket, outgoing, transmit, from);
        }
        let segment_size = if segments > 1 { u16::try_from(transmit.segment_size).ok() } else { None };
        match send_bytes(socket, transmit, segment_size, &outgoing.buffer) {
            Ok(()) => {
                add(&self.traffic.send_calls, 1);
                add(&self.traffic.sent_packets, segments);
                None
            }
            Err(Errno::EAGAIN) => Some(0),
            // EINVAL: the kernel knows no batches, or none of this segment size; EIO: the interface has no checksum
            // offload; EMSGSIZE: a segment does not fit the interface, which sending it alone will tell.
            Err(Errno::EINVAL | Errno::EIO | Errno::EMSGSIZE | Errno::ENOPROTOOPT) if segments > 1 => {
                add(&self.traffic.refused_batches, 1);
                if outgoing.plain.len() >= MOST_PLAIN {
                    outgoing.plain.clear();
                }
                outgoing.plain.insert(transmit.destination.ip());
                self.send_singly(socket, outgoing, transmit, 0)
            }
            Err(_) => {
                // No route, no buffer, a firewall: as good as lost on the way, and repeated like that.
                add(&self.traffic.unsent_packets, segments);
                None
            }
        }
    }

    /// Sends the packets of a batch one by one. Each has IPv4 ID 0 then, so that its ICRC is made anew.
    fn send_singly(
        &self,
        socket: &Socket,
        outgoing: &mut Outgoing,
        transmit: &Transmit,
        mut from: usize,
    ) -> Option<usize> {
        let icrc = match (transmit.source, transmit.destination) {
            (IpAddr::V4(source), SocketAddr::V4(destination)) => {
                let endpoints = Endpoints::V4 { source, destination: *destination.ip() };
                Some(IcrcContext::new(endpoints, transmit.source_port, destination.port()))
            }
            // Nothing in an IPv6 header counts up.
            _ => None,
        };
        while from < transmit.length {
            let end = (from + transmit.segment_size.max(1)).min(transmit.length);
            let segment = outgoing.buffer.get_mut(from..end)?;
            if from > 0
                && let Some(icrc) = &icrc
            {
                icrc.finish(0, segment);
            }
            match send_bytes(socket, transmit, None, segment) {
                Ok(()) => {
                    add(&self.traffic.send_calls, 1);
                    add(&self.traffic.sent_packets, 1);
                }
                Err(Errno::EAGAIN) => return Some(from),
                Err(_) => add(&self.traffic.unsent_packets, 1),
            }
            from = end;
        }
        None
    }

    fn capture_sent(&self, transmit: &Transmit, bytes: &[u8]) {
        let Some(capture) = self.capture.get() else { return };
        let headers = Headers {
            direction: Direction::Out,
            source: SocketAddr::new(transmit.source, transmit.source_port),
            destination: transmit.destination,
            traffic_class: transmit.traffic_class,
            hop_limit: transmit.hop_limit,
        };
        capture.write(&headers, 0, transmit.segment_size, bytes);
    }
}

fn send_bytes(
    socket: &Socket,
    transmit: &Transmit,
    segment_size: Option<u16>,
    bytes: &[u8],
) -> Result<(), Errno> {
    socket.send(&Message {
        source: transmit.source,
        destination: transmit.destination,
        traffic_class: transmit.traffic_class,
        hop_limit: transmit.hop_limit,
        segment_size,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use secure_rdma_rdma::SendOperation;

    use crate::common::{Terms, bytes, connected, read_back, remote, request};

    #[test]
    fn a_batch_that_the_kernel_refuses_is_sent_packet_by_packet_and_so_are_all_that_follow() {
        for (address, most) in [("127.0.0.1", 1), ("::1", 1)] {
            let terms = Terms { address: address.parse().unwrap(), ..Terms::default() };
            let (one, other) = connected(&terms);
            one.device.owner().ports.sender(terms.address).unwrap().1.refuse_batches();
            let (ours, theirs) = (one.region(200_000), other.region(200_000));
            for round in 0..3 {
                ours.memory().write(0, &bytes(200_000, round)).unwrap();
                let write = SendOperation::Write { remote: remote(&theirs, 0), immediate: None };
                one.send(request(1, write, &ours, 0, 200_000));
                one.done();
                assert_eq!(read_back(&theirs, 0, 200_000), bytes(200_000, round));
            }
            let counters = one.device.counters().sockets;
            assert_eq!((counters.refused_batches, counters.unsent_packets), (most, 0));
            assert_eq!(counters.send_calls, counters.sent_packets);
            let engine = other.device.counters().engine;
            assert_eq!((engine.dropped_icrc, engine.sent_seq_err), (0, 0), "every ICRC was right");
        }
    }
}
