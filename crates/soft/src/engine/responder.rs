//! The responder: what a request of the peer does.
//!
//! The order of the checks decides which NAK the peer sees. It is that of the kernel's rxe (`rxe_resp.c`:
//! `check_psn`, `check_op_seq`, `check_op_valid`, `check_resource`, `check_length`, `check_rkey`, execute, complete,
//! acknowledge), which follows IBTA 9.7.4.

use std::time::{Duration, Instant};

use secure_rdma_rdma::{Access, AsyncEvent, QpAttr, RKey, WcStatus};
use secure_rdma_roce::{NakCode, Opcode, Packet, PayloadRule, RnrTimer, Syndrome, bth::pad_count_for};

use super::acknowledge::Answers;
use super::defects::Defect;
use super::local::MAX_MESSAGE;
use super::queue_pair::{QueuePair, Shared};
use super::receive_queue::PostedReceive;
use super::regions::Refusal;
use super::resources::Resources;
use super::sequence::Sequence;

/// The responder's half of a queue pair. PSNs are counts (see [`Sequence`]).
#[derive(Default)]
pub(super) struct Responder {
    pub(super) sequence: Sequence,
    /// The PSN that the next request must have.
    pub(super) expected: u64,
    /// Messages completed, modulo 2^24 on the wire.
    pub(super) msn: u32,
    pub(super) message: Message,
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
    /// Packets behind a gap that is to be reported when all that has come was handled.
    behind_gap: u32,
    /// The PSN of the last such NAK.
    last_gap: Option<u64>,
    /// When the last request came.
    heard: Option<Instant>,
    rate: NakRate,
}

/// A message of which more packets are to come.
#[derive(Clone, Copy, Default)]
pub(super) enum Message {
    #[default]
    None,
    /// A SEND, of which so many bytes have come.
    Send { placed: u32 },
    /// A WRITE: what its RETH said, less what has come.
    Write { address: u64, rkey: RKey, left: u32, total: u32 },
}

/// How long after a request an overflow of the receive buffer may have taken what came behind it.
const LATELY: Duration = Duration::from_millis(10);

