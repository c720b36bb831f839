//! Looking again for a moment before going to sleep.
//!
//! To sleep and to be woken costs both sides more than a short message does, on virtual machines ten times as much: a
//! halted processor is started by its host. So a thread that is likely to have the next packet soon does better to look
//! for it, for about as long as the waking would take. Whether it is likely is learned: each look in vain makes the pause
//! before the next longer, and who sleeps for long does not begin to look.

use std::thread;
use std::time::{Duration, Instant};

use crate::core::Core;
use crate::receive::{Intake, Round};

/// How long to look.
const LOOK: Duration = Duration::from_micros(50);

/// A sleep that was shorter, with the waking, would have been worth a look.
pub(crate) const SHORT: Duration = Duration::from_micros(150);

/// Short sleeps before looking is tried again: after it was successful, and after it was in vain many times.
const PAUSES: (u32, u32) = (4, 256);

/// Looks after which another thread that waits for this processor, perhaps the peer's, has it.
const YIELD: u64 = 8;

/// Who gave the processor away for longer shares it with a busy thread. Two that give it to each other stay on it, though
/// another processor may be idle: each has always just run, and such threads the scheduler does not move. One that sleeps
/// is woken where it is idle.
const SHARED: Duration = Duration::from_micros(10);

/// Whether to look.
#[derive(Debug)]
pub(crate) struct Spin {
    /// Short sleeps until the next look.
    pause: u32,
    /// The pause after the next look in vain.
    penalty: u32,
}

impl Default for Spin {
    fn default() -> Self {
        Self { pause: PAUSES.0, penalty: PAUSES.0 }
    }
}

impl Spin {
    /// It has slept for so long, until a packet came.
    pub(crate) fn slept(&mut self, time: Duration) {
        if time < SHORT {
            self.pause = self.pause.saturating_sub(1);
        }
    }

    /// Another thread has had this processor meanwhile: sleep now, and the next few times.
    fn shared(&mut self) {
        self.pause = PAUSES.0;
    }

    fn looked(&mut self, found: bool) {
        if found {
            self.penalty = PAUSES.0;
        } else {
            self.pause = self.penalty;
            self.penalty = (self.penalty * 2).min(PAUSES.1);
        }
    }
}

impl Core {
    /// Looks for more, where that is likely to be worth it. What was found has been handled.
    pub(crate) fn spin(&self, intake: &mut Intake, poller: bool) -> Option<Round> {
        if intake.spin.pause > 0 {
            return None;
        }
        let begun = Instant::now();
        let mut looks = 1;
        while begun.elapsed() < LOOK {
            let look = intake.glance(looks);
            let round = self.round(intake, look, poller);
            if round.received || round.told {
                intake.spin.looked(true);
                return Some(round);
            }
            if looks.is_multiple_of(YIELD) {
                let given = Instant::now();
                thread::yield_now();
                if given.elapsed() > SHARED {
                    intake.spin.shared();
                    return None;
                }
            }
            looks += 1;
        }
        intake.spin.looked(false);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_sleeps_lead_to_looking() {
        let mut spin = Spin { pause: 2, ..Spin::default() };
        for time in [SHORT, SHORT * 100] {
            spin.slept(time);
            assert_eq!(spin.pause, 2);
        }
        for left in [1, 0, 0] {
            spin.slept(SHORT / 2);
            assert_eq!(spin.pause, left);
        }
    }

    #[test]
    fn who_shares_a_processor_sleeps_before_looking_again() {
        let mut spin = Spin { pause: 0, ..Spin::default() };
        spin.shared();
        (1..=PAUSES.0).for_each(|_| {
            assert!(spin.pause > 0);
            spin.slept(SHORT / 2);
        });
        assert_eq!(spin.pause, 0);
    }

    #[test]
    fn looks_in_vain_become_rare_until_one_is_not() {
        let mut spin = Spin::default();
        let pauses: Vec<u32> = (0..8)
            .map(|_| {
                spin.looked(false);
                spin.pause
            })
            .collect();
        assert_eq!(pauses, [4, 8, 16, 32, 64, 128, 256, 256]);
        spin.pause = 0;
        spin.looked(true);
        assert_eq!(spin.pause, 0, "it looks again at once");
        spin.looked(false);
        assert_eq!(spin.pause, 4);
    }
}
