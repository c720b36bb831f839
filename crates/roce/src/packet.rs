//! A received packet: a view of a UDP payload whose lengths have been checked once.
//!
//! `BTH (12) | extension headers | payload | padding (0 to 3) | ICRC (4)`

use std::fmt;

use crate::{Aeth, AtomicAckEth, AtomicEth, Bth, Ieth, ImmDt, Malformed, Opcode, PacketKey, PacketPsn, Reth};
use crate::{bth, icrc, reth};

/// A packet that has a known opcode and room for its headers. The ICRC is not checked by it: see
/// [`IcrcContext`](crate::IcrcContext).
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    header: &'a [u8; bth::LENGTH],
    /// The extension headers.
    extensions: &'a [u8],
    payload: &'a [u8],
    icrc: u32,
    opcode: Opcode,
}

impl<'a> Packet<'a> {
    /// Takes a UDP payload, from the BTH to the ICRC.
    ///
    /// Reserved bits, the P_Key, flags and the bytes of the padding are not judged.
    ///
    /// # Errors
    /// [`Malformed`] says why it is no packet.
    #[inline]
    pub fn new_checked(udp_payload: &'a [u8]) -> Result<Self, Malformed> {
        let length = udp_payload.len();
        let Some((header, rest)) = udp_payload.split_first_chunk::<{ bth::LENGTH }>() else {
            return Err(Malformed::TooShort(length));
        };
        let [code, flags, ..] = *header;
        let version = bth::transport_version(flags);
        if version != 0 {
            return Err(Malformed::TransportVersion(version));
        }
        let Some(opcode) = Opcode::from_code(code) else { return Err(Malformed::opcode(code)) };
        let pad = usize::from(bth::pad_count(flags));
        let needed = opcode.header_length() + pad + icrc::LENGTH;
        let cut_off = Malformed::CutOff { needed, length };
        let Some((rest, icrc)) = rest.split_last_chunk::<{ icrc::LENGTH }>() else { return Err(cut_off) };
        let Some((extensions, rest)) = rest.split_at_checked(opcode.extension_length()) else {
            return Err(cut_off);
        };
        let Some((payload, _)) = rest.len().checked_sub(pad).and_then(|end| rest.split_at_checked(end))
        else {
            return Err(cut_off);
        };
        Ok(Self { header, extensions, payload, icrc: icrc::from_wire(*icrc), opcode })
    }

    /// What the packet does.
    #[inline]
    #[must_use]
    pub const fn opcode(&self) -> Opcode {
        self.opcode
    }

    /// The BTH, whole.
    #[inline]
    #[must_use]
    pub fn bth(&self) -> Bth {
        Bth::parse(self.opcode, self.header)
    }

    /// The partition key alone.
    #[inline]
    #[must_use]
    pub const fn pkey(&self) -> u16 {
        let [_, _, high, low, ..] = *self.header;
        u16::from_be_bytes([high, low])
    }

    /// The count of bytes of padding alone, 0 to 3.
    #[inline]
    #[must_use]
    pub const fn pad_count(&self) -> u8 {
        let [_, flags, ..] = *self.header;
        bth::pad_count(flags)
    }

    /// Whether the responder must answer, alone.
    #[inline]
    #[must_use]
    pub const fn ack_request(&self) -> bool {
        let [.., ack, _, _, _] = *self.header;
        ack & bth::ACK_REQUEST != 0
    }

    /// The destination QPN alone, to look a queue pair up.
    #[inline]
    #[must_use]
    pub const fn dest_qpn(&self) -> u32 {
        let [_, _, _, _, _, high, middle, low, ..] = *self.header;
        u32::from_be_bytes([0, high, middle, low])
    }

    /// The PSN alone.
    #[inline]
    #[must_use]
    pub const fn psn(&self) -> PacketPsn {
        let [.., high, middle, low] = *self.header;
        PacketPsn::from_bytes([high, middle, low])
    }

    /// The RETH, if the opcode has one.
    #[inline]
    #[must_use]
    pub fn reth(&self) -> Option<Reth> {
        // FLUSH has a FETH before its RETH: 4 bytes.
        let at = if self.opcode == Opcode::Flush { 4 } else { 0 };
        self.opcode.has_reth().then(|| self.extension(at)).flatten().map(Reth::parse)
    }

    /// The AETH, if the opcode has one.
    #[inline]
    #[must_use]
    pub fn aeth(&self) -> Option<Aeth> {
        self.opcode.has_aeth().then(|| self.extension(0)).flatten().map(|bytes| Aeth::parse(*bytes))
    }

