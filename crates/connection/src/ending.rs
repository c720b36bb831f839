//! How a connection ends: in order, by this side's will, or because something failed.

use std::sync::{Arc, Weak};

use secure_rdma_rdma::{Error, ErrorCode, QpAttr, QpState};

use crate::channel::{After, Channel, ControlCall, Life, State};
use crate::connection::{CloseReason, Closed};
use crate::watch::FLUSH;

impl Channel {
    pub(crate) fn close(&self) {
        self.with(|state, after| match state.life {
            Life::Open | Life::Ended => {
                if matches!(state.life, Life::Open) {
                    state.transmit.enqueue_end();
                }
                state.life = Life::Closing { told: false };
                state.watch.closing_begins();
                self.pump(state, after);
                self.tell_when_drained(state, after);
            }
            Life::Opening => {
                let error = Error::new(ErrorCode::Closed, "the connection was closed before it was up");
                self.over(state, after, CloseReason::Closed, Some(error), ControlCall::Destroy(None));
            }
            Life::Closing { .. } | Life::PeerClosing { .. } | Life::Over(_) => {}
        });
    }

    /// Says CLOSE when everything of ours has arrived.
    pub(crate) fn tell_when_drained(&self, state: &mut State, after: &mut After) {
        if matches!(state.life, Life::Closing { told: false }) && state.transmit.is_idle() {
            state.life = Life::Closing { told: true };
            // The peer lets go of its queue pair when it hears of this, and is to know by then what has arrived.
            if let Some(queue_pair) = &state.queue_pair {
                queue_pair.flush();
            }
            if let Some(control) = &state.control {
                // Where there is no room for it, the acknowledgements alone tell.
                let _ = control.tell(&state.receive.received().encode());
                after.control = Some((Arc::clone(control), ControlCall::Close));
            }
        }
    }

    pub(crate) fn destroy(&self, error: Option<Error>) {
        self.with(|state, after| {
            let told = error.clone();
            let error =
                error.or_else(|| Some(Error::new(ErrorCode::Destroyed, "the connection was destroyed")));
            self.over(state, after, CloseReason::Destroyed, error, ControlCall::Destroy(told));
        });
    }

    pub(crate) fn peer_closed(&self) {
        self.with(|state, after| match state.life {
            Life::Over(_) | Life::PeerClosing { .. } => {}
            Life::Opening => state.peer_closed_early = true,
            _ => {
                // A close of ours that has not told everything yet comes too late: the peer reads no more.
                let told = matches!(state.life, Life::Closing { told: true });
                if state.receive.ended() && state.transmit.is_idle() {
                    self.drained(state, after, told);
                    return;
                }
                // Its last message has been acknowledged, so it is in our completion queue already, before the marker.
                // So are the acknowledgements of ours that it has taken; of those that are missing RECEIVED has told.
                state.life = Life::PeerClosing { told };
                self.drain(state, after);
                if state.drains.is_none() {
                    self.drained(state, after, told);
                }
            }
        });
    }

    /// The peer has closed, and all that had arrived by then is taken.
    pub(crate) fn drained(&self, state: &mut State, after: &mut After, told: bool) {
        if told {
            // It may only answer our close, without having ended its own direction.
            self.over(state, after, CloseReason::Closed, None, ControlCall::Close);
        } else if state.receive.ended() {
            self.over(state, after, CloseReason::PeerClosed, None, ControlCall::Close);
        } else {
            self.last_message_missing(state, after);
        }
    }

    /// Nobody watches over this connection any more.
    pub(crate) fn let_go(&self, error: Error) {
        self.with(|state, after| match state.life {
            // Handed out and not opened yet, and it ended in order; or ending by itself.
            Life::Opening if state.peer_closed_early => {}
            Life::Closing { told: true } | Life::PeerClosing { .. } | Life::Over(_) => {}
            Life::Opening => {
                self.over(state, after, CloseReason::Error, Some(error), ControlCall::Destroy(None));
            }
            _ => {
                let error = Error::internal("the control channel of the connection ended without a word");
                self.over(state, after, CloseReason::Error, Some(error), ControlCall::Destroy(None));
            }
        });
    }

