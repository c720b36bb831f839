//! What the device tells: completions and events, on its service thread.

use secure_rdma_rdma::{
    AsyncEvent, Completion, CompletionKind, Error, ErrorCode, QueuePairHandler, Result, WcStatus, WorkId,
};
use smallvec::SmallVec;

use crate::channel::{After, Channel, Life, State};
use crate::outstanding::Done;
use crate::receive::Arrived;

impl QueuePairHandler for Channel {
    fn completed(&self, batch: &[Completion]) {
        self.with(|state, after| {
            state.watch.completions(batch.len());
            let mut buffers: SmallVec<[WorkId; 32]> = SmallVec::new();
            for completion in batch {
                if let Err(error) = self.completion(state, after, completion, &mut buffers) {
                    self.fail(state, after, error);
                }
            }
            // The batch may have brought the drain marker, with which both go.
            if !buffers.is_empty()
                && let Some(queue_pair) =
                    state.queue_pair.clone().or_else(|| after.queue_pairs.last().cloned())
                && let Some(reservation) =
                    state.reservation.clone().or_else(|| after.reservations.last().cloned())
                && let Err(error) = reservation.repost(queue_pair.as_ref(), &buffers)
            {
                self.fail(state, after, error);
            }
            self.tell_grants(state, after);
            if state.transmit.advanced() {
                self.news(state, after);
            }
            self.pump(state, after);
            self.tell_when_drained(state, after);
        });
    }

    fn happened(&self, event: AsyncEvent) {
        self.with(|state, after| {
            let lost = |message: &str| Error::new(ErrorCode::DeviceLost, message);
            match event {
                AsyncEvent::PortDown => state.watch.port_is_up(false),
                AsyncEvent::PortUp => state.watch.port_is_up(true),
                AsyncEvent::QueuePairFatal => {
                    self.fail(state, after, lost("the device reported a fatal error of the queue pair: connect again; the kernel's log may say why"));
                }
                AsyncEvent::CompletionQueueError => {
                    let error =
                        lost("the completion queue overran: the peer sent more than its credits allow, so update the older side");
                    self.fail(state, after, error);
                }
                AsyncEvent::DeviceGone => {
                    self.fail(state, after, lost("the RDMA device was removed or failed: connect again when it is back"));
                    // No flush will come from a device that is gone.
                    Self::release(state, after);
                }
            }
        });
    }
}

impl Channel {
    fn completion(
        &self,
        state: &mut State,
        after: &mut After,
        completion: &Completion,
        buffers: &mut SmallVec<[WorkId; 32]>,
    ) -> Result<()> {
        if completion.kind == CompletionKind::Send {
            let done = state.transmit.complete(completion, &mut after.slots)?;
            if done == Done::Drained {
                Self::release(state, after);
                if let Life::PeerClosing { told } = state.life {
                    self.drained(state, after, told);
                }
            }
            if matches!(state.life, Life::Over(_) | Life::PeerClosing { .. }) {
                return Ok(());
            }
            if !completion.status.is_success() {
                return Err(self.failure(state, completion));
            }
            if let Done::Local(done) = done {
                self.local_done(state, after, done);
            }
            if done == Done::Proof {
                state.proof.sent = true;
                self.news(state, after);
            }
            return Ok(());
        }
        if !completion.status.is_success() {
            if state.reservation.as_ref().is_some_and(|reservation| reservation.is_shared()) {
                buffers.push(completion.id);
            }
            return if matches!(state.life, Life::Over(_) | Life::PeerClosing { .. }) {
                Ok(())
            } else {
                Err(self.failure(state, completion))
            };
        }
        buffers.push(completion.id);
        if matches!(state.life, Life::Over(_)) {
            return Ok(());
        }
        let Some(reservation) = state.reservation.clone() else { return Ok(()) };
        let arrived = state.receive.segment(completion, &mut state.credits, &reservation)?;
        state.proof.received |= arrived == Arrived::Proof;
        if arrived != Arrived::Nothing {
            self.news(state, after);
        }
        Ok(())
    }

    fn failure(&self, state: &State, completion: &Completion) -> Error {
        let status = completion.status;
        let (code, message) = match status {
            // During the proof of path: `session` says between whom.
            WcStatus::RETRY_EXC_ERR if state.path.is_empty() => {
                (ErrorCode::Path, status.meaning().to_owned())
            }
            WcStatus::RETRY_EXC_ERR => (
                ErrorCode::Path,
                format!(
                    "RDMA packets no longer get through {}: {}. Check that they pass both ways and that the path \
                     carries packets of {} bytes",
                    state.path,
                    status.meaning(),
                    state.path_mtu
                ),
            ),
            _ => (
                ErrorCode::Work,
                format!(
                    "work on the queue pair failed with {status}: {}. Connect again; the logs of the peer and of the kernel may \
                     say why",
                    status.meaning()
                ),
            ),
        };
        Error::new(code, message).with_wc_status(status)
    }
}
