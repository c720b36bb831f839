//! Posting: the list is judged, numbered, handed to the driver in one call, and what it refused is taken back.

use std::ffi::c_int;
use std::sync::Arc;

use rdma_sys::{ibv_recv_wr, ibv_send_wr};
use secure_rdma_rdma::{
    Error, ErrorCode, PostError, QpState, ReceiveRequest, Result, SendOperation, SendRequest, Slice, WorkId,
};

use crate::chain::{Chain, Link};
use crate::core::Core;
use crate::errno;
use crate::private::PrivateDomain;
use crate::region::{check_places, check_slices};
use crate::slots::{ReceiveSlots, SendRing};
use crate::window::VerbsWindow;

/// A send queue: what is outstanding, and the buffers for the next list.
pub(crate) struct SendQueue {
    ring: SendRing,
    chain: Chain<ibv_send_wr>,
    max_sge: u32,
}

impl SendQueue {
    /// Room for `capacity` sends of at most `max_sge` pieces.
    pub(crate) fn new(capacity: u32, max_sge: u32) -> Self {
        Self { ring: SendRing::new(capacity), chain: Chain::new(), max_sge }
    }

    /// Posts `requests` through `driver`, which gives its answer and sets the refused request.
    pub(crate) fn post(
        &mut self,
        core: &Core,
        private: Option<&Arc<PrivateDomain>>,
        requests: &[SendRequest],
        driver: impl FnOnce(*mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int,
    ) -> std::result::Result<(), PostError> {
        self.chain.clear();
        let mut refusal = None;
        for request in requests {
            let wr_id = match check_send(core, private, request, self.max_sge) {
                Ok(()) => self.ring.push(request.id, &request.local),
                Err(error) => {
                    refusal = Some(error);
                    break;
                }
            };
            let Some(wr_id) = wr_id else {
                refusal = Some(full("send queue"));
                break;
            };
            self.chain.push(wr_id, request);
        }
        let (posted, errno) = hand_over(&mut self.chain, driver);
        for request in requests.iter().take(posted) {
            if let SendOperation::Bind { window, rkey, .. } = &request.operation
                && let Some(window) = window.as_any().downcast_ref::<VerbsWindow>()
            {
                window.posted(*rkey);
            }
        }
        let mut retired = Vec::new();
        self.ring.take_back(self.chain.len() - posted, &mut retired);
        outcome(posted, errno, refusal, "ibv_post_send")
    }

    /// Ends a send.
    pub(crate) fn complete(&mut self, wr_id: u64, retired: &mut Vec<Slice>) -> Option<WorkId> {
        self.ring.complete(wr_id, retired)
    }
}

/// A receive queue of one queue pair or of many: what is outstanding, and the buffers for the next list.
pub(crate) struct ReceiveList {
    slots: ReceiveSlots,
    chain: Chain<ibv_recv_wr>,
    numbers: Vec<u64>,
    max_sge: u32,
}

impl ReceiveList {
    /// Room for `capacity` receives of at most `max_sge` pieces.
    pub(crate) fn new(capacity: u32, max_sge: u32) -> Self {
        Self { slots: ReceiveSlots::new(capacity), chain: Chain::new(), numbers: Vec::new(), max_sge }
    }

