//! A request's next packet: its headers, its bytes, and what of the windows it takes.

use secure_rdma_rdma::{RemoteSlice, SendFlags, SendOperation};
use secure_rdma_roce::{AtomicEth, Bth, Extension, Headers, Ieth, ImmDt, Opcode, PacketKey, PacketPsn, Reth};

use super::local;
use super::packetizer::Batch;
use super::path::Flows;
use super::requester::Requester;
use super::window::charge;
use super::work::Work;

/// The part of a message that the next packet sends, or asks for.
pub(super) struct Part {
    opcode: Opcode,
    /// Where in the message it begins.
    offset: u64,
    /// Bytes of payload.
    pub(super) bytes: usize,
    /// Bytes that it asks for.
    asked: u32,
    /// Whether it names no key.
    keyless: bool,
    /// PSNs that it takes.
    pub(super) packets: u64,
    /// Whether it ends a message, or is answered in its own way.
    pub(super) ends: bool,
    /// What it takes of the peer's receive buffer, and of the own.
    pub(super) charge: (u64, u64),
}

impl Part {
    /// The packet at the cursor, which stands at `work`. `room` is how many PSNs the window has left, `own_room` what the
    /// own receive buffer has.
    pub(super) fn next(
        requester: &Requester,
        work: &Work,
        mtu: usize,
        room: u64,
        depth: u8,
        own_room: u64,
    ) -> Self {
        let packet = u64::from(requester.cursor.1);
        let offset = packet.saturating_mul(mtu as u64);
        let one = |opcode, ends| Self {
            opcode,
            offset,
            bytes: 0,
            asked: 0,
            keyless: false,
            packets: 1,
            ends,
            charge: (requester.charge(work, 1, 0), 0),
        };
        match &work.request.operation {
            SendOperation::Read { .. } => {
                let packets = read_packets(requester, work, mtu, room, depth, own_room);
                let asked = work.bytes(packet, packet.saturating_add(packets), mtu);
                let asked = u32::try_from(asked).unwrap_or(u32::MAX);
                let charge = (0, requester.charge(work, packets, u64::from(asked)));
                let keyless = requester.named == Some(requester.next);
                Self { asked, keyless, packets, charge, ..one(Opcode::ReadRequest, true) }
            }
            SendOperation::CompareSwap { .. } => one(Opcode::CompareSwap, true),
            SendOperation::FetchAdd { .. } => one(Opcode::FetchAdd, true),
            operation => {
                let last = packet + 1 >= u64::from(work.packets);
                let bytes = work.bytes(packet, packet + 1, mtu);
                let opcode = opcode(operation, packet == 0, last);
                let charge = (requester.charge(work, 1, bytes), 0);
                Self { bytes: usize::try_from(bytes).unwrap_or(0), charge, ..one(opcode, last) }
            }
        }
    }

    /// Bytes of the packet.
    pub(super) fn packet_length(&self, _work: &Work) -> usize {
        let pad = usize::from(secure_rdma_roce::bth::pad_count_for(self.bytes));
        self.opcode.header_length() + self.bytes + pad + secure_rdma_roce::icrc::LENGTH
    }

    /// Appends the packet. Tells whether the local bytes could be read.
    pub(super) fn push(
        &self,
        work: &Work,
        flows: &Flows,
        psn: PacketPsn,
        asks: bool,
        batch: &mut Batch<'_>,
    ) -> bool {
        let solicited = self.ends
            && work.request.flags.contains(SendFlags::SOLICITED)
            && (self.opcode.is_send() || self.opcode.has_immediate());
        let bth = Bth { ack_request: asks, solicited, ..Bth::new(self.opcode, flows.peer.get(), psn) };
        let headers = Headers::new(bth, self.extension(work), self.bytes);
        let offset = usize::try_from(self.offset).unwrap_or(usize::MAX);
        batch.push(&flows.out, &headers, self.bytes, |buffer| {
            self.bytes == 0 || local::gather(&work.request.local, offset, self.bytes, buffer)
        })
    }

