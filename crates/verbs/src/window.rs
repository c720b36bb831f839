//! Type 2 memory windows.

use std::any::Any;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use rdma_sys::{bind_mw_t, ibv_mw, ibv_mw_bind_info, ibv_mw_type};
use secure_rdma_rdma::{Access, Error, ErrorCode, MemoryWindow, RKey, Result, Slice};

use crate::core::{Core, Owner, lock};
use crate::errno;
use crate::private::PrivateDomain;
use crate::region;

/// A window of the driver's, given back when it is dropped or when the queue pair that it is bound to is destroyed:
/// rxe's queue pairs wait for their windows (`rxe_do_bind_mw` in `rxe_mw.c` counts the queue pair).
pub(crate) struct VerbsWindow {
    mw: Mutex<Held>,
    /// The upper 24 bits of all its keys.
    index: u32,
    /// The lower 8 bits of the last key that was given out.
    last: AtomicU8,
    private: Option<Arc<PrivateDomain>>,
    owner: Arc<Owner>,
}

struct Held {
    mw: Option<NonNull<ibv_mw>>,
    /// What it is bound to, or may be: the region must stay as long as the binding.
    bound: Option<Slice>,
}

// SAFETY: libibverbs is thread-safe, and a window is not tied to a thread.
unsafe impl Send for Held {}

/// Makes a window, or none where the device has none of type 2.
pub(crate) fn create(
    owner: &Arc<Owner>,
    private: Option<&Arc<PrivateDomain>>,
) -> Result<Option<Arc<dyn MemoryWindow>>> {
    owner.check()?;
    if !owner.features.windows {
        return Ok(None);
    }
    let domain = private.map_or_else(|| owner.domain.domain(), |private| private.domain());
    // SAFETY: the domain is open.
    let made = unsafe { rdma_sys::ibv_alloc_mw(domain, ibv_mw_type::IBV_MW_TYPE_2) };
    let Some(mw) = made.and_then(NonNull::new) else {
        let what = format!("{} gives no memory window", owner.name);
        return Err(errno::error(ErrorCode::Resource, &what, "ibv_alloc_mw", errno::last()));
    };
    // SAFETY: the window was made just above.
    let [last, index @ ..] = unsafe { mw.as_ref() }.rkey.to_le_bytes();
    let [a, b, c] = index;
    Ok(Some(Arc::new(VerbsWindow {
        mw: Mutex::new(Held { mw: Some(mw), bound: None }),
        index: u32::from_le_bytes([0, a, b, c]),
        last: AtomicU8::new(last),
        private: private.cloned(),
        owner: Arc::clone(owner),
    })))
}

impl VerbsWindow {
    /// The window behind the trait, where it is of this device and domain.
    pub(crate) fn of<'w>(
        window: &'w Arc<dyn MemoryWindow>,
        core: &Core,
        private: Option<&Arc<PrivateDomain>>,
    ) -> Result<&'w Self> {
        window
            .as_any()
            .downcast_ref::<Self>()
            .filter(|window| ptr::eq(&raw const **window.owner, core))
            .filter(|window| PrivateDomain::same(window.private.as_ref(), private))
            .ok_or_else(|| {
                let message = format!("the memory window is not one of this {}", core.name);
                Error::new(ErrorCode::InvalidArgument, message)
            })
    }

    /// What the driver needs to bind it, and keeps the region for as long as it may be bound. The driver takes the key
    /// that the window has now from the structure when the request is posted: [`VerbsWindow::posted`] writes the new one.
    pub(crate) fn binding(&self, rkey: RKey, target: &Slice, access: Access) -> Option<bind_mw_t> {
        let mut held = lock(&self.mw);
        let mw = held.mw?;
        let mr = region::raw(&target.region)?;
        held.bound = Some(target.clone());
        let bind_info = ibv_mw_bind_info {
            mr: mr.as_ptr(),
            addr: target.region.address().wrapping_add(target.offset as u64),
            length: target.length as u64,
            mw_access_flags: access.bits(),
        };
        Some(bind_mw_t { mw: mw.as_ptr(), rkey: rkey.expose(), bind_info })
    }

    /// The bind to `rkey` is on the queue: the next one starts from there. The provider reads the key that a window
    /// has so far from its structure when the next bind is posted.
    pub(crate) fn posted(&self, rkey: RKey) {
        if let Some(mut mw) = lock(&self.mw).mw {
            // SAFETY: the window is alive, and this lock is the only way to it.
            unsafe { mw.as_mut() }.rkey = rkey.expose();
        }
    }

    /// Gives the window back, and with it its binding. It cannot be bound any more.
    pub(crate) fn release(&self) {
        let (mw, bound) = {
            let mut held = lock(&self.mw);
            (held.mw.take(), held.bound.take())
        };
        if let Some(mw) = mw.filter(|_| self.owner.opener.is_current()) {
            // SAFETY: the window was made by `create` and is taken out of its place once.
            unsafe { rdma_sys::ibv_dealloc_mw(mw.as_ptr()) };
        }
        // Only now: the driver does not deregister a region with windows on it.
        drop(bound);
    }
}

impl MemoryWindow for VerbsWindow {
    fn next_key(&self) -> RKey {
        let low = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        RKey::new(self.index | u32::from(low))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for VerbsWindow {
    fn drop(&mut self) {
        self.release();
    }
}

impl fmt::Debug for VerbsWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerbsWindow").finish_non_exhaustive()
    }
}
