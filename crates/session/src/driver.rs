//! Drives one exchange from the end of the TLS handshake to the proven path.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use secure_rdma_rdma::{Error, ErrorCode, LocalAddress, PathContext, Phase, Psn, Qpn, Result};
use tokio::time::Instant;

use crate::channel::{Broken, Incoming};
use crate::exchange::{Action, Agreed, Event, Exchange};
use crate::farewell::{Failed, Remains, TlsChannel};
use crate::frame::Frame;
use crate::keep_alive::Pulse;
use crate::pending::Progress;
use crate::report::Stopwatch;
use crate::tls::{Secured, Suspect, closed_by_peer};
use crate::way::{Blocking, Described, Made, Start, Waiting, make, to_rtr, to_rts};
use crate::{
    Bringup, CertificateNames, Control, Established, ExposedSecrets, Host, Report, Role, Rtr, Rts,
    SessionOptions, TlsAddresses, UpperLayer,
};

/// Why it ended.
enum Failure {
    /// We give up, and tell the peer.
    Ours(Error),
    /// The peer gave up or is gone: there is nobody to tell.
    Theirs(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Ours(error)
    }
}

/// How far the bring-up is.
enum Way<U> {
    Init(Start<U>),
    ToRtr(Waiting<(Bringup<U, Rtr>, Described)>),
    Rtr(Bringup<U, Rtr>),
    ToRts(Blocking<Bringup<U, Rts>>),
    /// In RTS; the proof is under way.
    Proving(Bringup<U, Rts>),
    Proven(Bringup<U, Rts>),
    /// Between two of these.
    Moving,
}

/// One side of one exchange, over its channel.
pub(crate) struct Negotiation<'a, H: ?Sized> {
    pub(crate) role: Role,
    pub(crate) channel: TlsChannel,
    pub(crate) secured: Secured,
    pub(crate) suspect: Suspect,
    pub(crate) host: Arc<H>,
    pub(crate) options: &'a SessionOptions,
    pub(crate) own_names: Option<CertificateNames>,
    pub(crate) progress: &'a Progress,
    pub(crate) watch: Stopwatch,
    /// The path, as soon as it is known.
    pub(crate) path: Option<Described>,
}

