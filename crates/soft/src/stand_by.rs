//! What the service thread does while a poller is at work: it waits, and stands in where the poller does not look.
//!
//! Whoever polls may be busy otherwise, an event loop with JavaScript's work say, and meanwhile peers read and write here
//! all the same. To wake for each packet would take from the poller what it is for. So this thread looks each
//! millisecond whether the poller has looked, as long as packets come; and it waits for packets while none do.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::core::{Core, try_lock};
use crate::receive::Sockets;
use crate::waiter::Armed;

/// How often it is asked whether the poller has looked. A packet waits for twice that at the most, and no peer repeats one
/// before (`engine::Config::min_timeout`).
const TICK: Duration = Duration::from_millis(1);

/// Ticks without anything until this thread waits for packets itself.
const QUIET: u32 = 16;

/// How the service thread stands by.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// How often pollers had looked.
    seen: u64,
    mode: Mode,
}

#[derive(Clone, Copy, Debug)]
enum Mode {
    /// Nothing has come for a while. The next packet has the poller watched.
    Idle,
    /// Looks each tick whether the poller looks; for so many it was not needed.
    Ticking { quiet: u32 },
    /// The poller does not look: this thread does what there is to do, until it does.
    StandingIn,
}

impl Default for Mode {
    fn default() -> Self {
        Self::Ticking { quiet: 0 }
    }
}

impl Core {
    /// Waits, and does what the poller ought to have done.
    pub(crate) fn stand_by(&self, watch: &mut Watch, armed: &mut Armed) {
        match watch.mode {
            Mode::Idle => {
                self.service_idle.store(true, Ordering::SeqCst);
                // Whoever had something to say before has not woken us.
                if !self.has_work(Instant::now()) {
                    self.wait(&self.service_waiter, armed, None, None);
                }
                self.service_idle.store(false, Ordering::SeqCst);
                watch.mode = Mode::default();
            }
            Mode::Ticking { .. } => self.service_waiter.stand_by(TICK),
            Mode::StandingIn => {
                if let Some(at) = self.fall_asleep() {
                    self.wait(&self.service_waiter, armed, at, Some(TICK));
                }
            }
        }
        self.settle_graves();
        let polls = self.polls.load(Ordering::Acquire);
        if std::mem::replace(&mut watch.seen, polls) != polls {
            watch.mode = Mode::default();
            return;
        }
        let come = self.wait(&self.service_waiter, armed, None, Some(Duration::ZERO));
        if come.is_empty() && !self.has_work(Instant::now()) {
            watch.mode = match watch.mode {
                Mode::Ticking { quiet } if quiet >= QUIET && !self.has_timeout() => Mode::Idle,
                Mode::Ticking { quiet } => Mode::Ticking { quiet: quiet + 1 },
                other => other,
            };
            return;
        }
        // Taken: the poller is back.
        let Some(mut intake) = try_lock(&self.intake) else { return };
        let look = if come.is_empty() { Sockets::ALL } else { come };
        self.round(&mut intake, look, false);
        watch.mode = Mode::StandingIn;
    }

    /// Whether there is something to do, packets aside.
    fn has_work(&self, now: Instant) -> bool {
        self.news.load(Ordering::Acquire)
            || self.is_due(now)
            || (self.wanted.load(Ordering::SeqCst) && !self.is_blocked())
    }
}
