//! A device whose queue pairs check and record their transitions, and an upper layer whose proof of path does what the
//! test says.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    Access, AddressVector, Addressing, Device, DeviceKind, DeviceLimits, Error, ErrorCode, Establish, Gid,
    GlobalRoute, Lid, LinkLayer, LocalAddress, Memory, PathContext, PathMtu, PostError, QpAttr, QpState, Qpn,
    QueuePair, QueuePairConfig, ReceiveQueue, ReceiveRequest, Region, Result, Route, SendRequest, WcStatus,
    transition,
};
use secure_rdma_session::{Host, Prepared, Terms, TlsAddresses, UpperLayer};

/// What the proof of path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    Works,
    Hangs,
    Fails,
}

/// What the stub does at each step.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub path: Path,
    pub prepare_takes: Duration,
    pub resolve_takes: Duration,
    pub resolve_fails: Option<ErrorCode>,
    pub prepare_fails: Option<ErrorCode>,
    pub tick_fails: bool,
    /// What the peer sends to the queue pair in RTR breaks a rule.
    pub violated_in_rtr: bool,
    pub kind: DeviceKind,
    pub path_mtu: PathMtu,
    pub route_mtu: Option<PathMtu>,
    pub limits: (u8, u8),
    pub terms: Terms,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            path: Path::Works,
            prepare_takes: Duration::ZERO,
            resolve_takes: Duration::ZERO,
            resolve_fails: None,
            prepare_fails: None,
            tick_fails: false,
            violated_in_rtr: false,
            kind: DeviceKind::Fake,
            path_mtu: PathMtu::Bytes4096,
            route_mtu: None,
            limits: (128, 128),
            terms: Terms { max_message_size: 1 << 20, segment_size: 8192, credits: 16 },
        }
    }
}

#[derive(Debug, Default)]
pub struct Counts {
    pub live: AtomicUsize,
    pub made: AtomicUsize,
}

pub struct StubHost {
    pub behaviour: Mutex<Behaviour>,
    pub counts: Arc<Counts>,
    /// The attributes of every transition of every queue pair, in order.
    pub log: Arc<Mutex<Vec<(Qpn, QpAttr)>>>,
}

impl StubHost {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { behaviour: Mutex::default(), counts: Arc::default(), log: Arc::default() })
    }

    pub fn with(change: impl FnOnce(&mut Behaviour)) -> Arc<Self> {
        let host = Self::new();
        host.set(change);
        host
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// Queue pairs that exist.
    pub fn live(&self) -> usize {
        self.counts.live.load(Ordering::SeqCst)
    }

    /// Queue pairs that were ever made.
    pub fn made(&self) -> usize {
        self.counts.made.load(Ordering::SeqCst)
    }

    /// The states that queue pairs were moved to.
    pub fn states(&self) -> Vec<QpState> {
        self.log.lock().unwrap().iter().filter_map(|(_, attr)| attr.state).collect()
    }

    /// The attributes of the last move to `state`.
    pub fn moved(&self, state: QpState) -> QpAttr {
        let log = self.log.lock().unwrap();
        log.iter().rev().find(|(_, attr)| attr.state == Some(state)).unwrap().1.clone()
    }
}

impl Host for StubHost {
    type Upper = StubUpper;

