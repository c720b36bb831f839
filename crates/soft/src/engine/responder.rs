//! The responder: what a request of the peer does.
//!
//! The order of the checks decides which NAK the peer sees. It is that of the kernel's rxe (`rxe_resp.c`:
//! `check_psn`, `check_op_seq`, `check_op_valid`, `check_resource`, `check_length`, `check_rkey`, execute, complete,
//! acknowledge), which follows IBTA 9.7.4.

use std::time::{Duration, Instant};

use secure_rdma_rdma::{Access, AsyncEvent, CompletionKind, QpAttr, RKey, WcStatus};
use secure_rdma_roce::{NakCode, Opcode, Packet, PayloadRule, Reth, RnrTimer, Syndrome, bth::pad_count_for};

use super::acknowledge::Answers;
use super::local::{self, MAX_MESSAGE};
use super::queue_pair::{QueuePair, Shared, received};
use super::receive_queue::PostedReceive;
use super::regions::Refusal;
use super::resources::{Kind, Read, Resource, Resources};
use super::sequence::Sequence;

/// The responder's half of a queue pair. PSNs are counts (see [`Sequence`]).
#[derive(Default)]
pub(super) struct Responder {
    pub(super) sequence: Sequence,
    /// The PSN that the next request must have.
    pub(super) expected: u64,
    /// Messages completed, modulo 2^24 on the wire.
    pub(super) msn: u32,
    message: Message,
    /// The receive into which a message is coming.
    pub(super) receive: Option<PostedReceive>,
    /// The newest PSN that an ACK may name: that of a SEND, WRITE or atomic. An ACK that names a READ would stand for
    /// responses that may never have arrived.
    pub(super) acknowledgeable: Option<u64>,
    pub(super) resources: Resources,
    pub(super) answers: Answers,
    min_rnr_timer: u8,
    /// An RNR NAK was sent: what comes behind the refused request is dropped until that returns.
    not_ready: bool,
    /// A NAK was sent for the packets that are missing: one per gap.
    gap_reported: bool,
    rate: NakRate,
}

/// A message of which more packets are to come.
#[derive(Clone, Copy, Default)]
enum Message {
    #[default]
    None,
    /// A SEND, of which so many bytes have come.
    Send { placed: u32 },
    /// A WRITE: what its RETH said, less what has come.
    Write { address: u64, rkey: RKey, left: u32, total: u32 },
}

/// How many NAKs were sent within this second.
#[derive(Default)]
struct NakRate {
    since: Option<Instant>,
    sent: u32,
}

impl NakRate {
    fn allows(&mut self, now: Instant, most: u32) -> bool {
        let over = |since: Instant| now.saturating_duration_since(since) >= Duration::from_secs(1);
        if self.since.is_none_or(over) {
            (self.since, self.sent) = (Some(now), 0);
        }
        self.sent = self.sent.saturating_add(1);
        self.sent <= most
    }
}

/// A fatal refusal: the peer gets a NAK, and both queue pairs go to ERR.
pub(super) struct Refused {
    count: u64,
    code: NakCode,
    /// How a receive that was taken for the message ends.
    status: WcStatus,
    why: Option<Refusal>,
}

impl Refused {
    fn invalid(count: u64) -> Self {
        Self { count, code: NakCode::InvalidRequest, status: WcStatus::WR_FLUSH_ERR, why: None }
    }

    pub(super) fn access(count: u64, why: Refusal) -> Self {
        let code = NakCode::RemoteAccessError;
        Self { count, code, status: WcStatus::WR_FLUSH_ERR, why: Some(why) }
    }

    pub(super) fn operational(count: u64) -> Self {
        Self { code: NakCode::RemoteOperationalError, ..Self::invalid(count) }
    }
}

/// What to do with a request that was in sequence.
enum Outcome {
    /// It is done.
    Done,
    /// No receive is posted for it.
    NotReady,
    /// As if it had been lost.
    Dropped,
}

impl Responder {
    /// Takes what a transition sets.
    pub(super) fn set(&mut self, attr: &QpAttr) {
        if let Some(psn) = attr.rq_psn {
            self.sequence = Sequence::new(psn);
        }
        self.min_rnr_timer = attr.min_rnr_timer.unwrap_or(self.min_rnr_timer);
        if let Some(depth) = attr.max_dest_rd_atomic {
            self.resources.set_depth(depth);
        }
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.answers.memory() + self.resources.memory()
    }

