//! The clock that drives a world: what happens next, until everything has come to rest as it should.

use std::cmp::Reverse;

use secure_rdma_rdma::QpState;

use super::super::drops::Reasons;
use super::super::endpoint::Stage;
use super::super::network::{SECOND, Time};
use super::{Action, Checked, World};

impl World {
    /// Runs until the workload is done and everything is quiet.
    pub fn run(&mut self) -> Checked {
        const LONGEST: Time = 3_600 * SECOND;
        while self.coverage.packets < self.scenario.packets && self.now < LONGEST {
            if !self.step()? {
                break;
            }
        }
        self.finish()
    }

    /// Stops all faults and all work, and checks that everything comes to rest as it should.
    pub fn finish(&mut self) -> Checked {
        self.heal();
        let bound = self.now + self.longest_recovery();
        while !self.is_quiet() {
            if self.now > bound {
                return self
                    .fail(8, format!("not quiet {} ns after all faults stopped", self.longest_recovery()));
            }
            if !self.step()? {
                break;
            }
        }
        self.check_end()
    }

    fn heal(&mut self) {
        self.healed = true;
        self.network.heal();
        self.actions.retain(|Reverse((_, _, action))| {
            use Action::{Connect, Drain, Ended, Receives};
            matches!(action, Receives(_) | Ended(_) | Connect(_) | Drain(_))
        });
        for endpoint in 0..self.endpoints.len() {
            self.schedule(0, Action::Receives(endpoint));
        }
    }

    /// How long a connection may need to end or to finish what was posted.
    fn longest_recovery(&self) -> Time {
        let patience =
            self.endpoints.iter().map(|endpoint| endpoint.requester.terms.patience()).max().unwrap_or(0);
        2 * patience + 60 * SECOND
    }

    fn is_quiet(&self) -> bool {
        self.endpoints.iter().all(|endpoint| {
            endpoint.requester.sends.is_empty()
                && endpoint.stage != Stage::Error
                && !endpoint.requester.drains
        }) && self.network.in_flight() == 0
    }

    /// The next thing that happens. False: nothing ever will.
    pub fn step(&mut self) -> Checked<bool> {
        self.steps += 1;
        let mut next = self.network.next_arrival();
        let earlier = |next: Option<Time>, other: Option<Time>| match (next, other) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        next = earlier(next, self.actions.peek().map(|Reverse((time, ..))| *time));
        for host in &self.hosts {
            let due =
                host.node.poll_timeout().map(|at| at.saturating_duration_since(self.base).as_nanos() as Time);
            next = earlier(next, due);
        }
        let Some(next) = next else { return Ok(false) };
        if next > self.now {
            self.now = next;
            self.still = 0;
        }
        self.still += 1;
        if self.still > 100_000 {
            return self.fail(8, "time stands still");
        }
        let now = self.instant();
        for host in 0..self.hosts.len() {
            let mut turns = 0;
            while self.hosts[host].node.poll_timeout().is_some_and(|at| at <= now) {
                self.hosts[host].node.handle_timeout(now);
                self.after(host)?;
                self.flush(host)?;
                turns += 1;
                if turns > 1000 {
                    return self.fail(8, "timers that are due stay due");
                }
            }
        }
        if let Some(datagram) = self.network.arrived(self.now) {
            self.arrive(datagram)?;
        }
        if self.actions.peek().is_some_and(|Reverse((time, ..))| *time <= self.now)
            && let Some(Reverse((_, _, action))) = self.actions.pop()
        {
            self.act(action)?;
        }
        if self.steps.is_multiple_of(256) {
            for host in 0..self.hosts.len() {
                let all = self.hosts[host].shadows.check_all();
                self.or_fail(1, all)?;
                let counts = self.hosts[host].shadows.check_counts(false);
                self.or_fail(6, counts)?;
            }
        }
        Ok(true)
    }

    fn check_end(&mut self) -> Checked {
        let counted = self.hosts.iter().filter_map(|host| host.node.counters()).map(Reasons::counted);
        let counted = counted.fold(Reasons::default(), Reasons::plus);
        if counted != self.reasons {
            return self.fail(9, format!("the engines counted {counted:?}, the model {:?}", self.reasons));
        }
        for host in 0..self.hosts.len() {
            self.after(host)?;
            let all = self.hosts[host].shadows.check_all();
            self.or_fail(1, all)?;
            let counts = self.hosts[host].shadows.check_counts(true);
            self.or_fail(6, counts)?;
            if let Some(counters) = self.hosts[host].node.counters() {
                self.coverage.engine(counters);
            }
        }
        for endpoint in &self.endpoints {
            let state = self.hosts[endpoint.host].node.state(endpoint.qpn);
            let fits = match endpoint.stage {
                Stage::Up => state == Some(QpState::Rts),
                Stage::Error => state == Some(QpState::Err),
                Stage::Down => state != Some(QpState::Rts),
            };
            if !fits {
                return self
                    .fail(5, format!("a queue pair is in {state:?}, the model says {:?}", endpoint.stage));
            }
            if let Some(first) = endpoint.requester.sends.front() {
                let terms = endpoint.requester.terms;
                return self.fail(5, format!("a request never completes: {first:?} with {terms:?}"));
            }
            if !endpoint.responder.received.is_empty() {
                return self.fail(2, "a receive never completes");
            }
        }
        self.coverage.seeds = 1;
        self.coverage.time = u128::from(self.now);
        Ok(())
    }
}
