//! A protection domain of one connection's own, for devices without memory windows.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::ibv_pd;
use secure_rdma_rdma::{
    Access, Addressing, Device, DeviceLimits, ErrorCode, Establish, GoneNotice, LocalAddress, Memory,
    MemoryWindow, QueuePair, QueuePairConfig, ReceiveQueue, Region, Result,
};

use crate::core::Owner;
use crate::library::Verbs;
use crate::{errno, queue_pair, region, window};

/// A protection domain beside the device's. Everything in it holds it.
pub(crate) struct PrivateDomain {
    verbs: &'static Verbs,
    domain: NonNull<ibv_pd>,
}

// SAFETY: libibverbs is thread-safe, and a domain is not tied to a thread.
unsafe impl Send for PrivateDomain {}
// SAFETY: libibverbs is thread-safe.
unsafe impl Sync for PrivateDomain {}

impl PrivateDomain {
    fn make(owner: &Owner) -> Result<Arc<Self>> {
        owner.check()?;
        // SAFETY: the context is open.
        let domain = unsafe { (owner.verbs().ibv_alloc_pd)(owner.domain.context().raw()) };
        let Some(domain) = NonNull::new(domain) else {
            let what = format!("{} gives no protection domain", owner.name);
            return Err(errno::error(ErrorCode::Resource, &what, "ibv_alloc_pd", errno::last()));
        };
        Ok(Arc::new(Self { verbs: owner.verbs(), domain }))
    }

    /// The driver's domain, valid as long as `self`.
    pub(crate) fn domain(&self) -> *mut ibv_pd {
        self.domain.as_ptr()
    }

    /// Whether both are the same, or both are the device's own.
    pub(crate) fn same(one: Option<&Arc<Self>>, other: Option<&Arc<Self>>) -> bool {
        match (one, other) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Drop for PrivateDomain {
    fn drop(&mut self) {
        // SAFETY: everything in the domain held it, and so is gone. In a forked child the driver refuses.
        unsafe { (self.verbs.ibv_dealloc_pd)(self.domain()) };
    }
}

/// A view of an open device that works in a domain of its own.
pub(crate) struct PrivateDevice {
    owner: Arc<Owner>,
    domain: Arc<PrivateDomain>,
    limits: DeviceLimits,
    device: Arc<dyn Device>,
}

impl PrivateDevice {
    /// Makes the domain. `device` is the whole one.
    pub(crate) fn make(owner: &Arc<Owner>, device: Arc<dyn Device>) -> Result<Arc<dyn Device>> {
        let domain = PrivateDomain::make(owner)?;
        let limits = DeviceLimits { max_shared_receives: 0, ..owner.limits.clone() };
        Ok(Arc::new(Self { owner: Arc::clone(owner), domain, limits, device }))
    }
}

impl fmt::Debug for PrivateDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateDevice").field("name", &self.owner.name).finish_non_exhaustive()
    }
}

impl Device for PrivateDevice {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    fn is_gone(&self) -> bool {
        self.device.is_gone()
    }

    fn on_gone(&self, notify: GoneNotice) {
        self.device.on_gone(notify);
    }

    fn register(&self, memory: Arc<Memory>, access: Access) -> Result<Arc<Region>> {
        let whole = (0, memory.len());
        region::register(&self.owner, Some(&self.domain), memory, whole, access)
    }

    fn windows_keep_ranges(&self) -> bool {
        self.owner.features.window_ranges
    }

    fn register_range(
        &self,
        memory: Arc<Memory>,
        offset: usize,
        length: usize,
        access: Access,
    ) -> Result<Arc<Region>> {
        region::register(&self.owner, Some(&self.domain), memory, (offset, length), access)
    }

    fn create_receive_queue(&self, _capacity: u32) -> Result<Option<Arc<dyn ReceiveQueue>>> {
        Ok(None)
    }

    fn create_memory_window(&self) -> Result<Option<Arc<dyn MemoryWindow>>> {
        window::create(&self.owner, Some(&self.domain))
    }

    fn create_queue_pair(&self, config: QueuePairConfig) -> Result<Arc<dyn QueuePair>> {
        queue_pair::create(&self.owner, Some(&self.domain), &config)
    }

    fn establish(&self, local: &LocalAddress, addressing: Addressing) -> Result<Box<dyn Establish>> {
        self.device.establish(local, addressing)
    }
}
