//! The states of a queue pair: what a transition sets, and what ERR and RESET do with what was posted.

use secure_rdma_rdma::{Error, ErrorCode, QpAttr, QpState, Result, SendOperation, WcStatus, transition};

use super::defects::Defect;
use super::path::{Flows, Path};
use super::queue_pair::{QueuePair, Shared};
use super::requester::Requester;
use super::schedule::Standing;
use super::work::Work;

impl QueuePair {
    /// Moves the queue pair.
    pub(super) fn modify(
        &mut self,
        shared: &mut Shared,
        attr: &QpAttr,
        path: Option<Path>,
    ) -> Result<QpState> {
        let to = transition::check_attr(self.state, attr)?;
        check_values(attr)?;
        match to {
            QpState::Reset => self.reset(shared),
            QpState::Err => {
                self.responder.answers.clear();
                self.move_to_error(shared);
            }
            _ => {
                if attr.address.is_some() {
                    self.set_path(shared, attr, path)?;
                }
                self.access = attr.access.unwrap_or(self.access);
                self.requester.set(attr);
                self.responder.set(attr);
                self.state = match to {
                    QpState::Sqd if shared.config.planted(Defect::DrainIgnored) => QpState::Rts,
                    to => to,
                };
            }
        }
        Ok(to)
    }

    fn set_path(&mut self, shared: &mut Shared, attr: &QpAttr, path: Option<Path>) -> Result<()> {
        let (peer, mtu) = match &self.flows {
            Some(flows) => (Some(flows.peer), Some(flows.mtu)),
            None => (attr.dest_qpn, attr.path_mtu.map(secure_rdma_rdma::PathMtu::bytes)),
        };
        let (Some(path), Some(peer), Some(mtu)) = (path, peer, mtu) else {
            return Err(refused("an address vector, but no path to it"));
        };
        if path.peer.port() == 0 || path.source_port == 0 || path.hop_limit == 0 {
            return Err(refused("a UDP port or the hop limit is 0"));
        }
        let Some(mut flows) = Flows::new(path, peer, mtu) else {
            return Err(refused("the two addresses are of two families"));
        };
        self.leave_path(shared);
        match path.receive_buffer {
            Some(limit) => flows.budget = shared.budgets.join(path.peer, limit),
            None => shared.unpaced += 1,
        }
        // A peer of another make sends the responses to READs one by one.
        self.requester.batches = shared.config.batches && path.receive_buffer.is_some();
        self.flows = Some(flows);
        Ok(())
    }

    /// Gives back what the queue pair has in flight, and its share of the peer's receive buffer.
    pub(super) fn leave_path(&mut self, shared: &mut Shared) {
        let Some(flows) = self.flows.take() else { return };
        self.requester.release_all(shared, &flows);
        match flows.path.receive_buffer {
            Some(_) => shared.budgets.leave(flows.path.peer),
            None => shared.unpaced = shared.unpaced.saturating_sub(1),
        }
    }

    /// →ERR: everything that was posted completes with WR_FLUSH_ERR, in the order of posting.
    pub(super) fn move_to_error(&mut self, shared: &mut Shared) {
        self.state = QpState::Err;
        self.requester.stop_timers();
        if let Some(flows) = &self.flows {
            self.requester.release_all(shared, flows);
        }
        self.requester.reads.clear();
        if shared.config.planted(Defect::FlushOutOfOrder) {
            self.requester.works.make_contiguous().reverse();
        }
        for work in std::mem::take(&mut self.requester.works) {
            self.flush_work(shared, work, WcStatus::WR_FLUSH_ERR);
        }
        self.requester.cursor = (0, 0);
        self.requester.posted = self.requester.newest;
        self.requester.oldest = self.requester.newest;
        self.requester.next = self.requester.newest;
        self.requester.charged_to = self.requester.newest;
        for receive in self.responder.receive.take().into_iter().chain(std::mem::take(&mut self.receives)) {
            self.fail_receive(shared, receive, WcStatus::WR_FLUSH_ERR);
        }
    }

    /// Ends a send with an error.
    pub(super) fn flush_work(&mut self, shared: &mut Shared, work: Work, status: WcStatus) {
        if let SendOperation::Bind { window, target, .. } = work.request.operation {
            shared.retired.window(window);
            shared.retired.slices(smallvec::smallvec![target]);
        }
        self.complete_send(shared, work.request.id, work.request.local, status, 0);
    }

    /// →RESET: everything is forgotten, without completions.
    pub(super) fn reset(&mut self, shared: &mut Shared) {
        self.leave_path(shared);
        shared.regions.unbind_all(self.qpn);
        let requester = std::mem::replace(&mut self.requester, Requester::new(&shared.config));
        for work in requester.works {
            shared.retired.slices(work.request.local);
            if let SendOperation::Bind { window, target, .. } = work.request.operation {
                shared.retired.window(window);
                shared.retired.slices(smallvec::smallvec![target]);
            }
        }
        let responder = std::mem::take(&mut self.responder);
        for receive in responder.receive.into_iter().chain(std::mem::take(&mut self.receives)) {
            shared.retired.slices(receive.local);
        }
        self.forget_completions();
        self.standing = Standing { waiting: false, ..self.standing };
        self.state = QpState::Reset;
    }

    /// What the transport does at every entry: nothing is due in states that do nothing.
    pub(super) fn answers_requests(&self) -> bool {
        matches!(self.state, QpState::Rtr | QpState::Rts | QpState::Sqd)
    }

    /// Whether responses are taken.
    pub(super) fn takes_responses(&self) -> bool {
        matches!(self.state, QpState::Rts | QpState::Sqd)
    }
}

/// What drivers check and the transition table does not: the values.
fn check_values(attr: &QpAttr) -> Result<()> {
    let above = |value: Option<u8>, limit: u8| value.is_some_and(|value| value > limit);
    if above(attr.timeout, 31)
        || above(attr.min_rnr_timer, 31)
        || above(attr.retry_count, 7)
        || above(attr.rnr_retry, 7)
    {
        return Err(refused("a timer code or a count is out of range"));
    }
    Ok(())
}

fn refused(what: &str) -> Error {
    Error::new(ErrorCode::Modify, format!("the device refuses the transition: {what}"))
}
