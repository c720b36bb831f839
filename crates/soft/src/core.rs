//! What everything of one open device shares, and who keeps it open.
//!
//! [`Owner`] is the count: the device's handles, queue pairs, regions, windows and shared receive queues each hold one.
//! When the last is gone the service thread is told to end. [`Core`] is what the thread itself holds, so that it does not
//! keep itself alive.
//!
//! Three locks, taken in this order: `intake` (who receives and calls handlers), `outgoing` (who sends), `state` (the
//! engine). No handler runs and no system call that moves packets is made under `state`.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError, Weak};

use rustc_hash::FxHashMap;
use secure_rdma_rdma::{DeviceLimits, Error, ErrorCode, LKey, Qpn, QueuePairHandler, Result};

use crate::alarm::{Due, Sleep};
use crate::capture::Capture;
use crate::engine::{Engine, ReceiveQueueId, Retired, WindowId};
use crate::gone::Gone;
use crate::options::SoftOptions;
use crate::ports::{Place, Ports};
use crate::receive::Intake;
use crate::socket::Opener;
use crate::traffic::Traffic;
use crate::transmit::Outgoing;
use crate::waiter::Waiter;

/// Locks, whatever a panicking thread left: every critical section here leaves its data whole.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same for who does not wait.
pub(crate) fn try_lock<T: ?Sized>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// What the engine's lock guards.
pub(crate) struct State {
    pub(crate) engine: Engine,
    pub(crate) handlers: FxHashMap<Qpn, Weak<dyn QueuePairHandler>>,
    pub(crate) sleep: Sleep,
}

/// Something dropped whose place in the engine is to be given up.
#[derive(Debug)]
pub(crate) enum Grave {
    Region(LKey),
    Window(WindowId),
    ReceiveQueue(ReceiveQueueId),
}

/// An open device.
pub(crate) struct Core {
    /// The device's name.
    pub(crate) name: String,
    /// What it can do.
    pub(crate) limits: DeviceLimits,
    /// Its sockets.
    pub(crate) ports: Ports,
    /// Whether batches go to the kernel as such.
    pub(crate) segmentation: bool,
    state: Mutex<State>,
    graves: Mutex<Vec<Grave>>,
    has_graves: AtomicBool,
    /// Whether the engine may still hold what was in a grave.
    has_buried: AtomicBool,
    /// Held by whoever receives and tells handlers: one thread at a time.
    pub(crate) intake: Mutex<Intake>,
    /// Held by whoever sends: one thread at a time, so that packets leave in the engine's order.
    pub(crate) outgoing: Mutex<Outgoing>,
    /// Whether there may be something to send.
    pub(crate) wanted: AtomicBool,
    /// One more than the place of the sending socket that takes no more for now; 0 where there is none.
    blocked: AtomicUsize,
    /// Whether there may be something to tell a handler.
    pub(crate) news: AtomicBool,
    /// When the engine has something to do next; for who looks without the lock.
    pub(crate) due: Due,
    /// Threads that have taken the sockets over.
    pub(crate) pollers: AtomicUsize,
    /// How often they have looked.
    pub(crate) polls: AtomicU64,
    /// How often something was posted to send queues.
    pub(crate) posts: AtomicU64,
    /// Whether the service thread waits for packets although a poller is at work, which has its packets then.
    pub(crate) service_idle: AtomicBool,
    /// What the service thread waits with.
    pub(crate) service_waiter: Waiter,
    /// What a poller waits with in its place.
    pub(crate) poller_waiter: Waiter,
    closing: AtomicBool,
    gone: Gone,
    /// Where packets are written to.
    pub(crate) capture: OnceLock<Capture>,
    /// Held while a capture is begun.
    pub(crate) starting_capture: Mutex<()>,
    /// What has gone through the sockets.
    pub(crate) traffic: Traffic,
    /// The process that opened it. The last field, so that it is dropped last: whoever waits until the sockets are closed
    /// waits for its end. The end of the core itself does not say so: that comes before its fields'.
    pub(crate) opener: Arc<Opener>,
}

impl Core {
    /// Opens sockets, and an engine behind them.
    pub(crate) fn open(options: &SoftOptions) -> Result<Self> {
        let ports = Ports::open(options)?;
        let mut config = options.engine.clone();
        let smallest = ports.iter().map(|family| family.receive_buffer).min();
        config.receive_buffer = config.receive_buffer.or(smallest);
        config.batches &= options.segmentation;
        let engine = Engine::new(config, Arc::clone(&options.entropy))?;
        let waiter = || {
            Waiter::new(&ports).map_err(|errno| {
                let message = format!("{} cannot be opened: epoll: {}", options.name, errno.desc());
                Error::new(ErrorCode::DeviceOpen, message).with_syscall("epoll_ctl", errno as i32)
            })
        };
        let (service_waiter, poller_waiter) = (waiter()?, waiter()?);
        let core = Self {
            name: options.name.clone(),
            limits: crate::limits::limits(),
            ports,
            segmentation: options.segmentation,
            state: Mutex::new(State { engine, handlers: FxHashMap::default(), sleep: Sleep::default() }),
            graves: Mutex::default(),
            has_graves: AtomicBool::new(false),
            has_buried: AtomicBool::new(false),
            intake: Mutex::default(),
            outgoing: Mutex::default(),
            wanted: AtomicBool::new(false),
            blocked: AtomicUsize::new(0),
            news: AtomicBool::new(false),
            due: Due::default(),
            pollers: AtomicUsize::new(0),
            polls: AtomicU64::new(0),
            posts: AtomicU64::new(0),
            service_idle: AtomicBool::new(false),
            service_waiter,
            poller_waiter,
            closing: AtomicBool::new(false),
            gone: Gone::default(),
            capture: OnceLock::new(),
            starting_capture: Mutex::default(),
            traffic: Traffic::default(),
            opener: Arc::new(Opener::current()),
        };
        if let Some(path) = &options.capture {
            core.start_capture(path)?;
        }
        Ok(core)
    }

