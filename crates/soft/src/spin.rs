//! Looking again for a moment before going to sleep.
//!
//! To sleep and to be woken costs both sides more than a short message does, so that a thread that is likely to have the
//! next packet at once does better to look for it. Whether it is likely is learned: a look in vain is not repeated for
//! a while, and one that sleeps for long does not begin to look.

use std::time::Duration;

use crate::core::Core;
use crate::receive::{Intake, Round};

/// How long to look. A round trip on one host takes less.
const LOOK: Duration = Duration::from_micros(10);

/// A sleep that was shorter would have been worth a look.
pub(crate) const SHORT: Duration = Duration::from_micros(50);

/// Short sleeps before looking is tried again after it was in vain.
const PAUSE: u32 = 64;

/// Whether to look.
#[derive(Debug)]
pub(crate) struct Spin {
    pause: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Self { pause: PAUSE / 4 }
    }
}

impl Spin {
    /// It has slept for so long, until a packet came.
    pub(crate) fn slept(&mut self, time: Duration) {
        if time < SHORT {
            self.pause = self.pause.saturating_sub(1);
        }
    }
}

impl Core {
    /// Looks for more, where that is likely to be worth it. What was found has been handled.
    pub(crate) fn spin(&self, intake: &mut Intake, poller: bool) -> Option<Round> {
        if intake.spin.pause > 0 {
            return None;
        }
        let begun = std::time::Instant::now();
        let mut looks = 1;
        while begun.elapsed() < LOOK {
            let look = intake.glance(looks);
            let round = self.round(intake, look, poller);
            if round.busy {
                return Some(round);
            }
            looks += 1;
        }
        intake.spin.pause = PAUSE;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_sleeps_lead_to_looking() {
        let mut spin = Spin { pause: 2 };
        for time in [SHORT, SHORT * 100] {
            spin.slept(time);
            assert_eq!(spin.pause, 2);
        }
        for left in [1, 0, 0] {
            spin.slept(SHORT / 2);
            assert_eq!(spin.pause, left);
        }
    }
}
