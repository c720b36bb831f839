//! When to say that we live, and when the peer is dead. No clock of its own: the time is passed in.

use std::time::{Duration, Instant};

use crate::KeepAlive;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Fine,
    /// Send a KEEP_ALIVE.
    Send,
    /// The peer has been silent for this long: it is dead.
    Dead(Duration),
}

/// The keep-alive of one control channel.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    options: KeepAlive,
    heard: Instant,
    asked: Instant,
    send_at: Instant,
}

impl Pulse {
    pub(crate) fn new(options: KeepAlive, now: Instant) -> Self {
        Self { options, heard: now, asked: now, send_at: now + options.interval }
    }

    /// A frame came.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// When [`Pulse::ask`] is to be called again, at the latest.
    pub(crate) fn next(&self) -> Instant {
        self.send_at.min(self.dies_at())
    }

    fn dies_at(&self) -> Instant {
        self.heard + self.options.interval * self.options.misses + self.options.interval / 2
    }

    /// Judges. Call it when everything that had arrived has been read, at most an interval after the last call: a longer
    /// gap means that *we* did not run, which is not the peer's silence, and the peer gets its whole time again.
    pub(crate) fn ask(&mut self, now: Instant) -> Verdict {
        let gap = now.saturating_duration_since(self.asked);
        self.asked = now;
        if gap > self.options.interval + self.options.interval / 4 {
            self.heard = now;
        }
        if now >= self.dies_at() {
            return Verdict::Dead(now.saturating_duration_since(self.heard));
        }
        if now >= self.send_at {
            self.send_at = now + self.options.interval;
            return Verdict::Send;
        }
        Verdict::Fine
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(250);

    fn pulse() -> (Pulse, Instant) {
        let now = Instant::now();
        (Pulse::new(KeepAlive::default(), now), now)
    }

    /// Asks every quarter second; gives the time of death and the number of keep-alives.
    fn run(
        pulse: &mut Pulse,
        from: Instant,
        until: Duration,
        heard: impl Fn(Duration) -> bool,
    ) -> (Option<Duration>, u32) {
        let (mut at, mut sent) = (Duration::ZERO, 0);
        while at < until {
            at += STEP;
            if heard(at) {
                pulse.heard(from + at);
            }
            match pulse.ask(from + at) {
                Verdict::Dead(_) => return (Some(at), sent),
                Verdict::Send => sent += 1,
                Verdict::Fine => {}
            }
        }
        (None, sent)
    }

    #[test]
    fn silence_kills_between_three_and_four_seconds() {
        let (mut pulse, now) = pulse();
        let (death, sent) = run(&mut pulse, now, 10 * SECOND, |_| false);
        assert_eq!(death, Some(Duration::from_millis(3500)));
        assert_eq!(sent, 3);
    }

    #[test]
    fn a_peer_that_was_stopped_for_two_seconds_lives() {
        // Heard at 1 s, then nothing until 1 + 1 + 2 - a hair: it was stopped just before it was due.
        let (mut pulse, now) = pulse();
        let heard = |at: Duration| at == SECOND || at == 4 * SECOND || at > 5 * SECOND;
        assert_eq!(run(&mut pulse, now, 20 * SECOND, heard).0, None);
    }

    #[test]
    fn our_own_stop_is_not_the_peers_silence() {
        let (mut pulse, now) = pulse();
        assert_eq!(pulse.ask(now + STEP), Verdict::Fine);
        let later = now + 60 * SECOND;
        assert_eq!(pulse.ask(later), Verdict::Send, "it says at once that it lives");
        assert_eq!(run(&mut pulse, later, 10 * SECOND, |_| false).0, Some(Duration::from_millis(3500)));
    }

    #[test]
    fn the_next_time_to_ask_is_never_late() {
        let (mut pulse, now) = pulse();
        assert_eq!(pulse.next(), now + SECOND);
        pulse.ask(now + SECOND);
        pulse.ask(now + 2 * SECOND);
        pulse.ask(now + 3 * SECOND);
        assert_eq!(pulse.next(), now + Duration::from_millis(3500));
    }
}
