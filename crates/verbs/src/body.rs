//! The part of a queue pair that the service thread works on: it outlives the handle by as long as it takes to
//! destroy it.

use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, Weak};

use rdma_sys::{
    ibv_cq, ibv_post_recv, ibv_post_send, ibv_qp, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_type,
    ibv_req_notify_cq, ibv_wc, ibv_wc_flags, ibv_wc_opcode,
};
use secure_rdma_rdma::{
    Completion, CompletionKind, Error, ErrorCode, MemoryWindow, PostError, QpState, Qpn, QueuePairConfig,
    QueuePairHandler, RKey, ReceiveRequest, Result, SendOperation, SendRequest, Slice, WcStatus,
};

use crate::core::{Core, Owner, lock};
use crate::errno;
use crate::memlock;
use crate::posting::{self, ReceiveList, SendQueue};
use crate::private::PrivateDomain;
use crate::shared::SharedQueue;
use crate::slots;
use crate::window::VerbsWindow;

/// Where a queue pair's receives come from.
enum Receives {
    Own(Mutex<ReceiveList>),
    Shared(Arc<SharedQueue>),
}

/// A queue pair and its completion queue, of the driver's.
pub(crate) struct Body {
    token: u64,
    qp: NonNull<ibv_qp>,
    cq: NonNull<ibv_cq>,
    qpn: Qpn,
    state: AtomicU8,
    port: AtomicU8,
    dropped: AtomicBool,
    /// Whether the service thread has it among those that may have completions left.
    listed: AtomicBool,
    sends: Mutex<SendQueue>,
    receives: Receives,
    /// Windows that were bound here: given back before the queue pair.
    windows: Mutex<Vec<Weak<dyn MemoryWindow>>>,
    private: Option<Arc<PrivateDomain>>,
    handler: Weak<dyn QueuePairHandler>,
}

// SAFETY: libibverbs is thread-safe, and neither object is tied to a thread.
unsafe impl Send for Body {}
// SAFETY: libibverbs is thread-safe, and the queues have their locks.
unsafe impl Sync for Body {}

impl Body {
    /// Makes the completion queue and the queue pair. The completion queue holds a completion for every work
    /// request that can be outstanding, so that it cannot overrun.
    pub(crate) fn make(
        owner: &Owner,
        private: Option<&Arc<PrivateDomain>>,
        config: &QueuePairConfig,
    ) -> Result<Self> {
        let shared = match &config.receive_queue {
            Some(queue) => Some(SharedQueue::of(queue.as_ref(), owner)?),
            None => None,
        };
        let completions = check_sizes(owner, config)?;
        let verbs = owner.verbs();
        let token = owner.token();
        let context = ptr::without_provenance_mut(usize::try_from(token).unwrap_or(usize::MAX));
        let raw_context = owner.domain.context().raw();
        // SAFETY: context and channel are open.
        let cq =
            unsafe { (verbs.ibv_create_cq)(raw_context, completions, context, owner.domain.channel(), 0) };
        let Some(cq) = NonNull::new(cq) else {
            return Err(not_made(owner, "completion queue", "ibv_create_cq", config));
        };
        let own = shared.is_none();
        let mut init = ibv_qp_init_attr {
            qp_context: context,
            send_cq: cq.as_ptr(),
            recv_cq: cq.as_ptr(),
            srq: shared.as_ref().map_or(ptr::null_mut(), |queue| queue.raw()),
            cap: ibv_qp_cap {
                max_send_wr: config.max_send,
                max_recv_wr: if own { config.max_receive } else { 0 },
                max_send_sge: config.max_sge,
                max_recv_sge: if own { config.max_sge } else { 0 },
                max_inline_data: 0,
            },
            qp_type: ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 1,
        };
        let domain = private.map_or_else(|| owner.domain.domain(), |private| private.domain());
        // SAFETY: the domain, the completion queue and the shared queue are alive.
        let qp = unsafe { (verbs.ibv_create_qp)(domain, &raw mut init) };
        let made = NonNull::new(qp).and_then(|qp| {
            // SAFETY: the queue pair was made just above.
            Some((qp, Qpn::new(unsafe { qp.as_ref() }.qp_num)?))
        });
        let Some((qp, qpn)) = made else {
            let error = not_made(owner, "queue pair", "ibv_create_qp", config);
            // SAFETY: nothing uses the completion queue.
            unsafe { (verbs.ibv_destroy_cq)(cq.as_ptr()) };
            return Err(error);
        };
        let receives = match shared {
            Some(queue) => Receives::Shared(queue),
            None => Receives::Own(Mutex::new(ReceiveList::new(config.max_receive, config.max_sge))),
        };
        Ok(Self {
            token,
            qp,
            cq,
            qpn,
            state: AtomicU8::new(QpState::Reset as u8),
            port: AtomicU8::new(0),
            dropped: AtomicBool::new(false),
            listed: AtomicBool::new(false),
            sends: Mutex::new(SendQueue::new(config.max_send, config.max_sge)),
            receives,
            windows: Mutex::default(),
            private: private.cloned(),
            handler: Weak::clone(&config.handler),
        })
    }

