//! Deadlines of all queue pairs, and how long one waits before it sends again.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use secure_rdma_rdma::Qpn;

/// When which queue pair is to be looked at.
///
/// An entry is not taken out when its deadline moves: a queue pair remembers its earliest entry (`scheduled`), and only
/// an earlier deadline makes another. When an entry comes up too early, the queue pair is entered again.
#[derive(Default)]
pub(super) struct Timers {
    entries: BinaryHeap<Reverse<(Instant, u32)>>,
}

impl Timers {
    /// Sees to it that `qpn` comes up at `deadline` or before.
    pub(super) fn set(&mut self, qpn: Qpn, scheduled: &mut Option<Instant>, deadline: Instant) {
        if scheduled.is_none_or(|earliest| deadline < earliest) {
            *scheduled = Some(deadline);
            self.entries.push(Reverse((deadline, qpn.get())));
        }
    }

    /// A queue pair whose entry is due, and the entry's time.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(Qpn, Instant)> {
        let Reverse((at, number)) = self.entries.peek().copied()?;
        if at > now {
            return None;
        }
        self.entries.pop();
        Qpn::new(number).map(|qpn| (qpn, at))
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.entries.peek().map(|Reverse((at, _))| *at)
    }
}

/// The round trip as measured, and the retransmission timeout that follows from it (RFC 6298).
#[derive(Clone, Copy)]
pub(super) struct RoundTrip {
    smoothed: Option<Duration>,
    variation: Duration,
}

/// The timeout before anything was measured.
const UNKNOWN: Duration = Duration::from_millis(50);

impl RoundTrip {
    pub(super) fn new() -> Self {
        Self { smoothed: None, variation: Duration::ZERO }
    }

    pub(super) fn measured(&mut self, sample: Duration) {
        match &mut self.smoothed {
            None => {
                self.smoothed = Some(sample);
                self.variation = sample / 2;
            }
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(sample)) / 4;
                *smoothed = (*smoothed * 7 + sample) / 8;
            }
        }
    }

    /// SRTT + 4·RTTVAR, at least `least`.
    pub(super) fn timeout(&self, least: Duration) -> Duration {
        self.smoothed.map_or(UNKNOWN, |smoothed| smoothed + self.variation * 4).max(least)
    }
}

/// The time of a `timeout` code: 4.096 µs · 2^code; `None` for 0, which is never (IBTA 9.9.2.1.3).
pub(super) fn timeout_of(code: u8) -> Option<Duration> {
    (code > 0).then(|| Duration::from_nanos(4096_u64 << code.min(31)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_moves_back_makes_no_entry_and_one_that_moves_forward_does() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let qpn = Qpn::new(0x100).unwrap();
        let (mut timers, mut scheduled) = (Timers::default(), None);
        timers.set(qpn, &mut scheduled, after(10));
        timers.set(qpn, &mut scheduled, after(20));
        assert_eq!((timers.entries.len(), timers.next()), (1, Some(after(10))));
        timers.set(qpn, &mut scheduled, after(5));
        assert_eq!((timers.entries.len(), timers.next()), (2, Some(after(5))));
        assert_eq!(timers.pop(after(4)), None);
        assert_eq!(timers.pop(after(5)), Some((qpn, after(5))));
    }

    #[test]
    fn the_timeout_follows_the_round_trip() {
        let ms = Duration::from_millis;
        let mut round_trip = RoundTrip::new();
        assert_eq!(round_trip.timeout(ms(2)), UNKNOWN);
        round_trip.measured(ms(100));
        assert_eq!(round_trip.timeout(ms(2)), ms(300));
        (0..100).for_each(|_| round_trip.measured(Duration::from_micros(10)));
        assert_eq!(round_trip.timeout(ms(2)), ms(2), "the floor");
    }

    #[test]
    fn codes_double() {
        assert_eq!(timeout_of(0), None);
        assert_eq!(timeout_of(1), Some(Duration::from_nanos(8192)));
        assert_eq!(timeout_of(14), Some(Duration::from_nanos(67_108_864)));
        assert_eq!(timeout_of(31), Some(Duration::from_nanos(4096 << 31)));
    }
}
