//! Receiving, handling, and telling handlers: one round of it.
//!
//! One thread at a time, since two that read one socket would hand packets to the engine in another order than they came
//! in, and each would cost a NAK.

use std::net::SocketAddr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use nix::errno::Errno;
use secure_rdma_rdma::{AsyncEvent, Completion, QueuePairHandler};

use crate::capture::{Direction, Headers};
use crate::core::{Core, State};
use crate::engine::{Arrival, Retired};
use crate::ports::Family;
use crate::socket::{BATCH, Datagrams, HOP_LIMIT, Receiver};
use crate::traffic::add;

/// Bytes after which a round stops receiving, so that what was received is still in the processor's cache when the
/// engine reads it.
const ENOUGH: usize = 1 << 17;

/// What the receiving thread works with, kept from round to round.
#[derive(Default)]
pub(crate) struct Intake {
    receiver: Receiver,
    /// Datagrams to ask for in one call; few where they are batches of 64 KiB.
    most: usize,
    completions: Vec<Completion>,
    calls: Vec<Call>,
    retired: Retired,
}

/// One call of a handler.
struct Call {
    handler: Arc<dyn QueuePairHandler>,
    news: News,
}

enum News {
    /// A range of the intake's completions.
    Completions(Range<usize>),
    Event(AsyncEvent),
}

impl Core {
    /// Receives and handles what is there, does what is due, tells handlers, and sends. Never blocks. Tells whether
    /// there was anything to do; then there may be more. Inside a handler's call it does nothing.
    pub(crate) fn round(&self, intake: &mut Intake) -> bool {
        let Some(_serving) = self.serve() else { return false };
        let mut state = None;
        let mut busy = false;
        for family in self.ports.iter() {
            busy |= self.receive(family, intake, &mut state);
        }
        let now = Instant::now();
        if state.is_none() && !self.news.load(Ordering::Acquire) && !self.is_due(now) {
            if self.wanted.load(Ordering::Acquire) && !self.is_blocked() {
                self.flush();
                busy = true;
            }
            return busy;
        }
        let state = state.unwrap_or_else(|| self.state());
        self.collect(state, now, intake);
        intake.retired.clear();
        self.settle_graves();
        intake.tell();
        self.flush();
        true
    }

    fn receive<'a>(
        &'a self,
        family: &Family,
        intake: &mut Intake,
        state: &mut Option<MutexGuard<'a, State>>,
    ) -> bool {
        let most = intake.most.clamp(1, BATCH);
        let count = match family.receive.receive(&mut intake.receiver, most) {
            Ok(0) => return false,
            Ok(count) => count,
            // An ICMP answer to what was sent earlier, or no memory: nothing that ends a socket.
            Err(Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ENOMEM) => {
                return false;
            }
            Err(_) => return false,
        };
        let now = Instant::now();
        let state = state.get_or_insert_with(|| self.state());
        let (mut packets, mut bytes) = (0, 0);
        for index in 0..count {
            let Some(datagrams) = intake.receiver.get(index) else { continue };
            self.capture_received(family, &datagrams);
            let mut arrival = Arrival {
                source: datagrams.source,
                destination: datagrams.destination,
                destination_port: family.port(),
                ecn: datagrams.traffic_class & 3,
                segment: 0,
            };
            for (payload, segment) in datagrams.bytes.chunks(datagrams.segment_size).zip(0_u16..) {
                arrival.segment = segment;
                state.engine.handle_packet(now, &arrival, payload);
                packets += 1;
            }
            bytes += datagrams.bytes.len();
        }
        add(&self.traffic.receive_calls, 1);
        add(&self.traffic.received_packets, packets);
        intake.most = ENOUGH / (bytes / count).max(1);
        true
    }

    /// Takes from the engine what handlers are to be told, and lets go of it.
    fn collect(&self, mut guard: MutexGuard<'_, State>, now: Instant, intake: &mut Intake) {
        let state = &mut *guard;
        self.news.store(false, Ordering::Release);
        if state.engine.poll_timeout().is_some_and(|at| at <= now) {
            state.engine.handle_timeout(now);
        }
        intake.completions.clear();
        loop {
            let start = intake.completions.len();
            let Some(qpn) = state.engine.poll_completions(&mut intake.completions) else { break };
            let handler = state.handlers.get(&qpn).and_then(std::sync::Weak::upgrade);
            if let Some(handler) = handler {
                let news = News::Completions(start..intake.completions.len());
                intake.calls.push(Call { handler, news });
            }
        }
        while let Some((qpn, event)) = state.engine.poll_event() {
            if let Some(handler) = state.handlers.get(&qpn).and_then(std::sync::Weak::upgrade) {
                intake.calls.push(Call { handler, news: News::Event(event) });
            }
        }
        state.engine.take_retired(&mut intake.retired);
        // Nobody sleeps while this thread serves.
        let _ = self.note_timeout(state);
        drop(guard);
    }

    /// Tells every queue pair that the device is gone.
    pub(crate) fn tell_gone(&self) {
        let handlers: Vec<_> = self.state().handlers.values().filter_map(std::sync::Weak::upgrade).collect();
        for handler in handlers {
            guarded(|| handler.happened(AsyncEvent::DeviceGone));
        }
    }

    fn capture_received(&self, family: &Family, datagrams: &Datagrams<'_>) {
        let Some(capture) = self.capture.get() else { return };
        let headers = Headers {
            direction: Direction::In,
            source: datagrams.source,
            destination: SocketAddr::new(datagrams.destination, family.port()),
            traffic_class: datagrams.traffic_class,
            // Not asked for: the engine has no use for it.
            hop_limit: HOP_LIMIT,
        };
        capture.write(&headers, 0, datagrams.segment_size, datagrams.bytes);
    }
}

impl Intake {
    /// Calls the handlers, without a lock that they might need. What they hold is let go of as soon as each was called.
    fn tell(&mut self) {
        let completions = &self.completions;
        for Call { handler, news } in self.calls.drain(..) {
            guarded(|| match news {
                News::Completions(range) => handler.completed(completions.get(range).unwrap_or(&[])),
                News::Event(event) => handler.happened(event),
            });
            guarded(|| drop(handler));
        }
    }
}

/// Calls a handler. Its panic must not end the thread on which every other connection depends.
pub(crate) fn guarded(call: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(call));
}
