//! Which process opened a device.
#![allow(unsafe_code)]

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

/// How often this process has come out of fork(2) as the child.
static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// The process that opened a device. Its sockets come along to a child of fork(2), its thread does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opener(u32);

impl Opener {
    /// This process.
    pub(crate) fn current() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            // SAFETY: the hook only adds to an atomic, which is allowed in the child of a threaded process.
            let _ = unsafe { libc::pthread_atfork(None, None, Some(count_child)) };
        });
        Self(GENERATION.load(Ordering::Relaxed))
    }

    /// Whether this is still the process that opened it.
    pub(crate) fn is_current(self) -> bool {
        self.0 == GENERATION.load(Ordering::Relaxed)
    }
}
