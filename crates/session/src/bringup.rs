//! The three transitions of a queue pair, as types: what is missing or too early does not compile.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    DeviceKind, Error, LocalAddress, PathMtu, Phase, Psn, QpAttr, QpState, Qpn, QueuePair, Result, Route,
};

use crate::config::invalid;
use crate::{Terms, UpperLayer};

/// Attributes of the queue pair that are ours to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePairOptions {
    /// Index into the port's P_Key table. Default 0, the default partition.
    pub pkey_index: u16,
    /// Retransmission timeout, 1 to 31: 4.096 µs · 2^n. Default 17 (0.54 s).
    pub timeout: u8,
    /// Repetitions without an answer, 0 to 7. `None` is what suits the device: 7 on `soft`, 6 on any other, since rxe
    /// takes 7 for ever. With timeout 17 that is a silence of 4.3 s and 3.8 s, and one of 2 s is outlived.
    pub retry_count: Option<u8>,
    /// Repetitions after an RNR NAK, 0 to 7. Default 6; 7 is for ever.
    pub rnr_retry: u8,
    /// Code of the wait that our RNR NAKs ask for, 1 to 31 (IBTA table 45). Default 12 (0.64 ms).
    pub min_rnr_timer: u8,
    /// READs and atomics that we have outstanding at the most, 1 to 128. Default 16; the device's limit and the peer's
    /// responder resources cap it.
    pub initiator_depth: u8,
    /// READs and atomics of the peer that we serve at once, 1 to 128. Default 16; the device's limit caps it.
    pub responder_resources: u8,
}

impl Default for QueuePairOptions {
    fn default() -> Self {
        Self {
            pkey_index: 0,
            timeout: 17,
            retry_count: None,
            rnr_retry: 6,
            min_rnr_timer: 12,
            initiator_depth: 16,
            responder_resources: 16,
        }
    }
}

impl QueuePairOptions {
    /// Checks every range.
    ///
    /// # Errors
    /// `ERR_RDMA_INVALID_ARGUMENT` naming the option.
    pub fn validate(&self) -> Result<()> {
        let ranges = [
            ("timeout", self.timeout, 1, 31),
            ("retryCount", self.retry_count.unwrap_or_default(), 0, 7),
            ("rnrRetry", self.rnr_retry, 0, 7),
            ("minRnrTimer", self.min_rnr_timer, 1, 31),
            ("initiatorDepth", self.initiator_depth, 1, 128),
            ("responderResources", self.responder_resources, 1, 128),
        ];
        for (name, value, least, most) in ranges {
            if value < least || value > most {
                return Err(invalid(format!("{name} is {value}: give {least} to {most}")));
            }
        }
        Ok(())
    }
}

/// The state in which receives can be posted.
#[derive(Debug)]
pub struct Init(());

/// The state in which the peer's requests are answered.
pub struct Rtr {
    route: Box<dyn Route>,
}

/// The working state.
pub struct Rts {
    route: Box<dyn Route>,
}

/// What INIT→RTR must know of the peer.
#[derive(Clone, Copy, Debug)]
pub struct PeerStart {
    /// Its queue pair.
    pub qpn: Qpn,
    /// Its starting PSN: the one that its first request carries.
    pub psn: Psn,
    /// The agreed path MTU.
    pub path_mtu: PathMtu,
    /// READs and atomics that it may have outstanding towards us.
    pub responder_resources: u8,
    /// What its upper layer states.
    pub terms: Terms,
}

/// One transition that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// From this state,
    pub from: QpState,
    /// to this one,
    pub to: QpState,
    /// in this time.
    pub duration: Duration,
}