/// Packets behind a gap after which it is reported although more have come: as many as rxe has under way.
const MOST_BEHIND: u32 = 128;

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
    pub(super) fn invalid(count: u64) -> Self {
        Self { count, code: NakCode::InvalidRequest, status: WcStatus::WR_FLUSH_ERR, why: None }
    }

    pub(super) fn access(count: u64, why: Refusal) -> Self {
        let code = NakCode::RemoteAccessError;
        Self { count, code, status: WcStatus::WR_FLUSH_ERR, why: Some(why) }
    }

    pub(super) fn operational(count: u64) -> Self {
        Self { code: NakCode::RemoteOperationalError, ..Self::invalid(count) }
    }

    /// The same, where the own receive is at fault.
    pub(super) fn ending_receive(self, status: WcStatus) -> Self {
        Self { status, ..self }
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
        !self.answers.is_empty() && !self.answers.begins_with_resource() && !self.answers.are_held()
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
        self.responder.heard = Some(now);
        // 1. The PSN.
        let count = self.responder.sequence.count(packet.psn(), expected);
        match count {
            Some(count) if count > expected => return self.out_of_sequence(shared, now),
            Some(_) if shared.config.planted(Defect::PsnWrapIgnored) && self.looks_old(packet) => {
                return self.handle_duplicate(shared, packet, count);
            }
            Some(count) if count == expected => {}
            count => return self.handle_duplicate(shared, packet, count),
        }
        self.responder.gap_reported = false;
        self.responder.behind_gap = 0;
        self.responder.not_ready = false;

        match self.handle_expected(shared, packet, expected) {
            Ok(Outcome::Done) => {
                // 9. Acknowledge. READs and atomics have put their answer in the line already.
                let opcode = packet.opcode();
                if packet.ack_request() && (opcode.is_send() || opcode.is_write()) {
                    let responder = &mut self.responder;
                    #[cfg(feature = "defects")]
                    if shared.config.planted(Defect::AckOvertakesRead) {
                        responder.answers.overtake(expected, responder.msn);
                    }
                    if responder.answers.acknowledge(expected, responder.msn, opcode.is_only()) {
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

    /// Whether a request's PSN is the smaller number: what a planted defect goes by.
    fn looks_old(&self, packet: &Packet<'_>) -> bool {
        packet.psn().expose() < self.responder.sequence.psn(self.responder.expected).minus(1).expose()
    }

    /// A request before which something is missing (IBTA 9.7.5.1.1): one NAK per gap, and not too many a second, since
    /// anybody can forge what looks like one.
    fn out_of_sequence(&mut self, shared: &mut Shared, now: Instant) {
        shared.counters.out_of_seq_request += 1;
        let unpaced = self.is_unpaced();
        let responder = &mut self.responder;
        if responder.not_ready {
            shared.counters.dropped_rnr_wait += 1;
        } else if responder.gap_reported {
            shared.counters.dropped_out_of_seq += 1;
        } else if unpaced && shared.backlog && responder.behind_gap < MOST_BEHIND {
            if responder.behind_gap == 0 {
                shared.gaps.push(self.qpn);
            }
            responder.behind_gap += 1;
            shared.counters.dropped_out_of_seq += 1;
        } else {
            self.report_gap(shared, now);
        }
    }

    /// Asks for the packet that is missing.
    fn report_gap(&mut self, shared: &mut Shared, now: Instant) {
        let unpaced = self.is_unpaced();
        let responder = &mut self.responder;
        responder.behind_gap = 0;
        if !responder.rate.allows(now, shared.config.max_nak_rate)
            && !shared.config.planted(Defect::NakLimitIgnored)
        {
            shared.counters.limited_seq_err += 1;
            return;
        }
        // rxe takes no second NAK until an ACK has told it of progress.
        let before = responder.last_gap.replace(responder.expected);
        if unpaced
            && let Some(newest) = responder.acknowledgeable
            && before.is_some_and(|before| newest >= before)
        {
            responder.answers.acknowledge(newest, responder.msn, false);
        }
        responder.gap_reported = !shared.config.planted(Defect::NakPerPacket);
        let syndrome = Syndrome::Nak(NakCode::PsnSequenceError);
        responder.answers.refuse(responder.expected, syndrome, responder.msn);
    }

    /// Everything that has come was handled.
    pub(super) fn end_backlog(&mut self, shared: &mut Shared, now: Instant) {
        if self.responder.behind_gap > 0 {
            self.report_gap(shared, now);
        }
    }

    /// Packets that came were dropped, since the receive buffer was full. The end of what a peer sends in one go is what
    /// such a buffer drops. Nothing comes behind it that would show the gap, and the peer would wait for its timeout, half
    /// a second of rxe's. So where a message was just coming, from a peer that does not know how much there is room
    /// for, its next packet is asked for. A peer that has not sent that yet just sends it. Tells whether it was.
    pub(super) fn note_overflow(&mut self, shared: &mut Shared, now: Instant) -> bool {
        let unpaced = self.is_unpaced();
        let responder = &mut self.responder;
        let lately = responder.heard.is_some_and(|heard| now.saturating_duration_since(heard) <= LATELY);
        let is_coming =
            unpaced && lately && !responder.not_ready && !matches!(responder.message, Message::None);
        if is_coming {
            // What was sent again for an earlier NAK may be among what was dropped.
            responder.gap_reported = false;
            self.report_gap(shared, now);
        }
        is_coming
    }

    /// Whether the peer sends without regard for the own receive buffer, as rxe and NICs do.
    fn is_unpaced(&self) -> bool {
        self.flows.as_ref().is_some_and(|flows| flows.path.receive_buffer.is_none())
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
        if !shared.config.planted(Defect::LengthUnchecked) {
            self.check_length(packet, count, mtu)?;
        }
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
        let padded = packet.pad_count() == pad_count_for(length);
        if fits && padded && dma_length <= MAX_MESSAGE { Ok(()) } else { Err(Refused::invalid(count)) }
    }

    /// Refuses for good: a NAK, and ERR.
    pub(super) fn refuse(&mut self, shared: &mut Shared, refused: &Refused) {
        if let Some(why) = refused.why {
            shared.counters.count_refusal(why);
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
