//! What everything of one open device shares, and who keeps it open.
//!
//! [`Owner`] is the count: the device's handles, queue pairs, regions and shared receive queues each hold one. When
//! the last is gone the service thread is told to end. [`Core`] is what the thread itself holds, so that it does not
//! keep itself alive.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use secure_rdma_rdma::{DeviceLimits, Error, ErrorCode, Result};

use crate::body::Body;
use crate::context::Domain;
use crate::errno;
use crate::fork::Opener;
use crate::gone::Gone;
use crate::library::Verbs;
use crate::listing::{Features, SharedLimits};

/// Locks, whatever a panicking thread left: every critical section here leaves its data whole.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An open device.
pub(crate) struct Core {
    /// The device's name.
    pub(crate) name: String,
    /// The name of its node below /dev/infiniband and /sys/class/infiniband_verbs.
    pub(crate) node: String,
    /// What it can do.
    pub(crate) limits: DeviceLimits,
    /// What the driver says of its shared receive queues.
    pub(crate) shared: SharedLimits,
    /// What it has beside that.
    pub(crate) features: Features,
    /// The process that opened it.
    pub(crate) opener: Opener,
    /// Context, protection domain, completion channel.
    pub(crate) domain: Domain,
    /// The queue pairs by token: the number that their completion queue and queue pair carry as their context.
    bodies: Mutex<HashMap<u64, Arc<Body>>>,
    /// Queue pairs that were dropped and that the service thread must destroy.
    graveyard: Mutex<VecDeque<Arc<Body>>>,
    next_token: AtomicU64,
    wake: OwnedFd,
    closing: AtomicBool,
    gone: Gone,
}

impl Core {
    /// Takes an opened device over.
    pub(crate) fn new(
        name: String,
        node: String,
        limits: DeviceLimits,
        shared: SharedLimits,
        features: Features,
        domain: Domain,
    ) -> Result<Self> {
        // SAFETY: eventfd takes two numbers.
        let wake = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if wake < 0 {
            let what = format!("{name} cannot be opened");
            return Err(errno::error(ErrorCode::DeviceOpen, &what, "eventfd", errno::last()));
        }
        // SAFETY: the descriptor was made just above and belongs to nobody else.
        let wake = unsafe { OwnedFd::from_raw_fd(wake) };
        Ok(Self {
            name,
            node,
            limits,
            shared,
            features,
            opener: Opener::current(),
            domain,
            bodies: Mutex::default(),
            graveyard: Mutex::default(),
            next_token: AtomicU64::new(1),
            wake,
            closing: AtomicBool::new(false),
            gone: Gone::default(),
        })
    }

    /// The function table.
    pub(crate) fn verbs(&self) -> &'static Verbs {
        self.domain.context().verbs()
    }

    /// Refuses a call in a forked child, and on a device that is gone.
    pub(crate) fn check(&self) -> Result<()> {
        self.opener.check()?;
        if self.is_gone() {
            return Err(Error::new(
                ErrorCode::DeviceLost,
                format!("{} was removed or has failed: connect again when it is back", self.name),
            ));
        }
        Ok(())
    }

    /// A token that no other queue pair has had.
    pub(crate) fn token(&self) -> u64 {
        self.next_token.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a queue pair known to the service thread.
    pub(crate) fn insert(&self, body: Arc<Body>) {
        lock(&self.bodies).insert(body.token(), body);
    }

    /// A queue pair by token.
    pub(crate) fn body(&self, token: u64) -> Option<Arc<Body>> {
        lock(&self.bodies).get(&token).cloned()
    }

    /// Forgets a queue pair.
    pub(crate) fn remove(&self, token: u64) {
        // Dropped outside the lock: the last count on a region may be in it.
        let removed = lock(&self.bodies).remove(&token);
        drop(removed);
    }

    /// All queue pairs.
    pub(crate) fn bodies(&self) -> Vec<Arc<Body>> {
        lock(&self.bodies).values().cloned().collect()
    }

    /// Hands a dropped queue pair to the service thread, and wakes it.
    pub(crate) fn bury(&self, body: Arc<Body>) {
        lock(&self.graveyard).push_back(body);
        self.wake();
    }

    /// The next one to be destroyed.
    pub(crate) fn exhume(&self) -> Option<Arc<Body>> {
        lock(&self.graveyard).pop_front()
    }

    /// Whether one waits to be destroyed.
    pub(crate) fn has_graves(&self) -> bool {
        !lock(&self.graveyard).is_empty()
    }

    /// The descriptor that the service thread waits on beside the device's own.
    pub(crate) fn wake_fd(&self) -> i32 {
        self.wake.as_raw_fd()
    }

    fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the buffer is 8 bytes long. A full counter (EAGAIN) is readable already.
        let _ = unsafe { libc::write(self.wake_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes the wake-up back before looking at what it was for.
    pub(crate) fn settle(&self) {
        let mut count = [0_u8; 8];
        // SAFETY: the buffer is 8 bytes long.
        let _ = unsafe { libc::read(self.wake_fd(), count.as_mut_ptr().cast(), count.len()) };
    }

    /// Whether the last handle is gone.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether the device was removed or has failed.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.is_set()
    }

    /// Whether the device is gone, and who is to hear of it.
    pub(crate) fn gone(&self) -> &Gone {
        &self.gone
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A count on an open device. When the last is dropped the service thread ends and closes the device.
#[derive(Debug)]
pub(crate) struct Owner {
    core: Arc<Core>,
}

impl Owner {
    /// The first count.
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

impl std::ops::Deref for Owner {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if self.opener.is_current() {
            self.core.closing.store(true, Ordering::Release);
            // Not joined: whoever drops the last handle may hold a lock that a handler is waiting for.
            self.core.wake();
        } else {
            // In a forked child the device belongs to the parent, and there is no thread: leave all as it is.
            std::mem::forget(Arc::clone(&self.core));
        }
    }
}
