//! The embedded device's side of each comparison.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    AsyncEvent, Completion, CompletionKind, QueuePair, QueuePairHandler, ReceiveRequest, Region, RemoteSlice,
    SendFlags, SendOperation, SendRequest, Slice, WcStatus, WorkId,
};
use secure_rdma_soft::{Poller, SoftCounters, SoftDevice};

use crate::child::Found;
use crate::host::{connect, open, region};
use crate::link::{Link, Listener};
use crate::report::median;

const MESSAGE: usize = 1 << 20;
const MESSAGES: u64 = 8;
const SMALL: usize = 64;
const SMALL_IN_FLIGHT: u64 = 128;
const RECEIVES: u64 = 16;

/// Until the process that started this one has had enough.
pub(crate) fn wait_for_end() {
    let _ = std::io::stdin().read(&mut [0; 16]);
}

/// A handler to whom nothing happens.
struct Silent;

impl QueuePairHandler for Silent {
    fn completed(&self, batch: &[Completion]) {
        assert!(batch.iter().all(|one| one.status == WcStatus::SUCCESS), "{batch:?}");
    }

    fn happened(&self, _event: AsyncEvent) {}
}

/// A region that is written to.
pub(crate) fn target(receive_buffer: usize) {
    let listener = Listener::new();
    let device = open(receive_buffer);
    let region = region(&device, MESSAGE);
    let handler: Arc<dyn QueuePairHandler> = Arc::new(Silent);
    let connected = connect(&mut listener.accept(), &device, &region, 256, &handler, |_| {});
    wait_for_end();
    println!("{}", device.counters().sockets.receive_drops);
    drop(connected);
}

/// Posts again what has completed, in one list.
struct Writer {
    pair: OnceLock<Arc<dyn QueuePair>>,
    region: Arc<Region>,
    remote: OnceLock<RemoteSlice>,
    length: usize,
    done: AtomicU64,
    ended: AtomicBool,
}

impl Writer {
    fn requests(&self, count: usize) -> Vec<SendRequest> {
        let write = SendOperation::Write { remote: *self.remote.get().unwrap(), immediate: None };
        let request = SendRequest {
            id: WorkId(0),
            operation: write,
            local: [Slice::new(&self.region, 0, self.length)].into_iter().collect(),
            flags: SendFlags::empty(),
        };
        vec![request; count]
    }
}

impl QueuePairHandler for Writer {
    fn completed(&self, batch: &[Completion]) {
        assert!(batch.iter().all(|one| one.status == WcStatus::SUCCESS), "{batch:?}");
        self.done.fetch_add(batch.len() as u64, Ordering::Relaxed);
        if !self.ended.load(Ordering::Relaxed) {
            self.pair.get().unwrap().post_send(&self.requests(batch.len())).unwrap();
        }
    }

    fn happened(&self, event: AsyncEvent) {
        panic!("{event:?}");
    }
}

fn run_writer(
    address: SocketAddr,
    receive_buffer: usize,
    length: usize,
    count: u64,
    time: Duration,
) -> Found {
    let device = open(receive_buffer);
    let region = region(&device, MESSAGE);
    let writer = Arc::new(Writer {
        pair: OnceLock::new(),
        region: Arc::clone(&region),
        remote: OnceLock::new(),
        length,
        done: AtomicU64::new(0),
        ended: AtomicBool::new(false),
    });
    let handler: Arc<dyn QueuePairHandler> = Arc::clone(&writer) as _;
    let connected = connect(&mut Link::connect(address), &device, &region, 256, &handler, |_| {});
    let _ = writer.remote.set(connected.remote);
    let _ = writer.pair.set(Arc::clone(&connected.pair));
    let requests = writer.requests(usize::try_from(count).unwrap());
    connected.pair.post_send(&requests).unwrap();
    std::thread::sleep(time / 10);
    let (begun, before, counters) = (Instant::now(), writer.done.load(Ordering::Relaxed), device.counters());
    std::thread::sleep(time);
    let (elapsed, after) = (begun.elapsed().as_secs_f64(), writer.done.load(Ordering::Relaxed));
    let found = found((after - before) as f64 / elapsed, &device, &counters, elapsed);
    writer.ended.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(50));
    found
}

/// A value with the counters of one device since `before`.
pub(crate) fn found(value: f64, device: &SoftDevice, before: &SoftCounters, seconds: f64) -> Found {
    let after = device.counters();
    let (sockets, engine) = (&after.sockets, &after.engine);
    let rate = |after: u64, before: u64| (after - before) as f64 / seconds;
    let send_calls = rate(sockets.send_calls, before.sockets.send_calls);
    let receive_calls = rate(sockets.receive_calls, before.sockets.receive_calls);
    let sent = rate(sockets.sent_packets, before.sockets.sent_packets);
    Found {
        value,
        drops: sockets.receive_drops as f64,
        more: vec![
            ("send_calls_per_s".to_owned(), send_calls),
            ("receive_calls_per_s".to_owned(), receive_calls),
            ("packets_per_send_call".to_owned(), sent / send_calls.max(1.0)),
            (
                "retransmitted_per_s".to_owned(),
                rate(engine.retransmitted_pkts, before.engine.retransmitted_pkts),
            ),
        ],
    }
}

