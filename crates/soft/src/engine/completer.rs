//! The completer: what responses mean for the send queue.

use std::time::Instant;

use secure_rdma_rdma::{QpState, SendOperation, WcStatus};
use secure_rdma_roce::{NakCode, Opcode, Packet, RnrTimer, Syndrome};

use super::defects::Defect;
use super::local;
use super::queue_pair::{QueuePair, Shared};

impl QueuePair {
    /// Takes a response.
    pub(super) fn handle_response(&mut self, shared: &mut Shared, now: Instant, packet: &Packet<'_>) {
        let requester = &self.requester;
        let count = requester.sequence.count(packet.psn(), requester.oldest);
        // IBTA 9.7.5.1.1: what lies outside the outstanding PSNs is late, or forged. rxe takes everything ahead.
        let ahead = shared.config.planted(Defect::AckAheadAccepted)
            && packet.opcode() == Opcode::Acknowledge
            && requester.oldest < requester.newest;
        let count = count.map(|count| if ahead { count.min(requester.newest - 1) } else { count });
        let Some(count) = count.filter(|count| (requester.oldest..requester.newest).contains(count)) else {
            shared.counters.dropped_response_psn += 1;
            return;
        };
        let opcode = packet.opcode();
        if opcode == Opcode::Acknowledge {
            return self.handle_acknowledge(shared, now, packet, count);
        }
        // The kind of response must be that of the request with its PSN.
        let works = &requester.works;
        let index = works.partition_point(|work| work.end() <= count);
        let fits = works.get(index).is_some_and(|work| match opcode {
            Opcode::AtomicAcknowledge => work.is_atomic(),
            _ => work.is_read(),
        });
        // READ responses with AETH that is no ACK have no meaning.
        let acknowledges = packet.aeth().is_none_or(|aeth| matches!(aeth.syndrome, Syndrome::Ack(_)));
        if !fits || !acknowledges {
            shared.counters.dropped_response_kind += 1;
            return;
        }
        // It acknowledges everything before it; if it is not the next, a response before it is missing.
        if self.acknowledge_before(shared, now, count) {
            return self.implied_nak(shared);
        }
        if opcode == Opcode::AtomicAcknowledge {
            self.handle_atomic(shared, now, packet);
        } else {
            self.handle_read_response(shared, now, packet, count);
        }
    }

    fn handle_acknowledge(&mut self, shared: &mut Shared, now: Instant, packet: &Packet<'_>, count: u64) {
        let Some(aeth) = packet.aeth() else { return };
        match aeth.syndrome {
            Syndrome::Reserved(_) if !shared.config.planted(Defect::ReservedSyndromeAccepted) => {
                shared.counters.dropped_syndrome += 1;
            }
            Syndrome::Ack(_) | Syndrome::Reserved(_) => {
                if self.acknowledge_before(shared, now, count.saturating_add(1)) {
                    self.implied_nak(shared);
                }
            }
            Syndrome::RnrNak(timer) => {
                shared.counters.rcvd_rnr_err += 1;
                if self.acknowledge_before(shared, now, count) {
                    self.implied_nak(shared);
                } else {
                    self.handle_rnr(shared, now, timer);
                }
            }
            Syndrome::Nak(NakCode::PsnSequenceError) => {
                shared.counters.rcvd_seq_err += 1;
                self.acknowledge_before(shared, now, count);
                self.go_back_once(shared);
            }
            Syndrome::Nak(code) => {
                let (counter, status) = match code {
                    NakCode::InvalidRequest => {
                        (&mut shared.counters.rcvd_invalid_request, WcStatus::REM_INV_REQ_ERR)
                    }
                    NakCode::RemoteAccessError => {
                        (&mut shared.counters.rcvd_access_err, WcStatus::REM_ACCESS_ERR)
                    }
                    // Reserved codes, and that of reliable datagrams, mean no less than that the peer has failed (rxe
                    // says the same, `rxe_comp.c`, `check_ack`).
                    _ => (&mut shared.counters.rcvd_operational_err, WcStatus::REM_OP_ERR),
                };
                *counter += 1;
                let status = if shared.config.planted(Defect::WrongStatus) {
                    WcStatus::REM_INV_REQ_ERR
                } else {
                    status
                };
                self.acknowledge_before(shared, now, count);
                self.fail_first(shared, status);
            }
        }
    }

