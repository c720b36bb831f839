//! What a responder must do with each packet, as the brief's §6 says it; written apart from the engine.
//!
//! The model sees every packet that reaches the engine, and every packet that the engine sends. What a request does to
//! memory and to the receive queue is decided by the requests alone, so the model knows it exactly. When answers are
//! sent is up to the engine; what they may say is not.

use std::collections::{HashMap, VecDeque};

use secure_rdma_rdma::Access;
use secure_rdma_roce::{Aeth, NakCode, Opcode, Packet, PayloadRule, Syndrome};

use super::memory::{Piece, Shadows};
use super::network::{MILLISECOND, SECOND, Time};
use super::random::psn;
use super::requests::{Receive, Received};

/// Any status but success will do.
pub const ANY_ERROR: u32 = u32::MAX;

/// What an R_Key opens at a host.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    pub region: usize,
    pub offset: usize,
    pub length: usize,
    pub access: Access,
    /// Of a window: the queue pair that it is bound on.
    pub bound: Option<usize>,
    /// Of a window: which.
    pub window: Option<usize>,
}

/// What of a host a responder works with.
pub struct Hosted<'a> {
    pub shadows: &'a mut Shadows,
    pub openings: &'a mut HashMap<u32, Opening>,
    pub receives: &'a mut VecDeque<Receive>,
    pub endpoint: usize,
}

impl Hosted<'_> {
    /// The bytes that a key opens for a request (§6 step 6).
    fn look_up(&self, rkey: u32, address: u64, length: usize, needed: Access) -> Option<Piece> {
        let opening = self.openings.get(&rkey)?;
        if opening.bound.is_some_and(|bound| bound != self.endpoint) || !opening.access.contains(needed) {
            return None;
        }
        let shadow = &self.shadows.regions[opening.region];
        let first = i128::from(shadow.address) + opening.offset as i128;
        let from = i128::from(address) - first;
        let inside = from >= 0 && from + length as i128 <= opening.length as i128;
        inside.then(|| Piece { region: opening.region, offset: opening.offset + from as usize, length })
    }
}

enum Message {
    None,
    Send { receive: Receive, offset: usize },
    Write { rkey: u32, address: u64, left: usize, total: usize },
}

/// A READ or atomic that was executed.
#[derive(Clone, Copy, Debug)]
struct Served {
    first: u32,
    count: u32,
    answered: u32,
    /// Whether it may be that an answer waits to be sent.
    pending: bool,
    kind: ServedKind,
}

#[derive(Clone, Copy, Debug)]
enum ServedKind {
    Read { rkey: u32, address: u64, length: usize },
    Atomic { original: u64 },
}

/// What a packet did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Executed,
    Duplicate,
    Gap,
    NotReady,
    Refused(u8),
    /// All entries of the resource table had answers to send: as if it had been lost.
    Dropped,
}

/// The model of a queue pair's responder.
pub struct Responder {
    pub expected: u32,
    pub msn: u32,
    pub path_mtu: usize,
    pub access: Access,
    pub resources: usize,
    pub rnr_timer: u8,
    message: Message,
    /// The receive that a WRITE with immediate has taken.
    immediate: Option<Receive>,
    served: VecDeque<Served>,
    /// Expected PSNs for which a NAK 0x60 may be sent, once each.
    gaps: Vec<u32>,
    /// Whether that of the present gap is among them, or was sent.
    gap_open: bool,
    /// RNR NAKs that may be sent, by PSN.
    not_ready: Vec<u32>,
    /// The NAK with which the queue pair ended.
    fatal: Option<(u32, u8)>,
    /// A duplicate of a READ whose key is gone may end the queue pair.
    pub may_fail: bool,
    /// A message was longer than the receive that it met.
    too_long: bool,
    /// With which NAK, and which status of the receive, that ends: rxe has its own.
    pub too_long_answer: (u8, u32),
    newest_msn: u32,
    /// NAKs 0x60 in a second at most, and when the last were sent.
    pub max_nak_rate: u32,
    naks: VecDeque<Time>,
    /// The response sent last: PSN.
    last_response: Option<u32>,
    /// Completions that the engine has to give, in order.
    pub received: VecDeque<Received>,
    pub executed: u64,
}