    fn prepare(&self, addresses: TlsAddresses) -> Result<Prepared<StubUpper>> {
        let behaviour = self.behaviour.lock().unwrap().clone();
        std::thread::sleep(behaviour.prepare_takes);
        if let Some(code) = behaviour.prepare_fails {
            return Err(Error::new(code, "as the test wants: secret detail"));
        }
        let number = 0x100 + u32::try_from(self.counts.made.fetch_add(1, Ordering::SeqCst)).unwrap();
        self.counts.live.fetch_add(1, Ordering::SeqCst);
        let queue_pair: Arc<dyn QueuePair> = Arc::new(StubQueuePair {
            qpn: Qpn::new(number).unwrap(),
            state: Mutex::new(QpState::Reset),
            counts: Arc::clone(&self.counts),
            log: Arc::clone(&self.log),
        });
        let limits = DeviceLimits {
            max_work_requests: 100,
            max_sge: 1,
            max_completions: 100,
            max_responder_resources: behaviour.limits.0,
            max_initiator_depth: behaviour.limits.1,
            max_shared_receives: 0,
            max_message: 1 << 30,
        };
        let upper = Arc::new(StubUpper {
            queue_pair: Mutex::new(Some(Arc::clone(&queue_pair))),
            behaviour: behaviour.clone(),
            record: Mutex::default(),
        });
        Ok(Prepared {
            local: LocalAddress {
                device: "stub0".to_owned(),
                kind: behaviour.kind,
                port: 1,
                gid_index: 3,
                gid: Gid::from_ip(addresses.local.ip()),
                interface: None,
                link_layer: LinkLayer::Ethernet,
                lid: Lid(0),
                path_mtu: behaviour.path_mtu,
                reason: "it is a stub".to_owned(),
            },
            device: Arc::new(StubDevice { limits, behaviour }),
            addressing: Addressing::Verbs,
            queue_pair,
            upper,
        })
    }
}

#[derive(Debug)]
struct StubDevice {
    limits: DeviceLimits,
    behaviour: Behaviour,
}

impl Device for StubDevice {
    fn name(&self) -> &'static str {
        "stub0"
    }

    fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    fn register(&self, _: Arc<Memory>, _: Access) -> Result<Arc<Region>> {
        Err(Error::new(ErrorCode::Internal, "the stub registers nothing"))
    }

    fn create_receive_queue(&self, _: u32) -> Result<Option<Arc<dyn ReceiveQueue>>> {
        Ok(None)
    }

    fn create_queue_pair(&self, _: QueuePairConfig) -> Result<Arc<dyn QueuePair>> {
        Err(Error::new(ErrorCode::Internal, "the stub's host makes them"))
    }

    fn establish(&self, local: &LocalAddress, _: Addressing) -> Result<Box<dyn Establish>> {
        Ok(Box::new(StubEstablish { gid: local.gid, behaviour: self.behaviour.clone() }))
    }
}

struct StubEstablish {
    gid: Gid,
    behaviour: Behaviour,
}

impl Establish for StubEstablish {
    fn local_part(&self) -> Vec<u8> {
        self.gid.bytes().to_vec()
    }

    fn resolve(self: Box<Self>, peer_part: &[u8], context: &PathContext) -> Result<Box<dyn Route>> {
        std::thread::sleep(self.behaviour.resolve_takes);
        if let Some(code) = self.behaviour.resolve_fails {
            return Err(Error::new(code, "as the test wants"));
        }
        let gid = Gid::new(peer_part.try_into().map_err(|_| Error::new(ErrorCode::Offer, "no GID"))?);
        if gid != Gid::from_ip(context.tls_peer) && !context.allowed_peer_addresses.contains(&gid.to_ip()) {
            return Err(Error::new(ErrorCode::Offer, format!("the GID {gid} is not the TLS peer's address")));
        }
        Ok(Box::new(StubRoute { gid, path_mtu: self.behaviour.route_mtu }))
    }
}

struct StubRoute {
    gid: Gid,
    path_mtu: Option<PathMtu>,
}

impl Route for StubRoute {
    fn rtr(&self, attr: &mut QpAttr) -> Result<()> {
        let global = GlobalRoute {
            destination: self.gid,
            source_gid_index: 3,
            flow_label: 0,
            hop_limit: 64,
            traffic_class: 0,
        };
        attr.address = Some(AddressVector { port: 1, global: Some(global), ..AddressVector::default() });
        // What a way of addressing must not be able to choose.
        attr.rq_psn = secure_rdma_rdma::Psn::new(0xBAD);
        Ok(())
    }

    fn rts(&self, attr: &mut QpAttr) -> Result<()> {
        attr.sq_psn = secure_rdma_rdma::Psn::new(0xBAD);
        Ok(())
    }

    fn peer_gid(&self) -> Gid {
        self.gid
    }

    fn udp_port(&self) -> Option<u16> {
        Some(4791)
    }

    fn path_mtu(&self) -> Option<PathMtu> {
        self.path_mtu
    }

    fn description(&self) -> String {
        "stub".to_owned()
    }
}

