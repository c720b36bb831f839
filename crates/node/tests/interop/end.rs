//! An end of a connection: a queue pair that the exchange over TLS has brought up, and a region that its peer may use.

use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use secure_rdma_rdma::{
    Access, Addressing, AsyncEvent, Completion, Device, DeviceInfo, DeviceWish, Devices, Error, ErrorCode,
    Memory, PathMtu, QpAttr, QpState, QueuePair, QueuePairConfig, QueuePairHandler, ReceiveRequest, Region,
    RemoteSlice, Result, SendFlags, SendOperation, SendRequest, Slice, WcStatus, WorkId, choose,
};
use secure_rdma_session::{
    ConnectConfig, Control, Established, ExposedSecrets, Host, ListenConfig, Listener, Prepared,
    SessionOptions, Terms, TlsAddresses, TlsOptions, UpperLayer, connect,
};
use secure_rdma_soft::{SoftDevice, SoftDevices};
use secure_rdma_verbs::Verbs;
use tokio::runtime::{Builder, Runtime};

use crate::wire;

/// How long anything may take before the test has failed: the guest is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const REGION: usize = 1 << 20;

pub(crate) const ALL: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_ATOMIC)
    .union(Access::MEMORY_WINDOW_BIND);

/// The path MTU's worth of bytes that proves the path.
const PROOF_SENT: WorkId = WorkId(u64::MAX);
const PROOF_RECEIVED: WorkId = WorkId(u64::MAX - 1);

/// Bytes that follow from a seed, and not from their place alone.
pub(crate) fn bytes(length: usize, seed: u8) -> Vec<u8> {
    let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0] ^ seed;
    (0..length).map(byte).collect()
}