    fn extension(&self, work: &Work) -> Extension {
        let reth = |remote: &RemoteSlice, dma_length| Reth {
            virtual_address: remote.address.wrapping_add(self.offset),
            rkey: PacketKey::new(if self.keyless { 0 } else { remote.rkey.expose() }),
            dma_length,
        };
        let with_immediate = |immediate: &Option<u32>| ImmDt { value: immediate.unwrap_or_default() };
        match &work.request.operation {
            SendOperation::Send { immediate } if self.opcode.has_immediate() => {
                Extension::Immediate(with_immediate(immediate))
            }
            SendOperation::SendInvalidate { rkey } if self.opcode.has_invalidate() => {
                Extension::Invalidate(Ieth { rkey: PacketKey::new(rkey.expose()) })
            }
            SendOperation::Write { remote, immediate } => {
                let reth = reth(remote, work.length);
                match (self.opcode.has_reth(), self.opcode.has_immediate()) {
                    (true, true) => Extension::RethImmediate(reth, with_immediate(immediate)),
                    (true, false) => Extension::Reth(reth),
                    (false, true) => Extension::Immediate(with_immediate(immediate)),
                    (false, false) => Extension::None,
                }
            }
            SendOperation::Read { remote } => Extension::Reth(reth(remote, self.asked)),
            SendOperation::CompareSwap { remote, compare, swap } => Extension::Atomic(AtomicEth {
                virtual_address: remote.address,
                rkey: PacketKey::new(remote.rkey.expose()),
                swap_or_add: *swap,
                compare: *compare,
            }),
            SendOperation::FetchAdd { remote, add } => Extension::Atomic(AtomicEth {
                virtual_address: remote.address,
                rkey: PacketKey::new(remote.rkey.expose()),
                swap_or_add: *add,
                compare: 0,
            }),
            _ => Extension::None,
        }
    }
}

/// The opcode of a packet of a SEND or WRITE.
fn opcode(operation: &SendOperation, first: bool, last: bool) -> Opcode {
    use Opcode as O;
    let [begin, middle, end, only] = match operation {
        SendOperation::Write { immediate: None, .. } => {
            [O::WriteFirst, O::WriteMiddle, O::WriteLast, O::WriteOnly]
        }
        SendOperation::Write { .. } => {
            [O::WriteFirst, O::WriteMiddle, O::WriteLastWithImmediate, O::WriteOnlyWithImmediate]
        }
        SendOperation::Send { immediate: Some(_) } => {
            [O::SendFirst, O::SendMiddle, O::SendLastWithImmediate, O::SendOnlyWithImmediate]
        }
        SendOperation::SendInvalidate { .. } => {
            [O::SendFirst, O::SendMiddle, O::SendLastWithInvalidate, O::SendOnlyWithInvalidate]
        }
        _ => [O::SendFirst, O::SendMiddle, O::SendLast, O::SendOnly],
    };
    match (first, last) {
        (true, true) => only,
        (true, false) => begin,
        (false, true) => end,
        (false, false) => middle,
    }
}

/// How many responses the next READ request asks for.
///
/// A long READ is asked for in parts that fit the window, each a READ of its own on the wire: responses carry no flow
/// control, so this is the only way to keep them within the own receive buffer. A part that is asked for again keeps its
/// end, since the responder replays only what lies inside a request that it knows.
fn read_packets(requester: &Requester, work: &Work, mtu: usize, room: u64, depth: u8, own_room: u64) -> u64 {
    if requester.next < requester.newest {
        let known = requester.reads.iter().find(|(first, end)| (*first..*end).contains(&requester.next));
        if let Some((_, end)) = known {
            return end - requester.next;
        }
    }
    let left = u64::from(work.packets.saturating_sub(requester.cursor.1));
    // Two parts at a time, so that one comes while the other is asked for.
    let share = u64::from(requester.window.size()) / if depth > 1 { 2 } else { 1 };
    let fitting = own_room / charge(1, mtu as u64);
    left.min(room).min(share).min(fitting).max(1)
}
