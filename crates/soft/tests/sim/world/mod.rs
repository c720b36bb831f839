//! A whole simulated world: hosts, connections, the network, and the clock that drives them.

mod arrival;
mod clock;
mod completion;
mod transmit;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use secure_rdma_rdma::Completion;

use super::coverage::Coverage;
use super::drops::Reasons;
use super::endpoint::Endpoint;
use super::host::Host;
use super::network::{Network, Time};
use super::random::Random;
use super::scenario::{Fault, Scenario};

pub use arrival::context;

/// An invariant of reliability §E.1 that does not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    pub invariant: u8,
    pub what: String,
    pub at: Time,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {} at {} ns: {}", self.invariant, self.at, self.what)
    }
}

pub type Checked<T = ()> = Result<T, Violation>;

/// What the application, or somebody else, does at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// An endpoint posts requests.
    Work(usize),
    /// An endpoint posts receives.
    Receives(usize),
    /// Something bad happens to an endpoint.
    Misfortune(usize),
    /// Forged packets arrive at an endpoint.
    Forge(usize),
    /// The control channel says that the connection of this endpoint has ended.
    Ended(usize),
    /// The connection of this endpoint comes up again.
    Connect(usize),
    /// The send queue of an endpoint is drained, or goes on.
    Drain(usize),
    /// The clock jumps.
    Jump,
}

pub struct World {
    pub scenario: Scenario,
    pub now: Time,
    base: Instant,
    pub hosts: Vec<Host>,
    pub endpoints: Vec<Endpoint>,
    pub by_number: HashMap<(usize, u32), usize>,
    pub network: Network,
    pub random: Random,
    actions: BinaryHeap<Reverse<(Time, u64, Action)>>,
    counter: u64,
    pub coverage: Coverage,
    /// What the engines must have counted.
    pub reasons: Reasons,
    /// Whether at most 5 % is lost, and nothing else that a transfer may die of happens.
    pub gentle: bool,
    /// Whether what succeeds must have been executed by the peer: not where somebody else answers for it.
    pub trusted: bool,
    /// Whether the workload has ended and nothing goes wrong any more.
    pub healed: bool,
    pub next_id: u64,
    completions: Vec<Completion>,
    buffer: Vec<u8>,
    steps: u64,
    /// Steps since time last moved.
    still: u64,
}

impl World {
    pub fn new(scenario: Scenario) -> Self {
        let hosts = if scenario.has(Fault::ThirdHost) { 3 } else { 2 };
        let address = |index: usize| -> IpAddr {
            if scenario.has(Fault::Ipv6) {
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1 + index as u16])
            } else {
                IpAddr::from([10, 0, 0, 1 + index as u8])
            }
        };
        let mut world = Self {
            now: 0,
            base: Instant::now(),
            hosts: (0..hosts).map(|index| Host::new(&scenario, index, address(index))).collect(),
            endpoints: Vec::new(),
            by_number: HashMap::new(),
            network: Network::new(&scenario, hosts),
            random: scenario.random(4),
            actions: BinaryHeap::new(),
            counter: 0,
            coverage: Coverage::default(),
            reasons: Reasons::default(),
            gentle: false,
            trusted: true,
            healed: false,
            next_id: 1,
            completions: Vec::new(),
            buffer: Vec::new(),
            steps: 0,
            still: 0,
            scenario,
        };
        let deadly = [
            Fault::Bursts,
            Fault::Corruption,
            Fault::LongDelay,
            Fault::Blackholes,
            Fault::DeadLink,
            Fault::SlowLink,
            Fault::SmallMtu,
            Fault::ClockJumps,
            Fault::MoveToError,
            Fault::Destroy,
            Fault::MaliciousPeer,
        ];
        world.gentle =
            world.network.is_gentle() && !deadly.into_iter().any(|fault| world.scenario.has(fault));
        world.set_up();
        world
    }

    pub fn instant(&self) -> Instant {
        self.base + Duration::from_nanos(self.now)
    }

    pub fn fail<T>(&self, invariant: u8, what: impl Into<String>) -> Checked<T> {
        Err(Violation { invariant, what: what.into(), at: self.now })
    }

    fn or_fail<T>(&self, invariant: u8, result: Result<T, String>) -> Checked<T> {
        result.or_else(|what| self.fail(invariant, what))
    }

    pub fn schedule(&mut self, after: Time, action: Action) {
        self.counter += 1;
        self.actions.push(Reverse((self.now + after, self.counter, action)));
    }
}
