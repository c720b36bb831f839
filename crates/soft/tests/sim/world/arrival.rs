//! Packets to an engine: which must be acted on and which dropped, and what the model makes of them.

use std::net::IpAddr;

use secure_rdma_rdma::{AsyncEvent, QpState};
use secure_rdma_roce::{Endpoints, IcrcCheck, IcrcContext, Opcode, Packet};
use secure_rdma_soft::engine::Arrival;

use super::super::drops::Reason;
use super::super::endpoint::Stage;
use super::super::network::{Datagram, MILLISECOND, Origin};
use super::super::node::Node;
use super::super::requester::Response;
use super::super::responder::{Hosted, Outcome};
use super::super::scenario::Fault;
use super::{Checked, World};

impl World {
    /// A packet arrives, and maybe more at the same host before that sends anything.
    pub(super) fn arrive(&mut self, first: Datagram) -> Checked {
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