    /// Refuses a call in a forked child, and on a device that is gone.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.opener.is_current() {
            return Err(Error::new(
                ErrorCode::DeviceOpen,
                "the device was opened before fork(2): a forked child cannot use it; open it in the child",
            ));
        }
        if self.is_gone() {
            return Err(Error::new(ErrorCode::DeviceLost, format!("{} has failed", self.name)));
        }
        Ok(())
    }

    /// The engine, after what was dropped has been taken out of it: no packet and no request meets that any more.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = lock(&self.state);
        self.bury(&mut state);
        state
    }

    /// Has something taken out of the engine: now, or by whoever has the engine, who may be the caller's own thread.
    pub(crate) fn inter(&self, grave: Grave) {
        lock(&self.graves).push(grave);
        self.has_graves.store(true, Ordering::Release);
        self.settle_graves();
    }

    /// Buries what came while the engine was in use, and lets go of what it held: receives that were posted to a queue
    /// hold regions, and those hold the device open. To be called after each use.
    pub(crate) fn settle_graves(&self) {
        while self.has_graves.load(Ordering::Acquire) || self.has_buried.load(Ordering::Acquire) {
            let Some(mut state) = try_lock(&self.state) else { return };
            self.bury(&mut state);
            self.has_buried.store(false, Ordering::Release);
            let mut retired = Retired::default();
            state.engine.take_retired(&mut retired);
            drop(state);
            drop(retired);
        }
    }

    fn bury(&self, state: &mut State) {
        // A glance first: to swap costs more.
        while self.has_graves.load(Ordering::Acquire) && self.has_graves.swap(false, Ordering::AcqRel) {
            self.has_buried.store(true, Ordering::Release);
            let graves = std::mem::take(&mut *lock(&self.graves));
            for grave in graves {
                match grave {
                    Grave::Region(lkey) => state.engine.deregister(lkey),
                    Grave::Window(window) => state.engine.destroy_window(window),
                    Grave::ReceiveQueue(queue) => state.engine.destroy_receive_queue(queue),
                }
            }
        }
    }

    /// Uses the engine, and lets go of what that has finished. Wakes who sleeps for longer than the engine now allows.
    pub(crate) fn with<R>(&self, use_engine: impl FnOnce(&mut State) -> R) -> R {
        let mut retired = Retired::default();
        let mut state = self.state();
        let result = use_engine(&mut state);
        state.engine.take_retired(&mut retired);
        let wake = self.note_timeout(&mut state);
        drop(state);
        drop(retired);
        self.settle_graves();
        if wake {
            self.wake();
        }
        result
    }

    /// Whether a socket takes no more for now.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::SeqCst) != 0
    }

    /// Which socket takes no more for now.
    pub(crate) fn blocked_at(&self) -> Option<Place> {
        self.blocked.load(Ordering::SeqCst).checked_sub(1).map(Place)
    }

    /// One takes no more, or none does.
    pub(crate) fn set_blocked(&self, at: Option<Place>) {
        self.blocked.store(at.map_or(0, |Place(place)| place + 1), Ordering::SeqCst);
    }

    /// There may be something to tell a handler.
    pub(crate) fn announce(&self) {
        self.news.store(true, Ordering::Release);
        if !self.is_serving() {
            self.wake();
        }
    }

    /// Wakes who waits for packets: the service thread, or a poller in its place.
    pub(crate) fn wake(&self) {
        if self.pollers.load(Ordering::Acquire) > 0 {
            self.poller_waiter.wake();
            // The poller may be busy otherwise, and somebody has to see that.
            if self.service_idle.load(Ordering::SeqCst) {
                self.wake_service();
            }
        } else {
            self.wake_service();
        }
    }

    /// Wakes the service thread.
    pub(crate) fn wake_service(&self) {
        self.service_waiter.wake();
    }

    /// Whether this thread is in a call of one of this device's handlers, or about to make one.
    pub(crate) fn is_serving(&self) -> bool {
        SERVING.get() == std::ptr::from_ref(self).addr()
    }

    /// Makes [`Core::is_serving`] true until the value is dropped. `None` where it is already.
    pub(crate) fn serve(&self) -> Option<Serving> {
        if self.is_serving() {
            return None;
        }
        Some(Serving(SERVING.replace(std::ptr::from_ref(self).addr())))
    }

    /// Whether the last handle is gone.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether the device has failed.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.is_set()
    }

    /// Whether the device has failed, and who is to hear of it.
    pub(crate) fn gone(&self) -> &Gone {
        &self.gone
    }
}

thread_local! {
    /// The address of the core whose handlers this thread is calling.
    static SERVING: Cell<usize> = const { Cell::new(0) };
}

/// While it lives its thread serves a device.
pub(crate) struct Serving(usize);

impl Drop for Serving {
    fn drop(&mut self) {
        SERVING.set(self.0);
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

    /// The device without the count.
    pub(crate) fn core(&self) -> Arc<Core> {
        Arc::clone(&self.core)
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
            // Not joined: this may be the service thread, or hold a lock that a handler is waiting for.
            self.core.wake();
        } else {
            // In a forked child the device belongs to the parent, and there is no thread: leave all as it is.
            std::mem::forget(Arc::clone(&self.core));
        }
    }
}