    /// Whether a short answer waits to be sent.
    pub(super) fn answers_soon(&self) -> bool {
        !self.answers.is_empty() && !self.answers.begins_with_resource()
    }

    /// Whether READ responses or an atomic's result wait to be sent.
    pub(super) fn answers_reads(&self) -> bool {
        self.answers.begins_with_resource()
    }
}

impl QueuePair {
    /// Takes a request.
    pub(super) fn handle_request(&mut self, shared: &mut Shared, now: Instant, packet: &Packet<'_>) {
        let expected = self.responder.expected;
        // 1. The PSN.
        let count = self.responder.sequence.count(packet.psn(), expected);
        match count {
            Some(count) if count > expected => return self.out_of_sequence(shared, now),
            Some(count) if count == expected => {}
            count => return self.handle_duplicate(shared, packet, count),
        }
        self.responder.gap_reported = false;
        self.responder.not_ready = false;

        match self.handle_expected(shared, packet, expected) {
            Ok(Outcome::Done) => {
                // 9. Acknowledge. READs and atomics have put their answer in the line already.
                let opcode = packet.opcode();
                if packet.bth().ack_request && (opcode.is_send() || opcode.is_write()) {
                    let responder = &mut self.responder;
                    if responder.answers.acknowledge(expected, responder.msn) {
                        shared.counters.ack_deferred += 1;
                    }
                }
            }
            Ok(Outcome::NotReady) => {
                let responder = &mut self.responder;
                responder.not_ready = true;
                let timer = RnrTimer::from_code(responder.min_rnr_timer);
                responder.answers.refuse(expected, Syndrome::RnrNak(timer), responder.msn);
            }
            Ok(Outcome::Dropped) => {}
            Err(refused) => self.refuse(shared, &refused),
        }
    }

    /// A request before which something is missing (IBTA 9.7.5.1.1): one NAK per gap, and not too many a second, since
    /// anybody can forge what looks like one.
    fn out_of_sequence(&mut self, shared: &mut Shared, now: Instant) {
        let responder = &mut self.responder;
        shared.counters.out_of_seq_request += 1;
        if responder.not_ready {
            shared.counters.dropped_rnr_wait += 1;
        } else if responder.gap_reported {
            shared.counters.dropped_out_of_seq += 1;
        } else if !responder.rate.allows(now, shared.config.max_nak_rate) {
            shared.counters.limited_seq_err += 1;
        } else {
            responder.gap_reported = true;
            let syndrome = Syndrome::Nak(NakCode::PsnSequenceError);
            responder.answers.refuse(responder.expected, syndrome, responder.msn);
        }
    }

    /// The request with the expected PSN.
    fn handle_expected(
        &mut self,
        shared: &mut Shared,
        packet: &Packet<'_>,
        count: u64,
    ) -> Result<Outcome, Refused> {
        let opcode = packet.opcode();
        // 2. The order of the opcodes.
        if !follows(self.responder.message, opcode) {
            return Err(Refused::invalid(count));
        }
        // 3. What the queue pair grants at all. IBTA 9.7.4.1.5, and rxe: 0x61, not 0x62.
        if !self.access.contains(right(opcode)) {
            shared.counters.refused_rights += 1;
            return Err(Refused::invalid(count));
        }
        // 4. Resources.
        let begins = opcode.is_first() || opcode.is_only();
        let is_read_or_atomic = opcode == Opcode::ReadRequest || opcode.is_atomic();
        if is_read_or_atomic && self.responder.resources.is_none() {
            return Err(Refused::invalid(count));
        }
        if is_read_or_atomic && !self.responder.resources.has_room() {
            return Ok(Outcome::Dropped);
        }
        let takes = (opcode.is_send() && begins) || (opcode.is_write() && opcode.has_immediate());
        if takes && self.responder.receive.is_none() {
            self.responder.receive = self.take_receive(shared);
            if self.responder.receive.is_none() {
                return Ok(Outcome::NotReady);
            }
        }
        // 5. Lengths.
        let mtu = self.flows.as_ref().map_or(0, |flows| flows.mtu);
        self.check_length(packet, count, mtu)?;
        // 6. to 8. Key, execution, completion.
        if opcode.is_send() {
            self.execute_send(shared, packet, count)?;
        } else if opcode.is_write() {
            self.execute_write(shared, packet, count, mtu)?;
        } else if opcode == Opcode::ReadRequest {
            self.execute_read(shared, packet, count, mtu)?;
        } else {
            self.execute_atomic(shared, packet, count)?;
        }
        Ok(Outcome::Done)
    }

