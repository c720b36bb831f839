//! Registered memory.

use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::Arc;

use rdma_sys::ibv_mr;
use secure_rdma_rdma::{Access, Error, ErrorCode, LKey, Memory, RKey, Region, Registration, Result, Slice};

use crate::core::{Core, Owner};
use crate::errno;
use crate::memlock;

/// A memory region of the driver's, deregistered when dropped.
struct VerbsRegistration {
    mr: NonNull<ibv_mr>,
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

/// Registers `memory` in the device's protection domain.
pub(crate) fn register(owner: &Arc<Owner>, memory: Arc<Memory>, access: Access) -> Result<Arc<Region>> {
    owner.check()?;
    // The driver refuses remote writing without local writing.
    let mut access = access;
    if access.intersects(Access::REMOTE_WRITE | Access::REMOTE_ATOMIC) {
        access |= Access::LOCAL_WRITE;
    }
    let flags = c_int::try_from(access.bits()).unwrap_or(c_int::MAX);
    let address = memory.address();
    // SAFETY: the memory is mapped, and the region that is made keeps it so until it is deregistered.
    let mr = unsafe {
        (owner.verbs().ibv_reg_mr)(owner.domain.domain(), address.as_ptr().cast(), memory.len(), flags)
    };
    let Some(mr) = NonNull::new(mr) else {
        return Err(refused(owner, memory.len(), errno::last()));
    };
    // SAFETY: the region was made just above.
    let keys = unsafe { mr.as_ref() };
    let (lkey, rkey) = (LKey(keys.lkey), RKey::new(keys.rkey));
    let registration = Box::new(VerbsRegistration { mr, owner: Arc::clone(owner) });
    Ok(Arc::new(Region::new(registration, memory, address.as_ptr() as u64, lkey, rkey)))
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
pub(crate) fn check_slices(core: &Core, slices: &[Slice], max_sge: u32) -> Result<u64> {
    let invalid = |message: String| Err(Error::new(ErrorCode::InvalidArgument, message));
    if slices.len() > max_sge as usize {
        return invalid(format!("{} pieces in a work request; the queue pair takes {max_sge}", slices.len()));
    }
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
            .is_some_and(|registration| std::ptr::eq(&raw const **registration.owner, core));
        if !ours {
            return invalid(format!("the region is not registered on this {}", core.name));
        }
        total += slice.length as u64;
    }
    if total > u64::from(core.limits.max_message) {
        return invalid(format!(
            "{total} bytes in a message; {} takes {}",
            core.name, core.limits.max_message
        ));
    }
    Ok(total)
}