    /// Completes everything before `count`, up to a READ or an atomic that has not been answered. Tells whether there is
    /// such a one.
    fn acknowledge_before(&mut self, shared: &mut Shared, now: Instant, count: u64) -> bool {
        let before = self.requester.oldest;
        let mut unanswered = false;
        while let Some(work) = self.requester.works.front() {
            // A bind between what was sent: the next response is of the request behind it.
            if work.is_local() && work.done {
                self.complete_first(shared);
                continue;
            }
            if self.requester.oldest >= count || work.is_local() {
                break;
            }
            // An answer without bytes has nothing that an acknowledgement of what is behind it has not.
            if work.is_answered() && !work.asks_for_nothing() {
                unanswered = true;
                break;
            }
            let end = work.end();
            self.advance(shared, end.min(count));
            if end <= count {
                self.complete_first(shared);
            }
        }
        let acknowledged = self.requester.oldest - before;
        if acknowledged > 0 {
            self.requester.window.on_acknowledged(acknowledged);
            let before = self.requester.clock.progress;
            self.requester.progressed(now);
            if shared.config.planted(Defect::RetriesNotReset) {
                self.requester.clock.progress = before;
            }
        }
        unanswered
    }

    /// Moves the oldest unacknowledged PSN on within the first work.
    fn advance(&mut self, shared: &mut Shared, to: u64) {
        let (requester, Some(flows)) = (&mut self.requester, &self.flows) else { return };
        let Some(work) = requester.works.front() else { return };
        let charged = to.min(requester.charged_to);
        if requester.oldest < charged && requester.charged != (0, 0) {
            let (from, until) = (requester.oldest - work.first, charged - work.first);
            let charge = requester.charge(work, until - from, work.bytes(from, until, flows.mtu));
            let charge = match (work.is_read(), work.is_atomic()) {
                (true, _) => (0, charge),
                (_, true) => (requester.charge(work, 1, 0), 0),
                _ => (charge, 0),
            };
            requester.release(shared, flows, charge);
        }
        requester.oldest = to;
        requester.charged_to = requester.charged_to.max(to);
        if requester.next < to {
            // Between a READ that went again with its key and the one without, it may be the answer to that.
            if requester.named != Some(requester.next) {
                requester.window.on_late_answer();
            }
            let within = to - requester.works.front().map_or(to, |work| work.first);
            requester.next = to;
            requester.cursor = (0, u32::try_from(within).unwrap_or(u32::MAX));
        }
        while requester.reads.front().is_some_and(|(_, end)| *end <= to) {
            requester.reads.pop_front();
        }
    }