impl Responder {
    pub fn new(expected: u32, path_mtu: usize, access: Access, resources: u8, rnr_timer: u8) -> Self {
        Self {
            expected,
            msn: 0,
            path_mtu,
            access,
            resources: usize::from(resources),
            rnr_timer,
            message: Message::None,
            immediate: None,
            served: VecDeque::new(),
            gaps: Vec::new(),
            gap_open: false,
            not_ready: Vec::new(),
            fatal: None,
            may_fail: false,
            too_long: false,
            too_long_answer: (0x61, 1),
            newest_msn: 0,
            max_nak_rate: u32::MAX,
            naks: VecDeque::new(),
            last_response: None,
            received: VecDeque::new(),
            executed: 0,
        }
    }

    /// The receive that a SEND in progress has taken.
    pub fn taken(&mut self) -> Option<Receive> {
        match std::mem::replace(&mut self.message, Message::None) {
            Message::Send { receive, .. } => Some(receive),
            _ => self.immediate.take(),
        }
    }

    /// A valid request has arrived. `served` tells whether the engine has counted a READ or an atomic as executed.
    pub fn on_request(&mut self, packet: &Packet<'_>, served: bool, host: &mut Hosted<'_>) -> Outcome {
        let number = packet.psn().expose();
        let distance = psn::minus(number, self.expected);
        if distance > 0 {
            if !self.gap_open {
                self.gap_open = true;
                self.gaps.push(self.expected);
            }
            return Outcome::Gap;
        }
        if distance < 0 {
            self.on_duplicate(packet, host);
            return Outcome::Duplicate;
        }
        self.gap_open = false;
        let outcome = self.execute(packet, served, host);
        match outcome {
            Outcome::Executed => self.executed += 1,
            Outcome::NotReady => self.not_ready.push(number),
            Outcome::Refused(code) => {
                self.fatal = Some((number, code));
                if let Some(receive) = self.taken() {
                    let status = if self.too_long { self.too_long_answer.1 } else { ANY_ERROR };
                    self.complete(host, receive, status, 0, None, None, false);
                }
            }
            Outcome::Duplicate | Outcome::Gap | Outcome::Dropped => {}
        }
        outcome
    }

    #[expect(clippy::too_many_arguments)]
    fn complete(
        &mut self,
        host: &mut Hosted<'_>,
        receive: Receive,
        status: u32,
        byte_len: usize,
        immediate: Option<u32>,
        invalidated: Option<u32>,
        by_write: bool,
    ) {
        host.shadows.finished(&receive.local);
        let byte_len = byte_len as u32;
        self.received.push_back(Received {
            id: receive.id,
            status,
            byte_len,
            immediate,
            invalidated,
            by_write,
        });
    }

    fn on_duplicate(&mut self, packet: &Packet<'_>, host: &Hosted<'_>) {
        let number = packet.psn().expose();
        for served in &mut self.served {
            let index = psn::minus(number, served.first);
            served.pending |= index >= 0 && index < served.count.cast_signed();
        }
        if packet.opcode() == Opcode::ReadRequest
            && let Some(reth) = packet.reth()
            && reth.dma_length > 0
        {
            let length = reth.dma_length as usize;
            let open = host.look_up(reth.rkey.expose(), reth.virtual_address, length, Access::REMOTE_READ);
            self.may_fail |= open.is_none();
        }
    }

    /// §6, steps 2 to 8, for the packet with the expected PSN.
    fn execute(&mut self, packet: &Packet<'_>, counted: bool, host: &mut Hosted<'_>) -> Outcome {
        let opcode = packet.opcode();
        let payload = packet.payload();
        let continues = opcode.is_middle() || opcode.is_last();
        let fits = match &self.message {
            Message::None => !continues,
            Message::Send { .. } => continues && opcode.is_send(),
            Message::Write { .. } => continues && opcode.is_write(),
        };
        if !fits {
            return Outcome::Refused(0x61);
        }
        let needed = match opcode {
            _ if opcode.is_write() => Access::REMOTE_WRITE,
            Opcode::ReadRequest => Access::REMOTE_READ,
            _ if opcode.is_atomic() => Access::REMOTE_ATOMIC,
            _ => Access::empty(),
        };
        if !self.access.contains(needed) {
            return Outcome::Refused(0x61);
        }
        let served = opcode == Opcode::ReadRequest || opcode.is_atomic();
        if served && self.resources == 0 {
            return Outcome::Refused(0x61);
        }
        if served && !counted && self.table_is_full() {
            return Outcome::Dropped;
        }
        let ends = opcode.is_last() || opcode.is_only();
        let takes = opcode.is_send() && !continues || opcode.is_write() && opcode.has_immediate();
        if takes && host.receives.is_empty() {
            return Outcome::NotReady;
        }
        if takes && let Some(receive) = host.receives.pop_front() {
            if opcode.is_send() {
                self.message = Message::Send { receive, offset: 0 };
            } else {
                self.immediate = Some(receive);
            }
        }
        let fits = opcode.payload_rule().allows(payload.len(), self.path_mtu);
        let padded = usize::from(packet.bth().pad_count) == payload.len().wrapping_neg() % 4;
        if !fits || !padded || opcode.payload_rule() == PayloadRule::Eight {
            return Outcome::Refused(0x61);
        }
        if opcode.is_send() {
            return self.send(packet, ends, host);
        }
        if opcode.is_write() {
            return self.write(packet, ends, host);
        }
        if opcode == Opcode::ReadRequest { self.read(packet, host) } else { self.atomic(packet, host) }
    }

