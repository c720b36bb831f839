//! The base transport header, at the start of every packet (brief §2.1).
//!
//! | byte | bits | field |
//! | --- | --- | --- |
//! | 0 | | opcode |
//! | 1 | 7 · 6 · 5..4 · 3..0 | solicited event · MigReq · PadCnt · TVer |
//! | 2..4 | | P_Key |
//! | 4 | 7 · 6 · 5..0 | FECN · BECN · reserved |
//! | 5..8 | | destination QPN |
//! | 8 | 7 · 6..0 | AckReq · reserved |
//! | 9..12 | | PSN |

use std::fmt;

use crate::{Opcode, PacketPsn};

/// Bytes of a BTH.
pub const LENGTH: usize = 12;

const SOLICITED: u8 = 0x80;
const MIGRATION_REQUEST: u8 = 0x40;
const FECN: u8 = 0x80;
const BECN: u8 = 0x40;
pub(crate) const ACK_REQUEST: u8 = 0x80;

/// The P_Key of the default partition, full member: what RoCE uses.
pub const DEFAULT_PKEY: u16 = 0xFFFF;

/// The fields of a BTH. Reserved bits are not among them: they are ignored, and sent as zeros.
///
/// `Debug` hides the PSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bth {
    /// What the packet does.
    pub opcode: Opcode,
    /// Solicited event: wakes a receiver that waits for such only.
    pub solicited: bool,
    /// MigReq. Sent as 1 by ConnectX and by us, as 0 by rxe; without meaning here.
    pub migration_request: bool,
    /// Bytes of padding behind the payload, 0 to 3; only the low two bits are sent.
    pub pad_count: u8,
    /// Partition key; [`DEFAULT_PKEY`] on RoCE.
    pub pkey: u16,
    /// Congestion met on the way here. Outside the ICRC.
    pub fecn: bool,
    /// Congestion met on the way there: set in a CNP. Outside the ICRC.
    pub becn: bool,
    /// Destination queue pair, any number of 24 bits; only the low 24 bits are sent.
    pub dest_qpn: u32,
    /// The responder must answer.
    pub ack_request: bool,
    /// Packet sequence number.
    pub psn: PacketPsn,
}

impl Bth {
    /// A BTH as we send it: MigReq set, default P_Key, no padding and no flags.
    #[must_use]
    pub const fn new(opcode: Opcode, dest_qpn: u32, psn: PacketPsn) -> Self {
        Self {
            opcode,
            solicited: false,
            migration_request: true,
            pad_count: 0,
            pkey: DEFAULT_PKEY,
            fecn: false,
            becn: matches!(opcode, Opcode::Cnp),
            dest_qpn,
            ack_request: false,
            psn,
        }
    }

    /// Reads the fields, but for the opcode, which the caller has already judged.
    #[inline]
    #[must_use]
    pub(crate) fn parse(opcode: Opcode, bytes: &[u8; LENGTH]) -> Self {
        let [_, flags, pkey_high, pkey_low, congestion, qpn_high, qpn_middle, qpn_low, ack, psn @ ..] =
            *bytes;
        Self {
            opcode,
            solicited: flags & SOLICITED != 0,
            migration_request: flags & MIGRATION_REQUEST != 0,
            pad_count: pad_count(flags),
            pkey: u16::from_be_bytes([pkey_high, pkey_low]),
            fecn: congestion & FECN != 0,
            becn: congestion & BECN != 0,
            dest_qpn: u32::from_be_bytes([0, qpn_high, qpn_middle, qpn_low]),
            ack_request: ack & ACK_REQUEST != 0,
            psn: PacketPsn::from_bytes(psn),
        }
    }

