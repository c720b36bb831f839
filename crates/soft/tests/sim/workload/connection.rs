//! The life of a connection: both ends come up with new PSNs, and when its control channel has ended it begins anew.

use std::net::SocketAddr;

use secure_rdma_rdma::{AddressVector, Gid, GlobalRoute, PathMtu, Psn, QpAttr, QpState};
use secure_rdma_soft::engine::{Path, QueuePairCaps};

use super::super::endpoint::Stage;
use super::super::network::SECOND;
use super::super::random::psn;
use super::super::requester::{Requester, Terms};
use super::super::responder::Responder;
use super::super::scenario::Fault;
use super::super::world::{Action, Checked, World};

impl World {
    /// Brings up the connection of an endpoint, both ends.
    pub(super) fn connect(&mut self, index: usize) -> Checked {
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
                host.node.destroy_queue_pair(now, endpoint.qpn);
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

    /// The control channel has ended: what still is up is moved to ERR, and the connection begins anew.
    pub(super) fn ended(&mut self, index: usize) -> Checked {
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
}