    /// Whether the oldest entry of the resource table may have an answer to send.
    fn table_is_full(&self) -> bool {
        let oldest = self.served.len().checked_sub(self.resources).and_then(|at| self.served.get(at));
        oldest.is_some_and(|oldest| oldest.pending)
    }

    /// Whether a READ that may still have to be answered has lost its key.
    pub fn has_lost_key(&self, openings: &HashMap<u32, Opening>) -> bool {
        self.served.iter().any(|served| match served.kind {
            ServedKind::Read { rkey, length, .. } => {
                served.pending && length > 0 && !openings.contains_key(&rkey)
            }
            ServedKind::Atomic { .. } => false,
        })
    }

    fn advance(&mut self, count: u32, ends: bool) -> Outcome {
        self.expected = psn::add(self.expected, count);
        if ends {
            self.msn = psn::add(self.msn, 1);
        }
        Outcome::Executed
    }

    fn send(&mut self, packet: &Packet<'_>, ends: bool, host: &mut Hosted<'_>) -> Outcome {
        let payload = packet.payload();
        let Message::Send { receive, offset } = &mut self.message else { return Outcome::Refused(0x61) };
        if *offset + payload.len() > receive.length {
            self.too_long = true;
            return Outcome::Refused(self.too_long_answer.0);
        }
        // What a receive that ends with an error holds is nobody's business; the engine has placed this.
        host.shadows.scatter(&receive.local, *offset, payload);
        let invalidated = packet.invalidate_key().map(|key| key.expose());
        if let Some(rkey) = invalidated {
            let bound = host.openings.get(&rkey).and_then(|opening| opening.bound);
            if bound != Some(host.endpoint) {
                return Outcome::Refused(0x62);
            }
            host.openings.remove(&rkey);
        }
        *offset += payload.len();
        if ends && let Message::Send { receive, offset } = std::mem::replace(&mut self.message, Message::None)
        {
            let immediate = packet.immediate().map(|immediate| immediate.value);
            self.complete(host, receive, 0, offset, immediate, invalidated, false);
        }
        self.advance(1, ends)
    }

    fn write(&mut self, packet: &Packet<'_>, ends: bool, host: &mut Hosted<'_>) -> Outcome {
        let payload = packet.payload();
        if let Some(reth) = packet.reth() {
            let (rkey, address) = (reth.rkey.expose(), reth.virtual_address);
            let total = reth.dma_length as usize;
            if reth.dma_length > 1 << 31 {
                return Outcome::Refused(0x61);
            }
            self.message = Message::Write { rkey, address, left: total, total };
        }
        let Message::Write { rkey, address, left, total } = &mut self.message else {
            return Outcome::Refused(0x61);
        };
        let found = host.look_up(*rkey, *address, *left, Access::REMOTE_WRITE);
        if *left > 0 && found.is_none() {
            return Outcome::Refused(0x62);
        }
        let due = if ends { *left == payload.len() } else { *left > payload.len() };
        if !due {
            return Outcome::Refused(0x61);
        }
        if let Some(piece) = found.filter(|_| !payload.is_empty()) {
            host.shadows.write(Piece { length: payload.len(), ..piece }, payload);
        }
        *address = address.wrapping_add(payload.len() as u64);
        *left -= payload.len();
        let total = *total;
        if ends {
            self.message = Message::None;
            if let Some(immediate) = packet.immediate()
                && let Some(receive) = self.immediate.take()
            {
                let immediate = Some(immediate.value);
                self.complete(host, receive, 0, total, immediate, None, true);
            }
        }
        self.advance(1, ends)
    }

    fn serve(&mut self, count: u32, kind: ServedKind) -> Outcome {
        self.served.push_back(Served { first: self.expected, count, answered: 0, pending: true, kind });
        // The engine forgets sooner; a late replay of what it still has is checked like any other.
        if self.served.len() > 64 + self.resources {
            self.served.pop_front();
        }
        self.advance(count, true)
    }

