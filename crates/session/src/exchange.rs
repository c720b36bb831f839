//! The order of the exchange, as a state machine without I/O.
//!
//! INIT and receives posted → OFFER both ways → resolve, RTR → READY both ways → RTS → proof of path → PROVEN both
//! ways. [`Exchange::handle`] consumes the state: an error destroys it.

use std::time::Duration;

use secure_rdma_rdma::{Error, ErrorCode, PathMtu, Result};

use crate::frame::Frame;
use crate::offer::{Offer, OfferError};
use crate::tls::same_binding;
use crate::{FrameError, KeepAlive, PeerStart};

/// What both sides' offers come to.
#[derive(Clone, Debug)]
pub(crate) struct Agreed {
    pub(crate) version: u32,
    pub(crate) peer: PeerStart,
    pub(crate) initiator_depth: u8,
    pub(crate) device_part: Vec<u8>,
    /// Between two of the peer's signs of life.
    pub(crate) keep_alive_interval: Duration,
}

/// What happened.
pub(crate) enum Event {
    /// The peer sent a frame.
    Frame(Frame),
    /// Our queue pair is in RTR.
    InRtr,
    /// Our queue pair is in RTS.
    InRts,
    /// Our message was acknowledged and the peer's has come.
    PathProven,
}

/// What is to be done about it, in order.
pub(crate) enum Action {
    /// Send a frame.
    Send(Frame),
    /// Find the path and move to RTR; tell by [`Event::InRtr`].
    Resolve(Agreed),
    /// Move to RTS; tell by [`Event::InRts`].
    MoveToRts,
    /// Prove the path; tell by [`Event::PathProven`].
    ProvePath,
    /// The connection is up.
    Finish,
}

/// What our own offer says of the depths and the path, for the minimum of both sides.
struct Own {
    path_mtu: PathMtu,
    responder_resources: u8,
    initiator_depth: u8,
}

enum State {
    /// Our offer is out.
    AwaitOffer(Own),
    /// On the way to RTR.
    Resolving { peer_ready: bool },
    /// In RTR, READY is out.
    AwaitReady,
    /// On the way to RTS. The peer may be there before us.
    MovingToRts { peer_proven: bool },
    /// In RTS.
    Proving { own: bool, peer: bool },
    /// Up.
    Done,
}

/// One side of one exchange.
pub(crate) struct Exchange {
    peer_binding: [u8; 32],
    state: State,
}

impl Exchange {
    /// Begins with our offer, which is to be sent. `peer_binding` is what the peer's must carry.
    pub(crate) fn begin(own: Offer, peer_binding: [u8; 32]) -> (Self, Action) {
        let state = State::AwaitOffer(Own {
            path_mtu: own.path_mtu,
            responder_resources: own.responder_resources,
            initiator_depth: own.initiator_depth,
        });
        (Self { peer_binding, state }, Action::Send(Frame::Offer(Box::new(own))))
    }

