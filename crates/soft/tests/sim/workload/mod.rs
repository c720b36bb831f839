//! What the applications of a simulated world do: connect, post, misbehave, and begin anew.

mod connection;
mod keys;
mod misfortune;
mod posting;
mod send_request;

use secure_rdma_rdma::{Access, PathMtu, Qpn};

use super::endpoint::{Endpoint, Plan, Stage};
use super::host::{EVERYTHING, Host};
use super::network::{MILLISECOND, SECOND};
use super::random::Random;
use super::requester::{Requester, Terms};
use super::responder::Responder;
use super::scenario::{Fault, Scenario};
use super::world::{Action, Checked, World};

/// Bytes at either end of each region that nobody may touch.
const GUARD: usize = 64;

/// The longest message that fits a receive.
const LONGEST: usize = 20_480;

impl Plan {
    fn draw(scenario: &Scenario, random: &mut Random, host: &Host) -> Self {
        let slow = scenario.has(Fault::LongDelay) || scenario.has(Fault::SlowLink);
        let timeout = if slow { random.range(17, 19) } else { random.range(10, 15) } as u8;
        let losing = [
            Fault::Loss,
            Fault::Bursts,
            Fault::Corruption,
            Fault::Blackholes,
            Fault::DeadLink,
            Fault::SlowLink,
            Fault::SmallMtu,
            Fault::Jitter,
            Fault::Reorder,
        ];
        // A timeout of 0 is "never": where packets are lost, or a NAK comes too late to be heard, nothing would ever
        // send them again.
        let loses = scenario.idle || losing.into_iter().any(|fault| scenario.has(fault));
        let terms = Terms {
            path_mtu: PathMtu::from_code(scenario.path_mtu).unwrap().bytes(),
            timeout: if random.chance(30_000) && !loses { 0 } else { timeout },
            retry_count: random.pick(&[7, 7, 7, 7, 7, 3, 1, 0]),
            rnr_retry: random.pick(&[7, 7, 7, 6, 1]),
            max_rd_atomic: random.pick(&[1, 2, 4, 16]),
            max_window: host.max_window,
            ack_interval: host.ack_interval,
            peer_qpn: 0,
            punctual: host.node.is_engine(),
        };
        let mut access = EVERYTHING;
        if scenario.has(Fault::WrongBounds) && random.chance(200_000) {
            access -= random.pick(&[Access::REMOTE_WRITE, Access::REMOTE_READ, Access::REMOTE_ATOMIC]);
        }
        let mut terms = terms;
        if host.is_rxe() && scenario.has(Fault::MaliciousPeer) {
            // Its 7 is for ever, and a PSN that somebody else has used up is never answered.
            terms.retry_count = terms.retry_count.min(6);
        }
        let receive_buffer =
            scenario.has(Fault::SmallBuffer).then(|| random.pick(&[20_000, 60_000, 212_992]));
        Self {
            terms,
            access,
            resources: 16,
            rnr_timer: random.pick(&[10, 12, 14, 18, 22]),
            max_send: random.pick(&[8, 32, 64]),
            max_receive: 32,
            receive_buffer,
        }
    }
}

impl World {
    pub fn set_up(&mut self) {
        let mut random = self.scenario.random(5);
        for other in 1..self.hosts.len() {
            let count = if self.scenario.has(Fault::ManyQueuePairs) { random.range(2, 6) } else { 1 };
            for _ in 0..count {
                self.add_connection(0, other, &mut random);
            }
        }
    }

    fn add_connection(&mut self, a: usize, b: usize, random: &mut Random) {
        let first = self.endpoints.len();
        let mut plans = [a, b].map(|host| Plan::draw(&self.scenario, random, &self.hosts[host]));
        // Each asks for no more than the other has resources for.
        for (own, other) in [(0, 1), (1, 0)] {
            let spare = random.pick(&[0, 0, 1, 4]);
            plans[own].resources = (plans[other].terms.max_rd_atomic + spare).min(16);
        }
        for (index, (host, plan)) in [(a, plans[0]), (b, plans[1])].into_iter().enumerate() {
            self.endpoints.push(Endpoint {
                host,
                peer: first + 1 - index,
                qpn: Qpn::new(2).unwrap(),
                stage: Stage::Down,
                source_port: 0xC000 + random.below(0x4000) as u16,
                expects_port: None,
                // Another make numbers its packets in its own way.
                sequential_ids: random.chance(700_000) && self.hosts[[a, b][1 - index]].node.is_engine(),
                requester: Requester::new(0, plan.terms),
                responder: Responder::new(
                    0,
                    plan.terms.path_mtu,
                    plan.access,
                    plan.resources,
                    plan.rnr_timer,
                ),
                receives: Default::default(),
                flushing: false,
                in_error_since: 0,
                grants: Vec::new(),
                ended: Vec::new(),
                exists: false,
                receives_due: false,
                lived: false,
                plan,
            });
        }
        for index in [first, first + 1] {
            let peer = self.endpoints[self.endpoints[index].peer].source_port;
            self.endpoints[index].expects_port = random.chance(500_000).then_some(peer);
            if self.scenario.idle {
                continue;
            }
            self.schedule(random.below(MILLISECOND), Action::Work(index));
            let troubled = [Fault::MoveToError, Fault::Destroy, Fault::Deregister];
            if troubled.into_iter().any(|fault| self.scenario.has(fault)) {
                self.schedule(random.below(SECOND), Action::Misfortune(index));
            }
            if self.scenario.has(Fault::Drain) && self.hosts[self.endpoints[index].host].node.is_engine() {
                self.schedule(random.below(SECOND), Action::Drain(index));
            }
            if self.scenario.has(Fault::Forger) || self.scenario.has(Fault::MaliciousPeer) {
                self.schedule(random.below(SECOND / 10), Action::Forge(index));
            }
        }
        if self.scenario.has(Fault::ClockJumps) {
            self.schedule(random.below(SECOND), Action::Jump);
        }
        self.schedule(0, Action::Connect(first));
    }

    pub fn act(&mut self, action: Action) -> Checked {
        match action {
            Action::Work(index) => self.work(index),
            Action::Receives(index) => {
                self.endpoints[index].receives_due = false;
                self.post_receives(index);
                let host = self.endpoints[index].host;
                self.after(host)
            }
            Action::Misfortune(index) => self.misfortune(index),
            Action::Forge(index) => self.forge(index),
            Action::Ended(index) => self.ended(index),
            Action::Drain(index) => self.drain(index),
            Action::Connect(index) => self.connect(index),
            Action::Jump => {
                self.now += self.random.pick(&[MILLISECOND, SECOND, 60 * SECOND, 3_600 * SECOND / 4]);
                for endpoint in &mut self.endpoints {
                    // Timers that fire late are not the engine's fault.
                    endpoint.requester.sign = endpoint.requester.sign.max(self.now);
                }
                let next = self.random.exponential(20 * SECOND);
                self.schedule(next, Action::Jump);
                Ok(())
            }
        }
    }
}