    fn read(&mut self, packet: &Packet<'_>, host: &mut Hosted<'_>) -> Outcome {
        let Some(reth) = packet.reth() else { return Outcome::Refused(0x61) };
        let (rkey, address, length) = (reth.rkey.expose(), reth.virtual_address, reth.dma_length as usize);
        if reth.dma_length > 1 << 31 {
            return Outcome::Refused(0x61);
        }
        if length > 0 && host.look_up(rkey, address, length, Access::REMOTE_READ).is_none() {
            return Outcome::Refused(0x62);
        }
        let count = length.div_ceil(self.path_mtu).max(1) as u32;
        self.serve(count, ServedKind::Read { rkey, address, length })
    }

    fn atomic(&mut self, packet: &Packet<'_>, host: &mut Hosted<'_>) -> Outcome {
        let Some(atomic) = packet.atomic_eth() else { return Outcome::Refused(0x61) };
        let found = host.look_up(atomic.rkey.expose(), atomic.virtual_address, 8, Access::REMOTE_ATOMIC);
        let Some(piece) = found else { return Outcome::Refused(0x62) };
        if atomic.virtual_address % 8 != 0 {
            return Outcome::Refused(0x61);
        }
        let bytes = &host.shadows.regions[piece.region].bytes[piece.offset..piece.offset + 8];
        let original = u64::from_ne_bytes(bytes.try_into().unwrap());
        let new = match packet.opcode() {
            Opcode::FetchAdd => original.wrapping_add(atomic.swap_or_add),
            _ if original == atomic.compare => atomic.swap_or_add,
            _ => original,
        };
        host.shadows.write(piece, &new.to_ne_bytes());
        self.serve(1, ServedKind::Atomic { original })
    }

    /// The first READ or atomic whose answer has not wholly been sent.
    fn first_unanswered(&self) -> Option<&Served> {
        self.served.iter().find(|served| served.answered < served.count)
    }

    /// The engine sends a response. An error says which invariant it breaks.
    pub fn on_response_sent(
        &mut self,
        packet: &Packet<'_>,
        shadows: &Shadows,
        openings: &HashMap<u32, Opening>,
        now: Time,
    ) -> Result<(), String> {
        let number = packet.psn().expose();
        if let Some(aeth) = packet.aeth() {
            let again = packet.opcode() != Opcode::Acknowledge && self.is_replay(number);
            self.check_msn(aeth, again)?;
        }
        match packet.opcode() {
            Opcode::Acknowledge => self.on_acknowledge_sent(number, packet.aeth(), openings, now),
            Opcode::AtomicAcknowledge => {
                let value = packet.atomic_ack_eth().map(|ack| ack.original);
                let served = self.answer(number)?;
                let ServedKind::Atomic { original } = served.kind else {
                    return Err("an atomic's answer for a READ".to_owned());
                };
                if value != Some(original) {
                    return Err("an atomic's answer is not what memory held".to_owned());
                }
                Ok(())
            }
            _ => self.on_read_response_sent(packet, number, shadows, openings),
        }
    }

    /// Whether a response with this PSN was sent before.
    fn is_replay(&self, number: u32) -> bool {
        self.served.iter().any(|served| {
            let index = psn::minus(number, served.first);
            index >= 0 && index < served.answered.cast_signed()
        })
    }

    /// The MSN only grows, and tells no more than was executed. An answer that is sent again may carry its first one.
    fn check_msn(&mut self, aeth: Aeth, again: bool) -> Result<(), String> {
        if again && psn::minus(self.msn, aeth.msn) >= 0 {
            return Ok(());
        }
        if psn::minus(aeth.msn, self.newest_msn) < 0 || psn::minus(self.msn, aeth.msn) < 0 {
            let known = (self.newest_msn, self.msn);
            return Err(format!("MSN {} is not between {} and {}", aeth.msn, known.0, known.1));
        }
        self.newest_msn = aeth.msn;
        Ok(())
    }

