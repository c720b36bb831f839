//! What the device tests share: two ends on real rxe devices, and what their handlers heard.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod capture;

use std::net::IpAddr;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    Access, Addressing, AsyncEvent, Completion, CompletionKind, Device, DeviceWish, Devices, LocalAddress,
    Memory, PathContext, PathMtu, Psn, QpAttr, QpState, QueuePair, QueuePairConfig, QueuePairHandler,
    ReceiveQueue, ReceiveRequest, Region, RemoteSlice, Route, SendFlags, SendOperation, SendRequest, Slice,
    WcStatus, WorkId, choose,
};
use secure_rdma_verbs::{Verbs, testing};

/// The two devices of the guest, with a wire between.
pub const V4: [&str; 2] = ["10.8.0.1", "10.8.0.2"];
pub const V6: [&str; 2] = ["fd08::1", "fd08::2"];

/// Starting PSNs of the two ends, far from 0 and from each other.
pub const PSNS: [u32; 2] = [0xA5_1234, 0x00_BEEF];

const PATIENCE: Duration = Duration::from_secs(20);

/// One device test at a time: they count what the devices hold. Panics where there is no device: a device test
/// never passes without one.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let names: Vec<_> = Verbs.list().unwrap().into_iter().map(|device| device.name).collect();
    assert!(
        names.contains(&"rxe0".to_owned()) && names.contains(&"rxe1".to_owned()),
        "no rxe0 and rxe1 here (there are {names:?}): run this with node tools/soft-roce/run.mjs"
    );
    guard
}

/// Whether the caller insists on devices.
pub fn rxe_is_required() -> bool {
    std::env::var("SECURE_RDMA_REQUIRE_RXE").is_ok_and(|value| value == "1")
}

/// A handler that keeps what it hears.
#[derive(Default)]
pub struct Log {
    heard: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Default)]
pub struct Heard {
    pub completions: Vec<Completion>,
    pub events: Vec<AsyncEvent>,
    pub batches: usize,
}

impl QueuePairHandler for Log {
    fn completed(&self, batch: &[Completion]) {
        let mut heard = self.heard.lock().unwrap();
        heard.completions.extend(batch);
        heard.batches += 1;
        self.changed.notify_all();
    }

    fn happened(&self, event: AsyncEvent) {
        self.heard.lock().unwrap().events.push(event);
        self.changed.notify_all();
    }
}

impl Log {
    fn wait<T>(&self, what: &str, ready: impl Fn(&mut Heard) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut heard = self.heard.lock().unwrap();
        loop {
            if let Some(value) = ready(&mut heard) {
                return value;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "waited {PATIENCE:?} for {what}; heard {:?} and {:?}",
                heard.completions,
                heard.events
            );
            heard = self.changed.wait_timeout(heard, left).unwrap().0;
        }
    }

    /// Takes the oldest `count` completions, when they are there.
    pub fn completions(&self, count: usize) -> Vec<Completion> {
        self.wait(&format!("{count} completions"), |heard| {
            (heard.completions.len() >= count).then(|| heard.completions.drain(..count).collect())
        })
    }

    /// Takes completions that must all be successes.
    pub fn successes(&self, count: usize) -> Vec<Completion> {
        let taken = self.completions(count);
        assert!(taken.iter().all(|one| one.status.is_success()), "{taken:?}");
        taken
    }

    /// Waits for an event.
    pub fn event(&self, wanted: AsyncEvent) {
        self.wait(&format!("{wanted:?}"), |heard| heard.events.contains(&wanted).then_some(()));
    }

    /// What is there now.
    pub fn now(&self) -> (usize, Vec<AsyncEvent>) {
        let heard = self.heard.lock().unwrap();
        (heard.completions.len(), heard.events.clone())
    }
}

/// One end: a queue pair, its handler, and a region of 1 MiB.
pub struct End {
    pub device: Arc<dyn Device>,
    pub local: LocalAddress,
    pub log: Arc<Log>,
    pub pair: Arc<dyn QueuePair>,
    pub region: Arc<Region>,
    pub shared: Option<Arc<dyn ReceiveQueue>>,
}

/// What an end is made with.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub max_send: u32,
    pub max_receive: u32,
    pub shared: Option<u32>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { max_send: 64, max_receive: 64, shared: None }
    }
}

pub const REGION: usize = 1 << 20;