    /// Payload, padding and DMA length, as far as the opcode and the path MTU decide (IBTA 9.7.4.1.6).
    fn check_length(&self, packet: &Packet<'_>, count: u64, mtu: usize) -> Result<(), Refused> {
        let length = packet.payload().len();
        let fits = match packet.opcode().payload_rule() {
            PayloadRule::PathMtu => length == mtu,
            PayloadRule::NotEmpty => (1..=mtu).contains(&length),
            PayloadRule::Any => length <= mtu,
            PayloadRule::None => length == 0,
            PayloadRule::Eight => length == 8,
        };
        let dma_length = packet.reth().map_or(0, |reth| reth.dma_length);
        let padded = packet.bth().pad_count == pad_count_for(length);
        if fits && padded && dma_length <= MAX_MESSAGE { Ok(()) } else { Err(Refused::invalid(count)) }
    }

    fn execute_send(&mut self, shared: &mut Shared, packet: &Packet<'_>, count: u64) -> Result<(), Refused> {
        let opcode = packet.opcode();
        let payload = packet.payload();
        let placed = match self.responder.message {
            Message::Send { placed } => placed,
            _ => 0,
        };
        let Some(receive) = &self.responder.receive else { return Err(Refused::operational(count)) };
        let after = u32::try_from(payload.len()).ok().and_then(|length| placed.checked_add(length));
        let Some(after) = after.filter(|after| *after <= receive.length) else {
            // IBTA 9.7.4.1.7: longer than the receive. (rxe answers 0x63.)
            return Err(Refused { status: WcStatus::LOC_LEN_ERR, ..Refused::invalid(count) });
        };
        let fits = payload.is_empty()
            || (receive.writable && local::scatter(&receive.local, placed as usize, payload));
        if !fits {
            return Err(Refused { status: WcStatus::LOC_PROT_ERR, ..Refused::operational(count) });
        }
        let invalidated = packet.invalidate_key().map(|key| RKey::new(key.expose()));
        if let Some(rkey) = invalidated {
            // Only a window bound to this queue pair can be ended by its peer (IBTA 9.7.4.1.8).
            shared.regions.invalidate(self.qpn, rkey).map_err(|why| Refused::access(count, why))?;
            shared.counters.invalidates += 1;
        }
        shared.counters.rcvd_bytes += payload.len() as u64;
        self.accept(count, 1);
        self.responder.acknowledgeable = Some(count);
        if opcode.is_first() || opcode.is_middle() {
            self.responder.message = Message::Send { placed: after };
            return Ok(());
        }
        self.end_message();
        shared.counters.rdma_recvs += 1;
        let immediate = packet.immediate().map(|immediate| immediate.value);
        self.deliver(shared, CompletionKind::Receive, after, immediate, invalidated);
        Ok(())
    }

    fn execute_write(
        &mut self,
        shared: &mut Shared,
        packet: &Packet<'_>,
        count: u64,
        mtu: usize,
    ) -> Result<(), Refused> {
        let opcode = packet.opcode();
        let payload = packet.payload();
        let (address, rkey, left, total) = match (packet.reth(), self.responder.message) {
            (Some(Reth { virtual_address, rkey, dma_length }), _) => {
                (virtual_address, RKey::new(rkey.expose()), dma_length, dma_length)
            }
            (None, Message::Write { address, rkey, left, total }) => (address, rkey, left, total),
            (None, _) => return Err(Refused::invalid(count)),
        };
        // All that is still to come is judged, so that the first packet meets a range that is too long. A message of 0
        // bytes may have any key and address (IBTA 9.7.4.1.4).
        if left > 0 {
            let remote =
                shared.regions.remote(self.qpn, rkey, address, u64::from(left), Access::REMOTE_WRITE);
            let (memory, offset) = remote.map_err(|why| Refused::access(count, why))?;
            // More than a packet is left: a whole path MTU. Otherwise exactly what is left.
            if payload.len() != mtu.min(left as usize)
                || (opcode.is_first() || opcode.is_middle()) != (left as usize > mtu)
            {
                return Err(Refused::invalid(count));
            }
            memory.write(offset, payload).map_err(|_| Refused::operational(count))?;
        } else if !payload.is_empty() || !opcode.is_only() {
            return Err(Refused::invalid(count));
        }
        shared.counters.rcvd_bytes += payload.len() as u64;
        self.accept(count, 1);
        self.responder.acknowledgeable = Some(count);
        if opcode.is_first() || opcode.is_middle() {
            let length = payload.len();
            let left = left.saturating_sub(u32::try_from(length).unwrap_or(u32::MAX));
            let address = address.wrapping_add(length as u64);
            self.responder.message = Message::Write { address, rkey, left, total };
            return Ok(());
        }
        self.end_message();
        if let Some(immediate) = packet.immediate() {
            let kind = CompletionKind::ReceiveWriteImmediate;
            self.deliver(shared, kind, total, Some(immediate.value), None);
        }
        Ok(())
    }