    /// Posts `requests` through `driver`, which gives its answer and sets the refused request.
    pub(crate) fn post(
        &mut self,
        core: &Core,
        private: Option<&Arc<PrivateDomain>>,
        requests: &[ReceiveRequest],
        syscall: &'static str,
        driver: impl FnOnce(*mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
    ) -> std::result::Result<(), PostError> {
        self.chain.clear();
        self.numbers.clear();
        let mut refusal = None;
        for request in requests {
            let wr_id = match check_slices(core, private, &request.local, self.max_sge) {
                Ok(_) => self.slots.insert(request.id, &request.local),
                Err(error) => {
                    refusal = Some(error);
                    break;
                }
            };
            let Some(wr_id) = wr_id else {
                refusal = Some(full("receive queue"));
                break;
            };
            self.chain.push(wr_id, &request.local);
            self.numbers.push(wr_id);
        }
        let (posted, errno) = hand_over(&mut self.chain, driver);
        let mut retired = Vec::new();
        for wr_id in self.numbers.drain(posted..) {
            self.slots.complete(wr_id, &mut retired);
        }
        outcome(posted, errno, refusal, syscall)
    }

    /// Posts an outstanding receive once more: its completion was lost with a queue pair. Tells whether it is posted.
    pub(crate) fn post_again(
        &mut self,
        wr_id: u64,
        driver: impl FnOnce(*mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int,
    ) -> bool {
        self.chain.clear();
        let Some(slices) = self.slots.slices(wr_id) else { return false };
        self.chain.push(wr_id, slices);
        hand_over(&mut self.chain, driver).0 == 1
    }

    /// Ends a receive.
    pub(crate) fn complete(&mut self, wr_id: u64, retired: &mut Vec<Slice>) -> Option<WorkId> {
        self.slots.complete(wr_id, retired)
    }
}

/// Gives the chain to the driver; tells how many requests it took, and its errno where it did not take all.
fn hand_over<T: Link>(
    chain: &mut Chain<T>,
    driver: impl FnOnce(*mut T, *mut *mut T) -> c_int,
) -> (usize, Option<i32>) {
    if chain.len() == 0 {
        return (0, None);
    }
    let mut bad = std::ptr::null_mut();
    match errno::of(driver(chain.head(), &raw mut bad)) {
        None => (chain.len(), None),
        Some(errno) => (chain.posted_before(bad), Some(errno)),
    }
}

fn outcome(
    posted: usize,
    errno: Option<i32>,
    refusal: Option<Error>,
    syscall: &'static str,
) -> std::result::Result<(), PostError> {
    let error = match (errno, refusal) {
        (Some(libc::ENOMEM), _) => full("driver's queue").with_syscall(syscall, libc::ENOMEM),
        (Some(errno), _) => {
            errno::error(ErrorCode::Post, "the driver refuses a work request", syscall, errno)
        }
        (None, Some(refusal)) => refusal,
        (None, None) => return Ok(()),
    };
    Err(PostError { posted, error })
}

fn full(queue: &str) -> Error {
    Error::new(ErrorCode::QueueFull, format!("the {queue} has no room: wait for completions"))
}

fn check_send(
    core: &Core,
    private: Option<&Arc<PrivateDomain>>,
    request: &SendRequest,
    max_sge: u32,
) -> Result<()> {
    let total = check_slices(core, private, &request.local, max_sge)?;
    if request.operation.is_local() && !request.local.is_empty() {
        let message = "a bind and an invalidate take no local bytes";
        return Err(Error::new(ErrorCode::InvalidArgument, message));
    }
    if let SendOperation::Bind { window, target, .. } = &request.operation {
        VerbsWindow::of(window, core, private)?;
        check_places(core, private, std::slice::from_ref(target))?;
        return Ok(());
    }
    let (SendOperation::CompareSwap { remote, .. } | SendOperation::FetchAdd { remote, .. }) =
        request.operation
    else {
        return Ok(());
    };
    let pieces = request.local.len();
    if total != 8 || pieces != 1 || remote.address % 8 != 0 {
        let message = format!("an atomic works on 8 aligned bytes, not on {total} bytes in {pieces} pieces");
        return Err(Error::new(ErrorCode::InvalidArgument, message));
    }
    Ok(())
}

/// Refuses sends where the state takes none. In ERR they are taken, and flushed.
pub(crate) fn may_send(state: QpState) -> std::result::Result<(), PostError> {
    if matches!(state, QpState::Rts | QpState::Sqd | QpState::Err) {
        return Ok(());
    }
    Err(wrong_state(state, "sends are posted from RTS on"))
}

/// Refuses receives where the state takes none.
pub(crate) fn may_receive(state: QpState) -> std::result::Result<(), PostError> {
    if state != QpState::Reset {
        return Ok(());
    }
    Err(wrong_state(state, "receives are posted from INIT on"))
}

fn wrong_state(state: QpState, rule: &str) -> PostError {
    let error = Error::new(ErrorCode::Post, format!("the queue pair is in {state}: {rule}"));
    PostError { posted: 0, error }
}