struct StubQueuePair {
    qpn: Qpn,
    state: Mutex<QpState>,
    counts: Arc<Counts>,
    log: Arc<Mutex<Vec<(Qpn, QpAttr)>>>,
}

impl QueuePair for StubQueuePair {
    fn qpn(&self) -> Qpn {
        self.qpn
    }

    fn state(&self) -> QpState {
        *self.state.lock().unwrap()
    }

    fn modify(&self, attr: &QpAttr) -> Result<()> {
        let mut state = self.state.lock().unwrap();
        *state = transition::check_attr(*state, attr)?;
        self.log.lock().unwrap().push((self.qpn, attr.clone()));
        Ok(())
    }

    fn post_send(&self, _: &[SendRequest]) -> std::result::Result<(), PostError> {
        Ok(())
    }

    fn post_receive(&self, _: &[ReceiveRequest]) -> std::result::Result<(), PostError> {
        Ok(())
    }
}

impl Drop for StubQueuePair {
    fn drop(&mut self) {
        self.counts.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What happened to an upper layer.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The queue pair's state when receives were posted and when the path was to be proven.
    pub posted_in: Option<QpState>,
    pub proved_in: Option<QpState>,
    pub adopted: Option<(Terms, PathMtu)>,
    pub ticks: u32,
    pub peer_closed: u32,
    pub told: Vec<Vec<u8>>,
    pub may_tell: u32,
    pub lost: Vec<Error>,
}

pub struct StubUpper {
    queue_pair: Mutex<Option<Arc<dyn QueuePair>>>,
    behaviour: Behaviour,
    record: Mutex<Record>,
}

impl StubUpper {
    pub fn record(&self) -> Record {
        self.record.lock().unwrap().clone()
    }

    fn state(&self) -> Option<QpState> {
        self.queue_pair.lock().unwrap().as_ref().map(|queue_pair| queue_pair.state())
    }
}

impl UpperLayer for StubUpper {
    fn post_receives(&self) -> Result<()> {
        self.record.lock().unwrap().posted_in = self.state();
        Ok(())
    }

    fn terms(&self) -> Terms {
        self.behaviour.terms
    }

    fn adopt(&self, peer: &Terms, path_mtu: PathMtu) -> Result<()> {
        self.record.lock().unwrap().adopted = Some((*peer, path_mtu));
        Ok(())
    }

    fn prove_path(&self) -> Result<()> {
        self.record.lock().unwrap().proved_in = self.state();
        Ok(())
    }

    fn poll_path_proven(&self, _: &mut Context<'_>) -> Poll<Result<()>> {
        if self.behaviour.violated_in_rtr {
            // As the upper layer in earnest does it.
            if let Some(queue_pair) = self.queue_pair.lock().unwrap().as_ref() {
                queue_pair.modify(&QpAttr::to(QpState::Err)).unwrap();
            }
            return Poll::Ready(Err(Error::new(
                ErrorCode::PeerViolation,
                "it sent what it had no credit for",
            )));
        }
        if self.record().proved_in.is_none() {
            return Poll::Pending;
        }
        match self.behaviour.path {
            Path::Works => Poll::Ready(Ok(())),
            Path::Hangs => Poll::Pending,
            Path::Fails => Poll::Ready(Err(Error::new(ErrorCode::Work, "no answer after every repetition")
                .with_wc_status(WcStatus::RETRY_EXC_ERR))),
        }
    }

    fn tick(&self, _: Instant) -> Result<()> {
        self.record.lock().unwrap().ticks += 1;
        if self.behaviour.tick_fails { Err(Error::new(ErrorCode::Work, "the probe failed")) } else { Ok(()) }
    }

    fn told(&self, message: &[u8]) -> Result<()> {
        self.record.lock().unwrap().told.push(message.to_vec());
        if message == b"nonsense" {
            Err(Error::new(ErrorCode::PeerViolation, "it told nonsense"))
        } else {
            Ok(())
        }
    }

    fn may_tell(&self) {
        self.record.lock().unwrap().may_tell += 1;
    }

    fn peer_closed(&self) {
        self.record.lock().unwrap().peer_closed += 1;
    }

    fn lost(&self, error: Error) {
        self.record.lock().unwrap().lost.push(error);
        *self.queue_pair.lock().unwrap() = None;
    }
}
