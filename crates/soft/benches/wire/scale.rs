//! Many queue pairs on one device, many devices that send to one, and what those cost that do nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    AsyncEvent, Completion, QueuePair, QueuePairHandler, Region, RemoteSlice, SendFlags, SendOperation,
    SendRequest, Slice, WcStatus, WorkId,
};
use secure_rdma_soft::SoftDevice;

use crate::child::{self, Found, Task};
use crate::host::{Connected, connect, open, region};
use crate::link::{Link, Listener};
use crate::report::{Report, median};
use crate::soft::wait_for_end;

const PAIRS: usize = 1000;
const DEVICES: usize = 16;
pub(crate) const IDLE_PAIRS: usize = 1000;

const MESSAGE: usize = 64 << 10;
const IN_FLIGHT: usize = 2;
const DEPTH: u32 = 16;

struct Silent;

impl QueuePairHandler for Silent {
    fn completed(&self, _batch: &[Completion]) {}
    fn happened(&self, _event: AsyncEvent) {}
}

/// One device with a queue pair for each that asks.
pub(crate) fn receiver(receive_buffer: usize, count: usize) {
    let listener = Listener::new();
    let device = open(receive_buffer);
    let region = region(&device, MESSAGE);
    let handler: Arc<dyn QueuePairHandler> = Arc::new(Silent);
    let pairs: Vec<Connected> = (0..count)
        .map(|_| connect(&mut listener.accept(), &device, &region, DEPTH, &handler, |_| {}))
        .collect();
    wait_for_end();
    println!("{}", device.counters().sockets.receive_drops);
    drop(pairs);
}

/// Counts what all of them have sent.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    failed: AtomicU64,
    ended: AtomicBool,
}

struct Sender {
    pair: OnceLock<Arc<dyn QueuePair>>,
    remote: OnceLock<RemoteSlice>,
    region: Arc<Region>,
    tally: Arc<Tally>,
}

impl Sender {
    fn post(&self, count: usize) {
        let request = SendRequest {
            id: WorkId(0),
            operation: SendOperation::Write { remote: *self.remote.get().unwrap(), immediate: None },
            local: [Slice::new(&self.region, 0, MESSAGE)].into_iter().collect(),
            flags: SendFlags::empty(),
        };
        // The last completions of a queue pair that has failed are no reason to stop.
        let _ = self.pair.get().unwrap().post_send(&vec![request; count]);
    }
}

impl QueuePairHandler for Sender {
    fn completed(&self, batch: &[Completion]) {
        let failed = batch.iter().filter(|one| one.status == WcStatus::RETRY_EXC_ERR).count();
        self.tally.failed.fetch_add(failed as u64, Ordering::Relaxed);
        if batch.iter().all(|one| one.status == WcStatus::SUCCESS) {
            self.tally.done.fetch_add(batch.len() as u64, Ordering::Relaxed);
            if !self.tally.ended.load(Ordering::Relaxed) {
                self.post(batch.len());
            }
        }
    }

    fn happened(&self, _event: AsyncEvent) {}
}

fn run(address: SocketAddr, devices: &[Arc<SoftDevice>], count: usize, time: Duration) -> Found {
    let tally = Arc::new(Tally::default());
    // One for all: what is compared is not how much the processor's cache holds.
    let regions: Vec<_> = devices.iter().map(|device| region(device, MESSAGE)).collect();
    let senders: Vec<_> = (0..count)
        .map(|number| {
            let device = &devices[number % devices.len()];
            let sender = Arc::new(Sender {
                pair: OnceLock::new(),
                remote: OnceLock::new(),
                region: Arc::clone(&regions[number % devices.len()]),
                tally: Arc::clone(&tally),
            });
            let handler: Arc<dyn QueuePairHandler> = Arc::clone(&sender) as _;
            let region = Arc::clone(&sender.region);
            let connected = connect(&mut Link::connect(address), device, &region, DEPTH, &handler, |_| {});
            let _ = sender.remote.set(connected.remote);
            let _ = sender.pair.set(connected.pair);
            sender
        })
        .collect();
    senders.iter().for_each(|sender| sender.post(IN_FLIGHT));
    std::thread::sleep(time / 4);
    let (begun, before) = (Instant::now(), tally.done.load(Ordering::Relaxed));
    std::thread::sleep(time);
    let (elapsed, after) = (begun.elapsed().as_secs_f64(), tally.done.load(Ordering::Relaxed));
    tally.ended.store(true, Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(200));
    let sum = |of: &dyn Fn(&SoftDevice) -> u64| devices.iter().map(|device| of(device)).sum::<u64>() as f64;
    Found {
        value: ((after - before) as f64) * MESSAGE as f64 / elapsed,
        drops: sum(&|device| device.counters().sockets.receive_drops),
        more: vec![
            ("retry_exceeded".to_owned(), tally.failed.load(Ordering::Relaxed) as f64),
            ("retransmitted".to_owned(), sum(&|device| device.counters().engine.retransmitted_pkts)),
            ("timeouts".to_owned(), sum(&|device| device.counters().engine.timeouts)),
        ],
    }
}