    fn execute_read(
        &mut self,
        shared: &mut Shared,
        packet: &Packet<'_>,
        count: u64,
        mtu: usize,
    ) -> Result<(), Refused> {
        let Some(reth) = packet.reth() else { return Err(Refused::invalid(count)) };
        let rkey = RKey::new(reth.rkey.expose());
        let (address, length) = (reth.virtual_address, reth.dma_length);
        if length > 0 {
            shared
                .regions
                .remote(self.qpn, rkey, address, u64::from(length), Access::REMOTE_READ)
                .map_err(|why| Refused::access(count, why))?;
        }
        let packets = u64::from(length).div_ceil(mtu.max(1) as u64).max(1);
        self.accept(count, packets);
        self.end_message();
        let end = count.saturating_add(packets);
        let read = Read { address, rkey, length, start: count, next: count, until: end };
        let responder = &mut self.responder;
        let kind = Kind::Read(read);
        let resource = Resource { first: count, end, msn: responder.msn, kind, pending: true };
        let id = responder.resources.push(resource);
        responder.answers.resource(id, count);
        shared.counters.responded_reads += 1;
        Ok(())
    }

    fn execute_atomic(
        &mut self,
        shared: &mut Shared,
        packet: &Packet<'_>,
        count: u64,
    ) -> Result<(), Refused> {
        let Some(request) = packet.atomic_eth() else { return Err(Refused::invalid(count)) };
        let rkey = RKey::new(request.rkey.expose());
        let remote = shared.regions.remote(self.qpn, rkey, request.virtual_address, 8, Access::REMOTE_ATOMIC);
        let (memory, offset) = remote.map_err(|why| Refused::access(count, why))?;
        // IBTA 9.4.5: 8 aligned bytes. Judged after the key, as by rxe.
        if request.virtual_address % 8 != 0 {
            return Err(Refused::invalid(count));
        }
        let result = if packet.opcode() == Opcode::CompareSwap {
            memory.compare_swap(offset, request.compare, request.swap_or_add)
        } else {
            memory.fetch_add(offset, request.swap_or_add)
        };
        // A window may begin at an odd place of its region, where no atomic instruction reaches.
        let original = result.map_err(|_| Refused::invalid(count))?;
        self.accept(count, 1);
        self.end_message();
        let responder = &mut self.responder;
        responder.acknowledgeable = Some(count);
        let kind = Kind::Atomic { original };
        let end = count.saturating_add(1);
        let resource = Resource { first: count, end, msn: responder.msn, kind, pending: true };
        let id = responder.resources.push(resource);
        responder.answers.resource(id, count);
        shared.counters.responded_atomics += 1;
        Ok(())
    }

    /// The request is executed: the next PSN is expected.
    fn accept(&mut self, count: u64, packets: u64) {
        self.responder.expected = count.saturating_add(packets);
    }

    fn end_message(&mut self) {
        self.responder.message = Message::None;
        self.responder.msn = self.responder.msn.wrapping_add(1) & 0x00FF_FFFF;
    }

    fn deliver(
        &mut self,
        shared: &mut Shared,
        kind: CompletionKind,
        length: u32,
        immediate: Option<u32>,
        invalidated: Option<RKey>,
    ) {
        if let Some(receive) = self.responder.receive.take() {
            self.complete_receive(shared, receive, received(kind, length, immediate, invalidated));
        }
    }

