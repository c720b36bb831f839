//! Taking the sockets over for a thread that has an event loop of its own.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use crate::core::{Core, Owner, lock, try_lock};
use crate::receive::Round;

/// Rounds of one turn at the most: the loop has other things to do.
const ROUNDS: usize = 16;

/// As [`crate::Poller`], for a thread that waits for many things at one time (epoll(7), libuv, mio): [`LoopPoller::as_fd`] is
/// readable when there is something to do, and [`LoopPoller::turn`] does it. It does not keep the device open.
///
/// While the thread does something else for more than 1 to 2 ms, and packets wait, the service thread stands in for it until
/// its next turn.
pub struct LoopPoller {
    core: Arc<Core>,
    owner: Weak<Owner>,
    /// Since when the loop waits.
    resting: Mutex<Option<Instant>>,
}

impl LoopPoller {
    pub(crate) fn new(owner: &Arc<Owner>) -> Self {
        let core = owner.core();
        core.add_poller();
        Self { core, owner: Arc::downgrade(owner), resting: Mutex::default() }
    }

    /// Does what there is to do, until handlers were told something, and sees to it that the descriptor becomes readable for
    /// what comes later. To be called when it is readable, and before the loop waits. With `looks`, which is for the latter
    /// where nothing else is to be done, it may look for the next packet for some microseconds, where that is likely to come.
    ///
    /// Inside a handler's call it does nothing.
    pub fn turn(&self, mut readable: bool, looks: bool) -> Turn {
        let core = &*self.core;
        if self.owner.strong_count() == 0 || core.is_gone() {
            return Turn::Closed;
        }
        core.polls.fetch_add(1, Ordering::Relaxed);
        if core.is_serving() {
            return Turn::Rest;
        }
        // Otherwise the service thread stands in, and notices that this thread is back.
        let Some(mut intake) = try_lock(&core.intake) else { return Turn::Rest };
        core.look_for_room(&mut intake);
        let mut rested = lock(&self.resting).take().filter(|_| readable);
        let mut look = intake.glance(1);
        for _ in 0..ROUNDS {
            let round = core.round(&mut intake, look, true);
            if round.busy
                && let Some(rested) = rested.take()
            {
                intake.spin.slept(rested.elapsed());
            }
            if round.told {
                return Turn::News;
            }
            look = round.more;
            if round.busy {
                continue;
            }
            if std::mem::take(&mut readable) {
                // Not where something came last.
                look = core.wait(&core.poller_waiter, &mut intake.armed, None, Some(Duration::ZERO));
                if !look.is_empty() {
                    continue;
                }
            }
            match looks.then(|| core.spin(&mut intake, true)).flatten() {
                Some(Round { told: true, .. }) => return Turn::News,
                Some(_) => continue,
                None => {}
            }
            let rest = core.fall_asleep();
            core.settle_graves();
            if let Some(at) = rest {
                core.poller_waiter.prepare(&mut intake.armed, &core.ports, at, core.blocked_at());
                *lock(&self.resting) = Some(Instant::now());
                return Turn::Rest;
            }
        }
        self.wake();
        Turn::More
    }

    /// Makes the descriptor readable: the loop is not to wait.
    pub fn wake(&self) {
        self.core.poller_waiter.wake();
    }
}

/// How a turn has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The device is closed: drop the poller.
    Closed,
    /// There is nothing to do.
    Rest,
    /// Handlers were told something. What is to be sent is, with what they post, by the next turn, which is to come before the
    /// loop waits.
    News,
    /// There is more to do than one turn should. The descriptor is readable.
    More,
}

impl AsFd for LoopPoller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.poller_waiter.as_fd()
    }
}

impl Drop for LoopPoller {
    fn drop(&mut self) {
        self.core.remove_poller();
    }
}

impl fmt::Debug for LoopPoller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopPoller").field("device", &self.core.name).finish_non_exhaustive()
    }
}