pub(crate) fn write(address: SocketAddr, receive_buffer: usize, time: Duration) -> Found {
    let found = run_writer(address, receive_buffer, MESSAGE, MESSAGES, time);
    Found { value: found.value * MESSAGE as f64, ..found }
}

pub(crate) fn small(address: SocketAddr, receive_buffer: usize, time: Duration) -> Found {
    run_writer(address, receive_buffer, SMALL, SMALL_IN_FLIGHT, time)
}

/// Answers each message from within the handler, or counts the answers.
struct Pinger {
    pair: OnceLock<Arc<dyn QueuePair>>,
    region: Arc<Region>,
    answers: bool,
    received: AtomicU64,
}

impl Pinger {
    fn new(region: &Arc<Region>, answers: bool) -> Arc<Self> {
        Arc::new(Self {
            pair: OnceLock::new(),
            region: Arc::clone(region),
            answers,
            received: AtomicU64::new(0),
        })
    }

    fn send(&self) {
        let request = SendRequest {
            id: WorkId(0),
            operation: SendOperation::Send { immediate: None },
            local: [Slice::new(&self.region, 0, SMALL)].into_iter().collect(),
            flags: SendFlags::empty(),
        };
        self.pair.get().unwrap().post_send(&[request]).unwrap();
    }

    /// Both sides do so after they have sent, while the other is at work.
    fn receive(&self) {
        receive(self.pair.get().unwrap().as_ref(), &self.region);
    }
}

fn receive(pair: &dyn QueuePair, region: &Arc<Region>) {
    pair.post_receive(&[ReceiveRequest::new(WorkId(1), region, SMALL, SMALL)]).unwrap();
}

impl QueuePairHandler for Pinger {
    fn completed(&self, batch: &[Completion]) {
        for one in batch {
            assert!(one.status == WcStatus::SUCCESS, "{one:?}");
            if one.kind == CompletionKind::Receive {
                if self.answers {
                    self.send();
                    self.receive();
                }
                self.received.fetch_add(1, Ordering::Release);
            }
        }
    }

    fn happened(&self, _event: AsyncEvent) {}
}

/// Echoes on its service thread, or on this one with a poller that never waits.
pub(crate) fn echo(receive_buffer: usize, spin: bool) {
    let listener = Listener::new();
    let device = open(receive_buffer);
    let region = region(&device, 4096);
    let pinger = Pinger::new(&region, true);
    let handler: Arc<dyn QueuePairHandler> = Arc::clone(&pinger) as _;
    let connected = connect(&mut listener.accept(), &device, &region, 64, &handler, |pair| {
        let _ = pinger.pair.set(Arc::clone(pair));
        (0..RECEIVES).for_each(|_| receive(pair.as_ref(), &region));
    });
    if spin {
        let poller = device.poller();
        std::thread::spawn(move || {
            loop {
                poller.poll();
            }
        });
    }
    wait_for_end();
    println!("{}", device.counters().sockets.receive_drops);
    drop(connected);
}

pub(crate) fn ping(address: SocketAddr, receive_buffer: usize, spin: bool, time: Duration) -> Found {
    let device = open(receive_buffer);
    let region = region(&device, 4096);
    let pinger = Pinger::new(&region, false);
    let handler: Arc<dyn QueuePairHandler> = Arc::clone(&pinger) as _;
    let _connected = connect(&mut Link::connect(address), &device, &region, 64, &handler, |pair| {
        let _ = pinger.pair.set(Arc::clone(pair));
        (0..RECEIVES).for_each(|_| receive(pair.as_ref(), &region));
    });
    let poller = device.poller();
    let look = |poller: &Poller| if spin { poller.poll() } else { poller.wait(None) };
    let (mut times, counters) = (Vec::new(), device.counters());
    let begun = Instant::now();
    while begun.elapsed() < time {
        let (before, sent) = (pinger.received.load(Ordering::Relaxed), Instant::now());
        pinger.send();
        if !times.is_empty() {
            pinger.receive();
        }
        while pinger.received.load(Ordering::Relaxed) == before {
            look(&poller);
        }
        times.push(sent.elapsed().as_secs_f64());
    }
    found(median(&times), &device, &counters, begun.elapsed().as_secs_f64())
}
