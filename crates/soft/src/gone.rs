//! Whether a device is gone, and who is to hear of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use secure_rdma_rdma::GoneNotice;

use crate::core::lock;

/// Set once, when the service thread can go on no more.
#[derive(Default)]
pub(crate) struct Gone {
    gone: AtomicBool,
    notices: Mutex<Vec<GoneNotice>>,
}

impl Gone {
    /// Whether it is gone.
    pub(crate) fn is_set(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// It is gone; tells whether it was not before.
    pub(crate) fn set(&self) -> bool {
        !self.gone.swap(true, Ordering::AcqRel)
    }

    /// Has `notify` called when it is gone, or at once where it is.
    pub(crate) fn on_set(&self, notify: GoneNotice) {
        {
            let mut notices = lock(&self.notices);
            // Under the lock: whoever sets it takes the notices afterwards, and so finds this one.
            if !self.is_set() {
                notices.push(notify);
                return;
            }
        }
        notify();
    }

    /// The notices, each once, to be called without a lock: what they let go of may be the device itself.
    pub(crate) fn take_notices(&self) -> Vec<GoneNotice> {
        std::mem::take(&mut *lock(&self.notices))
    }
}