/// The local address that a TLS connection from `address` would choose.
pub fn local(address: &str) -> LocalAddress {
    static KNOWN: Mutex<Vec<(IpAddr, LocalAddress)>> = Mutex::new(Vec::new());
    let address: IpAddr = address.parse().unwrap();
    let mut known = KNOWN.lock().unwrap();
    if let Some((_, local)) = known.iter().find(|(of, _)| *of == address) {
        return local.clone();
    }
    let local = choose(&Verbs.list().unwrap(), &DeviceWish::default(), address).unwrap();
    known.push((address, local.clone()));
    local
}

impl End {
    /// A queue pair in RESET on the device of `address`.
    pub fn new(address: &str, sizes: Sizes) -> Self {
        let log = Arc::new(Log::default());
        let weak: Weak<Log> = Arc::downgrade(&log);
        Self::with_handler(address, sizes, log, weak)
    }

    pub fn with_handler(
        address: &str,
        sizes: Sizes,
        log: Arc<Log>,
        handler: Weak<dyn QueuePairHandler>,
    ) -> Self {
        let local = local(address);
        let device = Verbs.open(&local.device).unwrap();
        let region = device
            .register(
                Arc::new(Memory::allocate(REGION).unwrap()),
                Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC,
            )
            .unwrap();
        let shared =
            sizes.shared.map(|capacity| testing::create_receive_queue(&local.device, capacity).unwrap());
        let config = QueuePairConfig {
            max_send: sizes.max_send,
            max_receive: sizes.max_receive,
            max_sge: 4,
            receive_queue: shared.clone(),
            handler,
        };
        let pair = device.create_queue_pair(config).unwrap();
        Self { device, local, log, pair, region, shared }
    }

    pub fn init(&self) {
        let attr = QpAttr {
            access: Some(Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC),
            pkey_index: Some(0),
            port: Some(self.local.port),
            ..QpAttr::to(QpState::Init)
        };
        self.pair.modify(&attr).unwrap();
    }

    /// The attributes of INIT→RTR towards `peer`, without the address.
    pub fn rtr(&self, peer: &Self, rq_psn: u32) -> QpAttr {
        QpAttr {
            path_mtu: Some(PathMtu::Bytes1024),
            dest_qpn: Some(peer.pair.qpn()),
            rq_psn: Psn::new(rq_psn),
            max_dest_rd_atomic: Some(16),
            min_rnr_timer: Some(12),
            ..QpAttr::to(QpState::Rtr)
        }
    }

    pub fn rts(sq_psn: u32) -> QpAttr {
        QpAttr {
            sq_psn: Psn::new(sq_psn),
            timeout: Some(14),
            retry_count: Some(3),
            rnr_retry: Some(6),
            max_rd_atomic: Some(16),
            ..QpAttr::to(QpState::Rts)
        }
    }

    /// Resolves `peer` as the bring-up would.
    pub fn route(&self, peer: &Self, addressing: Addressing) -> Box<dyn Route> {
        let part = peer.device.establish(&peer.local, addressing).unwrap().local_part();
        let context = PathContext {
            tls_local: self.local.gid.to_ip(),
            tls_peer: peer.local.gid.to_ip(),
            allowed_peer_addresses: Vec::new(),
        };
        self.device.establish(&self.local, addressing).unwrap().resolve(&part, &context).unwrap()
    }

    pub fn slice(&self, offset: usize, length: usize) -> Slice {
        Slice::new(&self.region, offset, length)
    }

    /// Posts a receive of `length` bytes at `offset`.
    pub fn receive(&self, id: u64, offset: usize, length: usize) {
        let request = ReceiveRequest::new(WorkId(id), &self.region, offset, length);
        match &self.shared {
            Some(queue) => queue.post_receive(&[request]).unwrap(),
            None => self.pair.post_receive(&[request]).unwrap(),
        }
    }

    /// Posts one send request over one slice.
    pub fn post(&self, id: u64, operation: SendOperation, offset: usize, length: usize) {
        self.pair.post_send(&[self.request(id, operation, offset, length)]).unwrap();
    }

    pub fn request(&self, id: u64, operation: SendOperation, offset: usize, length: usize) -> SendRequest {
        let local = [self.slice(offset, length)].into_iter().collect();
        SendRequest { id: WorkId(id), operation, local, flags: SendFlags::empty() }
    }

    pub fn fill(&self, offset: usize, bytes: &[u8]) {
        self.region.memory().write(offset, bytes).unwrap();
    }

    pub fn bytes(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.region.memory().read(offset, &mut bytes).unwrap();
        bytes
    }