    /// The `AtomicETH`, if the opcode has one.
    #[inline]
    #[must_use]
    pub fn atomic_eth(&self) -> Option<AtomicEth> {
        self.opcode.has_atomic_eth().then(|| self.extension(0)).flatten().map(AtomicEth::parse)
    }

    /// The `AtomicAckETH`, if the opcode has one.
    #[inline]
    #[must_use]
    pub fn atomic_ack_eth(&self) -> Option<AtomicAckEth> {
        let at = crate::aeth::LENGTH;
        self.opcode.has_atomic_ack().then(|| self.extension(at)).flatten().map(|b| AtomicAckEth::parse(*b))
    }

    /// The immediate, if the opcode has one.
    #[inline]
    #[must_use]
    pub fn immediate(&self) -> Option<ImmDt> {
        let at = if self.opcode.has_reth() { reth::LENGTH } else { 0 };
        self.opcode.has_immediate().then(|| self.extension(at)).flatten().map(|bytes| ImmDt::parse(*bytes))
    }

    /// The key to invalidate, if the opcode has one.
    #[inline]
    #[must_use]
    pub fn invalidate_key(&self) -> Option<PacketKey> {
        let bytes = self.opcode.has_invalidate().then(|| self.extension(0)).flatten();
        bytes.map(|bytes| Ieth::parse(*bytes).rkey)
    }

    /// The payload, without padding. Its length is what the datagram's length leaves: judge it by
    /// [`Opcode::payload_rule`].
    #[inline]
    #[must_use]
    pub const fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The ICRC as received; not judged.
    #[inline]
    #[must_use]
    pub const fn icrc(&self) -> u32 {
        self.icrc
    }

    #[inline]
    fn extension<const N: usize>(&self, at: usize) -> Option<&'a [u8; N]> {
        self.extensions.get(at..).and_then(<[u8]>::first_chunk)
    }
}

/// Hides the PSN, keys and the payload.
impl fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packet")
            .field("bth", &self.bth())
            .field("payload_length", &self.payload.len())
            .finish_non_exhaustive()
    }
}

/// As a dissector's line: `RC RDMA WRITE Only, QP 0x000011, PSN 8, A, VA 0x7f00, length 64, 64 B`. It shows the PSN,
/// but no key: for captures and tests.
impl fmt::Display for Packet<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", crate::Headers::parse(self))?;
        match self.payload.len() {
            0 => Ok(()),
            length => write!(f, ", {length} B"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers that no vector has: where they lie behind each other, and that FLUSH's FETH comes first.
    #[test]
    fn each_accessor_reads_its_own_bytes() {
        let mut bytes = [0; 64];
        (0_u8..).zip(&mut bytes).for_each(|(index, byte)| *byte = index);
        bytes[1] = 0;
        let reth_at = |at: u8| {
            let quad = |from: u8| u32::from_be_bytes([from, from + 1, from + 2, from + 3]);
            let virtual_address = u64::from(quad(at)) << 32 | u64::from(quad(at + 4));
            Reth { virtual_address, rkey: PacketKey::new(quad(at + 8)), dma_length: quad(at + 12) }
        };
        let packet = |opcode: Opcode, bytes: &mut [u8; 64]| {
            bytes[0] = opcode.code();
            let packet = Packet::new_checked(&*bytes).unwrap();
            assert_eq!(packet.payload().len(), 60 - opcode.header_length());
            (packet.reth(), packet.immediate().map(|immediate| immediate.value), packet.invalidate_key())
        };
        let key = PacketKey::new(0x0C0D_0E0F);
        assert_eq!(packet(Opcode::Flush, &mut bytes), (Some(reth_at(16)), None, None));
        assert_eq!(packet(Opcode::AtomicWrite, &mut bytes), (Some(reth_at(12)), None, None));
        let with_immediate = (Some(reth_at(12)), Some(0x1C1D_1E1F), None);
        assert_eq!(packet(Opcode::WriteOnlyWithImmediate, &mut bytes), with_immediate);
        assert_eq!(packet(Opcode::WriteLastWithImmediate, &mut bytes), (None, Some(0x0C0D_0E0F), None));
        assert_eq!(packet(Opcode::SendOnlyWithInvalidate, &mut bytes), (None, None, Some(key)));
        assert_eq!(packet(Opcode::SendMiddle, &mut bytes), (None, None, None));
    }
}
