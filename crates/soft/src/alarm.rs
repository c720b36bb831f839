//! When the engine has something to do next, and until when whoever waits for packets sleeps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::core::{Core, State};

/// When the engine has something to do next, without its lock.
#[derive(Debug)]
pub(crate) struct Due {
    /// Nanoseconds since `born`; `u64::MAX` where there is nothing.
    at: AtomicU64,
    born: Instant,
}

impl Default for Due {
    fn default() -> Self {
        Self { at: AtomicU64::new(u64::MAX), born: Instant::now() }
    }
}

impl Due {
    fn set(&self, at: Option<Instant>) {
        self.at.store(at.map_or(u64::MAX, |at| self.nanoseconds(at)), Ordering::Release);
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.born).as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What is known of it with the lock.
#[derive(Debug, Default)]
pub(crate) struct Sleep {
    /// What [`Due`] says.
    noted: Option<Instant>,
    /// Until when whoever waits for packets sleeps; `None` while nobody does.
    alarm: Option<Alarm>,
}

/// When a sleeper wakes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    At(Instant),
    Never,
}

impl Core {
    /// Notes when the engine has something to do next. True: who sleeps sleeps for longer, and is to be woken.
    pub(crate) fn note_timeout(&self, state: &mut State) -> bool {
        let timeout = state.engine.poll_timeout();
        let sleep = &mut state.sleep;
        if sleep.noted != timeout {
            sleep.noted = timeout;
            self.due.set(timeout);
        }
        match (timeout, sleep.alarm) {
            (None, _) | (_, None) => false,
            (Some(at), Some(Alarm::At(alarm))) if alarm <= at => false,
            (Some(at), Some(_)) => {
                sleep.alarm = Some(Alarm::At(at));
                true
            }
        }
    }

    /// Whether the engine has something to do at `now`. A glance, without the lock.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.due.at.load(Ordering::Acquire) <= self.due.nanoseconds(now)
    }

    /// Whether the engine has something to do later.
    pub(crate) fn has_timeout(&self) -> bool {
        self.due.at.load(Ordering::Acquire) != u64::MAX
    }

    /// Until when to sleep: `None` not at all, `Some(None)` until somebody wakes.
    ///
    /// Between two messages there is no timeout, and with the next one there is one again: who slept without end in
    /// between would have to be woken for it. So an alarm that was set earlier stays.
    pub(crate) fn fall_asleep(&self) -> Option<Option<Instant>> {
        let mut state = self.state();
        if self.news.load(Ordering::Acquire) || (self.wanted.load(Ordering::SeqCst) && !self.is_blocked()) {
            return None;
        }
        let now = Instant::now();
        let answers = state.engine.end_holds(now);
        // Of queue pairs that are gone, too, none is due any more. Who would be woken is the caller.
        let _ = self.note_timeout(&mut state);
        if answers {
            self.wanted.store(true, Ordering::SeqCst);
            return None;
        }
        let earlier = match state.sleep.alarm {
            Some(Alarm::At(alarm)) if alarm > now => Some(alarm),
            _ => None,
        };
        let at = state.engine.poll_timeout().into_iter().chain(earlier).min();
        if at.is_some_and(|at| at <= now) {
            return None;
        }
        state.sleep.alarm = Some(at.map_or(Alarm::Never, Alarm::At));
        Some(at)
    }
}
