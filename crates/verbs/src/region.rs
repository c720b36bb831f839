//! Registered memory.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::ibv_mr;
use secure_rdma_rdma::{Access, Error, ErrorCode, LKey, Memory, RKey, Region, Registration, Result, Slice};

use crate::core::{Core, Owner};
use crate::errno;
use crate::memlock;
use crate::private::PrivateDomain;

/// A memory region of the driver's, deregistered when dropped.
struct VerbsRegistration {
    mr: NonNull<ibv_mr>,
    /// What of the memory is registered.
    range: (usize, usize),
    private: Option<Arc<PrivateDomain>>,
    owner: Arc<Owner>,
}

// SAFETY: libibverbs is thread-safe, and a region is not tied to a thread.
unsafe impl Send for VerbsRegistration {}
// SAFETY: libibverbs is thread-safe.
unsafe impl Sync for VerbsRegistration {}

impl Registration for VerbsRegistration {}

impl Drop for VerbsRegistration {
    fn drop(&mut self) {
        if self.owner.opener.is_current() {
            // SAFETY: the region was made by `register`, and no outstanding work request names it any more.
            unsafe { (self.owner.verbs().ibv_dereg_mr)(self.mr.as_ptr()) };
        }
    }
}

/// Registers `length` bytes of `memory` from `offset`, in the device's protection domain or in a private one.
pub(crate) fn register(
    owner: &Arc<Owner>,
    private: Option<&Arc<PrivateDomain>>,
    memory: Arc<Memory>,
    (offset, length): (usize, usize),
    access: Access,
) -> Result<Arc<Region>> {
    owner.check()?;
    if length == 0 || offset.checked_add(length).is_none_or(|end| end > memory.len()) {
        let message =
            format!("{length} bytes at offset {offset} cannot be registered: they are not all inside");
        return Err(Error::new(ErrorCode::InvalidArgument, message));
    }
    // The driver refuses remote writing without local writing.
    let mut access = access;
    if access.intersects(Access::REMOTE_WRITE | Access::REMOTE_ATOMIC) {
        access |= Access::LOCAL_WRITE;
    }
    let flags = c_int::try_from(access.bits()).unwrap_or(c_int::MAX);
    let address = memory.address();
    let domain = private.map_or_else(|| owner.domain.domain(), |private| private.domain());
    let first = address.as_ptr().wrapping_add(offset);
    // SAFETY: the memory is mapped, and the region that is made keeps it so until it is deregistered.
    let mr = unsafe { (owner.verbs().ibv_reg_mr)(domain, first.cast(), length, flags) };
    let Some(mr) = NonNull::new(mr) else {
        return Err(refused(owner, length, errno::last()));
    };
    // SAFETY: the region was made just above.
    let keys = unsafe { mr.as_ref() };
    let (lkey, rkey) = (LKey(keys.lkey), RKey::new(keys.rkey));
    let registration = Box::new(VerbsRegistration {
        mr,
        range: (offset, length),
        private: private.cloned(),
        owner: Arc::clone(owner),
    });
    Ok(Arc::new(Region::new(registration, memory, address.as_ptr() as u64, lkey, rkey)))
}

/// The driver's region.
pub(crate) fn raw(region: &Region) -> Option<NonNull<ibv_mr>> {
    let registration: &dyn std::any::Any = region.registration();
    registration.downcast_ref::<VerbsRegistration>().map(|registration| registration.mr)
}

fn refused(core: &Core, length: usize, errno: i32) -> Error {
    let what = format!("registering {length} bytes on {}", core.name);
    if errno == libc::ENOMEM
        && let Some(message) = memlock::explain(&what, length)
    {
        return Error::new(ErrorCode::Memlock, message).with_syscall("ibv_reg_mr", errno);
    }
    let what = format!(
        "{} refuses to register {length} bytes (close other connections, or make pool smaller)",
        core.name
    );
    errno::error(ErrorCode::Resource, &what, "ibv_reg_mr", errno)
}

/// Judges the local bytes of a work request before the driver sees them.
pub(crate) fn check_slices(
    core: &Core,
    private: Option<&Arc<PrivateDomain>>,
    slices: &[Slice],
    max_sge: u32,
) -> Result<u64> {
    let invalid = |message: String| Err(Error::new(ErrorCode::InvalidArgument, message));
    if slices.len() > max_sge as usize {
        return invalid(format!("{} pieces in a work request; the queue pair takes {max_sge}", slices.len()));
    }
    let total = check_places(core, private, slices)?;
    if total > u64::from(core.limits.max_message) {
        return invalid(format!(
            "{total} bytes in a message; {} takes {}",
            core.name, core.limits.max_message
        ));
    }
    Ok(total)
}

/// Judges where slices lie, of whatever length together: what a window is bound to is no message.
pub(crate) fn check_places(
    core: &Core,
    private: Option<&Arc<PrivateDomain>>,
    slices: &[Slice],
) -> Result<u64> {
    let invalid = |message: String| Err(Error::new(ErrorCode::InvalidArgument, message));
    let mut total = 0_u64;
    for slice in slices {
        if !slice.is_inside() {
            return invalid(format!(
                "{} bytes at offset {} do not lie inside a region of {} bytes",
                slice.length,
                slice.offset,
                slice.region.memory().len()
            ));
        }
        let registration: &dyn std::any::Any = slice.region.registration();
        let ours = registration
            .downcast_ref::<VerbsRegistration>()
            .filter(|registration| std::ptr::eq(&raw const **registration.owner, core))
            .filter(|registration| PrivateDomain::same(registration.private.as_ref(), private))
            .is_some_and(|registration| {
                let (first, length) = registration.range;
                slice.offset >= first && slice.offset + slice.length <= first + length
            });
        if !ours {
            return invalid(format!("the region is not registered on this {}", core.name));
        }
        total += slice.length as u64;
    }
    Ok(total)
}
