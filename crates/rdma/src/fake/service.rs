//! The one lock, and the one service thread, of a fabric.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::world::World;
use crate::{AsyncEvent, Completion, QueuePairHandler};

/// What the service thread and everybody else share.
///
/// Lock order: the world, then a device's key table. Nothing whose `drop` takes the world's lock is ever owned by
/// the world: it holds handlers and devices weakly, and a region's `drop` takes the key table's lock only.
pub(super) struct Core {
    world: Mutex<World>,
    work: Condvar,
    /// Signalled when the service thread has nothing to do.
    pub(super) idle: Condvar,
}

impl Core {
    pub(super) fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the service thread that there may be work.
    pub(super) fn wake(&self) {
        self.work.notify_all();
    }

    fn serve(&self) {
        let mut world = self.lock();
        while !world.stopped {
            let now = Instant::now();
            world.expire(now);
            if let Some(notice) = world.next_notice() {
                world.telling_now = true;
                drop(world);
                let well = catch_unwind(AssertUnwindSafe(|| notice.deliver())).is_ok();
                world = self.lock();
                world.telling_now = false;
                world.tally.handler_panics += u64::from(!well);
            } else if !world.transmit(now) {
                self.idle.notify_all();
                world = match world.next_expiry() {
                    None => self.work.wait(world).unwrap_or_else(PoisonError::into_inner),
                    Some(at) => {
                        let pause = at.saturating_duration_since(now);
                        self.work.wait_timeout(world, pause).unwrap_or_else(PoisonError::into_inner).0
                    }
                };
            }
        }
    }
}

/// Held by whatever needs the service thread; the last one to go ends it.
pub(super) struct Handle(Arc<Core>);

impl Handle {
    pub(super) fn start() -> Arc<Self> {
        let core =
            Arc::new(Core { world: Mutex::new(World::new()), work: Condvar::new(), idle: Condvar::new() });
        let served = Arc::clone(&core);
        std::thread::spawn(move || served.serve());
        Arc::new(Self(core))
    }

    /// Alive as long as the service thread is.
    #[cfg(test)]
    pub(super) fn watch(&self) -> std::sync::Weak<Core> {
        Arc::downgrade(&self.0)
    }
}

impl std::ops::Deref for Handle {
    type Target = Core;
    fn deref(&self) -> &Core {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Not joined: this may run on the service thread, when a handler drops the last queue pair.
        self.0.lock().stopped = true;
        self.0.wake();
    }
}

/// One call of a handler, made without the lock.
pub(super) struct Notice {
    pub(super) handler: Arc<dyn QueuePairHandler>,
    pub(super) news: News,
}

pub(super) enum News {
    Completions(Vec<Completion>),
    Event(AsyncEvent),
}

impl Notice {
    fn deliver(self) {
        match self.news {
            News::Completions(batch) => self.handler.completed(&batch),
            News::Event(event) => self.handler.happened(event),
        }
    }
}