    /// A request that was executed before (IBTA 9.7.5.1.4).
    fn handle_duplicate(&mut self, shared: &mut Shared, packet: &Packet<'_>, count: Option<u64>) {
        shared.counters.duplicate_request += 1;
        let opcode = packet.opcode();
        let responder = &mut self.responder;
        if opcode.is_send() || opcode.is_write() {
            // One ACK for the newest that can be acknowledged, whichever it is a duplicate of.
            if let Some(newest) = responder.acknowledgeable.filter(|_| count.is_some()) {
                responder.answers.acknowledge(newest, responder.msn);
                shared.counters.replayed_acks += 1;
                return;
            }
        } else if let Some(count) = count
            && self.replay(shared, packet, count)
        {
            return;
        }
        shared.counters.dropped_duplicate += 1;
    }

    /// Answers a READ or an atomic again from the resource table. Tells whether that holds it.
    fn replay(&mut self, shared: &mut Shared, packet: &Packet<'_>, count: u64) -> bool {
        let mtu = self.flows.as_ref().map_or(0, |flows| flows.mtu) as u64;
        let Some((id, resource)) = self.responder.resources.find(count) else { return false };
        let first = resource.first;
        match &mut resource.kind {
            Kind::Atomic { .. } if packet.opcode().is_atomic() => shared.counters.replayed_atomics += 1,
            Kind::Read(read) if packet.opcode() == Opcode::ReadRequest => {
                // Within what was asked for, from the start of a response on.
                let Some(reth) = packet.reth() else { return false };
                let skipped = (count - first).saturating_mul(mtu);
                let packets = u64::from(reth.dma_length).div_ceil(mtu.max(1)).max(1);
                let until = count.saturating_add(packets);
                let inside = reth.rkey.expose() == read.rkey.expose()
                    && reth.virtual_address == read.address.wrapping_add(skipped)
                    && skipped.saturating_add(u64::from(reth.dma_length)) <= u64::from(read.length)
                    && until <= resource.end;
                if !inside {
                    return false;
                }
                shared.counters.replayed_reads += 1;
                if resource.pending && count >= read.next && until <= read.until {
                    return true;
                }
                (read.start, read.next, read.until) = (count, count, until);
            }
            _ => return false,
        }
        if !std::mem::replace(&mut resource.pending, true) {
            self.responder.answers.resource(id, first);
        }
        true
    }

    /// Refuses for good: a NAK, and ERR.
    pub(super) fn refuse(&mut self, shared: &mut Shared, refused: &Refused) {
        let counters = &mut shared.counters;
        match refused.why {
            Some(Refusal::UnknownKey) => counters.refused_unknown_key += 1,
            Some(Refusal::OtherQueuePair) => counters.refused_other_qp += 1,
            Some(Refusal::Rights) => counters.refused_rights += 1,
            Some(Refusal::Bounds) => counters.refused_bounds += 1,
            None => {}
        }
        let responder = &mut self.responder;
        responder.answers.refuse(refused.count, Syndrome::Nak(refused.code), responder.msn);
        let told = refused.status != WcStatus::WR_FLUSH_ERR && responder.receive.is_some();
        if let Some(receive) = responder.receive.take() {
            self.fail_receive(shared, receive, refused.status);
        }
        if !told {
            // No completion says why.
            shared.events.push_back((self.qpn, AsyncEvent::QueuePairFatal));
        }
        self.move_to_error(shared);
    }
}

/// Whether a request may come next (IBTA 9.7.4.1.2).
fn follows(message: Message, opcode: Opcode) -> bool {
    let goes_on = opcode.is_middle() || opcode.is_last();
    match message {
        Message::None => !goes_on,
        Message::Send { .. } => opcode.is_send() && goes_on,
        Message::Write { .. } => opcode.is_write() && goes_on,
    }
}

/// What the queue pair must grant.
fn right(opcode: Opcode) -> Access {
    if opcode.is_write() {
        Access::REMOTE_WRITE
    } else if opcode == Opcode::ReadRequest {
        Access::REMOTE_READ
    } else if opcode.is_atomic() {
        Access::REMOTE_ATOMIC
    } else {
        Access::empty()
    }
}
