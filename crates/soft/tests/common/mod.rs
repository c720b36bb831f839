//! Two devices of this process, and queue pairs between them.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)] // each test file uses some of it, and any failure is a failed test

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    Access, Addressing, AsyncEvent, Completion, Device, Gid, LocalAddress, Memory, OsEntropy, PathContext,
    PathMtu, Psn, QpAttr, QpState, QueuePair, QueuePairConfig, QueuePairHandler, ReceiveQueue,
    ReceiveRequest, Region, RemoteSlice, SendFlags, SendOperation, SendRequest, Slice, WcStatus, WorkId,
};
use secure_rdma_soft::{SoftDevice, SoftOptions};

/// How long anything may take before the test has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const ALL: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_ATOMIC)
    .union(Access::MEMORY_WINDOW_BIND);

/// A device of its own on any port.
pub(crate) fn device() -> Arc<SoftDevice> {
    open(SoftOptions::default())
}

pub(crate) fn open(options: SoftOptions) -> Arc<SoftDevice> {
    SoftDevice::open(&SoftOptions { port: options.port.or(Some(0)), ..options }).unwrap()
}

/// What a queue pair's handler was told.
#[derive(Default)]
pub(crate) struct Told {
    state: Mutex<(VecDeque<Completion>, Vec<AsyncEvent>)>,
    changed: Condvar,
}

impl QueuePairHandler for Told {
    fn completed(&self, batch: &[Completion]) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.extend(batch);
        self.changed.notify_all();
    }

    fn happened(&self, event: AsyncEvent) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.push(event);
        self.changed.notify_all();
    }
}

impl Told {
    /// The next completion; a failed test when none comes.
    pub(crate) fn next(&self) -> Completion {
        let end = Instant::now() + PATIENCE;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(completion) = state.0.pop_front() {
                return completion;
            }
            let left = end.checked_duration_since(Instant::now()).expect("a completion comes");
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The completion that has come, if any.
    pub(crate) fn try_next(&self) -> Option<Completion> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.pop_front()
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.is_empty()
    }

    pub(crate) fn events(&self) -> Vec<AsyncEvent> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

/// What decides how a pair is connected.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) address: IpAddr,
    pub(crate) path_mtu: PathMtu,
    pub(crate) depth: u32,
    /// 4.096 µs · 2^n.
    pub(crate) timeout: u8,
    pub(crate) retry_count: u8,
    pub(crate) rnr_retry: u8,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            address: IpAddr::from([127, 0, 0, 1]),
            path_mtu: PathMtu::Bytes4096,
            depth: 64,
            timeout: 17,
            retry_count: 7,
            rnr_retry: 7,
        }
    }
}

/// One end of a connection.
pub(crate) struct End {
    pub(crate) device: Arc<SoftDevice>,
    pub(crate) pair: Arc<dyn QueuePair>,
    pub(crate) told: Arc<Told>,
}

pub(crate) fn local(device: &SoftDevice, address: IpAddr) -> LocalAddress {
    let info = device.info().unwrap();
    let port = &info.ports[0];
    let entry =
        port.gids.iter().find(|entry| entry.gid == Gid::from_ip(address)).expect("the address is there");
    LocalAddress {
        device: info.name.clone(),
        kind: info.kind,
        port: port.number,
        gid_index: entry.index,
        gid: entry.gid,
        interface: entry.interface.clone(),
        link_layer: port.link_layer,
        lid: port.lid,
        path_mtu: entry.mtu.unwrap_or(port.active_mtu),
        reason: String::new(),
    }
}

pub(crate) fn config(terms: &Terms, handler: &Arc<Told>) -> QueuePairConfig {
    let handler: Arc<dyn QueuePairHandler> = Arc::clone(handler) as _;
    let handler: Weak<dyn QueuePairHandler> = Arc::downgrade(&handler);
    QueuePairConfig {
        max_send: terms.depth,
        max_receive: terms.depth,
        max_sge: 4,
        receive_queue: None,
        handler,
    }
}

pub(crate) fn init(pair: &dyn QueuePair) {
    let attr = QpAttr {
        access: Some(Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC),
        pkey_index: Some(0),
        port: Some(1),
        ..QpAttr::to(QpState::Init)
    };
    pair.modify(&attr).unwrap();
}

impl End {
    /// A queue pair in INIT.
    pub(crate) fn new(device: &Arc<SoftDevice>, terms: &Terms) -> Self {
        Self::sharing(device, terms, None)
    }

