//! The connection as `session` sees it: the upper layer that it brings up and tells of the control channel.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use secure_rdma_rdma::{Access, Error, ErrorCode, PathMtu, Result};
use secure_rdma_session::{Control, Terms, UpperLayer};

use crate::channel::{Channel, Life, over};
use crate::connection::CloseReason;
use crate::watch::Verdict;

/// The upper layer of one connection.
pub(crate) struct Upper(pub(crate) Arc<Channel>);

/// `session` has let go: of a bring-up that failed, whose posted work must still be flushed before its buffers are
/// anybody's again, or of a connection whose control channel has ended.
impl Drop for Upper {
    fn drop(&mut self) {
        let error = Error::new(ErrorCode::Aborted, "the connection was given up before it was up");
        self.0.let_go(error);
    }
}

impl UpperLayer for Upper {
    /// All that can be granted. Without a grant none of it opens anything; devices without atomics leave that right out.
    fn access(&self) -> Access {
        Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC
    }

    fn post_receives(&self) -> Result<()> {
        let state = self.0.lock();
        match state.queue_pair.clone().zip(state.reservation.clone()) {
            Some((queue_pair, reservation)) => {
                drop(state);
                reservation.post_all(queue_pair.as_ref())
            }
            None => Err(over(&state.life)),
        }
    }

    fn terms(&self) -> Terms {
        self.0.terms()
    }

    fn adopt(&self, peer: &Terms, path_mtu: PathMtu) -> Result<()> {
        self.0.adopt(peer.segment_size, peer.max_message_size, peer.credits, path_mtu)
    }

    fn prove_path(&self) -> Result<()> {
        self.0.prove_path()
    }

    fn poll_path_proven(&self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let mut state = self.0.lock();
        if let life @ Life::Over(_) = &state.life {
            return Poll::Ready(Err(over(life)));
        }
        if state.proof.sent && state.proof.received {
            return Poll::Ready(Ok(()));
        }
        Channel::wake_on_news(&mut state, cx.waker());
        Poll::Pending
    }

    fn tick(&self, _now: Instant) -> Result<()> {
        self.0.tick()
    }

    fn told(&self, message: &[u8]) -> Result<()> {
        self.0.told(message)
    }

    fn may_tell(&self) {
        self.0.may_tell();
    }

    fn peer_closed(&self) {
        self.0.peer_closed();
    }

    fn lost(&self, error: Error) {
        self.0.lost(error);
    }
}

impl Channel {
    /// The bring-up is complete: messages may flow. `path` names the two ends, for messages to people.
    pub(crate) fn open(&self, control: Option<Control>, path: String) {
        self.with(|state, after| {
            if !matches!(state.life, Life::Opening) {
                // It ended between the proof of path and here; the control channel ends with its handle.
                return;
            }
            state.control = control.map(Arc::new);
            state.path = path;
            state.life = Life::Open;
            self.pump(state, after);
            self.tell_grants(state, after);
        });
        if self.lock().peer_closed_early {
            self.peer_closed();
        }
    }

    fn tick(&self) -> Result<()> {
        self.with(|state, after| {
            if matches!(state.life, Life::Over(_) | Life::Opening) {
                return Ok(());
            }
            self.tick_grants(state, after);
            if matches!(state.life, Life::Over(_)) {
                return Ok(());
            }
            match state.watch.tick(state.transmit.posting().outstanding().len()) {
                Verdict::Nothing => Ok(()),
                Verdict::Probe => match state.queue_pair.clone() {
                    Some(queue_pair) => state.transmit.posting_mut().probe(queue_pair.as_ref()),
                    None => Ok(()),
                },
                Verdict::PathDead => {
                    let port = if state.watch.port_up() { "" } else { "; the device's port went down" };
                    let error = Error::new(
                        ErrorCode::Path,
                        format!(
                            "RDMA packets no longer get through {}: nothing was acknowledged for {:?}{port}. Check that \
                             they pass both ways",
                            state.path, self.options.path_timeout
                        ),
                    );
                    self.fail(state, after, error);
                    Ok(())
                }
                Verdict::CloseTimeout => {
                    self.close_timed_out(state, after);
                    Ok(())
                }
            }
        })
    }
}

impl CloseReason {
    /// The reason as users see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::PeerClosed => "peer-closed",
            Self::Destroyed => "destroyed",
            Self::Error => "error",
        }
    }
}
