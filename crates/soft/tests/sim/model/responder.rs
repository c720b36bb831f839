//! The other make's responder.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{Access, Completion, CompletionKind, QpAttr, ReceiveRequest};
use secure_rdma_roce::{
    Aeth, AtomicAckEth, Extension, NakCode, Opcode, Packet, PacketKey, Reth, RnrTimer, Syndrome,
};

use super::super::random::psn;
use super::{Connection, Habits, Outbox, Registered, completion, header, scatter};

enum Message {
    Send { receive: ReceiveRequest, offset: usize },
    Write { address: u64, rkey: u32, left: usize, total: usize },
}

enum Served {
    Read(Reth),
    Atomic(u64),
}

#[derive(Default)]
pub(super) struct Responder {
    expected: u32,
    msn: u32,
    rnr_timer: u8,
    resources: usize,
    message: Option<Message>,
    pub(super) receives: VecDeque<ReceiveRequest>,
    served: VecDeque<(u32, u32, Served)>,
    gap_told: bool,
    not_ready: bool,
    /// The newest SEND, WRITE or atomic: what a duplicate is acknowledged with.
    acknowledgeable: Option<u32>,
    /// hfi1: an ACK that waits for more to acknowledge.
    delayed: Option<u32>,
    pub(super) deadline: Option<Instant>,
}

/// How a fatal NAK ends the receive that a message had taken.
struct Refused(NakCode, u32);

impl Responder {
    pub(super) fn set(&mut self, attr: &QpAttr) {
        if let Some(start) = attr.rq_psn {
            self.expected = start.expose();
        }
        self.rnr_timer = attr.min_rnr_timer.unwrap_or(self.rnr_timer);
        if let Some(depth) = attr.max_dest_rd_atomic {
            self.resources = usize::from(depth);
        }
    }

    pub(super) fn taken(&mut self) -> Option<ReceiveRequest> {
        match self.message.take() {
            Some(Message::Send { receive, .. }) => Some(receive),
            _ => None,
        }
    }

    fn answer(
        &self,
        habits: Habits,
        connection: &Connection,
        out: &mut Outbox,
        number: u32,
        syndrome: Syndrome,
    ) {
        let aeth = Extension::Aeth(Aeth { syndrome, msn: self.msn });
        out.send(habits, connection, header(Opcode::Acknowledge, number, false), aeth, &[]);
    }

    fn acknowledge_delayed(&mut self, habits: Habits, connection: &Connection, out: &mut Outbox) {
        self.deadline = None;
        if let Some(number) = self.delayed.take() {
            self.answer(habits, connection, out, number, Syndrome::from_byte(0x1F));
        }
    }

