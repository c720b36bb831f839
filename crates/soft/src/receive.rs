//! Receiving, handling, and telling handlers: one round of it.
//!
//! One thread at a time, since two that read one socket would hand packets to the engine in another order than they came
//! in, and each would cost a NAK.

use std::net::SocketAddr;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{AsyncEvent, Completion, QueuePairHandler};

use crate::backlog::Backlog;
use crate::capture::{Direction, Headers};
use crate::core::{Core, State, try_lock};
use crate::engine::{Arrival, Engine, Retired};
use crate::merging::Merging;
use crate::ports::Family;
use crate::socket::{BATCH, Datagrams, HOP_LIMIT, Receiver};
use crate::spin::Spin;
use crate::traffic::add;
use crate::waiter::Armed;

/// Bytes after which a round stops receiving, so that what was received is still in the processor's cache when the
/// engine reads it.
const ENOUGH: usize = 1 << 17;

/// Calls that empty a socket, whatever is sent to it meanwhile.
const MOST_CALLS: usize = 64;

/// What the receiving thread works with, kept from round to round.
#[derive(Default)]
pub(crate) struct Intake {
    receiver: Receiver,
    /// Datagrams to ask for in one call: few where they are batches of 64 KiB, or come one by one.
    most: usize,
    /// Whether the last call gave as many as it asked for, and nothing was looked for in vain since where it came.
    full: bool,
    /// Whether peers that know nothing of the receive buffer may send: it is told when all has come then, so that one more is
    /// asked for than comes most of the time.
    unpaced: bool,
    /// The socket on which something came last.
    latest: usize,
    /// Whether batches are to come, of each socket.
    merging: [Merging; 2],
    /// What is still to be received, of each socket, where a peer sends without regard for its receive buffer.
    backlog: [Backlog; 2],
    /// Whether to look again before sleeping.
    pub(crate) spin: Spin,
    /// Whether those whose handlers were told something have posted something thereupon, as far as is known, and how often
    /// anything had been posted when they were told.
    answers: bool,
    posts: u64,
    /// What the pollers' waiter is armed with.
    pub(crate) armed: Armed,
    completions: Vec<Completion>,
    calls: Vec<Call>,
    retired: Retired,
}

/// How long a turn of another thread that receives is waited for, and how often it is asked whether it is over.
const MOST_TURN: Duration = Duration::from_millis(1);
const NAP: Duration = Duration::from_micros(20);

/// A set of the sockets that receive, by their places in [`crate::ports::Ports::iter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sockets(u8);

impl Sockets {
    /// All there can be.
    pub(crate) const ALL: Self = Self(0b11);

    pub(crate) fn insert(&mut self, socket: usize) {
        self.0 |= 1 << socket;
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn contains(self, socket: usize) -> bool {
        self.0 & 1 << socket != 0
    }
}

/// What a round has found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Round {
    /// Whether there was anything to do.
    pub(crate) busy: bool,
    /// Whether a packet has come.
    pub(crate) received: bool,
    /// Whether handlers were told something.
    pub(crate) told: bool,
    /// Sockets that may hold more. Of the others, waiting tells.
    pub(crate) more: Sockets,
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
    /// Receives and handles what has come to the sockets of `look`, does what is due, tells handlers, and sends. Never
    /// blocks. Inside a handler's call it does nothing.
    ///
    /// A `poller` whose handlers were told something may be about to post: where it was so before, the acknowledgements wait
    /// for that, or for the next round, since one call then sends both.
    pub(crate) fn round(&self, intake: &mut Intake, look: Sockets, poller: bool) -> Round {
        let mut round = Round::default();
        let Some(_serving) = self.serve() else { return round };
        let (mut state, mut arrived) = (None, None);
        for (socket, family) in self.ports.iter().enumerate().filter(|(socket, _)| look.contains(*socket)) {
            let (received, all) = self.receive(socket, family, intake, &mut state, &mut arrived);
            round.received |= received;
            if received {
                intake.latest = socket;
            }
            if !all {
                round.more.insert(socket);
            }
        }
        let now = arrived.unwrap_or_else(Instant::now);
        if state.is_none() && !self.news.load(Ordering::Acquire) && !self.is_due(now) {
            if self.wanted.load(Ordering::SeqCst) && !self.is_blocked() {
                self.flush(now);
            }
            return round;
        }
        // A timer's work, or a packet's.
        let state = state.unwrap_or_else(|| self.state());
        if self.collect(state, now, intake) {
            self.wanted.store(true, Ordering::SeqCst);
        }
        intake.retired.clear();
        self.settle_graves();
        let posts = self.posts.load(Ordering::Relaxed);
        round.told = intake.tell();
        if round.told {
            intake.answers = posts != intake.posts;
            intake.posts = posts;
        }
        let waits = poller && round.told && intake.answers;
        if !waits && self.wanted.load(Ordering::SeqCst) && !self.is_blocked() {
            self.flush(now);
        }
        round.busy = true;
        round
    }