impl<H: Host + ?Sized> Negotiation<'_, H> {
    /// Everything from `authorize` to the proof of path. `admit` is asked before a device is touched.
    pub(crate) async fn run(
        mut self,
        deadline: Instant,
        admit: impl FnOnce() -> Result<()>,
    ) -> Result<Established<H::Upper>, Failed> {
        let outcome = tokio::time::timeout_at(deadline, self.negotiate(admit)).await;
        let failure = match outcome {
            Ok(Ok((report, bringup))) => {
                let peer = Arc::new(self.secured.peer);
                let (upper, _route, _transitions) = bringup.finish();
                let pulse = Pulse::new(
                    self.options.keep_alive,
                    report.peer_keep_alive_interval,
                    Instant::now().into(),
                );
                let close_timeout = self.options.close_timeout;
                let control =
                    Control::start(self.channel, Arc::clone(&upper), peer.address, pulse, close_timeout);
                return Ok(Established { upper, control, peer, report });
            }
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Ours(self.timed_out()),
        };
        let phase = self.progress.phase();
        let (error, tell) = match failure {
            Failure::Ours(error) => (error, true),
            Failure::Theirs(error) => (error, false),
        };
        if tell {
            // The peer puts its own words of the path around the cause.
            let (code, message) = for_the_peer(&error);
            self.channel.queue(&Frame::error(code.as_str(), &message));
        }
        let error = self.in_words_of_the_path(error).in_phase(phase);
        Err(Failed { error, rest: Some(Remains::Tls(Box::new(self.channel))) })
    }

    fn timed_out(&self) -> Error {
        let (phase, timeout) = (self.progress.phase(), self.options.handshake_timeout);
        if phase == Phase::Path {
            return Error::new(ErrorCode::Path, format!("no proof of path came within {timeout:?}"));
        }
        timed_out(self.suspect.address, timeout, phase)
    }

    /// A path that fails is described in full, on both sides.
    fn in_words_of_the_path(&self, error: Error) -> Error {
        if error.code() != ErrorCode::Path {
            return error;
        }
        let peer = &self.secured.peer;
        let words = self.path.as_ref().map_or_else(
            || format!("between {} and {}", peer.local.ip(), peer.address.ip()),
            |path| path.words.clone(),
        );
        Error::new(
            ErrorCode::Path,
            format!(
                "RDMA packets do not get through {words}: {}. Check that no firewall drops them and that every link \
                 carries packets of this size",
                error.message()
            ),
        )
    }

    async fn negotiate(
        &mut self,
        admit: impl FnOnce() -> Result<()>,
    ) -> Result<(Report, Bringup<H::Upper, Rts>), Failure> {
        self.progress.enter(Phase::Authorize);
        self.authorize().await?;
        self.watch.lap("authorize");
        self.progress.enter(Phase::Device);
        admit()?;
        let addresses = TlsAddresses { local: self.secured.peer.local, peer: self.secured.peer.address };
        let made =
            make(Arc::clone(&self.host), addresses, self.secured.own_binding, self.options.clone()).await?;
        let Made { start, local, offer, prepared_in } = made;
        self.watch.part("device", prepared_in);
        self.watch.lap("RESET→INIT");
        self.progress.enter(Phase::Exchange);

        let (own_qpn, own_psn) = (offer.qpn, offer.psn);
        let (mut exchange, first) = Exchange::begin(offer, self.secured.peer_binding);
        let mut todo = VecDeque::from([first]);
        let mut way = Way::Init(start);
        let mut agreed: Option<Agreed> = None;
        loop {
            while let Some(action) = todo.pop_front() {
                match (action, std::mem::replace(&mut way, Way::Moving)) {
                    (Action::Send(frame), unmoved) => {
                        way = unmoved;
                        if !self.channel.queue(&frame) {
                            return Err(Failure::Theirs(closed_by_peer(self.suspect.address)));
                        }
                    }
                    (Action::Resolve(terms), Way::Init(start)) => {
                        self.watch.lap("offer");
                        self.progress.enter(Phase::Rtr);
                        way = Way::ToRtr(to_rtr(start, &local, &terms, self.context()));
                        agreed = Some(terms);
                    }
                    (Action::MoveToRts, Way::Rtr(bringup)) => {
                        self.watch.lap("ready");
                        self.progress.enter(Phase::Rts);
                        let depth = agreed.as_ref().ok_or_else(out_of_step)?.initiator_depth;
                        way = Way::ToRts(to_rts(bringup, own_psn, depth));
                    }
                    (Action::ProvePath, Way::Proving(bringup)) => {
                        self.progress.enter(Phase::Path);
                        bringup.upper().prove_path().map_err(as_path)?;
                        way = Way::Proving(bringup);
                    }
                    (Action::Finish, Way::Proven(bringup)) => {
                        self.watch.lap("path");
                        let agreed = agreed.as_ref().ok_or_else(out_of_step)?;
                        let mut report = self.report(local, own_qpn, own_psn, agreed)?;
                        report.take_transitions(bringup.transitions());
                        return Ok((report, bringup));
                    }
                    _ => return Err(out_of_step().into()),
                }
            }
            let event = poll_fn(|cx| self.poll_event(cx, &mut way)).await?;
            let theirs = matches!(event, Event::Frame(Frame::Error { .. }));
            let handled = exchange.handle(event);
            let (next, actions) = handled
                .map_err(|error| if theirs { Failure::Theirs(error) } else { Failure::Ours(error) })?;
            exchange = next;
            todo.extend(actions);
        }
    }

    async fn authorize(&self) -> Result<()> {
        let Some(authorize) = &self.options.authorize else { return Ok(()) };
        authorize(Arc::new(self.secured.peer.clone())).await.map_err(|reason| {
            Error::new(
                ErrorCode::Unauthorized,
                format!("authorize refused {}: {reason}", self.suspect.address),
            )
        })
    }

    fn context(&self) -> PathContext {
        PathContext {
            tls_local: self.secured.peer.local.ip().to_canonical(),
            tls_peer: self.secured.peer.address.ip().to_canonical(),
            allowed_peer_addresses: self.options.allowed_peer_addresses.clone(),
        }
    }

    /// The next thing that happens: on the bring-up's side, or a frame.
    fn poll_event<U: UpperLayer>(
        &mut self,
        cx: &mut Context<'_>,
        way: &mut Way<U>,
    ) -> Poll<Result<Event, Failure>> {
        let (next, event) = match std::mem::replace(way, Way::Moving) {
            Way::ToRtr(mut moving) => match Pin::new(&mut moving).poll(cx) {
                Poll::Ready(Ok((bringup, described))) => {
                    self.watch.part("resolve", described.resolved_in);
                    self.watch.lap("INIT→RTR");
                    self.path = Some(described);
                    (Way::Rtr(bringup), Some(Event::InRtr))
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => (Way::ToRtr(moving), None),
            },
            // The peer may be in RTS before us, and send.
            Way::Rtr(bringup) => match bringup.poll_given_up(cx) {
                Poll::Ready(error) => return Poll::Ready(Err(error.into())),
                Poll::Pending => (Way::Rtr(bringup), None),
            },
            Way::ToRts(mut moving) => match Pin::new(&mut moving).poll(cx) {
                Poll::Ready(Ok(bringup)) => {
                    self.watch.lap("RTR→RTS");
                    (Way::Proving(bringup), Some(Event::InRts))
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => (Way::ToRts(moving), None),
            },
            Way::Proving(bringup) => match bringup.upper().poll_path_proven(cx) {
                Poll::Ready(Ok(())) => (Way::Proven(bringup), Some(Event::PathProven)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(as_path(error).into())),
                Poll::Pending => (Way::Proving(bringup), None),
            },
            unmoved => (unmoved, None),
        };
        *way = next;
        if let Some(event) = event {
            return Poll::Ready(Ok(event));
        }
        self.channel.poll_receive(cx).map(|received| match received {
            Ok(Incoming::Frame(frame)) => Ok(Event::Frame(frame)),
            Ok(Incoming::End) => Err(Failure::Theirs(closed_by_peer(self.suspect.address))),
            Err(Broken::Frame(cause)) => Err(Failure::Ours(cause.into())),
            Err(Broken::Io(cause)) => Err(Failure::Theirs(self.suspect.judge(&cause))),
        })
    }

    fn report(&self, local: LocalAddress, own_qpn: Qpn, own_psn: Psn, agreed: &Agreed) -> Result<Report> {
        let path = self.path.as_ref().ok_or_else(out_of_step)?;
        let peer = &self.secured.peer;
        let secrets = ExposedSecrets { own_psn, peer_psn: agreed.peer.psn };
        Ok(Report {
            role: self.role,
            tls_version: peer.tls_version.clone(),
            cipher_suite: peer.cipher_suite.clone(),
            key_exchange: peer.key_exchange.clone(),
            own_certificate: self.own_names.clone(),
            peer_certificate: peer.names.clone(),
            tls_local: peer.local,
            tls_peer: peer.address,
            local,
            addressing: path.addressing.clone(),
            version: agreed.version,
            own_qpn,
            peer_qpn: agreed.peer.qpn,
            peer_gid: path.peer_gid,
            udp_port: path.udp_port,
            path_mtu: agreed.peer.path_mtu,
            initiator_depth: agreed.initiator_depth,
            responder_resources: agreed.peer.responder_resources,
            peer_terms: agreed.peer.terms,
            peer_keep_alive_interval: agreed.keep_alive_interval,
            steps: self.watch.steps(),
            path_proof: self.watch.last_step(),
            total: self.watch.total(),
            own_psn_fingerprint: self.secured.fingerprints.of(self.role, own_psn),
            peer_psn_fingerprint: self.secured.fingerprints.of(self.role.other(), agreed.peer.psn),
            secrets: self.options.expose_secrets.then_some(secrets),
        })
    }
}

/// The error of a handshake whose deadline has passed.
pub(crate) fn timed_out(peer: impl std::fmt::Display, timeout: Duration, phase: Phase) -> Error {
    Error::new(
        ErrorCode::HandshakeTimeout,
        format!(
            "the connection with {peer} was not up within {timeout:?} (phase {}): check that it runs and can be reached, or \
             raise handshakeTimeout",
            phase.as_str()
        ),
    )
    .in_phase(phase)
}

fn out_of_step() -> Error {
    Error::internal("the exchange and the bring-up are out of step")
}

/// A work request of the proof that fails says that the path does.
fn as_path(error: Error) -> Error {
    if error.code() == ErrorCode::Work { Error::new(ErrorCode::Path, error.message()) } else { error }
}

/// What the peer is told. What concerns the two is told in full; what concerns our own host is not its business.
fn for_the_peer(error: &Error) -> (ErrorCode, String) {
    let code = error.code();
    let message = match code {
        ErrorCode::Protocol
        | ErrorCode::Version
        | ErrorCode::Offer
        | ErrorCode::Path
        | ErrorCode::PeerViolation
        | ErrorCode::HandshakeTimeout => error.message().to_owned(),
        ErrorCode::Unauthorized => "authorize refused this peer".to_owned(),
        ErrorCode::Unreachable => "it found no RDMA path to this peer's address".to_owned(),
        ErrorCode::ReceivePoolFull | ErrorCode::Memlock | ErrorCode::Resource | ErrorCode::NoMemory => {
            "it has no room for another connection".to_owned()
        }
        ErrorCode::NoMatchingDevice | ErrorCode::NoDevice | ErrorCode::DeviceNotFound => {
            "it has no RDMA device for this connection".to_owned()
        }
        _ => "it could not bring its queue pair up; its own log says why".to_owned(),
    };
    (code, message)
}
