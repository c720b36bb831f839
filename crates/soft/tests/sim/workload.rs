//! What the applications of a simulated world do: connect, post, misbehave, and begin anew.

use secure_rdma_rdma::{
    Access, AddressVector, ErrorCode, Gid, GlobalRoute, MemoryWindow, PathMtu, Psn, QpAttr, QpState, Qpn,
    RKey, ReceiveRequest, RemoteSlice, SendFlags, SendOperation, SendRequest, Slice, WorkId,
};
use secure_rdma_soft::engine::{Path, QueuePairCaps};
use std::net::SocketAddr;
use std::sync::Arc;

use super::endpoint::{Endpoint, Grant, Plan, Stage};
use super::forger::Class;
use super::host::{CLOSED, EVERYTHING, Host, OPEN, REGION, WindowUse};
use super::memory::{Piece, Pieces};
use super::network::{MICROSECOND, MILLISECOND, SECOND};
use super::random::{Random, psn};
use super::requester::{Requester, Terms};
use super::requests::{Kind, Posted, Receive};
use super::responder::{Opening, Responder};
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

    // -- connections ----------------------------------------------------------------------------------------------------

    /// Brings up the connection of an endpoint, both ends.
    fn connect(&mut self, index: usize) -> Checked {
        let pair = [index, self.endpoints[index].peer];
        if pair.iter().any(|index| self.endpoints[*index].stage == Stage::Up) {
            return Ok(());
        }
        for index in pair {
            self.renew(index)?;
        }
        let starts = pair.map(|index| self.draw_start(index));
        for (own, other) in [(0, 1), (1, 0)] {
            self.bring_up(pair[own], pair[other], starts[own], starts[other])?;
        }
        for index in pair {
            self.grant_regions(index);
        }
        Ok(())
    }

    /// A queue pair in RESET: a new one, or the old one again.
    fn renew(&mut self, index: usize) -> Checked {
        let now = self.instant();
        let endpoint = &mut self.endpoints[index];
        let host = &mut self.hosts[endpoint.host];
        for receive in &endpoint.receives {
            host.shadows.finished(&receive.local);
        }
        for posted in &endpoint.requester.sends {
            host.shadows.finished(&posted.local);
        }
        if let Some(receive) = endpoint.responder.taken() {
            host.shadows.finished(&receive.local);
        }
        host.forget(index);
        endpoint.forget();
        let reuse = self.scenario.has(Fault::Reuse) && self.random.chance(700_000);
        if endpoint.exists && reuse && host.node.is_engine() {
            let moved = host.node.modify(now, endpoint.qpn, &QpAttr::to(QpState::Reset), None);
            if moved != Some(QpState::Reset) {
                return self.fail(5, "a queue pair does not go to RESET");
            }
            self.coverage.hit("queue pair reused");
        } else {
            if endpoint.exists {
                host.node.destroy_queue_pair(endpoint.qpn);
                self.by_number.remove(&(endpoint.host, endpoint.qpn.get()));
                self.coverage.hit("queue pair destroyed");
            }
            let caps = QueuePairCaps {
                max_send: endpoint.plan.max_send as u32,
                max_receive: endpoint.plan.max_receive as u32,
                max_sge: 4,
                receive_queue: host.shared.as_ref().map(|(queue, _)| *queue),
            };
            endpoint.qpn = host.node.create_queue_pair(now, caps);
            endpoint.exists = true;
            self.by_number.insert((endpoint.host, endpoint.qpn.get()), index);
        }
        let host = endpoint.host;
        self.after(host)
    }

    /// A starting PSN far from those of the life before, which the real draw gives with overwhelming probability.
    fn draw_start(&mut self, index: usize) -> u32 {
        loop {
            let endpoint = &self.endpoints[index];
            let peer = &self.endpoints[endpoint.peer];
            let first_life = !endpoint.lived;
            let start = match first_life && self.scenario.has(Fault::Wrap) {
                true => psn::MASK - self.random.below(60) as u32,
                false => self.random.below(1 << 24) as u32,
            };
            if first_life || endpoint.is_far(start) && peer.is_far(start) {
                return start;
            }
        }
    }

    fn bring_up(&mut self, index: usize, peer: usize, start: u32, peer_start: u32) -> Checked {
        let now = self.instant();
        let (peer_qpn, peer_port) = (self.endpoints[peer].qpn, self.endpoints[peer].source_port);
        let peer_address = self.hosts[self.endpoints[peer].host].address;
        let local = self.hosts[self.endpoints[index].host].address;
        let endpoint = &mut self.endpoints[index];
        let plan = endpoint.plan;
        let terms = Terms { peer_qpn: peer_qpn.get(), ..plan.terms };
        endpoint.requester = Requester::new(start, terms);
        endpoint.responder =
            Responder::new(peer_start, terms.path_mtu, plan.access, plan.resources, plan.rnr_timer);
        endpoint.responder.max_nak_rate = self.hosts[endpoint.host].max_nak_rate;
        if self.hosts[endpoint.host].is_rxe() {
            endpoint.responder.too_long_answer = (0x63, 2);
        }
        endpoint.stage = Stage::Up;
        endpoint.lived = true;
        let qpn = endpoint.qpn;
        let path = Path {
            local,
            peer: SocketAddr::new(peer_address, 4791),
            source_port: endpoint.source_port,
            expected_source_port: endpoint.expects_port.inspect(|port| assert_eq!(*port, peer_port)),
            receive_buffer: plan.receive_buffer,
            sequential_ids: endpoint.sequential_ids,
            hop_limit: 64,
            traffic_class: 0,
        };
        let global = GlobalRoute {
            destination: Gid::from_ip(peer_address),
            source_gid_index: 0,
            flow_label: 0,
            hop_limit: 64,
            traffic_class: 0,
        };
        let init = QpAttr {
            access: Some(plan.access),
            pkey_index: Some(0),
            port: Some(1),
            ..QpAttr::to(QpState::Init)
        };
        let rtr = QpAttr {
            address: Some(AddressVector { port: 1, global: Some(global), ..AddressVector::default() }),
            path_mtu: PathMtu::from_code(self.scenario.path_mtu),
            dest_qpn: Some(peer_qpn),
            rq_psn: Psn::new(peer_start),
            max_dest_rd_atomic: Some(plan.resources),
            min_rnr_timer: Some(plan.rnr_timer),
            ..QpAttr::to(QpState::Rtr)
        };
        let rts = QpAttr {
            timeout: Some(terms.timeout),
            retry_count: Some(terms.retry_count),
            rnr_retry: Some(terms.rnr_retry),
            sq_psn: Psn::new(start),
            max_rd_atomic: Some(terms.max_rd_atomic),
            ..QpAttr::to(QpState::Rts)
        };
        let host = endpoint.host;
        let node = &mut self.hosts[host].node;
        for (attr, path) in [(init, None), (rtr, Some(path)), (rts, None)] {
            node.modify(now, qpn, &attr, path).unwrap();
        }
        self.post_receives(index);
        self.after(host)
    }

    /// Tells the peer of an endpoint's host which regions it may use.
    fn grant_regions(&mut self, index: usize) {
        let host = &self.hosts[self.endpoints[index].host];
        let mut grants = Vec::new();
        for region in [OPEN, host.readable] {
            let shadow = &host.shadows.regions[region];
            grants.push(Grant {
                rkey: shadow.rkey,
                address: shadow.address + GUARD as u64,
                length: REGION - 2 * GUARD,
                write: shadow.access.contains(Access::REMOTE_WRITE),
                read: true,
                atomic: shadow.access.contains(Access::REMOTE_ATOMIC),
                window: false,
            });
        }
        let peer = self.endpoints[index].peer;
        self.endpoints[peer].grants.extend(grants);
    }

    /// A window is bound: the peer is told.
    pub fn granted(&mut self, host: usize, index: usize, rkey: u32) {
        let opening = self.hosts[host].openings[&rkey];
        let peer = self.endpoints[index].peer;
        self.endpoints[peer].grants.push(Grant {
            rkey,
            address: self.hosts[host].shadows.regions[opening.region].address + opening.offset as u64,
            length: opening.length,
            write: opening.access.contains(Access::REMOTE_WRITE),
            read: opening.access.contains(Access::REMOTE_READ),
            atomic: opening.access.contains(Access::REMOTE_ATOMIC),
            window: true,
        });
    }

    /// The control channel has ended: what still is up is moved to ERR, and the connection begins anew.
    fn ended(&mut self, index: usize) -> Checked {
        let pair = [index, self.endpoints[index].peer];
        if pair.iter().all(|index| self.endpoints[*index].stage == Stage::Up) {
            return Ok(());
        }
        for index in pair {
            if self.endpoints[index].stage == Stage::Up {
                self.move_to_error(index)?;
            }
            let endpoint = &self.endpoints[index];
            if endpoint.stage == Stage::Error
                && !(endpoint.requester.sends.is_empty() && endpoint.receives.is_empty())
            {
                return self.fail(5, "a queue pair in ERR has not flushed what was posted");
            }
        }
        let after = if self.healed { 0 } else { self.random.below(SECOND) };
        self.schedule(after, Action::Connect(index));
        Ok(())
    }

    fn move_to_error(&mut self, index: usize) -> Checked {
        let (now, endpoint) = (self.instant(), &mut self.endpoints[index]);
        let (host, qpn) = (endpoint.host, endpoint.qpn);
        endpoint.flushing = true;
        self.enter_error(index);
        if self.hosts[host].node.modify(now, qpn, &QpAttr::to(QpState::Err), None) != Some(QpState::Err) {
            return self.fail(5, "a queue pair does not go to ERR");
        }
        self.after(host)?;
        self.flush(host)
    }

    /// Moves a queue pair that is up to SQD, or back to RTS.
    fn drain(&mut self, index: usize) -> Checked {
        let now = self.instant();
        let endpoint = &mut self.endpoints[index];
        let drains = endpoint.stage == Stage::Up && !endpoint.requester.drains;
        if self.healed && drains {
            return Ok(());
        }
        let (host, qpn) = (endpoint.host, endpoint.qpn);
        let wait = if drains { SECOND / 10 } else { 2 * SECOND };
        let up = endpoint.stage == Stage::Up;
        if up {
            endpoint.requester.drains = drains;
        }
        let after = self.random.exponential(wait);
        self.schedule(after, Action::Drain(index));
        if !up {
            return Ok(());
        }
        let state = if drains { QpState::Sqd } else { QpState::Rts };
        if self.hosts[host].node.modify(now, qpn, &QpAttr::to(state), None) != Some(state) {
            return self.fail(5, format!("a queue pair does not go to {state:?}"));
        }
        self.coverage.hit(if drains { "send queue drained" } else { "send queue goes on" });
        self.after(host)?;
        self.flush(host)
    }

    fn misfortune(&mut self, index: usize) -> Checked {
        let next = self.random.exponential(20 * SECOND);
        self.schedule(next, Action::Misfortune(index));
        if self.endpoints[index].stage != Stage::Up {
            return Ok(());
        }
        let faults = [Fault::MoveToError, Fault::Destroy, Fault::Deregister];
        let fault = self.random.pick(&faults);
        if !self.scenario.has(fault) {
            return Ok(());
        }
        let host = self.endpoints[index].host;
        match fault {
            Fault::MoveToError => self.move_to_error(index),
            Fault::Destroy => {
                self.coverage.hit("queue pair destroyed in flight");
                self.enter_error(index);
                let endpoint = &mut self.endpoints[index];
                let here = &mut self.hosts[host];
                for pieces in endpoint.receives.iter().map(|receive| &receive.local) {
                    here.shadows.finished(pieces);
                }
                for pieces in endpoint.requester.sends.iter().map(|posted| &posted.local) {
                    here.shadows.finished(pieces);
                }
                if let Some(receive) = endpoint.responder.taken() {
                    here.shadows.finished(&receive.local);
                }
                here.forget(index);
                endpoint.forget();
                endpoint.exists = false;
                here.node.destroy_queue_pair(endpoint.qpn);
                self.by_number.remove(&(host, endpoint.qpn.get()));
                self.after(host)
            }
            _ => {
                let old = self.hosts[host].replace_readable(&mut self.random);
                let shadow = &self.hosts[host].shadows.regions[self.hosts[host].readable];
                let (rkey, address) = (shadow.rkey, shadow.address + GUARD as u64);
                for endpoint in &mut self.endpoints {
                    // Half of the peers hear of it in time.
                    if self.random.chance(500_000) {
                        for grant in endpoint.grants.iter_mut().filter(|grant| grant.rkey == old) {
                            (grant.rkey, grant.address) = (rkey, address);
                        }
                    }
                }
                self.coverage.hit("region deregistered");
                self.after(host)?;
                self.flush(host)
            }
        }
    }

    // -- receives -------------------------------------------------------------------------------------------------------

    /// Receives were consumed: more are posted, at once or late.
    pub fn want_receives(&mut self, index: usize) {
        if self.endpoints[index].receives_due {
            return;
        }
        self.endpoints[index].receives_due = true;
        let late = self.scenario.has(Fault::LateReceives) && !self.healed;
        let after = if late { self.random.below(5 * MILLISECOND) } else { MICROSECOND };
        self.schedule(after, Action::Receives(index));
    }

    fn post_receives(&mut self, index: usize) {
        if self.endpoints[index].stage != Stage::Up {
            return;
        }
        let host = self.endpoints[index].host;
        let wanted = if self.scenario.has(Fault::LateReceives) { 4 } else { 16 };
        loop {
            let here = &mut self.hosts[host];
            let posted = here
                .shared
                .as_ref()
                .map_or(self.endpoints[index].receives.len(), |(_, receives)| receives.len());
            if posted >= wanted {
                return;
            }
            let short = self.scenario.has(Fault::ShortReceives) && self.random.chance(10_000) && !self.healed;
            let length = if short { self.random.index(1000) } else { LONGEST + self.random.index(1000) };
            let pieces = pieces(&mut self.random, &self.scenario, &[OPEN, CLOSED], length);
            let id = self.next_id;
            self.next_id += 1;
            let request = ReceiveRequest { id: WorkId(id), local: here.shadows.slices(&pieces) };
            let receive = Receive { id, local: pieces, length };
            if let Some((queue, receives)) = &mut here.shared {
                here.node.engine().unwrap().post_shared_receive(*queue, &[request]).unwrap();
                receives.push_back(receive);
            } else {
                here.node.post_receive(self.endpoints[index].qpn, &[request]);
                self.endpoints[index].receives.push_back(receive);
            }
        }
    }

    // -- sends ----------------------------------------------------------------------------------------------------------

    fn work(&mut self, index: usize) -> Checked {
        let pause = if self.random.chance(40_000) {
            self.random.range(1, 90) * SECOND
        } else {
            let mean =
                self.random.pick(&[20 * MICROSECOND, 200 * MICROSECOND, 2 * MILLISECOND, 40 * MILLISECOND]);
            self.random.exponential(mean)
        };
        self.schedule(pause, Action::Work(index));
        let stage = self.endpoints[index].stage;
        if stage == Stage::Down || stage == Stage::Error && !self.random.chance(300_000) {
            return Ok(());
        }
        let count = self.random.range(1, 8) as usize;
        let mut requests = Vec::new();
        for _ in 0..count.min(self.endpoints[index].room()) {
            if let Some(request) = self.request(index) {
                requests.push(request);
            }
        }
        let (now, host, qpn) = (self.instant(), self.endpoints[index].host, self.endpoints[index].qpn);
        if let Err(error) = self.hosts[host].node.post_send(now, qpn, &requests) {
            return self.fail(5, format!("a request cannot be posted: {error}"));
        }
        drop(requests);
        self.after(host)?;
        self.flush(host)?;
        self.misuse(index)
    }

    /// Requests that must be refused when they are posted, and change nothing.
    fn misuse(&mut self, index: usize) -> Checked {
        let endpoint = &self.endpoints[index];
        if endpoint.stage != Stage::Up {
            return Ok(());
        }
        let (host, qpn, now) = (endpoint.host, endpoint.qpn, self.instant());
        let remote = RemoteSlice { address: 4097, rkey: RKey::new(1) };
        let full = endpoint.room() == 0;
        let region = self.hosts[host].shadows.regions[CLOSED].region.clone().unwrap();
        let (operation, slice, code) = if full {
            (SendOperation::Send { immediate: None }, Slice::new(&region, 0, 1), ErrorCode::QueueFull)
        } else if self.scenario.has(Fault::Misaligned) {
            let slice = Slice::new(&region, 0, 8);
            (SendOperation::FetchAdd { remote, add: 1 }, slice, ErrorCode::InvalidArgument)
        } else if self.scenario.has(Fault::WrongBounds) {
            let slice = Slice::new(&region, REGION - 7, 8);
            (SendOperation::Send { immediate: None }, slice, ErrorCode::InvalidArgument)
        } else {
            return Ok(());
        };
        let request = SendRequest {
            id: WorkId(0),
            operation,
            local: smallvec::smallvec![slice],
            flags: SendFlags::empty(),
        };
        let Some(engine) = self.hosts[host].node.engine() else { return Ok(()) };
        match engine.post_send(now, qpn, &[request]) {
            Err(error) if error.posted == 0 && error.error.code() == code => {
                self.coverage.hit("refused when posted");
                Ok(())
            }
            _ => self.fail(9, "a request that must be refused when it is posted was not"),
        }
    }

    fn length(&mut self, longest: usize) -> usize {
        let mtu = self.endpoints[0].plan.terms.path_mtu;
        let random = &mut self.random;
        let many = if self.scenario.has(Fault::LongMessages) { 40 } else { 3 };
        let length = match random.below(10) {
            0 => 0,
            1 => 1,
            2..=4 => random.index(64),
            5 => mtu,
            6 => (random.range(1, many) as usize * mtu + 1).saturating_sub(random.index(3)),
            7 => random.index(mtu),
            8 => random.index(many as usize * mtu),
            _ => random.index(2 * mtu),
        };
        length.min(longest)
    }

    /// A random request, noted in the model. `None` where nothing fits.
    fn request(&mut self, index: usize) -> Option<SendRequest> {
        let scenario = &self.scenario;
        let mut kinds: Vec<u8> = vec![0, 0, 0, 1, 2, 2, 2, 3];
        if scenario.has(Fault::Reads) {
            kinds.extend([4, 4, 4]);
        }
        if scenario.has(Fault::Atomics) {
            kinds.extend([5, 6, 6]);
        }
        if scenario.has(Fault::Windows) {
            kinds.extend([7, 8, 9]);
        }
        let choice = self.random.pick(&kinds);
        let fence = self.scenario.has(Fault::Fences) && self.random.chance(200_000);
        let immediate = self.random.u64() as u32;
        let host = self.endpoints[index].host;
        let all = [OPEN, CLOSED, self.hosts[host].readable];
        let (kind, sources, length): (Kind, &[usize], usize) = match choice {
            0 => (Kind::Send { immediate: None }, &all, self.length(LONGEST)),
            1 => (Kind::Send { immediate: Some(immediate) }, &all, self.length(LONGEST)),
            2 | 3 => {
                let length = self.length(REGION / 2 + 1);
                let (address, rkey) = self.target(index, length, |grant| grant.write)?;
                let immediate = (choice == 3).then_some(immediate);
                (Kind::Write { address, rkey, immediate }, &all, length)
            }
            4 => {
                let length = self.length(REGION / 2 + 1);
                let (address, rkey) = self.target(index, length, |grant| grant.read)?;
                (Kind::Read { address, rkey }, &[OPEN, CLOSED], length)
            }
            5 | 6 => {
                let (address, rkey) = self.target(index, 16, |grant| grant.atomic)?;
                let address = address.wrapping_add(7) & !7;
                // Small numbers, so that comparisons sometimes hold.
                let (compare, swap) = (self.random.below(4), self.random.below(4));
                let kind = match choice {
                    5 => Kind::CompareSwap { address, rkey, compare, swap },
                    _ => Kind::FetchAdd { address, rkey, add: self.random.u64() },
                };
                (kind, &[OPEN, CLOSED], 8)
            }
            7 => {
                let peer_host = self.endpoints[self.endpoints[index].peer].host;
                let at = self.endpoints[index].grants.iter().position(|grant| grant.window)?;
                let Grant { address, rkey, .. } = self.endpoints[index].grants.remove(at);
                self.endpoints[index].ended.push((address, rkey));
                for held in &mut self.hosts[peer_host].windows {
                    if held.state == WindowUse::Bound(rkey) {
                        held.state = WindowUse::Ending(rkey);
                    }
                }
                (Kind::SendInvalidate { rkey }, &all, self.length(LONGEST))
            }
            8 => return self.bind(index, fence),
            _ => return self.invalidate(index),
        };
        let pieces = match kind.is_atomic() {
            true => {
                let whole = pieces(&mut self.random, &self.scenario, sources, 8);
                let first = whole[0];
                Pieces::from_slice(&[Piece {
                    length: 8,
                    offset: first.offset.min(REGION - GUARD - 8),
                    ..first
                }])
            }
            false => pieces(&mut self.random, &self.scenario, sources, length),
        };
        // READs before a key ends are answered first.
        let fence = fence || matches!(kind, Kind::SendInvalidate { .. }) && self.random.chance(900_000);
        Some(self.note(index, kind, pieces, fence, None))
    }

    /// Where a request of `length` bytes goes.
    fn target(&mut self, index: usize, length: usize, fits: impl Fn(&Grant) -> bool) -> Option<(u64, u32)> {
        let endpoint = &self.endpoints[index];
        let random = &mut self.random;
        if length == 0 && random.chance(500_000) {
            // Neither key nor address is looked at.
            return Some((random.u64(), random.u64() as u32));
        }
        if self.scenario.has(Fault::WrongKeys) && random.chance(6_000) {
            // A key of nobody, one that was ended, or one that is another connection's.
            let strangers: Vec<(u64, u32)> = self
                .endpoints
                .iter()
                .enumerate()
                .filter(|(other, stranger)| *other != index && stranger.host == endpoint.host)
                .flat_map(|(_, stranger)| &stranger.grants)
                .filter(|grant| grant.window && fits(grant))
                .map(|grant| (grant.address, grant.rkey))
                .collect();
            let (address, rkey) = match random.below(3) {
                0 if !endpoint.ended.is_empty() => random.pick(&endpoint.ended),
                1 if !strangers.is_empty() => random.pick(&strangers),
                _ => (endpoint.grants.first()?.address, random.u64() as u32),
            };
            return Some((address, rkey));
        }
        let wrong = self.scenario.has(Fault::WrongBounds) && random.chance(3_000);
        let grants: Vec<Grant> = endpoint
            .grants
            .iter()
            .filter(|grant| grant.length >= length && (wrong || fits(grant)))
            .copied()
            .collect();
        if grants.is_empty() {
            return None;
        }
        let grant = random.pick(&grants);
        let mut address = grant.address.wrapping_add(random.below((grant.length - length) as u64 + 1));
        if wrong && random.chance(500_000) {
            let beyond = GUARD as u64 + 1 + random.below(100);
            let end = grant.address.wrapping_add(grant.length as u64 + GUARD as u64);
            address = random.pick(&[
                grant.address.wrapping_sub(beyond),
                end.wrapping_sub(beyond % 8),
                u64::MAX - 3,
                0,
            ]);
        }
        Some((address, grant.rkey))
    }

    fn bind(&mut self, index: usize, fence: bool) -> Option<SendRequest> {
        let host = self.endpoints[index].host;
        let here = &mut self.hosts[host];
        let window = here.windows.iter().position(|held| held.state == WindowUse::Free)?;
        let id = here.windows[window].window.id;
        let rkey = here.node.next_window_key(id);
        let region = self.random.pick(&[OPEN, CLOSED]);
        let length = self.random.range(64, 20_000) as usize;
        let offset = GUARD + self.random.index(REGION - 2 * GUARD - length);
        let rights = [Access::REMOTE_WRITE, Access::REMOTE_READ, Access::REMOTE_ATOMIC];
        let mut access = self.random.pick(&rights) | self.random.pick(&rights);
        if !access.contains(Access::REMOTE_READ) && self.random.chance(500_000) {
            access |= Access::REMOTE_READ;
        }
        let opening = Opening { region, offset, length, access, bound: Some(index), window: Some(window) };
        here.binding.insert(rkey, opening);
        here.windows[window].state = WindowUse::Binding;
        here.windows[window].owner = index;
        let target = Slice::new(here.shadows.regions[region].region.as_ref().unwrap(), offset, length);
        let operation = SendOperation::Bind {
            window: Arc::clone(&here.windows[window].window) as Arc<dyn MemoryWindow>,
            rkey: RKey::new(rkey),
            target,
            access,
        };
        let range = Pieces::from_slice(&[Piece { region, offset, length }]);
        Some(self.note(index, Kind::Bind { window, rkey }, range, fence, Some(operation)))
    }

    fn invalidate(&mut self, index: usize) -> Option<SendRequest> {
        let (host, peer) = (self.endpoints[index].host, self.endpoints[index].peer);
        let bound = self.hosts[host]
            .windows
            .iter()
            .position(|held| held.owner == index && matches!(held.state, WindowUse::Bound(_)))?;
        let WindowUse::Bound(rkey) = self.hosts[host].windows[bound].state else { return None };
        let uses = |posted: &Posted| match posted.kind {
            Kind::Write { rkey: used, .. } | Kind::Read { rkey: used, .. } => used == rkey,
            Kind::CompareSwap { rkey: used, .. } | Kind::FetchAdd { rkey: used, .. } => used == rkey,
            _ => false,
        };
        if self.endpoints[peer].requester.sends.iter().any(uses) && !self.random.chance(20_000) {
            return None;
        }
        if let Some(at) = self.endpoints[peer].grants.iter().position(|grant| grant.rkey == rkey) {
            let Grant { address, rkey, .. } = self.endpoints[peer].grants.remove(at);
            self.endpoints[peer].ended.push((address, rkey));
        }
        self.hosts[host].windows[bound].state = WindowUse::Ending(rkey);
        Some(self.note(index, Kind::Invalidate { rkey }, Pieces::new(), false, None))
    }

    /// Enters a request into the model, and makes the real one.
    fn note(
        &mut self,
        index: usize,
        kind: Kind,
        local: Pieces,
        fence: bool,
        bind: Option<SendOperation>,
    ) -> SendRequest {
        let endpoint = &mut self.endpoints[index];
        let shadows = &mut self.hosts[endpoint.host].shadows;
        let id = self.next_id;
        self.next_id += 1;
        let remote = |address, rkey| RemoteSlice { address, rkey: RKey::new(rkey) };
        let operation = match kind {
            Kind::Send { immediate } => SendOperation::Send { immediate },
            Kind::SendInvalidate { rkey } => SendOperation::SendInvalidate { rkey: RKey::new(rkey) },
            Kind::Write { address, rkey, immediate } => {
                SendOperation::Write { remote: remote(address, rkey), immediate }
            }
            Kind::Read { address, rkey } => SendOperation::Read { remote: remote(address, rkey) },
            Kind::CompareSwap { address, rkey, compare, swap } => {
                SendOperation::CompareSwap { remote: remote(address, rkey), compare, swap }
            }
            Kind::FetchAdd { address, rkey, add } => {
                SendOperation::FetchAdd { remote: remote(address, rkey), add }
            }
            Kind::Bind { .. } => bind.unwrap(),
            Kind::Invalidate { rkey } => SendOperation::Invalidate { rkey: RKey::new(rkey) },
        };
        let mut flags = SendFlags::empty();
        flags.set(SendFlags::FENCE, fence);
        // The range of a bind is named by its operation, and holds a count like any other.
        let mut slices = shadows.slices(&local);
        if kind.is_local() {
            slices.clear();
        }
        let request = SendRequest { id: WorkId(id), operation, local: slices, flags };
        let length = local.iter().map(|piece| piece.length).sum();
        endpoint.requester.post(Posted {
            id,
            kind,
            local,
            length,
            fence,
            first: 0,
            count: 0,
            placed: 0,
            done: false,
            refused: None,
            not_ready: 0,
            original: None,
        });
        request
    }

    /// Somebody sends a handful of forged packets.
    fn forge(&mut self, index: usize) -> Checked {
        let next = self.random.exponential(SECOND / 2);
        self.schedule(next, Action::Forge(index));
        let host = self.endpoints[index].host;
        if self.endpoints[index].stage != Stage::Up || !self.hosts[host].node.is_engine() {
            return Ok(());
        }
        for _ in 0..self.random.range(1, 20) {
            let guessed = self.scenario.has(Fault::MaliciousPeer) && self.random.chance(20_000);
            let class = match guessed {
                true => Class::Malicious,
                false if !self.scenario.has(Fault::Forger) => continue,
                false => self.random.pick(&Class::ALL[..7]),
            };
            if let Some(datagram) = self.forgery(index, class) {
                self.coverage.hit("forged packet");
                self.deliver(host, datagram)?;
            }
        }
        self.flush(host)
    }
}

/// `length` bytes of one of these regions, in up to four pieces that do not overlap.
fn pieces(random: &mut Random, scenario: &Scenario, regions: &[usize], length: usize) -> Pieces {
    let region = random.pick(regions);
    let offset = GUARD + random.index(REGION - 2 * GUARD - length + 1);
    let whole = Piece { region, offset, length };
    if length == 0 && random.chance(500_000) {
        return Pieces::new();
    }
    if !scenario.has(Fault::Gather) || length < 4 || random.chance(300_000) {
        return Pieces::from_slice(&[whole]);
    }
    let mut cuts = [random.index(length), random.index(length), random.index(length)];
    cuts.sort_unstable();
    let ends = [0, cuts[0], cuts[1], cuts[2], length];
    let mut pieces: Pieces = ends
        .windows(2)
        .map(|ends| Piece { region, offset: offset + ends[0], length: ends[1] - ends[0] })
        .collect();
    let turn = random.index(4);
    pieces.rotate_left(turn);
    pieces
}