    fn on_acknowledge_sent(
        &mut self,
        number: u32,
        aeth: Option<Aeth>,
        openings: &HashMap<u32, Opening>,
        now: Time,
    ) -> Result<(), String> {
        let Some(aeth) = aeth else { return Err("an Acknowledge without an AETH".to_owned()) };
        match aeth.syndrome {
            Syndrome::Ack(_) => {
                if psn::minus(number, self.expected) >= 0 {
                    return Err("an ACK of what has not been executed".to_owned());
                }
                if let Some(served) = self.first_unanswered()
                    && psn::minus(number, served.first) >= 0
                {
                    return Err("an ACK overtakes a READ response or an atomic's answer".to_owned());
                }
                Ok(())
            }
            Syndrome::RnrNak(timer) => {
                let Some(at) = self.not_ready.iter().position(|psn| *psn == number) else {
                    return Err("an RNR NAK for a packet that was not refused, or a second one".to_owned());
                };
                self.not_ready.remove(at);
                if timer.code() != self.rnr_timer {
                    return Err(format!("RNR timer {} instead of {}", timer.code(), self.rnr_timer));
                }
                Ok(())
            }
            Syndrome::Nak(NakCode::PsnSequenceError) => {
                let Some(at) = self.gaps.iter().position(|psn| *psn == number) else {
                    return Err("a NAK 0x60 without a gap, or a second one for it".to_owned());
                };
                self.gaps.remove(at);
                self.check_nak_rate(now)
            }
            Syndrome::Nak(code) => {
                let code = 0x60 | code.code();
                match self.fatal.take() {
                    Some(due) if due == (number, code) => Ok(()),
                    _ if code == 0x62 && (self.may_fail || self.has_lost_key(openings)) => Ok(()),
                    due => Err(format!("a NAK {code:#x} where {:?} was due", due.map(|(_, code)| code))),
                }
            }
            Syndrome::Reserved(byte) => Err(format!("a reserved syndrome {byte:#x}")),
        }
    }

    /// A NAK 0x60 is sent. Any second has parts of two of those that the engine counts in; a batch may hold one back a bit.
    fn check_nak_rate(&mut self, now: Time) -> Result<(), String> {
        self.naks.push_back(now);
        if self.naks.len() as u64 <= 2 * u64::from(self.max_nak_rate) {
            return Ok(());
        }
        match self.naks.pop_front() {
            Some(first) if now - first < SECOND - MILLISECOND => {
                Err(format!("more than twice {} NAKs 0x60 within a second", self.max_nak_rate))
            }
            _ => Ok(()),
        }
    }

    /// Notes that the response with this PSN is sent: a new one in the order of the requests, or one again.
    fn answer(&mut self, number: u32) -> Result<Served, String> {
        let mut earlier_answered = true;
        for served in &mut self.served {
            let index = psn::minus(number, served.first);
            if index >= 0 && index < served.count.cast_signed() {
                let index = index.cast_unsigned();
                if index > served.answered || index == served.answered && !earlier_answered {
                    return Err("a response before one that is due earlier".to_owned());
                }
                served.answered = served.answered.max(index + 1);
                served.pending &= index + 1 != served.count;
                return Ok(*served);
            }
            earlier_answered &= served.answered == served.count;
        }
        Err("a response that nobody asked for".to_owned())
    }

    fn on_read_response_sent(
        &mut self,
        packet: &Packet<'_>,
        number: u32,
        shadows: &Shadows,
        openings: &HashMap<u32, Opening>,
    ) -> Result<(), String> {
        let served = self.answer(number)?;
        let ServedKind::Read { rkey, address, length } = served.kind else {
            return Err("a READ response for an atomic".to_owned());
        };
        let index = psn::minus(number, served.first).cast_unsigned();
        let opcode = packet.opcode();
        let ends = index + 1 == served.count;
        let begins = opcode.is_first() || opcode.is_only();
        if !begins && self.last_response != Some(psn::add(number, psn::MASK)) {
            return Err(format!("{} does not follow the response before it", opcode.name()));
        }
        if index == 0 && !begins || ends && !(opcode.is_last() || opcode.is_only()) {
            return Err(format!("{} as response {index} of {}", opcode.name(), served.count));
        }
        self.last_response = Some(number);
        let payload = packet.payload();
        let offset = index as usize * self.path_mtu;
        let due = (length - offset).min(self.path_mtu);
        if payload.len() > due || payload.len() < due && index + 1 == served.answered && !ends {
            return Err(format!("a READ response of {} bytes instead of {due}", payload.len()));
        }
        if payload.is_empty() {
            return Ok(());
        }
        let Some(opening) = openings.get(&rkey) else {
            return Err("a READ response after its key ended".to_owned());
        };
        let region = &shadows.regions[opening.region];
        let start = address.wrapping_sub(region.address) as usize + offset;
        let inside = start >= opening.offset && start + payload.len() <= opening.offset + opening.length;
        if !inside {
            return Err("a READ response from outside of what the key opens".to_owned());
        }
        if region.bytes[start..start + payload.len()] != *payload {
            return Err("a READ response that is not what memory holds".to_owned());
        }
        Ok(())
    }
}
