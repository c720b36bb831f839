//! What an engine tells after each call: its events and completions, compared with the model.

use secure_rdma_rdma::{AsyncEvent, Completion, CompletionKind, Qpn};

use super::super::endpoint::Stage;
use super::super::host::WindowUse;
use super::super::network::SECOND;
use super::super::random::psn;
use super::super::requests::{Kind, Posted, Received};
use super::{Action, Checked, World};

impl World {
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

    pub(super) fn happened(&mut self, host: usize, qpn: Qpn, event: AsyncEvent) -> Checked {
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
    fn check_executed(&self, index: usize, posted: &Posted) -> Checked {
        if posted.count == 0 || !self.trusted {
            return Ok(());
        }
        let peer = &self.endpoints[self.endpoints[index].peer];
        let last = psn::add(posted.first, posted.count - 1);
        if peer.stage == Stage::Down || psn::minus(peer.responder.expected, last) > 0 {
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
}