    pub(crate) fn sharing(
        device: &Arc<SoftDevice>,
        terms: &Terms,
        queue: Option<Arc<dyn ReceiveQueue>>,
    ) -> Self {
        let told = Arc::new(Told::default());
        let config = QueuePairConfig { receive_queue: queue, ..config(terms, &told) };
        let pair = device.create_queue_pair(config).unwrap();
        init(pair.as_ref());
        Self { device: Arc::clone(device), pair, told }
    }

    pub(crate) fn region(&self, length: usize) -> Arc<Region> {
        region(&self.device, length, ALL)
    }

    pub(crate) fn send(&self, request: SendRequest) {
        self.pair.post_send(&[request]).unwrap();
    }

    pub(crate) fn receive(&self, id: u64, region: &Arc<Region>, offset: usize, length: usize) {
        self.pair.post_receive(&[ReceiveRequest::new(WorkId(id), region, offset, length)]).unwrap();
    }

    /// The next completion, which must be a success.
    pub(crate) fn done(&self) -> Completion {
        let completion = self.told.next();
        assert_eq!(completion.status, WcStatus::SUCCESS, "{completion:?}");
        completion
    }
}

pub(crate) fn region(device: &Arc<SoftDevice>, length: usize, access: Access) -> Arc<Region> {
    device.register(Arc::new(Memory::allocate(length).unwrap()), access).unwrap()
}

/// Moves both ends to RTS, as the exchange over TLS would.
pub(crate) fn bring_up(one: &End, other: &End, terms: &Terms) {
    let (first, second) = (Psn::draw(&OsEntropy).unwrap(), Psn::draw(&OsEntropy).unwrap());
    bring_up_from(one, other, terms, first, second);
}

pub(crate) fn bring_up_from(one: &End, other: &End, terms: &Terms, first: Psn, second: Psn) {
    let context =
        PathContext { tls_local: terms.address, tls_peer: terms.address, allowed_peer_addresses: Vec::new() };
    let establish = |end: &End| {
        let device: &dyn Device = end.device.as_ref();
        device.establish(&local(&end.device, terms.address), Addressing::default()).unwrap()
    };
    let (ours, theirs) = (establish(one), establish(other));
    let (our_part, their_part) = (ours.local_part(), theirs.local_part());
    let routes = [ours.resolve(&their_part, &context).unwrap(), theirs.resolve(&our_part, &context).unwrap()];
    for (route, end, peer, psn) in [(&routes[0], one, other, second), (&routes[1], other, one, first)] {
        let mut attr = QpAttr {
            path_mtu: Some(terms.path_mtu),
            dest_qpn: Some(peer.pair.qpn()),
            rq_psn: Some(psn),
            max_dest_rd_atomic: Some(16),
            min_rnr_timer: Some(1),
            ..QpAttr::to(QpState::Rtr)
        };
        route.rtr(&mut attr).unwrap();
        end.pair.modify(&attr).unwrap();
    }
    for (end, psn) in [(one, first), (other, second)] {
        let attr = QpAttr {
            timeout: Some(terms.timeout),
            retry_count: Some(terms.retry_count),
            rnr_retry: Some(terms.rnr_retry),
            sq_psn: Some(psn),
            max_rd_atomic: Some(16),
            ..QpAttr::to(QpState::Rts)
        };
        end.pair.modify(&attr).unwrap();
    }
}

/// Two connected queue pairs on two devices.
pub(crate) fn connected(terms: &Terms) -> (End, End) {
    let ends = (End::new(&device(), terms), End::new(&device(), terms));
    bring_up(&ends.0, &ends.1, terms);
    ends
}

pub(crate) fn request(
    id: u64,
    operation: SendOperation,
    region: &Arc<Region>,
    offset: usize,
    length: usize,
) -> SendRequest {
    SendRequest {
        id: WorkId(id),
        operation,
        local: [Slice::new(region, offset, length)].into_iter().collect(),
        flags: SendFlags::empty(),
    }
}

pub(crate) fn remote(region: &Region, offset: u64) -> RemoteSlice {
    RemoteSlice { address: region.address() + offset, rkey: region.rkey() }
}

pub(crate) const SEND: SendOperation = SendOperation::Send { immediate: None };

pub(crate) fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|i| (i.wrapping_mul(31) >> 3).to_le_bytes()[0] ^ i.to_le_bytes()[0].wrapping_add(seed))
        .collect()
}

pub(crate) fn read_back(region: &Region, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    region.memory().read(offset, &mut bytes).unwrap();
    bytes
}