    /// Has the engine handle what has come to the sockets; handlers are told later. Another thread that receives may have
    /// looked before the last packet came: its turn is waited for, a moment, since it may need what our caller holds.
    pub(crate) fn absorb(&self) {
        let began = Instant::now();
        let mut intake = loop {
            if let Some(intake) = try_lock(&self.intake) {
                break intake;
            }
            if self.is_serving() || began.elapsed() > MOST_TURN {
                return;
            }
            std::thread::sleep(NAP);
        };
        let (mut state, mut arrived) = (None, None);
        for (socket, family) in self.ports.iter().enumerate() {
            // More than a socket holds need not be asked for: that comes from now on.
            let mut receive = || self.receive(socket, family, &mut intake, &mut state, &mut arrived).1;
            let _ = (0..MOST_CALLS).any(|_| receive());
        }
        if state.is_some() {
            self.news.store(true, Ordering::Release);
        }
    }

    /// Tells whether anything came, and whether that was all.
    fn receive<'a>(
        &'a self,
        socket: usize,
        family: &Family,
        intake: &mut Intake,
        state: &mut Option<MutexGuard<'a, State>>,
        arrived: &mut Option<Instant>,
    ) -> (bool, bool) {
        let most = intake.most.clamp(1 + usize::from(intake.unpaced), BATCH);
        let count = match family.receive.receive(&mut intake.receiver, most) {
            // An error is that of something sent earlier (an ICMP answer), or want of memory: none ends a socket.
            Ok(0) | Err(_) => {
                if let Some(backlog) = intake.backlog.get_mut(socket).filter(|backlog| backlog.is_open()) {
                    let engine = &mut state.get_or_insert_with(|| self.state()).engine;
                    end(backlog, family, engine, Instant::now());
                }
                intake.full &= socket != intake.latest;
                return (false, true);
            }
            Ok(count) => count,
        };
        let now = Instant::now();
        *arrived = Some(now);
        let state = state.get_or_insert_with(|| self.state());
        let all = count < most;
        let unpaced = state.engine.has_unpaced_peers();
        intake.unpaced = unpaced;
        if unpaced {
            state.engine.set_backlog(now, true);
        }
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
                #[cfg(feature = "faults")]
                if crate::faults::drops(payload.len()) {
                    continue;
                }
                arrival.segment = segment;
                state.engine.handle_packet(now, &arrival, payload);
                packets += 1;
            }
            bytes += datagrams.bytes.len();
        }
        add(&self.traffic.receive_calls, 1);
        add(&self.traffic.received_packets, packets);
        // One that comes alone fills a call for one: to ask for two thereupon would be to look once more in vain.
        let likely = if !all && intake.full { count * 2 } else { count };
        intake.full = !all;
        intake.most = likely.min(ENOUGH / (bytes / count).max(1));
        if family.merges
            && let Some(merging) = intake.merging.get_mut(socket)
        {
            merging.received(&family.receive, count, packets);
        }
        if unpaced && let Some(backlog) = intake.backlog.get_mut(socket) {
            backlog.received(packets);
            if all {
                end(backlog, family, &mut state.engine, now);
            }
        }
        (true, all)
    }

    /// Takes from the engine what handlers are to be told, and lets go of it. Tells whether there is something to send.
    fn collect(&self, mut guard: MutexGuard<'_, State>, now: Instant, intake: &mut Intake) -> bool {
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
        state.engine.wants_to_transmit()
    }

    /// Tells every queue pair that the device is gone.
    pub(crate) fn tell_gone(&self) {
        let handlers: Vec<_> = self.state().handlers.values().filter_map(std::sync::Weak::upgrade).collect();
        self.settle_graves();
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

/// All that had come to a socket was handled.
fn end(backlog: &mut Backlog, family: &Family, engine: &mut Engine, now: Instant) {
    engine.set_backlog(now, false);
    if backlog.end(&family.receive) {
        engine.note_overflow(now);
    }
}

impl Intake {
    /// Where a thread that looks again and again looks now: each look at a socket is a system call, and where something
    /// came last more is likely to come.
    pub(crate) fn glance(&self, looks: u64) -> Sockets {
        let mut sockets = Sockets::default();
        sockets.insert(self.latest);
        if looks.is_multiple_of(8) { Sockets::ALL } else { sockets }
    }

    /// Calls the handlers, without a lock that they might need. What they hold is let go of as soon as each was called.
    /// Tells whether there were any.
    fn tell(&mut self) -> bool {
        let any = !self.calls.is_empty();
        let completions = &self.completions;
        for Call { handler, news } in self.calls.drain(..) {
            guarded(|| match news {
                News::Completions(range) => handler.completed(completions.get(range).unwrap_or(&[])),
                News::Event(event) => handler.happened(event),
            });
            guarded(|| drop(handler));
        }
        any
    }
}

/// Calls a handler. Its panic must not end the thread on which every other connection depends.
pub(crate) fn guarded(call: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(call));
}
