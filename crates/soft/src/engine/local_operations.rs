//! Operations of the own device alone: binding a memory window, and ending a binding (IBTA 10.6.7.2).

use secure_rdma_rdma::{QpState, Qpn, SendFlags, SendOperation, WcStatus};

use super::defects::Defect;
use super::queue_pair::{QueuePair, Shared};
use super::work::Work;

impl QueuePair {
    /// Carries out local operations whose turn it is, and ends those at the front of the send queue.
    pub(super) fn run_local_operations(&mut self, shared: &mut Shared) {
        if !matches!(self.state, QpState::Rts | QpState::Sqd) {
            return;
        }
        loop {
            if self.end_first(shared) {
                continue;
            }
            let index = self.requester.cursor.0;
            let (newest, next) = (self.requester.newest, self.requester.next);
            let Some(work) = self.requester.works.get_mut(index) else { return };
            if !work.is_local() || next < newest || work.failed.is_some() {
                return;
            }
            if !work.done {
                let fenced =
                    work.request.flags.contains(SendFlags::FENCE) && !self.requester.reads.is_empty();
                // A LOCAL_INV waits for everything before it (IBTA 10.6.5.1; so does rxe, `rxe_requester`).
                let waits = matches!(work.request.operation, SendOperation::Invalidate { .. }) && index > 0;
                if fenced || waits || self.state == QpState::Sqd {
                    return;
                }
                match run(self.qpn, shared, work) {
                    Ok(()) => {
                        work.done = true;
                        if shared.config.planted(Defect::BindReleasedEarly)
                            && let SendOperation::Bind { rkey, .. } = work.request.operation
                        {
                            work.request.operation = SendOperation::Invalidate { rkey };
                        }
                    }
                    Err(status) => work.failed = Some(status),
                }
            }
            if work.done {
                self.requester.step(0);
            }
        }
    }

    /// Ends the first work if it is a local operation that is done, or has failed. Tells whether there was one.
    fn end_first(&mut self, shared: &mut Shared) -> bool {
        let Some(first) = self.requester.works.front() else { return false };
        match first.failed {
            Some(status) => {
                self.fail_first(shared, status);
                true
            }
            None if first.done => {
                self.complete_first(shared);
                true
            }
            None => false,
        }
    }
}

/// Carries out a bind or an invalidation.
fn run(qpn: Qpn, shared: &mut Shared, work: &Work) -> Result<(), WcStatus> {
    const MW_BIND_ERR: WcStatus = WcStatus(6);
    match &work.request.operation {
        SendOperation::Bind { window, rkey, target, access } => {
            let id = window.as_any().downcast_ref().copied().ok_or(MW_BIND_ERR)?;
            let lkey = target.region.lkey();
            shared
                .regions
                .bind(qpn, id, *rkey, lkey, target.offset, target.length, *access)
                .map_err(|_| MW_BIND_ERR)?;
            shared.counters.binds += 1;
        }
        SendOperation::Invalidate { rkey } => {
            shared.regions.invalidate(qpn, *rkey).map_err(|_| WcStatus::LOC_QP_OP_ERR)?;
            shared.counters.invalidates += 1;
        }
        _ => {}
    }
    Ok(())
}
