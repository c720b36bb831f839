//! Whether a device is gone, and who is to hear of it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use secure_rdma_rdma::GoneNotice;

use crate::core::lock;

/// Set once, by the service thread.
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

    /// Has `notify` called by [`Gone::notify`], or at once where that has been.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn everyone_is_told_once_whenever_they_asked() {
        let gone = Arc::new(Gone::default());
        let told = Arc::new(AtomicU32::new(0));
        let ask = || {
            let (gone, told) = (Arc::clone(&gone), Arc::clone(&told));
            // Asking again inside is no deadlock.
            let within = Arc::clone(&gone);
            gone.on_set(Box::new(move || {
                told.fetch_add(1, Ordering::SeqCst);
                within.on_set(Box::new(|| {}));
            }));
        };
        ask();
        ask();
        assert!(!gone.is_set() && told.load(Ordering::SeqCst) == 0);
        assert!(gone.set() && gone.is_set());
        for notify in gone.take_notices() {
            notify();
        }
        assert_eq!(told.load(Ordering::SeqCst), 2);
        ask();
        assert_eq!(told.load(Ordering::SeqCst), 3, "at once");
        assert!(!gone.set() && gone.take_notices().is_empty());
    }
}
