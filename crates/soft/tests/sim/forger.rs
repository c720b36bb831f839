//! Packets that somebody else makes: right in all that is public, and sometimes in what is not.

use secure_rdma_roce::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Extension, Headers, Ieth, ImmDt, NakCode, Opcode, PacketKey,
    PacketPsn, Reth, Syndrome,
};
use std::net::SocketAddr;

use super::endpoint::Grant;
use super::network::{Datagram, Origin};
use super::random::psn;
use super::world::{World, context};

/// What the forger knows, and what he tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A request with the right QPN and a random PSN.
    RandomPsn,
    /// A request with a random QPN.
    RandomQueuePair,
    /// An ACK or RNR NAK outside the window.
    Acknowledge,
    /// A NAK outside the window.
    Nak,
    /// A READ response or an atomic's answer outside the window.
    Answer,
    /// The wrong UDP source port, P_Key or version, an unknown opcode, another address, a broken ICRC.
    Broken,
    /// A response to what is outstanding, with a syndrome that means nothing.
    ReservedSyndrome,
    /// The right PSN: what an authenticated peer that keeps no rule can send.
    Malicious,
}

impl Class {
    pub const ALL: [Self; 8] = [
        Self::RandomPsn,
        Self::RandomQueuePair,
        Self::Acknowledge,
        Self::Nak,
        Self::Answer,
        Self::Broken,
        Self::ReservedSyndrome,
        Self::Malicious,
    ];
}

const REQUESTS: [Opcode; 16] = [
    Opcode::SendFirst,
    Opcode::SendMiddle,
    Opcode::SendLast,
    Opcode::SendLastWithImmediate,
    Opcode::SendOnly,
    Opcode::SendOnlyWithImmediate,
    Opcode::SendOnlyWithInvalidate,
    Opcode::WriteFirst,
    Opcode::WriteMiddle,
    Opcode::WriteLast,
    Opcode::WriteOnly,
    Opcode::WriteOnlyWithImmediate,
    Opcode::WriteLastWithImmediate,
    Opcode::ReadRequest,
    Opcode::CompareSwap,
    Opcode::FetchAdd,
];

impl World {
    /// A forged packet to an endpoint. `None` where a random number happens to be one that is no forgery.
    pub fn forgery(&mut self, index: usize, class: Class) -> Option<Datagram> {
        let random = &mut self.random;
        let endpoint = &self.endpoints[index];
        let mut number = random.below(1 << 24) as u32;
        let qpn = match class {
            Class::RandomQueuePair => random.below(1 << 24) as u32,
            _ => endpoint.qpn.get(),
        };
        if class == Class::RandomQueuePair && self.by_number.contains_key(&(endpoint.host, qpn)) {
            return None;
        }
        if class == Class::Malicious {
            number = endpoint.responder.expected;
        }
        let (oldest, newest) = (endpoint.requester.oldest, endpoint.requester.newest);
        if class == Class::ReservedSyndrome {
            let outstanding = u64::from(psn::minus(newest, oldest).cast_unsigned());
            if outstanding == 0 {
                return None;
            }
            number = psn::add(oldest, random.below(outstanding) as u32);
        }
        let inside = psn::minus(number, oldest) >= 0 && psn::minus(number, newest) < 0;
        let msn = random.below(1 << 24) as u32;
        let ack = Aeth { syndrome: Syndrome::from_byte(0x1F), msn };
        let (opcode, extension, length) = match class {
            Class::RandomPsn | Class::RandomQueuePair | Class::Broken | Class::Malicious => {
                let opcode = random.pick(&REQUESTS);
                let (extension, length) = self.forged_request(index, opcode, class == Class::Malicious);
                (opcode, extension, length)
            }
            Class::ReservedSyndrome => {
                let byte = random.pick(&[0x40, 0x80, 0xA0, 0xC0, 0xE0]) | random.below(32) as u8;
                let aeth = Aeth { syndrome: Syndrome::from_byte(byte), msn };
                let opcode =
                    random.pick(&[Opcode::Acknowledge, Opcode::Acknowledge, Opcode::ReadResponseOnly]);
                (opcode, Extension::Aeth(aeth), 0)
            }
            _ if inside => return None,
            Class::Acknowledge => {
                let byte = random.pick(&[0x1F, 0x1F, 0x00, 0x2C, 0x3F]);
                (Opcode::Acknowledge, Extension::Aeth(Aeth { syndrome: Syndrome::from_byte(byte), msn }), 0)
            }
            Class::Nak => {
                let syndrome = Syndrome::Nak(NakCode::from_code(random.below(6) as u8));
                (Opcode::Acknowledge, Extension::Aeth(Aeth { syndrome, msn }), 0)
            }
            Class::Answer => match random.below(3) {
                0 => {
                    let original = AtomicAckEth { original: random.u64() };
                    (Opcode::AtomicAcknowledge, Extension::AtomicAck(ack, original), 0)
                }
                1 => (Opcode::ReadResponseMiddle, Extension::None, endpoint.plan.terms.path_mtu),
                _ => (Opcode::ReadResponseOnly, Extension::Aeth(ack), random.index(64)),
            },
        };
        let random = &mut self.random;
        let bth =
            Bth { ack_request: random.chance(500_000), ..Bth::new(opcode, qpn, PacketPsn::new(number)) };
        let mut headers = Headers::new(bth, extension, length);
        let wrong_pad = class == Class::Malicious && random.chance(50_000);
        let fitting = headers.packet_length(length);
        if wrong_pad {
            headers.bth.pad_count = (headers.bth.pad_count + 1) & 3;
        }
        if class == Class::Broken && random.chance(200_000) {
            headers.bth.pkey ^= 1 << random.below(15);
        }
        let endpoint = &self.endpoints[index];
        let peer = &self.endpoints[endpoint.peer];
        let mut bytes = self.network.buffer();
        bytes.resize(if wrong_pad { headers.packet_length(length) } else { fitting }, 0);
        let start = headers.emit(&mut bytes)?;
        for chunk in bytes[start..start + length].chunks_mut(8) {
            chunk.copy_from_slice(&self.random.u64().to_le_bytes()[..chunk.len()]);
        }
        let mut datagram = Datagram {
            bytes,
            source: SocketAddr::new(self.hosts[peer.host].address, peer.source_port),
            destination: SocketAddr::new(self.hosts[endpoint.host].address, 4791),
            ecn: 0,
            id: 0,
            segment: (endpoint.host as u16) << 8,
            origin: Origin::Forged,
            original: None,
        };
        let random = &mut self.random;
        if class == Class::Broken {
            match random.below(6) {
                0 => datagram.source.set_port(random.u64() as u16),
                1 => datagram.bytes[0] ^= 0x20 << random.below(3),
                2 => datagram.bytes[1] ^= 1 << random.below(4),
                3 => datagram.bytes[0] = 0x18 | random.below(3) as u8,
                4 => datagram.bytes.truncate(random.index(16)),
                _ => {}
            }
        }
        context(&datagram).finish(0, &mut datagram.bytes);
        if class == Class::Broken && random.chance(300_000) && !datagram.bytes.is_empty() {
            let last = datagram.bytes.len() - 1;
            datagram.bytes[last] ^= 1 << random.below(8);
        }
        Some(datagram)
    }