pub(crate) fn pairs(address: SocketAddr, receive_buffer: usize, count: usize, time: Duration) -> Found {
    run(address, &[open(receive_buffer)], count, time)
}

pub(crate) fn devices(address: SocketAddr, receive_buffer: usize, count: usize, time: Duration) -> Found {
    let devices: Vec<_> = (0..count).map(|_| open(receive_buffer)).collect();
    run(address, &devices, count, time)
}

/// Connects queue pairs that do nothing. The value is the bytes that each takes.
pub(crate) fn idle(address: SocketAddr, receive_buffer: usize, time: Duration) -> Found {
    let device = open(receive_buffer);
    let region = region(&device, MESSAGE);
    let handler: Arc<dyn QueuePairHandler> = Arc::new(Silent);
    let connect_one = || connect(&mut Link::connect(address), &device, &region, DEPTH, &handler, |_| {});
    let mut pairs = vec![connect_one()];
    let before = resident();
    pairs.extend((1..IDLE_PAIRS).map(|_| connect_one()));
    let bytes = (resident() - before) / (IDLE_PAIRS - 1) as f64;
    let (cpu, begun) = (processor_seconds(), Instant::now());
    std::thread::sleep(time.max(Duration::from_secs(2)));
    let busy = (processor_seconds() - cpu) / begun.elapsed().as_secs_f64();
    drop(pairs);
    Found { value: bytes, drops: 0.0, more: vec![("cpu_percent".to_owned(), busy * 100.0)] }
}

/// Bytes of memory that this process has for itself.
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}

/// Of all threads of this process.
fn processor_seconds() -> f64 {
    let spent = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    spent.tv_sec() as f64 + spent.tv_nsec() as f64 * 1e-9
}

pub(crate) fn measure(report: &mut Report, rounds: usize, length: Duration) {
    let buffer = 4 << 20;
    let (mut by_pairs, mut by_devices) = (Vec::new(), Vec::new());
    let (mut one_rates, mut pair_rates, mut device_rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut failed, mut drops) = (0.0, 0.0);
    for _ in 0..rounds {
        let one = child::measure(Task::Pairs(1), buffer, length);
        let many = child::measure(Task::Pairs(PAIRS), buffer, length);
        let devices = child::measure(Task::Devices(DEVICES), buffer, length);
        by_pairs.push(many.value / one.value);
        by_devices.push(devices.value / one.value);
        for found in [&one, &many, &devices] {
            failed +=
                found.more.iter().find(|(name, _)| name == "retry_exceeded").map_or(0.0, |(_, count)| *count);
            drops += found.drops;
        }
        one_rates.push(one.value);
        pair_rates.push(many.value);
        device_rates.push(devices.value);
    }
    report.ratio("as_found", "pairs_1000.vs_one", median(&by_pairs));
    report.ratio("as_found", "devices_16.vs_one", median(&by_devices));
    report.raw("as_found", "scale.one_pair_bytes_per_s", median(&one_rates));
    report.raw("as_found", "scale.pairs_1000_bytes_per_s", median(&pair_rates));
    report.raw("as_found", "scale.devices_16_bytes_per_s", median(&device_rates));
    report.raw("as_found", "scale.retry_exceeded", failed);
    report.raw("as_found", "scale.receive_drops", drops);
    let idle = child::measure(Task::Idle, buffer, length);
    report.raw("as_found", "scale.idle_pair_bytes", idle.value);
    for (name, value) in idle.more {
        report.raw("as_found", &format!("scale.idle_device_{name}"), value);
    }
}
