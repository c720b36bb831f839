//! Posting: a list is judged one by one, and taken up to the first that cannot be.

use secure_rdma_rdma::{
    Error, ErrorCode, PostError, QpState, ReceiveRequest, Result, SendOperation, SendRequest, WcStatus,
};

use super::local::{self, Judged};
use super::queue_pair::{QueuePair, Shared};
use super::receive_queue::{PostedReceive, full};
use super::regions::WindowId;
use super::work::Work;

impl QueuePair {
    /// Posts sends.
    pub(super) fn post_send(
        &mut self,
        shared: &mut Shared,
        requests: &[SendRequest],
    ) -> Result<(), PostError> {
        self.takes_sends()?;
        for (posted, request) in requests.iter().enumerate() {
            self.post_one(shared, request).map_err(|error| PostError { posted, error })?;
        }
        Ok(())
    }

    fn post_one(&mut self, shared: &mut Shared, request: &SendRequest) -> Result<()> {
        let Judged { length, writable } = local::check(&request.local, &shared.regions, self.caps.max_sge)?;
        check_operation(request, length)?;
        if !self.has_send_room() {
            return Err(full("send"));
        }
        let mtu = self.flows.as_ref().map_or(1, |flows| flows.mtu);
        let first = self.requester.posted;
        let packets = Work::packets(&request.operation, length, mtu);
        let (id, operation, flags) = (request.id, request.operation.clone(), request.flags);
        let request = SendRequest { id, operation, local: local::copy(&request.local), flags };
        let work = Work { request, length, first, packets, writable, done: false, failed: None };
        if self.state == QpState::Err {
            self.flush_work(shared, work, WcStatus::WR_FLUSH_ERR);
        } else {
            self.requester.posted = work.end();
            self.requester.works.push_back(work);
        }
        Ok(())
    }

    /// Posts receives to the own receive queue.
    pub(super) fn post_receive(
        &mut self,
        shared: &mut Shared,
        requests: &[ReceiveRequest],
    ) -> Result<(), PostError> {
        takes_receives(self.state, self.caps.receive_queue.is_some())
            .map_err(|error| PostError { posted: 0, error })?;
        for (posted, request) in requests.iter().enumerate() {
            if !self.has_receive_room() {
                return Err(PostError { posted, error: full("receive") });
            }
            let receive = PostedReceive::new(request, &shared.regions, self.caps.max_sge)
                .map_err(|error| PostError { posted, error })?;
            if self.state == QpState::Err {
                self.fail_receive(shared, receive, WcStatus::WR_FLUSH_ERR);
            } else {
                self.receives.push_back(receive);
            }
        }
        Ok(())
    }

    /// Refuses posts where the state takes none.
    fn takes_sends(&self) -> Result<(), PostError> {
        match self.state {
            QpState::Rts | QpState::Sqd | QpState::Err => Ok(()),
            state => Err(PostError { posted: 0, error: not_postable(state, "sends are posted from RTS on") }),
        }
    }
}

/// What only the operation decides.
fn check_operation(request: &SendRequest, length: u32) -> Result<()> {
    let invalid = |message: String| Err(Error::new(ErrorCode::InvalidArgument, message));
    match &request.operation {
        SendOperation::CompareSwap { remote, .. } | SendOperation::FetchAdd { remote, .. } => {
            let pieces = request.local.len();
            if length != 8 || pieces != 1 || remote.address % 8 != 0 {
                return invalid(format!(
                    "an atomic works on 8 aligned bytes, not on {length} bytes in {pieces} pieces"
                ));
            }
        }
        SendOperation::Bind { window, target, .. } => {
            if window.as_any().downcast_ref::<WindowId>().is_none() {
                return invalid("the memory window is not one of this device".to_owned());
            }
            if !target.is_inside() {
                return invalid("the range to bind does not lie inside its region".to_owned());
            }
        }
        _ => {}
    }
    if request.operation.is_local() && length > 0 {
        return invalid("a bind or an invalidation takes no local bytes".to_owned());
    }
    Ok(())
}

/// Refuses receives where they cannot be posted.
fn takes_receives(state: QpState, shared: bool) -> Result<()> {
    if shared {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            "this queue pair's receives are posted to its shared receive queue",
        ));
    }
    match state {
        QpState::Reset => Err(not_postable(state, "receives are posted from INIT on")),
        _ => Ok(()),
    }
}

/// The error of a post in the wrong state.
fn not_postable(state: QpState, rule: &str) -> Error {
    Error::new(ErrorCode::Post, format!("the queue pair is in {state}: {rule}"))
}