    /// Takes one event.
    ///
    /// # Errors
    /// The end of the exchange: `ERR_RDMA_PROTOCOL` for a frame that has no place here, `ERR_RDMA_OFFER` for an offer
    /// that is not of this session, `ERR_RDMA_PEER_REFUSED` (or `ERR_RDMA_PATH`) with the peer's reason.
    pub(crate) fn handle(self, event: Event) -> Result<(Self, Vec<Action>)> {
        let peer_binding = self.peer_binding;
        let (state, actions) = match (self.state, event) {
            (_, Event::Frame(Frame::Error { code, message })) => return Err(refused(&code, &message)),

            (State::AwaitOffer(own), Event::Frame(Frame::Offer(peer))) => {
                let agreed = agree(&own, *peer, &peer_binding)?;
                (State::Resolving { peer_ready: false }, vec![Action::Resolve(agreed)])
            }

            // The peer may be in RTR before us.
            (State::Resolving { peer_ready: false }, Event::Frame(Frame::Ready)) => {
                (State::Resolving { peer_ready: true }, vec![])
            }
            (State::Resolving { peer_ready: false }, Event::InRtr) => {
                (State::AwaitReady, vec![Action::Send(Frame::Ready)])
            }
            (State::Resolving { peer_ready: true }, Event::InRtr) => (
                State::MovingToRts { peer_proven: false },
                vec![Action::Send(Frame::Ready), Action::MoveToRts],
            ),
            (State::AwaitReady, Event::Frame(Frame::Ready)) => {
                (State::MovingToRts { peer_proven: false }, vec![Action::MoveToRts])
            }
            (State::MovingToRts { peer_proven: false }, Event::Frame(Frame::Proven)) => {
                (State::MovingToRts { peer_proven: true }, vec![])
            }

            (State::MovingToRts { peer_proven: peer }, Event::InRts) => {
                (State::Proving { own: false, peer }, vec![Action::ProvePath])
            }
            (State::Proving { own: false, peer: false }, Event::Frame(Frame::Proven)) => {
                (State::Proving { own: false, peer: true }, vec![])
            }
            (State::Proving { own: false, peer: false }, Event::PathProven) => {
                (State::Proving { own: true, peer: false }, vec![Action::Send(Frame::Proven)])
            }
            (State::Proving { own: false, peer: true }, Event::PathProven) => {
                (State::Done, vec![Action::Send(Frame::Proven), Action::Finish])
            }
            (State::Proving { own: true, peer: false }, Event::Frame(Frame::Proven)) => {
                (State::Done, vec![Action::Finish])
            }

            (state, Event::Frame(frame)) => return Err(misplaced(&frame, &state)),
            (_, Event::InRtr | Event::InRts | Event::PathProven) => {
                return Err(Error::internal("the bring-up told the exchange of a step out of order"));
            }
        };
        Ok((Self { peer_binding, state }, actions))
    }
}

fn agree(own: &Own, peer: Offer, peer_binding: &[u8; 32]) -> Result<Agreed> {
    if !same_binding(&peer.binding, peer_binding) {
        return Err(FrameError::from(OfferError::Binding).into());
    }
    let path_mtu = own.path_mtu.min(peer.path_mtu);
    let segment_size = peer.terms.segment_size;
    if u64::from(segment_size) < path_mtu.bytes() as u64 {
        return Err(FrameError::from(OfferError::Segment { segment_size, path_mtu }).into());
    }
    Ok(Agreed {
        version: peer.common_version(),
        peer: PeerStart {
            qpn: peer.qpn,
            psn: peer.psn,
            path_mtu,
            responder_resources: own.responder_resources.min(peer.initiator_depth),
            terms: peer.terms,
        },
        initiator_depth: own.initiator_depth.min(peer.responder_resources),
        device_part: peer.device_part,
        keep_alive_interval: peer.keep_alive_interval.unwrap_or(KeepAlive::default().interval),
    })
}

fn refused(code: &str, message: &str) -> Error {
    // A path that fails one way fails both sides: they get the same code.
    if code == ErrorCode::Path.as_str() {
        Error::new(ErrorCode::Path, format!("the peer says: {message}"))
    } else {
        Error::new(ErrorCode::PeerRefused, format!("the peer refused: {message} ({code})"))
    }
}

fn misplaced(frame: &Frame, state: &State) -> Error {
    let awaited = match state {
        State::AwaitOffer(_) => "its OFFER was due",
        State::Resolving { peer_ready: false } | State::AwaitReady => "its READY was due",
        State::Resolving { peer_ready: true } => "our READY was due",
        State::MovingToRts { .. } => "we were moving to RTS",
        State::Proving { peer: false, .. } => "its PROVEN was due",
        State::Proving { peer: true, .. } => "our PROVEN was due",
        State::Done => "the connection was up",
    };
    Error::new(
        ErrorCode::Protocol,
        format!("a frame {} came when {awaited}: update the older side", frame.name()),
    )
}