    /// Ends the first work with success.
    pub(super) fn complete_first(&mut self, shared: &mut Shared) {
        let Some(work) = self.requester.works.pop_front() else { return };
        let (index, packet) = self.requester.cursor;
        self.requester.cursor = if index > 0 { (index - 1, packet) } else { (0, 0) };
        let counters = &mut shared.counters;
        let byte_len = if work.is_answered() { work.length } else { 0 };
        match work.request.operation {
            SendOperation::Send { .. } | SendOperation::SendInvalidate { .. } => counters.rdma_sends += 1,
            SendOperation::Write { .. } => counters.rdma_writes += 1,
            SendOperation::Read { .. } => counters.rdma_reads += 1,
            SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. } => counters.rdma_atomics += 1,
            SendOperation::Bind { window, target, .. } => {
                shared.retired.window(window);
                shared.retired.slices(smallvec::smallvec![target]);
            }
            SendOperation::Invalidate { .. } => {}
        }
        self.complete_send(shared, work.request.id, work.request.local, WcStatus::SUCCESS, byte_len);
    }

    /// Ends the first work with an error, and everything after it.
    pub(super) fn fail_first(&mut self, shared: &mut Shared, status: WcStatus) {
        if let Some(work) = self.requester.works.pop_front() {
            self.flush_work(shared, work, status);
        }
        self.responder.answers.clear();
        self.move_to_error(shared);
    }

    /// A response shows that an earlier one is missing (IBTA 9.7.5.1.3).
    fn implied_nak(&mut self, shared: &mut Shared) {
        shared.counters.implied_nak += 1;
        self.go_back_once(shared);
    }

    /// Goes back because of a NAK, unless that was done already for the same loss: rxe too has one retry at a time.
    fn go_back_once(&mut self, shared: &mut Shared) {
        let requester = &mut self.requester;
        // While the peer has asked to wait, what comes behind the refused request means nothing.
        if requester.clock.rnr_until.is_some() || requester.went_back == Some(requester.oldest) {
            return;
        }
        requester.went_back = Some(requester.oldest);
        requester.window.on_loss(requester.oldest, requester.newest);
        requester.go_back(shared);
    }

    fn handle_rnr(&mut self, shared: &mut Shared, now: Instant, timer: RnrTimer) {
        const FOR_EVER: u8 = 7;
        let (requester, Some(flows)) = (&mut self.requester, &self.flows) else { return };
        if requester.clock.rnr_until.is_some() {
            return;
        }
        requester.clock.rnr_naks = requester.clock.rnr_naks.saturating_add(1);
        let limit = requester.limits.rnr_retry;
        if limit < FOR_EVER && requester.clock.rnr_naks > u32::from(limit) {
            shared.counters.retry_rnr_exceeded_err += 1;
            return self.fail_first(shared, WcStatus::RNR_RETRY_EXC_ERR);
        }
        let ignored = shared.config.planted(Defect::RnrWaitIgnored);
        let wait = if ignored { std::time::Duration::ZERO } else { timer.duration() };
        requester.clock.rnr_until = Some(now.checked_add(wait).unwrap_or(now));
        requester.went_back = None;
        requester.go_back(shared);
        requester.release_all(shared, flows);
    }

    fn handle_atomic(&mut self, shared: &mut Shared, now: Instant, packet: &Packet<'_>) {
        let (Some(result), Some(work)) = (packet.atomic_ack_eth(), self.requester.works.front()) else {
            return;
        };
        // The wire has a big-endian integer, memory one in the host's order.
        if !local::scatter(&work.request.local, 0, &result.original.to_ne_bytes()) {
            return self.fail_first(shared, WcStatus::LOC_PROT_ERR);
        }
        let end = work.end();
        self.advance(shared, end);
        self.complete_first(shared);
        self.requester.window.on_acknowledged(1);
        self.requester.progressed(now);
    }

    /// The response with the oldest PSN of the first work, a READ.
    fn handle_read_response(&mut self, shared: &mut Shared, now: Instant, packet: &Packet<'_>, count: u64) {
        /// The responder answered in a way that the request does not allow (`IBV_WC_BAD_RESP_ERR`).
        const BAD_RESP_ERR: WcStatus = WcStatus(7);
        let (Some(work), Some(flows)) = (self.requester.works.front(), &self.flows) else { return };
        let Some((_, end)) = self.requester.reads.front() else { return };
        let last = count.saturating_add(1) == *end;
        let opcode = packet.opcode();
        if last != (opcode.is_last() || opcode.is_only()) {
            return self.fail_first(shared, BAD_RESP_ERR);
        }
        let index = count - work.first;
        let bytes = packet.payload();
        if bytes.len() as u64 != work.bytes(index, index + 1, flows.mtu) {
            return self.fail_first(shared, WcStatus::LOC_LEN_ERR);
        }
        let offset = usize::try_from(index).ok().and_then(|index| index.checked_mul(flows.mtu));
        if !bytes.is_empty()
            && !offset.is_some_and(|offset| local::scatter(&work.request.local, offset, bytes))
        {
            return self.fail_first(shared, WcStatus::LOC_PROT_ERR);
        }
        shared.counters.rcvd_bytes += bytes.len() as u64;
        let whole = count.saturating_add(1) == work.end();
        self.advance(shared, count.saturating_add(1));
        if whole {
            self.complete_first(shared);
        }
        self.requester.window.on_acknowledged(1);
        self.requester.progressed(now);
    }

    /// A congestion notice from the peer.
    pub(super) fn handle_notice(&mut self, shared: &mut Shared) {
        if !matches!(self.state, QpState::Rts | QpState::Sqd) {
            shared.counters.dropped_cnp += 1;
            return;
        }
        shared.counters.rcvd_cnps += 1;
        let requester = &mut self.requester;
        requester.window.on_loss(requester.oldest, requester.newest);
    }
}