    pub(crate) fn lost(&self, error: Error) {
        self.with(|state, after| match state.life {
            // We had said CLOSE, so everything of ours had arrived; the peer only did not say so.
            Life::Closing { told: true } => {
                self.over(state, after, CloseReason::Closed, None, ControlCall::Destroy(None));
            }
            _ => self.over(state, after, CloseReason::Error, Some(error), ControlCall::Destroy(None)),
        });
    }

    pub(crate) fn fail(&self, state: &mut State, after: &mut After, error: Error) {
        let told = Some(error.clone());
        self.over(state, after, CloseReason::Error, Some(error), ControlCall::Destroy(told));
    }

    /// The end of every connection. Only the first call counts.
    pub(crate) fn over(
        &self,
        state: &mut State,
        after: &mut After,
        reason: CloseReason,
        error: Option<Error>,
        call: ControlCall,
    ) {
        if matches!(state.life, Life::Over(_)) {
            return;
        }
        state.life = Life::Over(Closed { reason, error, delivered: state.transmit.is_delivered() });
        state.transmit.clear();
        self.drain(state, after);
        if let Some(control) = state.control.take() {
            after.control = Some((control, call));
        }
        self.news(state, after);
    }

    /// Moves the queue pair to ERR and waits, without blocking, until all that was posted has been flushed: only then
    /// are buffers free for other connections, and the queue pair may go.
    fn drain(&self, state: &mut State, after: &mut After) {
        if state.drains.is_some() {
            return;
        }
        let Some(queue_pair) = state.queue_pair.clone() else { return };
        let marked = queue_pair.state() != QpState::Reset
            && (queue_pair.state() == QpState::Err || queue_pair.modify(&QpAttr::to(QpState::Err)).is_ok())
            && state.transmit.posting_mut().mark_drain(queue_pair.as_ref()).is_ok();
        if marked {
            state.drains = self.myself.upgrade();
            after.flushing = state.control.clone().map(|control| (control, Weak::clone(&self.myself)));
        } else {
            Self::release(state, after);
        }
    }

    /// A tick of a queue pair that flushes; whether there is to be another. What a device has not given back in time it
    /// never will: nobody waits for it any longer, and the queue pair is destroyed.
    pub(crate) fn flush_tick(&self) -> bool {
        self.with(|state, after| {
            if state.drains.is_none() {
                return false;
            }
            if !state.watch.flush_is_overdue() {
                return true;
            }
            if matches!(state.life, Life::PeerClosing { .. }) {
                let error = Error::new(
                    ErrorCode::DeviceLost,
                    format!(
                        "the peer closed the connection, and within {FLUSH:?} the RDMA device has not given back what was \
                         posted: what arrived last may be missing. If it happens again, reset the device or update its \
                         driver"
                    ),
                );
                self.fail(state, after, error);
            }
            Self::release(state, after);
            false
        })
    }

    fn last_message_missing(&self, state: &mut State, after: &mut After) {
        let error = Error::new(
            ErrorCode::PeerLost,
            "the peer closed the connection, but its last message did not arrive: what it has not been answered it must \
             send again, over a new connection",
        );
        self.fail(state, after, error);
    }

    /// `close` has lasted too long.
    pub(crate) fn close_timed_out(&self, state: &mut State, after: &mut After) {
        match state.life {
            Life::Closing { told: true } => {
                self.over(state, after, CloseReason::Closed, None, ControlCall::Destroy(None));
            }
            _ => {
                let error = Error::new(
                    ErrorCode::CloseTimeout,
                    format!(
                        "close() had not sent everything after {:?}: the peer does not take what is queued. Have it read, or \
                         raise closeTimeout",
                        self.options.close_timeout
                    ),
                );
                self.fail(state, after, error);
            }
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.lock().life, Life::Over(_))
    }
}
