//! Executing the request with the expected PSN: what it does to memory and to the receive queue, or how it is refused.

use secure_rdma_rdma::Access;
use secure_rdma_roce::{Opcode, Packet, PayloadRule};

use super::super::memory::Piece;
use super::super::random::psn;
use super::{Hosted, Message, Outcome, Responder, Served, ServedKind};

impl Responder {
    /// §6, steps 2 to 8, for the packet with the expected PSN.
    pub(super) fn execute(&mut self, packet: &Packet<'_>, counted: bool, host: &mut Hosted<'_>) -> Outcome {
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
}
