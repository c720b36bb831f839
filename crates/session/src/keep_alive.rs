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

/// Asked less often than this we were stopped, however short the peer's interval is.
const AWAKE: Duration = Duration::from_secs(1);

/// The keep-alive of one control channel: ours by our interval, the peer's by its own.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    own: Duration,
    peer: Duration,
    misses: u32,
    heard: Instant,
    asked: Instant,
    send_at: Instant,
}

impl Pulse {
    /// `peer` is the interval that the peer has stated.
    pub(crate) fn new(own: KeepAlive, peer: Duration, now: Instant) -> Self {
        let KeepAlive { interval, misses } = own;
        Self { own: interval, peer, misses, heard: now, asked: now, send_at: now + interval }
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
        self.heard + self.peer * self.misses + self.peer / 2
    }

    /// Judges. Call it when everything that had arrived has been read, at most a second after the last call. A longer gap
    /// means that *we* did not run, which is not the peer's silence: of a gap, one interval of the peer counts, and after
    /// one that is longer than a second too the peer gets its whole time again.
    pub(crate) fn ask(&mut self, now: Instant) -> Verdict {
        let gap = now.saturating_duration_since(self.asked);
        self.asked = now;
        let late = |due: Duration| gap > due + due / 4;
        if late(self.peer.max(AWAKE)) {
            self.heard = now;
        } else if late(self.peer) {
            self.heard = now.min(self.heard + (gap - self.peer));
        }
        if now >= self.dies_at() {
            return Verdict::Dead(now.saturating_duration_since(self.heard));
        }
        if now >= self.send_at {
            self.send_at = now + self.own;
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
        (Pulse::new(KeepAlive::default(), SECOND, now), now)
    }

    /// Ours every second, the peer's every `peer`.
    fn pulse_with(peer: Duration) -> (Pulse, Instant) {
        let now = Instant::now();
        (Pulse::new(KeepAlive::default(), peer, now), now)
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
    fn the_peer_is_judged_by_its_own_interval_and_we_speak_at_ours() {
        let (mut pulse, now) = pulse_with(10 * SECOND);
        let heard = |at: Duration| at.as_millis().is_multiple_of(10_000);
        assert_eq!(
            run(&mut pulse, now, 60 * SECOND, heard),
            (None, 60),
            "ten seconds of silence are its way"
        );
        let (mut pulse, now) = pulse_with(10 * SECOND);
        let (death, sent) = run(&mut pulse, now, 60 * SECOND, |_| false);
        assert_eq!((death, sent), (Some(35 * SECOND), 34));
        // And the other way round: ours are rare, its are not.
        let now = Instant::now();
        let rare = KeepAlive { interval: 10 * SECOND, misses: 3 };
        let (death, sent) = run(&mut Pulse::new(rare, SECOND, now), now, 60 * SECOND, |_| false);
        assert_eq!((death, sent), (Some(Duration::from_millis(3500)), 0));
    }

    #[test]
    fn no_interval_of_the_peer_keeps_it_from_being_found_dead() {
        // We are asked every quarter second, which is late by any measure of a peer that says ten milliseconds.
        for peer in [KeepAlive::MIN_INTERVAL, STEP, SECOND, KeepAlive::MAX_INTERVAL] {
            let (mut pulse, now) = pulse_with(peer);
            let most = (peer * 3 + peer / 2).max(4 * STEP);
            let (death, _) = run(&mut pulse, now, 2 * most, |_| false);
            assert!(death.is_some_and(|death| death <= most), "{peer:?}: {death:?}");
        }
    }

    #[test]
    fn being_late_counts_as_one_interval_of_silence() {
        let (mut pulse, now) = pulse_with(Duration::from_millis(100));
        // Both sides stood still for 0.9 s: the peer's frame is on its way.
        assert_eq!(pulse.ask(now + Duration::from_millis(900)), Verdict::Fine);
        assert!(matches!(pulse.ask(now + Duration::from_millis(1149)), Verdict::Send));
        assert!(matches!(pulse.ask(now + Duration::from_millis(1300)), Verdict::Fine));
        assert!(matches!(pulse.ask(now + Duration::from_millis(1400)), Verdict::Dead(_)));
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