/// A queue pair on its way to RTS, with the upper layer that lives on it. Its type says how far it has come.
///
/// [`Bringup::upper`] and with it everything that sends exists only in [`Rts`]:
///
/// ```compile_fail
/// # use secure_rdma_session::*;
/// fn send_too_early<U: UpperLayer>(bringup: Bringup<U, Init>) -> secure_rdma_rdma::Result<()> {
///     bringup.upper().prove_path() // error: no method `upper` in INIT
/// }
/// ```
///
/// RTS cannot be had without RTR, nor without a starting PSN:
///
/// ```compile_fail
/// # use secure_rdma_session::*;
/// fn skip_rtr<U: UpperLayer>(bringup: Bringup<U, Init>, psn: secure_rdma_rdma::Psn) {
///     let _ = bringup.rts(psn, 1); // error: no method `rts` in INIT
/// }
/// ```
///
/// ```compile_fail
/// # use secure_rdma_session::*;
/// fn no_psn<U: UpperLayer>(bringup: Bringup<U, Rtr>) {
///     let _ = bringup.rts(1); // error: the PSN is missing
/// }
/// ```
///
/// ```compile_fail
/// # use secure_rdma_session::*;
/// fn no_peer_psn(qpn: secure_rdma_rdma::Qpn, path_mtu: secure_rdma_rdma::PathMtu, terms: Terms) -> PeerStart {
///     PeerStart { qpn, path_mtu, responder_resources: 1, terms } // error: field `psn` is missing
/// }
/// ```
///
/// The whole way:
///
/// ```
/// # use secure_rdma_session::*;
/// # use secure_rdma_rdma::{Psn, Result, Route};
/// fn up<U: UpperLayer>(prepared: Prepared<U>, route: Box<dyn Route>, peer: &PeerStart, psn: Psn) -> Result<()> {
///     let Prepared { queue_pair, upper, local, .. } = prepared;
///     let init = Bringup::init(queue_pair, upper, &local, QueuePairOptions::default())?;
///     let ready = init.rtr(route, peer)?.rts(psn, 16)?;
///     ready.upper().prove_path()
/// }
/// ```
pub struct Bringup<U, S> {
    queue_pair: Arc<dyn QueuePair>,
    upper: Arc<U>,
    options: QueuePairOptions,
    retry_count: u8,
    transitions: Vec<Transition>,
    state: S,
}

impl<U: UpperLayer> Bringup<U, Init> {
    /// RESET→INIT, and the upper layer posts its receives.
    ///
    /// # Errors
    /// What [`secure_rdma_rdma::QueuePair::modify`] and [`UpperLayer::post_receives`] give.
    pub fn init(
        queue_pair: Arc<dyn QueuePair>,
        upper: Arc<U>,
        local: &LocalAddress,
        options: QueuePairOptions,
    ) -> Result<Self> {
        let attr = QpAttr {
            pkey_index: Some(options.pkey_index),
            port: Some(local.port),
            access: Some(upper.access()),
            ..QpAttr::to(QpState::Init)
        };
        let transitions = Vec::with_capacity(3);
        let retry_count = options.retry_count.unwrap_or(if local.kind == DeviceKind::Soft { 7 } else { 6 });
        let mut bringup = Self { queue_pair, upper, options, retry_count, transitions, state: Init(()) };
        bringup.modify(QpState::Reset, &attr).map_err(|error| error.in_phase(Phase::Device))?;
        bringup.upper.post_receives().map_err(|error| error.in_phase(Phase::Device))?;
        Ok(bringup)
    }

    /// Our queue pair's number, for the offer.
    #[must_use]
    pub fn qpn(&self) -> Qpn {
        self.queue_pair.qpn()
    }

    /// The upper layer adopts the peer's terms, then INIT→RTR. **Blocks** while the peer's hardware address is looked up.
    ///
    /// # Errors
    /// What [`UpperLayer::adopt`], [`Route::rtr`] and [`secure_rdma_rdma::QueuePair::modify`] give.
    pub fn rtr(self, route: Box<dyn Route>, peer: &PeerStart) -> Result<Bringup<U, Rtr>> {
        self.upper.adopt(&peer.terms, peer.path_mtu).map_err(|error| error.in_phase(Phase::Exchange))?;
        let mut attr = QpAttr::to(QpState::Rtr);
        route.rtr(&mut attr).map_err(|error| error.in_phase(Phase::Rtr))?;
        // After the route: no way of addressing can choose these.
        attr.path_mtu = Some(peer.path_mtu);
        attr.dest_qpn = Some(peer.qpn);
        attr.rq_psn = Some(peer.psn);
        attr.max_dest_rd_atomic = Some(peer.responder_resources);
        attr.min_rnr_timer = Some(self.options.min_rnr_timer);
        self.advance(QpState::Init, &attr, Phase::Rtr, |Init(())| Rtr { route })
    }
}