    /// The bytes, with transport version 0.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; LENGTH] {
        let mut flags = (self.pad_count & 3) << 4;
        if self.solicited {
            flags |= SOLICITED;
        }
        if self.migration_request {
            flags |= MIGRATION_REQUEST;
        }
        let congestion = if self.fecn { FECN } else { 0 } | if self.becn { BECN } else { 0 };
        let ack = if self.ack_request { ACK_REQUEST } else { 0 };
        let [pkey_high, pkey_low] = self.pkey.to_be_bytes();
        let [_, qpn_high, qpn_middle, qpn_low] = self.dest_qpn.to_be_bytes();
        let [psn_high, psn_middle, psn_low] = self.psn.to_bytes();
        let code = self.opcode.code();
        #[rustfmt::skip]
        let bytes = [
            code, flags, pkey_high, pkey_low,
            congestion, qpn_high, qpn_middle, qpn_low,
            ack, psn_high, psn_middle, psn_low,
        ];
        bytes
    }
}

/// PadCnt of a BTH's byte 1.
#[inline]
pub(crate) const fn pad_count(flags: u8) -> u8 {
    (flags >> 4) & 3
}

/// TVer of a BTH's byte 1.
#[inline]
pub(crate) const fn transport_version(flags: u8) -> u8 {
    flags & 0x0F
}

/// The padding behind a payload of `length` bytes, 0 to 3: what makes it a multiple of 4.
#[inline]
#[must_use]
#[allow(clippy::cast_possible_truncation)] // masked to two bits
pub const fn pad_count_for(length: usize) -> u8 {
    (length.wrapping_neg() & 3) as u8
}

/// As a dissector's line: `RC SEND Only, QP 0x000011, PSN 8, SE, A`. It shows the PSN: for captures and tests.
impl fmt::Display for Bth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = if self.opcode == Opcode::Cnp { "" } else { "RC " };
        let (opcode, psn) = (self.opcode, self.psn.expose());
        write!(f, "{transport}{opcode}, QP 0x{:06x}, PSN {psn}", self.dest_qpn & 0x00FF_FFFF)?;
        let flags =
            [(self.solicited, "SE"), (self.ack_request, "A"), (self.fecn, "FECN"), (self.becn, "BECN")];
        flags.iter().filter(|(set, _)| *set).try_for_each(|(_, name)| write!(f, ", {name}"))?;
        if self.pkey != DEFAULT_PKEY {
            write!(f, ", P_Key 0x{:04x}", self.pkey)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let all = Bth {
            opcode: Opcode::SendOnly,
            solicited: true,
            migration_request: true,
            pad_count: 3,
            pkey: 0x7FFF,
            fecn: true,
            becn: true,
            dest_qpn: 0x12_3456,
            ack_request: true,
            psn: PacketPsn::new(0xAB_CDEF),
        };
        let bytes = [0x04, 0xF0, 0x7F, 0xFF, 0xC0, 0x12, 0x34, 0x56, 0x80, 0xAB, 0xCD, 0xEF];
        assert_eq!(all.to_bytes(), bytes);
        assert_eq!(Bth::parse(Opcode::SendOnly, &bytes), all);
        assert_eq!(
            all.to_string(),
            "RC SEND Only, QP 0x123456, PSN 11259375, SE, A, FECN, BECN, P_Key 0x7fff"
        );
    }

    /// Each bit belongs to one field: it comes back, or it is reserved (or the version) and does not.
    #[test]
    fn each_bit_is_a_fields_or_reserved() {
        for bit in 8..8 * LENGTH {
            let mut bytes = [0; LENGTH];
            bytes[bit / 8] = 0x80 >> (bit % 8);
            let back = Bth::parse(Opcode::SendFirst, &bytes).to_bytes();
            let reserved = matches!(bit, 12..=15 | 34..=39 | 65..=71);
            assert_eq!(back == bytes, !reserved, "bit {bit}");
            assert!(back == bytes || back == [0; LENGTH], "bit {bit}");
        }
    }

    #[test]
    fn numbers_are_cut_to_their_bits() {
        let wide =
            Bth { dest_qpn: u32::MAX, pad_count: 0xFF, ..Bth::new(Opcode::SendOnly, 0, PacketPsn::new(0)) };
        assert_eq!(wide.to_bytes(), [0x04, 0x70, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
    }

    #[test]
    fn padding_fills_a_word() {
        for length in 0..5000 {
            let pad = pad_count_for(length);
            assert!(pad < 4 && (length + usize::from(pad)) % 4 == 0, "{length}");
        }
    }
}