/// What a queue pair's handler was told.
#[derive(Default)]
pub(crate) struct Told {
    state: Mutex<(VecDeque<Completion>, Option<Waker>)>,
    changed: Condvar,
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, (VecDeque<Completion>, Option<Waker>)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next completion; a failed test when none comes.
    pub(crate) fn next(&self) -> Completion {
        let end = Instant::now() + PATIENCE;
        let mut state = self.lock();
        loop {
            if let Some(completion) = state.0.pop_front() {
                return completion;
            }
            let left = end.checked_duration_since(Instant::now()).expect("a completion comes");
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl QueuePairHandler for Told {
    fn completed(&self, batch: &[Completion]) {
        let mut state = self.lock();
        state.0.extend(batch);
        if let Some(waker) = state.1.take() {
            waker.wake();
        }
        self.changed.notify_all();
    }

    fn happened(&self, event: AsyncEvent) {
        println!("{event:?}");
    }
}

/// Makes the queue pairs of one end.
struct Family(Arc<dyn Devices>);

impl Host for Family {
    type Upper = Upper;

    fn prepare(&self, addresses: TlsAddresses) -> Result<Prepared<Upper>> {
        let local = choose(&self.0.list()?, &DeviceWish::default(), addresses.local.ip())?;
        let device = self.0.open(&local.device)?;
        let region = device.register(Arc::new(Memory::allocate(REGION)?), ALL)?;
        let told = Arc::new(Told::default());
        let handler: Weak<Told> = Arc::downgrade(&told);
        let queue_pair = device.create_queue_pair(QueuePairConfig {
            max_send: 64,
            max_receive: 64,
            max_sge: 1,
            receive_queue: None,
            handler,
        })?;
        let upper = Upper {
            device: Arc::clone(&device),
            pair: Arc::clone(&queue_pair),
            region,
            told,
            path_mtu: OnceLock::new(),
        };
        Ok(Prepared { device, local, addressing: Addressing::Hybrid, queue_pair, upper: Arc::new(upper) })
    }
}

struct Upper {
    device: Arc<dyn Device>,
    pair: Arc<dyn QueuePair>,
    region: Arc<Region>,
    told: Arc<Told>,
    path_mtu: OnceLock<PathMtu>,
}

impl UpperLayer for Upper {
    fn post_receives(&self) -> Result<()> {
        let proof = ReceiveRequest::new(PROOF_RECEIVED, &self.region, 0, 4096);
        self.pair.post_receive(&[proof]).map_err(|refused| refused.error)
    }

    fn terms(&self) -> Terms {
        Terms { max_message_size: 1 << 20, segment_size: 4096, credits: 16 }
    }

    fn adopt(&self, _: &Terms, path_mtu: PathMtu) -> Result<()> {
        self.path_mtu.set(path_mtu).map_err(|_| Error::new(ErrorCode::Internal, "adopted twice"))
    }

    fn prove_path(&self) -> Result<()> {
        let length = self.path_mtu.get().map_or(0, |path_mtu| path_mtu.bytes());
        let proof = SendRequest {
            id: PROOF_SENT,
            operation: SendOperation::Send { immediate: None },
            local: [Slice::new(&self.region, 4096, length)].into_iter().collect(),
            flags: SendFlags::empty(),
        };
        self.pair.post_send(&[proof]).map_err(|refused| refused.error)
    }

    fn poll_path_proven(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.told.lock();
        if let Some(failed) = state.0.iter().find(|completion| !completion.status.is_success()) {
            return Poll::Ready(Err(Error::new(ErrorCode::Path, failed.status.meaning())));
        }
        if state.0.len() < 2 {
            state.1 = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.0.clear();
        Poll::Ready(Ok(()))
    }

    fn tick(&self, _: Instant) -> Result<()> {
        Ok(())
    }

    fn peer_closed(&self) {}

    fn lost(&self, _: Error) {}
}

/// One end, connected.
pub(crate) struct End {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) pair: Arc<dyn QueuePair>,
    pub(crate) region: Arc<Region>,
    pub(crate) told: Arc<Told>,
    pub(crate) path_mtu: PathMtu,
    /// Starting PSNs, where the options exposed them.
    pub(crate) secrets: Option<ExposedSecrets>,
    _upper: Arc<Upper>,
    /// Its end would be the peer's.
    _control: Control,
}

impl End {
    /// The peer may do more than `session` needs.
    fn new(established: Established<Upper>) -> Self {
        let Established { upper, control, report, .. } = established;
        let access = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        upper.pair.modify(&QpAttr { access: Some(access), ..QpAttr::to(QpState::Rts) }).unwrap();
        Self {
            device: Arc::clone(&upper.device),
            pair: Arc::clone(&upper.pair),
            region: Arc::clone(&upper.region),
            told: Arc::clone(&upper.told),
            path_mtu: *upper.path_mtu.get().unwrap(),
            secrets: report.secrets,
            _upper: upper,
            _control: control,
        }
    }

    pub(crate) fn fill(&self, offset: usize, bytes: &[u8]) {
        self.region.memory().write(offset, bytes).unwrap();
    }

    pub(crate) fn read_back(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.region.memory().read(offset, &mut bytes).unwrap();
        bytes
    }

    /// A place in this end's region, as the peer names it.
    pub(crate) fn remote(&self, offset: usize) -> RemoteSlice {
        RemoteSlice { address: self.region.address() + offset as u64, rkey: self.region.rkey() }
    }

    pub(crate) fn receive(&self, id: u64, offset: usize, length: usize) {
        let receive = ReceiveRequest::new(WorkId(id), &self.region, offset, length);
        self.pair.post_receive(&[receive]).unwrap();
    }

    pub(crate) fn post(&self, id: u64, operation: SendOperation, offset: usize, length: usize) {
        let request = SendRequest {
            id: WorkId(id),
            operation,
            local: [Slice::new(&self.region, offset, length)].into_iter().collect(),
            flags: SendFlags::empty(),
        };
        self.pair.post_send(&[request]).unwrap();
    }

    /// The next completions as numbers and statuses, in their order.
    pub(crate) fn ended(&self, count: usize) -> Vec<(u64, WcStatus)> {
        let next = |_| {
            let completion = self.told.next();
            (completion.id.0, completion.status)
        };
        (0..count).map(next).collect()
    }

    /// The next completion, which must be a success.
    pub(crate) fn done(&self) -> Completion {
        let completion = self.told.next();
        assert_eq!(completion.status, WcStatus::SUCCESS, "{completion:?}");
        completion
    }

    /// Nothing is outstanding, and nothing was told that nobody has waited for.
    pub(crate) fn close(&self) {
        assert!(self.told.lock().0.is_empty());
        self.pair.modify(&QpAttr::to(QpState::Err)).unwrap();
    }
}

/// A runtime whose threads are in the namespace of one end.
fn runtime(inside: bool) -> &'static Runtime {
    static RUNTIMES: [OnceLock<Runtime>; 2] = [OnceLock::new(), OnceLock::new()];
    let start = move || {
        if inside {
            wire::enter();
        }
        Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    };
    RUNTIMES[usize::from(inside)].get_or_init(|| std::thread::spawn(start).join().unwrap())
}

/// Runs to its end in the namespace of one end; this thread is in the first.
pub(crate) fn run_in<F: Future<Output: Send> + Send + 'static>(inside: bool, future: F) -> F::Output {
    let (sender, receiver) = std::sync::mpsc::channel();
    runtime(inside).spawn(async move { sender.send(future.await) });
    receiver.recv().unwrap()
}

/// Certificates of one authority for a server at these addresses and its client.
fn certificates(addresses: [&str; 2]) -> [TlsOptions; 2] {
    let key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(vec![]).unwrap();
    authority.distinguished_name.push(DnType::CommonName, "interop authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&key).unwrap().pem().into_bytes();
    let issuer = Issuer::new(authority, key);
    addresses.map(|address| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![address.to_owned()]).unwrap();
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &issuer).unwrap().pem().into_bytes();
        let key = Some(key.serialize_pem().into_bytes());
        TlsOptions { ca: vec![ca.clone()], cert: vec![cert], key, ..TlsOptions::default() }
    })
}

