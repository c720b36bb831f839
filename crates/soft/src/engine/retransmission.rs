//! When a requester sends again, and when it gives up.
//!
//! It gives up when `timeout` × (`retry_count` + 1) have passed without progress, and never by counting: NAKs, and copies
//! that an adaptive timeout sends earlier, do not bring the end nearer.

use std::time::{Duration, Instant};

use secure_rdma_rdma::WcStatus;

use super::config::Config;
use super::queue_pair::{QueuePair, Shared};
use super::requester::Requester;
use super::timers::RoundTrip;

/// When what is outstanding is sent again, and when it is given up.
pub(super) struct Clock {
    /// When the oldest outstanding request was first sent, or the last progress was made.
    pub(super) progress: Option<Instant>,
    /// The retransmission timer.
    deadline: Option<Instant>,
    /// How often it ran out since the last progress.
    expired: u32,
    /// The end of the wait that an RNR NAK asked for.
    pub(super) rnr_until: Option<Instant>,
    pub(super) rnr_naks: u32,
    pub(super) round_trip: RoundTrip,
    /// A PSN that was sent once, and when.
    pub(super) probe: Option<(u64, Instant)>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            progress: None,
            deadline: None,
            expired: 0,
            rnr_until: None,
            rnr_naks: 0,
            round_trip: RoundTrip::new(),
            probe: None,
        }
    }
}

impl Requester {
    /// Something was acknowledged: everything that counts failures begins anew.
    pub(super) fn progressed(&mut self, now: Instant) {
        self.clock.progress = Some(now);
        self.clock.deadline = None;
        self.clock.expired = 0;
        self.clock.rnr_until = None;
        self.clock.rnr_naks = 0;
        self.went_back = None;
        self.window.on_progress();
        if let Some((count, sent)) = self.clock.probe
            && count < self.oldest
        {
            self.clock.probe = None;
            self.clock.round_trip.measured(now.saturating_duration_since(sent));
        }
    }

    /// Starts the timer where something is outstanding and it does not run, and stops it where nothing is.
    pub(super) fn rearm(&mut self, now: Instant, config: &Config) {
        let clock = &mut self.clock;
        let Some(timeout) =
            self.limits.timeout.filter(|_| self.oldest < self.newest && clock.rnr_until.is_none())
        else {
            clock.deadline = None;
            if self.oldest >= self.newest {
                clock.progress = None;
            }
            return;
        };
        let progress = *clock.progress.get_or_insert(now);
        if clock.deadline.is_some() {
            return;
        }
        let after = |start: Instant, wait: Duration| start.checked_add(wait).unwrap_or(start);
        let death = after(progress, timeout.saturating_mul(u32::from(self.limits.retry_count) + 1));
        let next = if config.adaptive_timeout {
            let wait = clock.round_trip.timeout(config.min_timeout);
            after(now, wait.saturating_mul(1 << clock.expired.min(16)).min(timeout))
        } else {
            // One copy each `timeout`, however late a timer came up.
            let passed = now.saturating_duration_since(progress).as_nanos() / timeout.as_nanos().max(1);
            after(
                progress,
                timeout.saturating_mul(u32::try_from(passed).unwrap_or(u32::MAX).saturating_add(1)),
            )
        };
        clock.deadline = Some(next.min(death));
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.clock.rnr_until.or(self.clock.deadline)
    }

    /// Whether the time is up, at a timer that should have come up at `deadline`.
    ///
    /// A timer that comes up far too late says that the engine was not run (a stopped process, a starved machine), and not
    /// that the peer is silent: its answers may wait to be read. Then one more `timeout` is given.
    fn is_dead(&mut self, now: Instant, deadline: Instant) -> bool {
        let (Some(progress), Some(timeout)) = (self.clock.progress, self.limits.timeout) else {
            return false;
        };
        let retries = u32::from(self.limits.retry_count);
        let dead = now.saturating_duration_since(progress) >= timeout.saturating_mul(retries + 1);
        if !dead || now.saturating_duration_since(deadline) <= timeout / 4 {
            return dead;
        }
        self.clock.progress = now.checked_sub(timeout.saturating_mul(retries)).or(Some(now));
        false
    }

    pub(super) fn stop_timers(&mut self) {
        self.clock.deadline = None;
        self.clock.rnr_until = None;
        self.clock.progress = None;
    }
}

impl QueuePair {
    /// The requester's timer came up, or its wait after an RNR NAK is over, or neither.
    pub(super) fn requester_timeout(&mut self, shared: &mut Shared, now: Instant) {
        let requester = &mut self.requester;
        if requester.clock.rnr_until.is_some_and(|until| until <= now) {
            requester.clock.rnr_until = None;
            requester.clock.progress = Some(now);
            requester.clock.expired = 0;
        }
        let due = requester.clock.deadline.filter(|deadline| *deadline <= now);
        let (None, Some(deadline), Some(flows)) = (requester.clock.rnr_until, due, &self.flows) else {
            return;
        };
        requester.clock.deadline = None;
        shared.counters.timeouts += 1;
        if requester.is_dead(now, deadline) {
            shared.counters.retry_exceeded_err += 1;
            return self.fail_first(shared, WcStatus::RETRY_EXC_ERR);
        }
        requester.clock.expired = requester.clock.expired.saturating_add(1);
        requester.went_back = None;
        requester.window.on_timeout(requester.newest);
        requester.go_back(shared);
        // A first time may be too early: the peer may still have to read it all. After a second nothing is on the way.
        if requester.clock.expired > 1 {
            requester.release_all(shared, flows);
        }
    }
}
