//! A whole simulated world: hosts, connections, the network, and the clock that drives them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{AsyncEvent, Completion, CompletionKind, QpState, Qpn};
use secure_rdma_roce::{Endpoints, IcrcCheck, IcrcContext, Opcode, Packet};
use secure_rdma_soft::engine::{Arrival, Transmit};

use super::coverage::Coverage;
use super::drops::{Reason, Reasons};
use super::endpoint::{Endpoint, Stage};
use super::host::{Host, WindowUse};
use super::network::{Datagram, MILLISECOND, Network, Origin, SECOND, Time};
use super::node::Node;
use super::random::Random;
use super::requester::Response;
use super::requests::{Kind, Received};
use super::responder::{Hosted, Outcome};
use super::scenario::{Fault, Scenario};

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

    // -- the loop -----------------------------------------------------------------------------------------------------

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

    /// A packet arrives, and maybe more at the same host before that sends anything.
    fn arrive(&mut self, first: Datagram) -> Checked {
        let Some(host) = self.host_of(&first) else { return Ok(()) };
        self.deliver(host, first)?;
        if self.scenario.has(Fault::Batches) && self.hosts[host].node.is_engine() {
            let until = self.now + self.random.below(MILLISECOND / 4);
            for _ in 0..self.random.below(32) {
                if self.network.next_arrival().is_none_or(|at| at > until) {
                    break;
                }
                let Some(datagram) = self.network.arrived(until) else { break };
                let Some(other) = self.host_of(&datagram) else { continue };
                self.now = self.now.max(until);
                self.deliver(other, datagram)?;
                if other != host || !self.hosts[other].node.is_engine() {
                    self.flush(other)?;
                }
            }
        }
        self.flush(host)
    }

    /// The host to which a datagram was sent, whatever its address has become on the way.
    fn host_of(&self, datagram: &Datagram) -> Option<usize> {
        let host = usize::from(datagram.segment >> 8);
        (host < self.hosts.len()).then_some(host)
    }

    // -- packets to an engine -------------------------------------------------------------------------------------------

    pub fn deliver(&mut self, host: usize, datagram: Datagram) -> Checked {
        self.coverage.packets += 1;
        let parsed = Packet::new_checked(&datagram.bytes);
        let packet = parsed.ok();
        let endpoint = packet.and_then(|packet| self.by_number.get(&(host, packet.dest_qpn())).copied());
        let verdict = match (endpoint, parsed) {
            (_, Err(malformed)) => Err(Reason::from(malformed)),
            (None, _) => Err(Reason::QueuePair),
            (Some(endpoint), Ok(packet)) => self.judge(host, endpoint, &datagram, &packet),
        };
        let accepted = verdict.is_ok();
        if accepted && datagram.original.as_ref().is_some_and(|original| !is_same(original, &datagram.bytes))
        {
            // No receiver can tell, by the sixteen bits that are left.
            self.coverage.hit("undetectable damage, left out");
            return Ok(());
        }
        if let Err(reason) = verdict {
            self.count(host, reason);
        }
        let arrival = Arrival {
            source: datagram.source,
            destination: datagram.destination.ip(),
            destination_port: datagram.destination.port(),
            ecn: datagram.ecn,
            segment: datagram.segment & 0xFF,
        };
        let now = self.instant();
        let node = &mut self.hosts[host].node;
        let served = |node: &Node| {
            node.counters().map(|counters| counters.responded_reads + counters.responded_atomics)
        };
        let before = served(node);
        node.handle_packet(now, &arrival, datagram.id, &datagram.bytes);
        let failed = endpoint.is_some_and(|at| node.state(self.endpoints[at].qpn) == Some(QpState::Err));
        let executed = failed || !node.is_engine() || served(node) != before;
        if self.scenario.trace {
            let shown = packet.map_or_else(|| "no packet".to_owned(), |packet| packet.to_string());
            eprintln!("{:>15} to {host} {:?} accepted={accepted} {shown}", self.now, datagram.origin);
        }
        if let (true, Some(endpoint), Some(packet)) = (accepted, endpoint, packet) {
            if packet.opcode().is_request() {
                self.request_arrived(host, endpoint, &packet, executed);
            } else if packet.opcode().is_response() {
                self.response_arrived(host, endpoint, &packet)?;
            }
        }
        if let Some(index) = endpoint.filter(|_| failed && !self.hosts[host].node.is_engine())
            && self.endpoints[index].responder.has_lost_key(&self.hosts[host].openings)
        {
            // Another make has no events.
            self.happened(host, self.endpoints[index].qpn, AsyncEvent::QueuePairFatal)?;
        }
        self.after(host)?;
        self.network.recycle(datagram.bytes);
        Ok(())
    }

    /// An engine has to count this.
    fn count(&mut self, host: usize, reason: Reason) {
        if self.hosts[host].node.is_engine() {
            self.reasons.count(reason);
        }
    }

    /// Whether an endpoint must act on a packet, and else why not, in the order of brief §6 step 0.
    fn judge(
        &self,
        host: usize,
        endpoint: usize,
        datagram: &Datagram,
        packet: &Packet<'_>,
    ) -> Result<(), Reason> {
        let endpoint = &self.endpoints[endpoint];
        let opcode = packet.opcode();
        if matches!(opcode, Opcode::Flush | Opcode::AtomicWrite) {
            return Err(Reason::Opcode);
        }
        if endpoint.stage != Stage::Up {
            return Err(Reason::State);
        }
        let peer = &self.endpoints[endpoint.peer];
        if datagram.source.ip() != self.hosts[peer.host].address
            || datagram.destination.ip() != self.hosts[host].address
        {
            return Err(Reason::Address);
        }
        if opcode != Opcode::Cnp && endpoint.expects_port.is_some_and(|port| port != datagram.source.port()) {
            return Err(Reason::SourcePort);
        }
        if packet.bth().pkey & 0x7FFF != 0x7FFF {
            return Err(Reason::PKey);
        }
        let right = if !self.hosts[host].node.is_engine() {
            // Another make sees the ID.
            datagram.origin == Origin::Genuine
                || matches!(context(datagram).check(datagram.id, &datagram.bytes), IcrcCheck::Expected)
        } else if datagram.origin == Origin::Genuine {
            datagram.source.is_ipv6() || !endpoint.sequential_ids || datagram.id < 128
        } else {
            match context(datagram).check(0, &datagram.bytes) {
                IcrcCheck::Expected => true,
                IcrcCheck::OtherId { id, dont_fragment } => {
                    !endpoint.sequential_ids || dont_fragment && id < 128
                }
                IcrcCheck::Wrong => false,
            }
        };
        if right { Ok(()) } else { Err(Reason::Icrc) }
    }

    fn request_arrived(&mut self, host: usize, index: usize, packet: &Packet<'_>, executed: bool) {
        let endpoint = &mut self.endpoints[index];
        let here = &mut self.hosts[host];
        let receives = match &mut here.shared {
            Some((_, receives)) => receives,
            None => &mut endpoint.receives,
        };
        let invalidates = packet.invalidate_key();
        let mut hosted =
            Hosted { shadows: &mut here.shadows, openings: &mut here.openings, receives, endpoint: index };
        let outcome = endpoint.responder.on_request(packet, executed, &mut hosted);
        let name = match outcome {
            Outcome::Executed => "request executed",
            Outcome::Duplicate => "request duplicate",
            Outcome::Gap => "request after a gap",
            Outcome::NotReady => "request without a receive",
            Outcome::Refused(_) => "request refused",
            Outcome::Dropped => "request without a resource",
        };
        self.coverage.hit(name);
        match outcome {
            Outcome::Gap => self.count(host, Reason::OutOfSequence),
            Outcome::Duplicate => self.count(host, Reason::Duplicate),
            _ => {}
        }
        if outcome == Outcome::Executed
            && let Some(rkey) = invalidates
        {
            self.hosts[host].freed(rkey.expose());
        }
        if matches!(outcome, Outcome::Refused(_)) {
            self.enter_error(index);
            self.endpoints[index].flushing = true;
        }
        if matches!(outcome, Outcome::Executed) && self.hosts[host].shared.is_some()
            || self.endpoints[index].receives.len() < 8
        {
            self.want_receives(index);
        }
    }

    fn response_arrived(&mut self, host: usize, index: usize, packet: &Packet<'_>) -> Checked {
        let now = self.now;
        let endpoint = &mut self.endpoints[index];
        let (at, offset) = match endpoint.requester.on_response(packet, now) {
            Response::Place { request, offset } => (request, offset),
            Response::Nothing => return Ok(()),
            Response::Dropped(reason) => {
                self.count(host, reason);
                return Ok(());
            }
        };
        let posted = &endpoint.requester.sends[at];
        let original;
        let payload = match posted.original {
            Some(value) => {
                original = value.to_ne_bytes();
                &original[..]
            }
            None => packet.payload(),
        };
        let shadows = &mut self.hosts[host].shadows;
        let local = posted.local.clone();
        if !shadows.really_holds(&local, offset, payload) {
            return self.fail(1, "a response was not placed");
        }
        shadows.scatter(&local, offset, payload);
        Ok(())
    }

    // -- after each call of an engine -------------------------------------------------------------------------------------

    /// Takes what the engine has to tell, and compares it with the model.
    pub fn after(&mut self, host: usize) -> Checked {
        while let Some((qpn, event)) = self.hosts[host].node.poll_event() {
            self.happened(host, qpn, event)?;
        }
        let mut completions = std::mem::take(&mut self.completions);
        loop {
            completions.clear();
            let Some(qpn) = self.hosts[host].node.poll_completions(&mut completions) else { break };
            let Some(index) = self.by_number.get(&(host, qpn.get())).copied() else {
                return self.fail(5, "a completion of a queue pair that is gone");
            };
            for completion in &completions {
                self.coverage.completions += 1;
                match completion.kind {
                    CompletionKind::Send => self.send_completed(host, index, completion)?,
                    _ => self.receive_completed(host, index, completion)?,
                }
            }
        }
        self.completions = completions;
        let mut retired = secure_rdma_soft::engine::Retired::default();
        self.hosts[host].node.take_retired(&mut retired);
        drop(retired);
        let touched = self.hosts[host].shadows.check_touched();
        self.or_fail(1, touched)
    }

    fn happened(&mut self, host: usize, qpn: Qpn, event: AsyncEvent) -> Checked {
        if event != AsyncEvent::QueuePairFatal {
            return Ok(());
        }
        let Some(index) = self.by_number.get(&(host, qpn.get())).copied() else { return Ok(()) };
        let endpoint = &self.endpoints[index];
        if endpoint.stage != Stage::Up {
            return Ok(());
        }
        if !endpoint.responder.may_fail && !endpoint.responder.has_lost_key(&self.hosts[host].openings) {
            return self.fail(5, "a queue pair fails for no reason");
        }
        self.coverage.hit("READ whose key ended before its answer");
        self.endpoints[index].responder.may_fail = true;
        self.endpoints[index].flushing = true;
        self.enter_error(index);
        Ok(())
    }

    fn send_completed(&mut self, host: usize, index: usize, completion: &Completion) -> Checked {
        let now = self.now;
        let endpoint = &mut self.endpoints[index];
        let Some(posted) = endpoint.requester.sends.pop_front() else {
            return self.fail(5, "a send completes that was not posted, or twice");
        };
        if posted.id != completion.id.0 {
            return self.fail(5, format!("send {} completes before {}", completion.id.0, posted.id));
        }
        let status = completion.status.0;
        let flushing = endpoint.flushing;
        let posted_retries = endpoint.requester.terms.retry_count;
        let checked = endpoint.requester.check_completion(&posted, status, now, flushing);
        let invariant = if status == 0 { 4 } else { 5 };
        self.or_fail(invariant, checked)?;
        self.hosts[host].shadows.finished(&posted.local);
        self.coverage.hit(match status {
            0 => "send succeeded",
            5 => "send flushed",
            9 => "send refused as invalid",
            10 => "send refused access",
            11 => "send met an operational error",
            12 => "send without an answer",
            13 => "send without a receive",
            _ => "send failed otherwise",
        });
        let peer = &self.endpoints[self.endpoints[index].peer];
        if status == 12 && self.gentle && posted_retries == 7 && peer.stage == Stage::Up {
            return self.fail(8, "a transfer dies where at most 5 % is lost");
        }
        if status == 0 {
            self.check_executed(index, &posted)?;
            self.local_done(host, index, posted.kind, true);
            return Ok(());
        }
        self.local_done(host, index, posted.kind, false);
        if status != 5 {
            self.endpoints[index].requester.failed = true;
            self.enter_error(index);
        }
        Ok(())
    }

    /// Invariant 4: what succeeds here was executed there.
    fn check_executed(&self, index: usize, posted: &super::requests::Posted) -> Checked {
        if posted.count == 0 || !self.trusted {
            return Ok(());
        }
        let peer = &self.endpoints[self.endpoints[index].peer];
        let last = super::random::psn::add(posted.first, posted.count - 1);
        if peer.stage == Stage::Down || super::random::psn::minus(peer.responder.expected, last) > 0 {
            return Ok(());
        }
        self.fail(4, "a request succeeds that the peer has not executed")
    }

    /// A bind or an invalidation has ended.
    fn local_done(&mut self, host: usize, index: usize, kind: Kind, success: bool) {
        let here = &mut self.hosts[host];
        match kind {
            Kind::Bind { window, rkey } => {
                let opening = here.binding.remove(&rkey);
                if let Some(opening) = opening.filter(|_| success) {
                    here.openings.insert(rkey, opening);
                    here.windows[window].state = WindowUse::Bound(rkey);
                    self.granted(host, index, rkey);
                } else {
                    // It may have been carried out before it was flushed: free when the queue pair forgets it.
                    here.windows[window].state = WindowUse::Ending(rkey);
                }
            }
            // One that was flushed leaves the window bound until the queue pair forgets it.
            Kind::Invalidate { rkey } if success => {
                here.openings.remove(&rkey);
                here.freed(rkey);
            }
            _ => {}
        }
    }

    fn receive_completed(&mut self, host: usize, index: usize, completion: &Completion) -> Checked {
        let got = Received {
            id: completion.id.0,
            status: completion.status.0,
            byte_len: completion.byte_len,
            immediate: completion.immediate,
            invalidated: completion.invalidated.map(|key| key.expose()),
            by_write: completion.kind == CompletionKind::ReceiveWriteImmediate,
        };
        let endpoint = &mut self.endpoints[index];
        let mut due = endpoint.responder.received.pop_front();
        if due.is_none() && endpoint.stage == Stage::Error {
            // What a message in progress had taken, then the rest in order.
            let receive = endpoint.responder.taken().or_else(|| endpoint.receives.pop_front());
            if let Some(receive) = receive {
                self.hosts[host].shadows.finished(&receive.local);
                let none = Received {
                    id: 0,
                    status: 0,
                    byte_len: 0,
                    immediate: None,
                    invalidated: None,
                    by_write: false,
                };
                due = Some(Received { id: receive.id, status: 5, ..none });
                self.coverage.hit("receive flushed");
            }
        }
        let endpoint = &mut self.endpoints[index];
        let checked = endpoint.check_received(due, got);
        self.or_fail(2, checked)
    }

    pub fn enter_error(&mut self, index: usize) {
        if self.endpoints[index].stage != Stage::Up {
            return;
        }
        self.endpoints[index].stage = Stage::Error;
        self.endpoints[index].in_error_since = self.now;
        // The control channel tells the peer, at some time.
        let after = if self.healed { 0 } else { self.random.below(3 * SECOND) };
        self.schedule(after, Action::Ended(index));
    }

    // -- packets from an engine -------------------------------------------------------------------------------------------

    /// Sends everything that the engine has to send.
    pub fn flush(&mut self, host: usize) -> Checked {
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut any = false;
        for turn in 0.. {
            buffer.clear();
            let segments = self.hosts[host].segments;
            let now = self.instant();
            let Some((transmit, id)) = self.hosts[host].node.poll_transmit(now, segments, &mut buffer) else {
                break;
            };
            any = true;
            if transmit.length != buffer.len() || buffer.is_empty() || buffer.len() > 65_507 {
                return self.fail(9, format!("a batch of {} bytes says {}", buffer.len(), transmit.length));
            }
            if buffer.len().div_ceil(transmit.segment_size.max(1)) > segments {
                return self.fail(9, "more segments than asked for");
            }
            if turn > 10_000 {
                return self.fail(9, "an engine sends without end");
            }
            self.transmit(host, &transmit, id, &buffer)?;
        }
        self.buffer = buffer;
        if any { self.after(host) } else { Ok(()) }
    }

    fn transmit(&mut self, host: usize, transmit: &Transmit, id: u16, buffer: &[u8]) -> Checked {
        let Some(index) = self.by_number.get(&(host, transmit.qpn.get())).copied() else {
            return self.fail(7, "a queue pair that is gone sends");
        };
        let endpoint = &self.endpoints[index];
        let to = self.endpoints[endpoint.peer].host;
        let destination = SocketAddr::new(self.hosts[to].address, 4791);
        if transmit.destination != destination
            || transmit.source != self.hosts[host].address
            || transmit.source_port != endpoint.source_port
        {
            return self.fail(7, "a packet goes elsewhere, or comes from elsewhere");
        }
        let now = self.now;
        for (segment, bytes) in buffer.chunks(transmit.segment_size).enumerate() {
            let Ok(packet) = Packet::new_checked(bytes) else {
                return self.fail(7, "an engine sends no packet");
            };
            if self.scenario.trace {
                eprintln!("{:>15} from {host} {packet}", self.now);
            }
            let endpoint = &mut self.endpoints[index];
            let here = &self.hosts[host];
            let checked = if packet.opcode().is_request() {
                if endpoint.stage == Stage::Error {
                    Err("a queue pair in ERR sends a request".to_owned())
                } else {
                    endpoint.requester.on_request_sent(&packet, &here.shadows, now)
                }
            } else if packet.opcode().is_response() {
                endpoint.responder.on_response_sent(&packet, &here.shadows, &here.openings, now)
            } else {
                Ok(())
            };
            if let Err(what) = checked {
                return self.fail(7, format!("{what} ({})", packet.opcode().name()));
            }
            let mut copy = self.network.buffer();
            copy.extend_from_slice(bytes);
            let index = segment as u16;
            let datagram = Datagram {
                bytes: copy,
                source: SocketAddr::new(transmit.source, transmit.source_port),
                destination: transmit.destination,
                ecn: transmit.traffic_class & 3,
                id: id.wrapping_add(index),
                // The upper byte leads it to its host.
                segment: (to as u16) << 8 | index,
                origin: Origin::Genuine,
                original: None,
            };
            self.network.send(now, host, to, datagram);
        }
        Ok(())
    }

    // -- the end --------------------------------------------------------------------------------------------------------

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

/// What the ICRC of a datagram is computed with.
pub fn context(datagram: &Datagram) -> IcrcContext {
    let endpoints = match (datagram.source.ip(), datagram.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Endpoints::V4 { source, destination },
        (IpAddr::V6(source), IpAddr::V6(destination)) => Endpoints::V6 { source, destination },
        _ => unreachable!("one family"),
    };
    IcrcContext::new(endpoints, datagram.source.port(), datagram.destination.port())
}

/// Whether two packets say the same: byte 4 of the BTH is not covered by the ICRC, and nobody reads it.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).enumerate().all(|(at, (a, b))| a == b || at == 4)
}
