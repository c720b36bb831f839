//! What befalls an endpoint that is up: its send queue is drained, it is moved to ERR or destroyed, a region goes, and
//! somebody forges packets.

use secure_rdma_rdma::{QpAttr, QpState};

use super::super::endpoint::Stage;
use super::super::forger::Class;
use super::super::network::SECOND;
use super::super::scenario::Fault;
use super::super::world::{Action, Checked, World};
use super::GUARD;

impl World {
    pub(super) fn move_to_error(&mut self, index: usize) -> Checked {
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
    pub(super) fn drain(&mut self, index: usize) -> Checked {
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

    pub(super) fn misfortune(&mut self, index: usize) -> Checked {
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
                let now = self.instant();
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
                here.node.destroy_queue_pair(now, endpoint.qpn);
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

    /// Somebody sends a handful of forged packets.
    pub(super) fn forge(&mut self, index: usize) -> Checked {
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