    /// A range of this end's region, as the peer names it.
    pub fn remote(&self, offset: usize) -> RemoteSlice {
        RemoteSlice { address: self.region.address() + offset as u64, rkey: self.region.rkey() }
    }
}

pub const SEND: SendOperation = SendOperation::Send { immediate: None };

/// Two ends in RTS over the wire, `verbs` addressing, IPv4.
pub fn connected(sizes: Sizes) -> [End; 2] {
    connected_over(V4, Addressing::Verbs, sizes)
}

pub fn connected_over(addresses: [&str; 2], addressing: Addressing, sizes: Sizes) -> [End; 2] {
    let ends = addresses.map(|address| End::new(address, sizes));
    bring_up(&ends, addressing);
    ends
}

/// INIT, RTR and RTS of both ends.
pub fn bring_up(ends: &[End; 2], addressing: Addressing) {
    for end in ends {
        end.init();
    }
    for (us, them) in [(0, 1), (1, 0)] {
        let mut attr = ends[us].rtr(&ends[them], PSNS[them]);
        ends[us].route(&ends[them], addressing).rtr(&mut attr).unwrap();
        ends[us].pair.modify(&attr).unwrap();
    }
    for us in [0, 1] {
        ends[us].pair.modify(&End::rts(PSNS[us])).unwrap();
        assert_eq!(ends[us].pair.state(), QpState::Rts);
    }
}

pub fn move_to_error(end: &End) {
    end.pair.modify(&QpAttr::to(QpState::Err)).unwrap();
}

pub fn statuses(completions: &[Completion]) -> Vec<WcStatus> {
    completions.iter().map(|one| one.status).collect()
}

/// A hardware counter of a device's port.
pub fn counter(device: &str, name: &str) -> u64 {
    let path = format!("/sys/class/infiniband/{device}/ports/1/hw_counters/{name}");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

pub fn run(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What user programs hold on a device, as `rdma res show` counts it.
pub fn held(device: &str) -> [u32; 5] {
    let text = run(&format!("rdma res show {device}"));
    let words: Vec<_> = text.split_whitespace().collect();
    ["qp", "cq", "mr", "ctx", "srq"].map(|name| {
        let at = words.iter().position(|word| *word == name).unwrap();
        words[at + 1].parse().unwrap()
    })
}

/// Waits until `device` holds what it held before.
pub fn settles(device: &str, before: [u32; 5]) -> Duration {
    let start = Instant::now();
    while held(device) != before {
        assert!(
            start.elapsed() < PATIENCE,
            "{device} holds {:?}, held {before:?} (qp cq mr ctx srq)",
            held(device)
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// Messages of several sizes both ways, in lists, and byte for byte.
pub fn exchange(ends: &[End; 2]) {
    let sizes = [0_usize, 1, 7, 64, 1024, 1025, 4096, 65_536];
    for (us, them) in [(0, 1), (1, 0)] {
        let (from, to) = (&ends[us], &ends[them]);
        let mut offset = 0;
        let mut receives = Vec::new();
        let mut sends = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 7 + number + us).to_le_bytes()[0]).collect();
            from.fill(offset, &bytes);
            let id = WorkId(100 + number as u64);
            receives.push(ReceiveRequest::new(id, &to.region, REGION / 2 + offset, 65_536));
            let immediate = (number % 2 == 1).then_some(0x0102_0300 + u32::try_from(number).unwrap());
            sends.push(from.request(number as u64, SendOperation::Send { immediate }, offset, size));
            offset += size;
        }
        to.pair.post_receive(&receives).unwrap();
        from.pair.post_send(&sends).unwrap();
        let sent = from.log.successes(sizes.len());
        let received = to.log.successes(sizes.len());
        let mut offset = 0;
        for (number, size) in sizes.into_iter().enumerate() {
            assert_eq!((sent[number].id, sent[number].kind), (WorkId(number as u64), CompletionKind::Send));
            let got = &received[number];
            assert_eq!((got.id, got.kind), (WorkId(100 + number as u64), CompletionKind::Receive));
            assert_eq!(got.byte_len as usize, size);
            let immediate = (number % 2 == 1).then_some(0x0102_0300 + u32::try_from(number).unwrap());
            assert_eq!(got.immediate, immediate, "host order on both sides");
            assert_eq!(to.bytes(REGION / 2 + offset, size), from.bytes(offset, size));
            offset += size;
        }
    }
}
