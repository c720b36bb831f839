//! Judging the path by what completes: probes on an idle queue pair, and the end of one whose work stands still.
//!
//! Time is counted in ticks that really came, not in seconds that went by: a process that was stopped for a minute
//! finds its completions waiting and must not take its own absence for the path's.

use std::time::Duration;

use crate::options::ConnectionOptions;

/// Between two ticks.
pub(crate) const TICK: Duration = Duration::from_millis(250);

/// How long a device may take to give back what was posted to a queue pair in ERR. It needs milliseconds.
pub(crate) const FLUSH: Duration = Duration::from_secs(5);

/// What a tick calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Nothing,
    /// The queue pair is idle: prove its path.
    Probe,
    /// Posted work stands still.
    PathDead,
    /// `close` has not come to its end in time.
    CloseTimeout,
}

#[derive(Debug)]
pub(crate) struct Watch {
    probe_after: Option<u32>,
    dead_after: u32,
    close_within: u32,
    completions: u64,
    seen: u64,
    still: u32,
    /// What counts of the silence before the probe that is in flight.
    silent_before: u32,
    closing: Option<u32>,
    flushing: u32,
    port_up: bool,
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(u32::MAX).max(1)
}

impl Watch {
    pub(crate) fn new(options: &ConnectionOptions) -> Self {
        Self {
            probe_after: options.path_probe.map(ticks),
            dead_after: ticks(options.path_timeout),
            close_within: ticks(options.close_timeout),
            completions: 0,
            seen: 0,
            still: 0,
            silent_before: 0,
            closing: None,
            flushing: 0,
            port_up: true,
        }
    }

    pub(crate) fn completions(&mut self, count: usize) {
        self.completions += count as u64;
    }

    pub(crate) fn port_is_up(&mut self, up: bool) {
        self.port_up = up;
    }

    /// For the error of a dead path.
    pub(crate) fn port_up(&self) -> bool {
        self.port_up
    }

    pub(crate) fn closing_begins(&mut self) {
        self.closing = Some(0);
    }

    /// Judges one tick of a queue pair that flushes.
    pub(crate) fn flush_is_overdue(&mut self) -> bool {
        self.flushing = self.flushing.saturating_add(1);
        self.flushing >= ticks(FLUSH)
    }

    /// Judges one tick. `in_flight` are posted work requests.
    pub(crate) fn tick(&mut self, in_flight: usize) -> Verdict {
        if let Some(closing) = &mut self.closing {
            *closing += 1;
            if *closing > self.close_within {
                return Verdict::CloseTimeout;
            }
        }
        if self.completions != self.seen {
            self.seen = self.completions;
            self.still = 0;
            self.silent_before = 0;
            return Verdict::Nothing;
        }
        self.still = self.still.saturating_add(1);
        if in_flight > 0 {
            // Before a probe the path had been silent already: half of that silence counts, so that a path which is cut
            // just before one is noticed in time.
            let silent = if in_flight == 1 { self.silent_before } else { 0 };
            let dead = self.still.saturating_add(silent) >= self.dead_after;
            return if dead { Verdict::PathDead } else { Verdict::Nothing };
        }
        match self.probe_after {
            Some(after) if self.still >= after => {
                self.still = 0;
                self.silent_before = after / 2;
                Verdict::Probe
            }
            _ => Verdict::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch() -> Watch {
        Watch::new(&ConnectionOptions::default())
    }

    #[test]
    fn an_idle_queue_pair_is_probed_each_second() {
        let mut watch = watch();
        let mut probes = 0;
        for _ in 0..40 {
            if watch.tick(0) == Verdict::Probe {
                probes += 1;
                watch.completions(1);
            }
        }
        assert!((7..=10).contains(&probes), "{probes} probes in 10 s");
    }

    #[test]
    fn work_that_stands_still_means_a_dead_path_within_the_time() {
        let mut watch = watch();
        let dead = (1..100).find(|_| watch.tick(1) == Verdict::PathDead).unwrap();
        assert_eq!(TICK * dead, Duration::from_millis(3500));
    }

    #[test]
    fn a_path_cut_just_before_a_probe_is_found_dead_within_four_seconds() {
        let mut watch = watch();
        let probed = (1..100).find(|_| watch.tick(0) == Verdict::Probe).unwrap();
        let dead = (1..100).find(|_| watch.tick(1) == Verdict::PathDead).unwrap();
        assert_eq!((TICK * probed, TICK * dead), (Duration::from_secs(1), Duration::from_secs(3)));
        watch.completions(1);
        watch.tick(0);
        let dead = (1..100).find(|_| watch.tick(1) == Verdict::PathDead).unwrap();
        assert_eq!(
            TICK * dead,
            Duration::from_millis(3500),
            "work that was posted afterwards has its whole time"
        );
    }

    #[test]
    fn work_that_moves_never_does() {
        let mut watch = watch();
        for i in 0..1000 {
            if i % 10 == 0 {
                watch.completions(1);
            }
            assert_eq!(watch.tick(5), Verdict::Nothing);
        }
    }

    #[test]
    fn a_close_that_does_not_end_is_ended() {
        let mut watch = watch();
        watch.closing_begins();
        let ended = (1..100)
            .find(|_| {
                watch.completions(1);
                watch.tick(1) == Verdict::CloseTimeout
            })
            .unwrap();
        assert!(TICK * ended > Duration::from_secs(5) && TICK * ended <= Duration::from_millis(5250));
    }
}