/// What both sides are told unless a test says otherwise.
pub(crate) fn options(path_mtu: PathMtu) -> SessionOptions {
    SessionOptions { max_path_mtu: Some(path_mtu), handshake_timeout: PATIENCE, ..SessionOptions::default() }
}

/// A connection between rxe2 at `outside` and the embedded device at `inside`: rxe's end, then soft's.
pub(crate) fn connected(
    outside: &str,
    inside: &str,
    soft_serves: bool,
    options: SessionOptions,
) -> (End, End) {
    connected_to(Arc::new(SoftDevices), outside, inside, soft_serves, options)
}

/// An open embedded device, as a family of one.
#[derive(Clone)]
pub(crate) struct Single(pub(crate) Arc<SoftDevice>);

impl Devices for Single {
    fn list(&self) -> Result<Vec<DeviceInfo>> {
        Ok(vec![self.0.info()?])
    }

    fn open(&self, _: &str) -> Result<Arc<dyn Device>> {
        Ok(Arc::clone(&self.0) as Arc<dyn Device>)
    }
}

/// The same with this embedded device.
pub(crate) fn connected_to(
    soft: Arc<dyn Devices>,
    outside: &str,
    inside: &str,
    soft_serves: bool,
    options: SessionOptions,
) -> (End, End) {
    let (server_at, client_at) = if soft_serves { (inside, outside) } else { (outside, inside) };
    let [server_tls, client_tls] = certificates([server_at, client_at]);
    let rxe: Arc<dyn Devices> = Arc::new(Verbs);
    let (server_of, client_of) = if soft_serves { (soft, rxe) } else { (rxe, soft) };
    let config = ListenConfig { options: options.clone(), ..ListenConfig::new(server_at, 0, server_tls) };
    let host = Arc::new(Family(server_of));
    let listener = Arc::new(run_in(soft_serves, async move { Listener::bind(config, host).await }).unwrap());
    let config = ConnectConfig {
        local_address: Some(client_at.parse::<IpAddr>().unwrap()),
        options,
        ..ConnectConfig::new(server_at, listener.local_addr().port(), client_tls)
    };
    let host = Arc::new(Family(client_of));
    let client = run_in(!soft_serves, async move { connect(config, host).await }).unwrap();
    let server = run_in(soft_serves, async move { listener.accept().await }).unwrap();
    let (server, client) = (End::new(server), End::new(client));
    if soft_serves { (client, server) } else { (server, client) }
}