impl<U: UpperLayer> Bringup<U, Rtr> {
    /// RTR→RTS with our own starting PSN. Only when the peer has said that it is in RTR: a packet that meets a queue
    /// pair before RTR is lost in silence.
    ///
    /// # Errors
    /// What [`Route::rts`], [`Route::established`] and [`secure_rdma_rdma::QueuePair::modify`] give.
    pub fn rts(self, own_psn: Psn, initiator_depth: u8) -> Result<Bringup<U, Rts>> {
        let mut attr = QpAttr {
            timeout: Some(self.options.timeout),
            retry_count: Some(self.retry_count),
            rnr_retry: Some(self.options.rnr_retry),
            max_rd_atomic: Some(initiator_depth),
            ..QpAttr::to(QpState::Rts)
        };
        self.state.route.rts(&mut attr).map_err(|error| error.in_phase(Phase::Rts))?;
        attr.sq_psn = Some(own_psn);
        let upper = Arc::clone(&self.upper);
        let rts = self
            .advance(QpState::Rtr, &attr, Phase::Rts, |Rtr { route }| Rts { route })
            // A queue pair that the upper layer has moved to ERR cannot be moved to RTS: it knows why.
            .map_err(|error| given_up(upper.as_ref()).unwrap_or(error).in_phase(Phase::Rts))?;
        rts.state.route.established().map_err(|error| error.in_phase(Phase::Rts))?;
        Ok(rts)
    }
}

impl<U: UpperLayer> Bringup<U, Rtr> {
    /// Ready when the upper layer has given up: on what it has received, or because of the device.
    pub(crate) fn poll_given_up(&self, cx: &mut Context<'_>) -> Poll<Error> {
        poll_given_up(self.upper.as_ref(), cx)
    }
}

fn poll_given_up<U: UpperLayer>(upper: &U, cx: &mut Context<'_>) -> Poll<Error> {
    match upper.poll_path_proven(cx) {
        Poll::Ready(Err(error)) => Poll::Ready(error),
        _ => Poll::Pending,
    }
}

fn given_up<U: UpperLayer>(upper: &U) -> Option<Error> {
    match poll_given_up(upper, &mut Context::from_waker(Waker::noop())) {
        Poll::Ready(error) => Some(error),
        Poll::Pending => None,
    }
}

impl<U: UpperLayer> Bringup<U, Rts> {
    /// The upper layer, which may send now.
    #[must_use]
    pub fn upper(&self) -> &Arc<U> {
        &self.upper
    }

    /// The transitions that were made, in order.
    #[must_use]
    pub fn transitions(&self) -> &[Transition] {
        &self.transitions
    }

    /// The upper layer, the path and the transitions: the bring-up is over, and only the upper layer keeps the queue
    /// pair.
    #[must_use]
    pub fn finish(self) -> (Arc<U>, Box<dyn Route>, Vec<Transition>) {
        (self.upper, self.state.route, self.transitions)
    }
}

impl<U: UpperLayer, S> Bringup<U, S> {
    fn modify(&mut self, from: QpState, attr: &QpAttr) -> Result<()> {
        let begun = Instant::now();
        self.queue_pair.modify(attr)?;
        let to = attr.state.unwrap_or(from);
        self.transitions.push(Transition { from, to, duration: begun.elapsed() });
        Ok(())
    }

    fn advance<T>(
        mut self,
        from: QpState,
        attr: &QpAttr,
        phase: Phase,
        next: impl FnOnce(S) -> T,
    ) -> Result<Bringup<U, T>> {
        self.modify(from, attr).map_err(|error| error.in_phase(phase))?;
        let Self { queue_pair, upper, options, retry_count, transitions, state } = self;
        Ok(Bringup { queue_pair, upper, options, retry_count, transitions, state: next(state) })
    }
}