    /// Notes whether the service thread has it in its list; gives whether it had. That thread alone asks.
    pub(crate) fn set_listed(&self, listed: bool) -> bool {
        self.listed.swap(listed, Ordering::Relaxed)
    }

    /// What the driver's objects carry as their context.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// The queue pair's number.
    pub(crate) fn qpn(&self) -> Qpn {
        self.qpn
    }

    /// The driver's queue pair, valid until the body is destroyed.
    pub(crate) fn qp(&self) -> *mut ibv_qp {
        self.qp.as_ptr()
    }

    /// The local port, 0 before INIT.
    pub(crate) fn port(&self) -> u8 {
        self.port.load(Ordering::Relaxed)
    }

    /// Remembers the local port.
    pub(crate) fn set_port(&self, port: u8) {
        self.port.store(port, Ordering::Relaxed);
    }

    /// The state as it was last set or reported.
    pub(crate) fn state(&self) -> QpState {
        QpState::from_code(self.state.load(Ordering::Acquire).into()).unwrap_or(QpState::Err)
    }

    /// A move from `from` to `to` was made. A failure that the device reported in between stands, unless the move
    /// was to RESET.
    pub(crate) fn moved(&self, from: QpState, to: QpState) {
        if to == QpState::Reset {
            self.state.store(to as u8, Ordering::Release);
        } else {
            let _ = self.state.compare_exchange(from as u8, to as u8, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// The device reports that the queue pair is in ERR.
    pub(crate) fn failed(&self) {
        self.state.store(QpState::Err as u8, Ordering::Release);
    }

    /// The handle is gone: nobody is told of anything any more.
    pub(crate) fn mark_dropped(&self) {
        self.dropped.store(true, Ordering::Release);
    }

    /// Who is told of completions and events.
    pub(crate) fn handler(&self) -> Option<Arc<dyn QueuePairHandler>> {
        if self.dropped.load(Ordering::Acquire) { None } else { self.handler.upgrade() }
    }

    /// Whether the queue pair receives from `queue`.
    pub(crate) fn receives_from(&self, queue: *const rdma_sys::ibv_srq) -> bool {
        matches!(&self.receives, Receives::Shared(shared) if ptr::eq(shared.raw(), queue))
    }

    /// Asks for an event with the next completion.
    pub(crate) fn arm(&self) -> c_int {
        // SAFETY: the completion queue lives until the body is destroyed, which the service thread alone does.
        unsafe { ibv_req_notify_cq(self.cq.as_ptr(), 0) }
    }

    /// Takes completions as the driver has them; negative when the queue is broken.
    pub(crate) fn poll(&self, into: &mut [ibv_wc]) -> c_int {
        let length = c_int::try_from(into.len()).unwrap_or(c_int::MAX);
        // SAFETY: the completion queue lives until the body is destroyed, and `into` has room for `length`.
        unsafe { rdma_sys::ibv_poll_cq(self.cq.as_ptr(), length, into.as_mut_ptr()) }
    }

    /// Reads a completion: whose it is, and what it says. Nothing for a number that is not outstanding.
    pub(crate) fn read(&self, wc: &ibv_wc, retired: &mut Vec<Slice>) -> Option<Completion> {
        let receive = slots::is_receive(wc.wr_id);
        let id = match &self.receives {
            _ if !receive => lock(&self.sends).complete(wc.wr_id, retired),
            Receives::Own(list) => lock(list).complete(wc.wr_id, retired),
            Receives::Shared(queue) => queue.complete(wc.wr_id, retired),
        }?;
        let status = WcStatus(wc.status);
        if !status.is_success() {
            // A reliable connection goes to ERR with its first failed work request.
            self.failed();
        }
        let says = |flag: ibv_wc_flags| receive && status.is_success() && wc.wc_flags & flag.0 != 0;
        let immediate = says(ibv_wc_flags::IBV_WC_WITH_IMM).then(|| {
            // SAFETY: both members of the union are a 32-bit number.
            u32::from_be(unsafe { wc.imm_data_invalidated_rkey_union.imm_data })
        });
        let invalidated = says(ibv_wc_flags::IBV_WC_WITH_INV).then(|| {
            // SAFETY: as above.
            RKey::new(unsafe { wc.imm_data_invalidated_rkey_union.invalidated_rkey })
        });
        let kind = match receive {
            false => CompletionKind::Send,
            true if status.is_success() && wc.opcode == ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM => {
                CompletionKind::ReceiveWriteImmediate
            }
            true => CompletionKind::Receive,
        };
        Some(Completion {
            id,
            kind,
            status,
            byte_len: wc.byte_len,
            immediate,
            invalidated,
            vendor_error: wc.vendor_err,
        })
    }

    /// Posts sends.
    pub(crate) fn post_send(
        &self,
        core: &Core,
        requests: &[SendRequest],
    ) -> std::result::Result<(), PostError> {
        posting::may_send(self.state())?;
        for request in requests {
            if let SendOperation::Bind { window, .. } = &request.operation {
                let mut windows = lock(&self.windows);
                windows.retain(|known| known.strong_count() > 0);
                windows.push(Arc::downgrade(window));
            }
        }
        lock(&self.sends).post(core, self.private.as_ref(), requests, |first, bad| {
            // SAFETY: the queue pair lives until the body is destroyed, and the chain until the call returns.
            unsafe { ibv_post_send(self.qp(), first, bad) }
        })
    }

    /// Posts receives to the queue pair's own queue.
    pub(crate) fn post_receive(
        &self,
        core: &Core,
        requests: &[ReceiveRequest],
    ) -> std::result::Result<(), PostError> {
        let Receives::Own(list) = &self.receives else {
            let message = "the queue pair receives from a shared queue: post there";
            return Err(PostError { posted: 0, error: Error::new(ErrorCode::InvalidArgument, message) });
        };
        posting::may_receive(self.state())?;
        lock(list).post(core, self.private.as_ref(), requests, "ibv_post_recv", |first, bad| {
            // SAFETY: the queue pair lives until the body is destroyed, and the chain until the call returns.
            unsafe { ibv_post_recv(self.qp(), first, bad) }
        })
    }

    /// Destroys queue pair and completion queue. The service thread alone calls this, after the handle is gone:
    /// it has acknowledged every event that it took, so that the driver does not wait for one.
    ///
    /// Tells whether the device has let go of the memory of what was outstanding.
    pub(crate) fn destroy(&self, core: &Core, buffer: &mut [ibv_wc]) -> bool {
        let verbs = core.verbs();
        for window in lock(&self.windows).drain(..).filter_map(|window| window.upgrade()) {
            if let Some(window) = window.as_any().downcast_ref::<VerbsWindow>() {
                window.release();
            }
        }
        if matches!(self.receives, Receives::Shared(_)) {
            // ERR makes the driver finish the receive that it is writing to; destroying would forget it.
            crate::modify::to_error(core, self);
            self.salvage(buffer);
        }
        // SAFETY: the queue pair was made by `make` and is destroyed once.
        let answer = unsafe { (verbs.ibv_destroy_qp)(self.qp()) };
        if errno::of(answer).is_some() {
            return false;
        }
        self.salvage(buffer);
        // SAFETY: the queue pair that used it is gone, and it is destroyed once.
        unsafe { (verbs.ibv_destroy_cq)(self.cq.as_ptr()) };
        true
    }

    /// Gives receives back to the shared queue whose completions nobody will hear of.
    fn salvage(&self, buffer: &mut [ibv_wc]) {
        let Receives::Shared(queue) = &self.receives else { return };
        while let Some(count) = usize::try_from(self.poll(buffer)).ok().filter(|count| *count > 0) {
            for wc in buffer.iter().take(count).filter(|wc| slots::is_receive(wc.wr_id)) {
                queue.post_again(wc.wr_id);
            }
        }
    }
}

/// Checks the sizes that are asked for; gives the size of the completion queue.
fn check_sizes(core: &Core, config: &QueuePairConfig) -> Result<c_int> {
    let limits = &core.limits;
    let refuse =
        |what: String| Err(Error::new(ErrorCode::InvalidArgument, format!("{what} on {}", core.name)));
    for (name, value) in [("max_send", config.max_send), ("max_receive", config.max_receive)] {
        if value == 0 || value > limits.max_work_requests {
            return refuse(format!("{name} is {value}; it can be 1 to {}", limits.max_work_requests));
        }
    }
    if config.max_sge == 0 || config.max_sge > limits.max_sge {
        return refuse(format!("max_sge is {}; it can be 1 to {}", config.max_sge, limits.max_sge));
    }
    let completions = config.max_send.saturating_add(config.max_receive);
    match c_int::try_from(completions) {
        Ok(count) if completions <= limits.max_completions => Ok(count),
        _ => refuse(format!(
            "max_send and max_receive are {completions} together; a completion queue holds {}",
            limits.max_completions
        )),
    }
}

fn not_made(core: &Core, what: &str, syscall: &'static str, config: &QueuePairConfig) -> Error {
    let errno = errno::last();
    let message = format!("{} gives no {what}", core.name);
    if errno == libc::ENOMEM {
        let entries = (config.max_send as usize).saturating_add(config.max_receive as usize);
        if let Some(message) = memlock::explain(&message, entries.saturating_mul(64)) {
            return Error::new(ErrorCode::Memlock, message).with_syscall(syscall, errno);
        }
    }
    errno::error(ErrorCode::Resource, &message, syscall, errno)
}