    /// Headers of a request, and how much payload follows them.
    fn forged_request(&mut self, index: usize, opcode: Opcode, malicious: bool) -> (Extension, usize) {
        let random = &mut self.random;
        let endpoint = &self.endpoints[index];
        let path_mtu = endpoint.plan.terms.path_mtu;
        let near =
            |random: &mut super::random::Random, value: usize| (value + random.index(9)).saturating_sub(4);
        let mut length = if opcode.is_first() || opcode.is_middle() { path_mtu } else { random.index(64) };
        if malicious && random.chance(100_000) {
            length = near(random, path_mtu);
        }
        if !opcode.is_send() && !opcode.is_write() {
            length = if malicious && random.chance(50_000) { random.index(9) } else { 0 };
        }
        // What the victim has granted to whom, and what it never granted.
        let grants = &self.endpoints[endpoint.peer].grants;
        let stranger = &self.endpoints[random.index(self.endpoints.len())].grants;
        let grant: Option<Grant> = match random.below(8) {
            0 if !stranger.is_empty() => Some(random.pick(stranger)),
            1 => None,
            _ if grants.is_empty() => None,
            _ => Some(random.pick(grants)),
        };
        let (mut address, rkey, room) = grant.map_or_else(
            || (random.u64(), random.u64() as u32, 0),
            |grant| (grant.address, grant.rkey, grant.length),
        );
        let asked = match random.below(8) {
            0 => random.u64() as u32,
            1 => 1 << 31,
            2 => 0,
            3 => near(random, room) as u32,
            _ => length as u32 + if opcode.is_first() { random.below(1000) as u32 } else { 0 },
        };
        if random.chance(300_000) {
            address = address.wrapping_add(near(random, room) as u64).wrapping_sub(4);
        } else if room > 8 {
            address = address.wrapping_add(random.below(room as u64 / 2) & !7);
        }
        let rkey = PacketKey::new(rkey);
        let reth = Reth { virtual_address: address, rkey, dma_length: asked };
        let immediate = ImmDt { value: random.u64() as u32 };
        let atomic =
            AtomicEth { virtual_address: address, rkey, swap_or_add: random.u64(), compare: random.below(4) };
        let extension = match opcode {
            _ if opcode.has_atomic_eth() => Extension::Atomic(atomic),
            _ if opcode.has_reth() && opcode.has_immediate() => Extension::RethImmediate(reth, immediate),
            _ if opcode.has_reth() => Extension::Reth(reth),
            _ if opcode.has_immediate() => Extension::Immediate(immediate),
            _ if opcode.has_invalidate() => Extension::Invalidate(Ieth { rkey }),
            _ => Extension::None,
        };
        (extension, length)
    }
}
