//! What a test build can be told: faults of the embedded device, and of libraries that fork.

use napi_derive::napi;
use secure_rdma_soft::faults;

use crate::process::{Process, refuse_fork};

/// Drops packets that arrive at this process' embedded device, if their UDP payload is longer than so many bytes.
#[napi(catch_unwind)]
pub fn soft_drop(longer_than: u32) {
    faults::drop_longer_than(longer_than as usize);
}

/// Lets them pass again.
#[napi(catch_unwind)]
pub fn soft_pass() {
    faults::drop_longer_than(usize::MAX);
}

/// How many were dropped so far.
#[napi(catch_unwind)]
#[must_use]
pub fn soft_dropped() -> f64 {
    // Exact up to 2^53.
    #[allow(clippy::cast_precision_loss, reason = "a test counts fewer")]
    let count = faults::dropped() as f64;
    count
}

/// fork(2) without exec, as a C library may call it: gives whether every call is refused in the child, or `null` where there
/// was no answer. The child cannot run JavaScript: V8 keeps its heap out of it.
#[napi(catch_unwind)]
#[must_use]
pub fn is_refused_in_fork() -> Option<bool> {
    const REFUSED: i32 = 7;
    const LET_IN: i32 = 8;
    // SAFETY: the child makes no call that may wait for another thread, and ends without cleaning up.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_refused = refuse_fork().is_err() && Process::get().is_err();
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(if is_refused { REFUSED } else { LET_IN }) };
    }
    let mut status = 0;
    // SAFETY: `status` is ours.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    if child < 0 || waited != child || !libc::WIFEXITED(status) {
        return None;
    }
    match libc::WEXITSTATUS(status) {
        REFUSED => Some(true),
        LET_IN => Some(false),
        _ => None,
    }
}
