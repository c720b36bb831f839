//! The bring-up's blocking calls, off the event loop, and what is learnt of the path on the way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    Error, ErrorCode, Establish, Gid, LinkLayer, LocalAddress, PathContext, PathMtu, Phase, Psn, Qpn, Result,
    Route,
};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::exchange::Agreed;
use crate::offer::{MAX_DEVICE_PART, Offer, VERSION};
use crate::{Bringup, Host, Init, Prepared, Rtr, Rts, SessionOptions, Terms, TlsAddresses, UpperLayer};

/// Paths that are looked for at once. A look-up that nobody answers takes seconds, so that these have half of the
/// pool's threads: the calls that take no time, and other people's, are never behind them.
const PATHS: usize = crate::runtime::BLOCKING_THREADS / 2;

static LOOKING: Semaphore = Semaphore::const_new(PATHS);

/// A call on the pool for blocking calls. When this is dropped a call that has not begun never will, and the result of
/// one that has is dropped as soon as there is one.
pub(crate) struct Blocking<T>(JoinHandle<Result<T>>);

/// A call that waits for its place before it is on the pool. When this is dropped while it waits, so is at once whatever
/// the call holds: handshakes that have ended leave no queue pairs behind in a queue.
pub(crate) type Waiting<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// Runs `work` on that pool.
fn blocking<T, F>(work: F) -> Blocking<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    Blocking(tokio::task::spawn_blocking(work))
}

impl<T> Drop for Blocking<T> {
    /// What has not begun need not: a crowd that gave up must not keep the pool busy for those who come after it.
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl<T> Future for Blocking<T> {
    type Output = Result<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        Poll::Ready(match ready!(Pin::new(&mut self.0).poll(cx)) {
            Ok(result) => result,
            Err(cause) => Err(Error::internal(format_args!("a blocking call did not end: {cause}"))),
        })
    }
}

/// Runs `work` on that pool when it is its turn among those that look for paths.
fn looking<T, F>(work: F) -> Waiting<T>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T> + Send + 'static,
{
    Box::pin(async move {
        let place = LOOKING.acquire().await;
        let looked = blocking(move || {
            // Until the call returns, also when nobody waits for it any more.
            let _place = place;
            work()
        });
        looked.await
    })
}

/// What is made before the offer: a queue pair in INIT.
pub(crate) struct Made<U> {
    pub(crate) start: Start<U>,
    pub(crate) local: LocalAddress,
    pub(crate) offer: Offer,
    pub(crate) prepared_in: Duration,
}

/// A queue pair in INIT and its way to the peer.
pub(crate) struct Start<U> {
    bringup: Bringup<U, Init>,
    establish: Box<dyn Establish>,
}

/// Chooses the device, makes the queue pair, moves it to INIT and writes the offer.
pub(crate) fn make<H: Host + ?Sized>(
    host: Arc<H>,
    addresses: TlsAddresses,
    binding: [u8; 32],
    options: SessionOptions,
) -> Blocking<Made<H::Upper>> {
    blocking(move || {
        let begun = Instant::now();
        let Prepared { device, local, addressing, queue_pair, upper } = host.prepare(addresses)?;
        let establish = device.establish(&local, addressing)?;
        let prepared_in = begun.elapsed();
        let limits = device.limits();
        let qpn = queue_pair.qpn();
        let terms = upper.terms();
        let offer = Offer {
            version: VERSION,
            min_version: VERSION,
            qpn,
            psn: Psn::draw(options.entropy.as_ref())?,
            path_mtu: options.max_path_mtu.map_or(local.path_mtu, |most| most.min(local.path_mtu)),
            responder_resources: options.queue_pair.responder_resources.min(limits.max_responder_resources),
            initiator_depth: options.queue_pair.initiator_depth.min(limits.max_initiator_depth),
            terms,
            device_part: establish.local_part(),
            binding,
            keep_alive_interval: Some(options.keep_alive.interval),
        };
        check_own(&offer, &local, qpn, &terms)?;
        let bringup = Bringup::init(queue_pair, upper, &local, options.queue_pair)?;
        Ok(Made { start: Start { bringup, establish }, local, offer, prepared_in })
    })
}

/// What we would refuse of a peer, we do not send.
fn check_own(offer: &Offer, local: &LocalAddress, qpn: Qpn, terms: &Terms) -> Result<()> {
    if offer.device_part.len() > MAX_DEVICE_PART {
        let message =
            format!("the part of {} in the offer is {} bytes", local.device, offer.device_part.len());
        return Err(Error::internal(message));
    }
    let frame = crate::Frame::Offer(Box::new(offer.clone())).encode();
    let mut decoder = crate::FrameDecoder::default();
    decoder.push(&frame);
    match decoder.next_frame() {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err(Error::internal("our own offer is not whole")),
        Err(cause) => Err(Error::new(
            ErrorCode::InvalidArgument,
            format!(
                "our own offer would be refused: {cause} (device {}, QPN {qpn}, {terms:?})",
                local.device
            ),
        )),
    }
}

/// What is known of the path once it is resolved.
#[derive(Clone, Debug)]
pub(crate) struct Described {
    /// Both addresses, port and MTU, for messages.
    pub(crate) words: String,
    pub(crate) peer_gid: Gid,
    pub(crate) udp_port: Option<u16>,
    pub(crate) addressing: String,
    pub(crate) resolved_in: Duration,
}

impl Described {
    fn new(local: &LocalAddress, route: &dyn Route, path_mtu: PathMtu, resolved_in: Duration) -> Self {
        let peer_gid = route.peer_gid();
        let (own, peer) = match local.link_layer {
            LinkLayer::Ethernet => (local.gid.to_ip().to_string(), peer_gid.to_ip().to_string()),
            LinkLayer::Infiniband => (local.gid.to_string(), peer_gid.to_string()),
        };
        let udp_port = route.udp_port();
        let port = udp_port.map(|port| format!("UDP port {port}, ")).unwrap_or_default();
        let words = format!("between {own} ({}) and {peer} ({port}path MTU {path_mtu})", local.device);
        Self { words, peer_gid, udp_port, addressing: route.description(), resolved_in }
    }
}

/// Finds the path and moves to RTR.
pub(crate) fn to_rtr<U: UpperLayer>(
    start: Start<U>,
    local: &LocalAddress,
    agreed: &Agreed,
    context: PathContext,
) -> Waiting<(Bringup<U, Rtr>, Described)> {
    let (local, peer, device_part) = (local.clone(), agreed.peer, agreed.device_part.clone());
    looking(move || {
        let begun = Instant::now();
        let route =
            start.establish.resolve(&device_part, &context).map_err(|error| error.in_phase(Phase::Rtr))?;
        let described = Described::new(&local, route.as_ref(), peer.path_mtu, begun.elapsed());
        // Nothing on the wire negotiates the path MTU, and the offers are out: a narrower path cannot be adopted by one
        // side alone.
        if let Some(narrow) = route.path_mtu().filter(|narrow| *narrow < peer.path_mtu) {
            return Err(Error::new(
                ErrorCode::Path,
                format!(
                    "the path carries only {narrow} bytes per packet, not {}: set maxPathMtu to {narrow}",
                    peer.path_mtu
                ),
            ));
        }
        Ok((start.bringup.rtr(route, &peer)?, described))
    })
}

/// Moves to RTS.
pub(crate) fn to_rts<U: UpperLayer>(
    bringup: Bringup<U, Rtr>,
    own_psn: Psn,
    initiator_depth: u8,
) -> Blocking<Bringup<U, Rts>> {
    blocking(move || bringup.rts(own_psn, initiator_depth))
}
