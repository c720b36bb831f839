//! fork(2): pages that a device pins must not be shared with a child, and a child must not use what is open.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rdma_sys::{IBV_FORK_ENABLED, IBV_FORK_UNNEEDED};
use secure_rdma_rdma::{Error, ErrorCode, Result};

use crate::library::{self, Verbs};

/// How often this process has come out of fork(2) as the child. What was opened under another number belongs to
/// an ancestor.
static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// Prepares process and library, once, before the first registration: later `ibv_fork_init` answers EINVAL.
///
/// Kernels from 5.12 copy pinned pages at fork (`IBV_FORK_UNNEEDED`) and need nothing. A failure is not fatal: it
/// costs only programs that fork without exec, and ours refuse every call there.
pub(crate) fn prepare(verbs: &Verbs) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        // SAFETY: the hook only adds to an atomic, which is allowed in the child of a threaded process.
        let _ = unsafe { libc::pthread_atfork(None, None, Some(count_child)) };
    });
    if !matches!(library::fork_status(), Some(IBV_FORK_UNNEEDED | IBV_FORK_ENABLED)) {
        // SAFETY: the function takes nothing, and no region is registered yet.
        let _ = unsafe { (verbs.ibv_fork_init)() };
    }
}

/// The process that opened something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opener(u32);

impl Opener {
    /// This process.
    pub(crate) fn current() -> Self {
        Self(GENERATION.load(Ordering::Relaxed))
    }

    /// Whether this is still the process that opened it.
    pub(crate) fn is_current(self) -> bool {
        self == Self::current()
    }

    /// Refuses a call in a forked child.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::DeviceOpen,
            "the device was opened before fork(2): a forked child cannot use it; open it in the child",
        ))
    }
}