    pub(super) fn on_time(
        &mut self,
        habits: Habits,
        connection: &Connection,
        out: &mut Outbox,
        now: Instant,
    ) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.acknowledge_delayed(habits, connection, out);
        }
    }

    /// A request has arrived. True: the queue pair has failed.
    pub(super) fn on_request(
        &mut self,
        habits: Habits,
        connection: &Connection,
        regions: &HashMap<u32, Registered>,
        out: &mut Outbox,
        now: Instant,
        packet: &Packet<'_>,
    ) -> bool {
        let number = packet.psn().expose();
        let distance = psn::minus(number, self.expected);
        if distance > 0 {
            let silent = self.not_ready && habits == Habits::Hfi1;
            if !self.gap_told && !silent {
                self.gap_told = true;
                self.acknowledge_delayed(habits, connection, out);
                let syndrome = Syndrome::Nak(NakCode::PsnSequenceError);
                self.answer(habits, connection, out, self.expected, syndrome);
            }
            return false;
        }
        if distance < 0 {
            return self.on_duplicate(habits, connection, regions, out, packet);
        }
        self.gap_told = false;
        self.not_ready = false;
        match self.execute(connection, regions, out, packet) {
            Ok(true) => {
                let opcode = packet.opcode();
                if opcode == Opcode::ReadRequest || opcode.is_atomic() {
                    self.delayed = None;
                    self.deadline = None;
                    self.replay(habits, connection, regions, out, number, None)
                } else {
                    self.acknowledgeable = Some(number);
                    if packet.bth().ack_request && habits == Habits::Rxe {
                        self.answer(habits, connection, out, number, Syndrome::from_byte(0x1F));
                    } else if packet.bth().ack_request {
                        // One for many, and late.
                        self.delayed = Some(number);
                        self.deadline = self.deadline.or(Some(now + Duration::from_micros(120)));
                    }
                    false
                }
            }
            Ok(false) => {
                self.not_ready = true;
                self.acknowledge_delayed(habits, connection, out);
                let timer = RnrTimer::from_code(self.rnr_timer);
                self.answer(habits, connection, out, number, Syndrome::RnrNak(timer));
                false
            }
            Err(Refused(code, status)) => {
                self.acknowledge_delayed(habits, connection, out);
                let too_long = status == 1 && habits == Habits::Rxe;
                let code = if too_long { NakCode::RemoteOperationalError } else { code };
                self.answer(habits, connection, out, number, Syndrome::Nak(code));
                if let Some(receive) = self.taken() {
                    let status = if too_long { 2 } else { status };
                    out.complete(connection.qpn, receive.id, CompletionKind::Receive, status);
                }
                true
            }
        }
    }

    /// A duplicate. True: the queue pair has failed.
    fn on_duplicate(
        &mut self,
        habits: Habits,
        connection: &Connection,
        regions: &HashMap<u32, Registered>,
        out: &mut Outbox,
        packet: &Packet<'_>,
    ) -> bool {
        let opcode = packet.opcode();
        if opcode.is_send() || opcode.is_write() {
            if let Some(number) = self.acknowledgeable {
                self.answer(habits, connection, out, number, Syndrome::from_byte(0x1F));
            }
            return false;
        }
        self.replay(habits, connection, regions, out, packet.psn().expose(), packet.reth())
    }

    /// Answers a READ or atomic, the first time or `again`, where that is for a READ. True: the queue pair has failed.
    fn replay(
        &self,
        habits: Habits,
        connection: &Connection,
        regions: &HashMap<u32, Registered>,
        out: &mut Outbox,
        number: u32,
        again: Option<Reth>,
    ) -> bool {
        let ack = Aeth { syndrome: Syndrome::from_byte(0x1F), msn: self.msn };
        let within = |first: u32, count: u32| {
            let index = psn::minus(number, first);
            index >= 0 && index < count.cast_signed()
        };
        let Some((first, count, served)) =
            self.served.iter().find(|(first, count, _)| within(*first, *count))
        else {
            return false;
        };
        match served {
            Served::Atomic(original) => {
                let extension = Extension::AtomicAck(ack, AtomicAckEth { original: *original });
                out.send(
                    habits,
                    connection,
                    header(Opcode::AtomicAcknowledge, number, false),
                    extension,
                    &[],
                );
            }
            Served::Read(reth) => {
                let index = psn::minus(number, *first).cast_unsigned();
                let skipped = index as usize * connection.path_mtu;
                // rxe keeps 0 as the key of what has no bytes (Linux 6.12).
                let keeps_none = habits == Habits::Rxe && reth.dma_length == 0;
                let kept = if keeps_none { PacketKey::new(0) } else { reth.rkey };
                if again.is_some_and(|asked| {
                    asked.rkey != kept
                        || asked.virtual_address != reth.virtual_address + skipped as u64
                        || asked.dma_length as usize + skipped != reth.dma_length as usize
                }) {
                    return false;
                }
                for response in index..*count {
                    let offset = response as usize * connection.path_mtu;
                    let length = (reth.dma_length as usize - offset).min(connection.path_mtu);
                    let mut payload = Vec::new();
                    if length > 0 {
                        let address = reth.virtual_address + offset as u64;
                        let region = regions.get(&reth.rkey.expose());
                        let found = region.and_then(|region| {
                            let at = region.offset(address, length, Access::REMOTE_READ)?;
                            region.memory.append_to(at, length, &mut payload).ok()
                        });
                        if found.is_none() {
                            let syndrome = Syndrome::Nak(NakCode::RemoteAccessError);
                            self.answer(habits, connection, out, psn::add(*first, response), syndrome);
                            return true;
                        }
                    }
                    let opcode = match (response == index, response + 1 == *count) {
                        (true, true) => Opcode::ReadResponseOnly,
                        (true, false) => Opcode::ReadResponseFirst,
                        (false, true) => Opcode::ReadResponseLast,
                        (false, false) => Opcode::ReadResponseMiddle,
                    };
                    let extension = if opcode.has_aeth() { Extension::Aeth(ack) } else { Extension::None };
                    let bth = header(opcode, psn::add(*first, response), false);
                    out.send(habits, connection, bth, extension, &payload);
                }
            }
        }
        false
    }

    /// Executes the expected request. `Ok(false)`: no receive is posted.
    fn execute(
        &mut self,
        connection: &Connection,
        regions: &HashMap<u32, Registered>,
        out: &mut Outbox,
        packet: &Packet<'_>,
    ) -> Result<bool, Refused> {
        const INVALID: Refused = Refused(NakCode::InvalidRequest, 5);
        const ACCESS: Refused = Refused(NakCode::RemoteAccessError, 5);
        let opcode = packet.opcode();
        let payload = packet.payload();
        let goes_on = opcode.is_middle() || opcode.is_last();
        let fits = match &self.message {
            None => !goes_on,
            Some(Message::Send { .. }) => goes_on && opcode.is_send(),
            Some(Message::Write { .. }) => goes_on && opcode.is_write(),
        };
        let right = match opcode {
            Opcode::ReadRequest => Access::REMOTE_READ,
            _ if opcode.is_write() => Access::REMOTE_WRITE,
            _ if opcode.is_atomic() => Access::REMOTE_ATOMIC,
            _ => Access::empty(),
        };
        if !fits || !connection.access.contains(right) {
            return Err(INVALID);
        }
        let answered = opcode == Opcode::ReadRequest || opcode.is_atomic();
        if answered && self.resources == 0 {
            return Err(INVALID);
        }
        let takes = opcode.is_send() && !goes_on || opcode.is_write() && opcode.has_immediate();
        if takes && self.receives.is_empty() {
            return Ok(false);
        }
        if !opcode.payload_rule().allows(payload.len(), connection.path_mtu) {
            return Err(INVALID);
        }
        let ends = opcode.is_last() || opcode.is_only();
        let open = |rkey: u32, address: u64, length: usize, right| {
            let region = regions.get(&rkey)?;
            Some((region, region.offset(address, length, right)?))
        };
        if opcode.is_send() {
            if !goes_on && let Some(receive) = self.receives.pop_front() {
                self.message = Some(Message::Send { receive, offset: 0 });
            }
            let Some(Message::Send { receive, offset }) = &mut self.message else { return Err(INVALID) };
            let room = receive.local.iter().map(|slice| slice.length).sum::<usize>();
            if *offset + payload.len() > room {
                return Err(Refused(NakCode::InvalidRequest, 1));
            }
            scatter(&receive.local, *offset, payload);
            *offset += payload.len();
            if packet.invalidate_key().is_some() {
                return Err(ACCESS);
            }
            if ends && let Some(Message::Send { receive, offset }) = self.message.take() {
                let byte_len = offset as u32;
                let immediate = packet.immediate().map(|immediate| immediate.value);
                let done = completion(receive.id, CompletionKind::Receive, 0);
                out.completions.push_back((connection.qpn, Completion { byte_len, immediate, ..done }));
            }
            self.advance(1, ends);
            return Ok(true);
        }
        if opcode.is_write() {
            if let Some(reth) = packet.reth() {
                let total = reth.dma_length as usize;
                let (address, rkey) = (reth.virtual_address, reth.rkey.expose());
                self.message = Some(Message::Write { address, rkey, left: total, total });
            }
            let Some(Message::Write { address, rkey, left, total }) = &mut self.message else {
                return Err(INVALID);
            };
            if *left > 0 {
                let Some((region, at)) = open(*rkey, *address, *left, Access::REMOTE_WRITE) else {
                    return Err(ACCESS);
                };
                if (ends && *left != payload.len()) || (!ends && *left <= payload.len()) {
                    return Err(INVALID);
                }
                region.memory.write(at, payload).map_err(|_| INVALID)?;
            } else if !payload.is_empty() || !ends {
                return Err(INVALID);
            }
            *address += payload.len() as u64;
            *left -= payload.len();
            let total = *total;
            if ends {
                self.message = None;
                if let Some(immediate) = packet.immediate()
                    && let Some(receive) = self.receives.pop_front()
                {
                    let done = completion(receive.id, CompletionKind::ReceiveWriteImmediate, 0);
                    let immediate = Some(immediate.value);
                    let done = Completion { byte_len: total as u32, immediate, ..done };
                    out.completions.push_back((connection.qpn, done));
                }
            }
            self.advance(1, ends);
            return Ok(true);
        }
        let (count, served) = if let Some(reth) = packet.reth() {
            let length = reth.dma_length as usize;
            if length > 0
                && open(reth.rkey.expose(), reth.virtual_address, length, Access::REMOTE_READ).is_none()
            {
                return Err(ACCESS);
            }
            (length.div_ceil(connection.path_mtu).max(1) as u32, Served::Read(reth))
        } else {
            let Some(atomic) = packet.atomic_eth() else { return Err(INVALID) };
            let address = atomic.virtual_address;
            let Some((region, at)) = open(atomic.rkey.expose(), address, 8, Access::REMOTE_ATOMIC) else {
                return Err(ACCESS);
            };
            if address % 8 != 0 {
                return Err(INVALID);
            }
            let original = match opcode {
                Opcode::FetchAdd => region.memory.fetch_add(at, atomic.swap_or_add),
                _ => region.memory.compare_swap(at, atomic.compare, atomic.swap_or_add),
            };
            self.acknowledgeable = Some(self.expected);
            (1, Served::Atomic(original.map_err(|_| INVALID)?))
        };
        self.served.push_back((self.expected, count, served));
        // A ring whose size is a power of two.
        if self.served.len() > self.resources.next_power_of_two() {
            self.served.pop_front();
        }
        self.advance(count, true);
        Ok(true)
    }

    fn advance(&mut self, count: u32, ends: bool) {
        self.expected = psn::add(self.expected, count);
        if ends {
            self.msn = psn::add(self.msn, 1);
        }
    }
}
