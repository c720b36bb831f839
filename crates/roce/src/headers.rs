//! The headers of a packet to send: a BTH and what its opcode asks for behind it.
//!
//! A packet is written into a slice of the transmit buffer in three steps: [`Headers::emit`] writes the headers, the
//! caller puts the payload behind them, and [`IcrcContext::finish`](crate::IcrcContext::finish) adds padding and ICRC.

use std::fmt;

use crate::{Aeth, AtomicAckEth, AtomicEth, Bth, Ieth, ImmDt, Opcode, Packet, Reth};
use crate::{aeth, atomic_ack_eth, atomic_eth, bth, icrc, ieth, imm_dt, reth};

/// What stands between the BTH and the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Nothing.
    None,
    /// Where an RDMA WRITE, an RDMA READ Request or an ATOMIC WRITE goes.
    Reth(Reth),
    /// An RDMA WRITE Only with Immediate.
    RethImmediate(Reth, ImmDt),
    /// The immediate of a SEND, or of a WRITE's last packet.
    Immediate(ImmDt),
    /// The key that a SEND invalidates.
    Invalidate(Ieth),
    /// An acknowledgement, or a READ response that carries one.
    Aeth(Aeth),
    /// An atomic's answer.
    AtomicAck(Aeth, AtomicAckEth),
    /// An atomic.
    Atomic(AtomicEth),
    /// The 16 reserved bytes of a congestion notice: zeros.
    Cnp,
    /// FETH and RETH of a FLUSH. Never ours: the FETH is not read, and goes out as zeros.
    Flush(Reth),
}

const FETH_LENGTH: usize = 4;
const CNP_LENGTH: usize = 16;

impl Extension {
    /// Bytes on the wire.
    #[inline]
    #[must_use]
    pub const fn length(&self) -> usize {
        match self {
            Self::None => 0,
            Self::Reth(_) => reth::LENGTH,
            Self::RethImmediate(..) => reth::LENGTH + imm_dt::LENGTH,
            Self::Immediate(_) => imm_dt::LENGTH,
            Self::Invalidate(_) => ieth::LENGTH,
            Self::Aeth(_) => aeth::LENGTH,
            Self::AtomicAck(..) => aeth::LENGTH + atomic_ack_eth::LENGTH,
            Self::Atomic(_) => atomic_eth::LENGTH,
            Self::Cnp => CNP_LENGTH,
            Self::Flush(_) => FETH_LENGTH + reth::LENGTH,
        }
    }

    /// Whether it is what `opcode` asks for.
    #[must_use]
    pub const fn fits(&self, opcode: Opcode) -> bool {
        match self {
            Self::None => opcode.extension_length() == 0,
            Self::Reth(_) => opcode.has_reth() && !opcode.has_immediate() && !matches!(opcode, Opcode::Flush),
            Self::RethImmediate(..) => opcode.has_reth() && opcode.has_immediate(),
            Self::Immediate(_) => opcode.has_immediate() && !opcode.has_reth(),
            Self::Invalidate(_) => opcode.has_invalidate(),
            Self::Aeth(_) => opcode.has_aeth() && !opcode.has_atomic_ack(),
            Self::AtomicAck(..) => opcode.has_atomic_ack(),
            Self::Atomic(_) => opcode.has_atomic_eth(),
            Self::Cnp => matches!(opcode, Opcode::Cnp),
            Self::Flush(_) => matches!(opcode, Opcode::Flush),
        }
    }
}

/// The headers of one packet. `Debug` hides PSN and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// The BTH. Its `pad_count` must be that of the payload: [`Headers::new`] sets it.
    pub bth: Bth,
    /// What follows it. In debug builds [`Headers::emit`] asserts that it fits the opcode.
    pub extension: Extension,
}

impl Headers {
    /// Headers for `payload_length` bytes of payload; sets `pad_count`.
    #[inline]
    #[must_use]
    pub const fn new(bth: Bth, extension: Extension, payload_length: usize) -> Self {
        Self { bth: Bth { pad_count: bth::pad_count_for(payload_length), ..bth }, extension }
    }

    /// The headers of a received packet.
    #[must_use]
    pub fn parse(packet: &Packet<'_>) -> Self {
        let extension = match (packet.reth(), packet.immediate(), packet.aeth()) {
            (Some(reth), Some(immediate), _) => Extension::RethImmediate(reth, immediate),
            (Some(reth), None, _) if packet.opcode() == Opcode::Flush => Extension::Flush(reth),
            (Some(reth), None, _) => Extension::Reth(reth),
            (None, Some(immediate), _) => Extension::Immediate(immediate),
            (None, None, Some(aeth)) => match packet.atomic_ack_eth() {
                Some(atomic) => Extension::AtomicAck(aeth, atomic),
                None => Extension::Aeth(aeth),
            },
            (None, None, None) => match (packet.atomic_eth(), packet.invalidate_key()) {
                (Some(atomic), _) => Extension::Atomic(atomic),
                (None, Some(rkey)) => Extension::Invalidate(Ieth { rkey }),
                (None, None) if packet.opcode() == Opcode::Cnp => Extension::Cnp,
                (None, None) => Extension::None,
            },
        };
        Self { bth: packet.bth(), extension }
    }

    /// Bytes of the headers.
    #[inline]
    #[must_use]
    pub const fn length(&self) -> usize {
        bth::LENGTH + self.extension.length()
    }

    /// Bytes of the whole packet, from BTH to ICRC, with `payload_length` bytes of payload.
    #[inline]
    #[must_use]
    pub const fn packet_length(&self, payload_length: usize) -> usize {
        self.length() + payload_length + (self.bth.pad_count & 3) as usize + icrc::LENGTH
    }

    /// Writes the headers to the start of `out` and answers where the payload goes, the number of bytes written.
    /// `None` if `out` is too short for them; nothing is written then.
    #[inline]
    pub fn emit(&self, out: &mut [u8]) -> Option<usize> {
        debug_assert!(self.extension.fits(self.bth.opcode), "the headers of another opcode");
        let (header, rest) = out.split_at_mut_checked(self.length())?.0.split_first_chunk_mut()?;
        // Judged above: `rest` has exactly the extension's length, so no `put` leaves anything out.
        *header = self.bth.to_bytes();
        match &self.extension {
            Extension::None => {}
            Extension::Reth(reth) => put(rest, &reth.to_bytes()),
            Extension::RethImmediate(reth, immediate) => {
                put(rest, &reth.to_bytes());
                put(rest.get_mut(reth::LENGTH..)?, &immediate.to_bytes());
            }
            Extension::Immediate(immediate) => put(rest, &immediate.to_bytes()),
            Extension::Invalidate(ieth) => put(rest, &ieth.to_bytes()),
            Extension::Aeth(aeth) => put(rest, &aeth.to_bytes()),
            Extension::AtomicAck(aeth, atomic) => {
                put(rest, &aeth.to_bytes());
                put(rest.get_mut(aeth::LENGTH..)?, &atomic.to_bytes());
            }
            Extension::Atomic(atomic) => put(rest, &atomic.to_bytes()),
            Extension::Cnp => put(rest, &[0; CNP_LENGTH]),
            Extension::Flush(reth) => {
                put(rest, &[0; FETH_LENGTH]);
                put(rest.get_mut(FETH_LENGTH..)?, &reth.to_bytes());
            }
        }
        Some(self.length())
    }

    /// Appends the headers to `out`.
    pub fn append_to(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.resize(start + self.length(), 0);
        let _ = out.get_mut(start..).and_then(|space| self.emit(space));
    }
}

#[inline]
fn put<const N: usize>(out: &mut [u8], bytes: &[u8; N]) {
    if let Some(space) = out.first_chunk_mut() {
        *space = *bytes;
    }
}

/// As a dissector's line. It shows the PSN, but no key: for captures and tests.
impl fmt::Display for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bth)?;
        match &self.extension {
            Extension::None | Extension::Cnp => Ok(()),
            Extension::Reth(reth) | Extension::Flush(reth) => write!(f, ", {reth}"),
            Extension::RethImmediate(reth, immediate) => write!(f, ", {reth}, {immediate}"),
            Extension::Immediate(immediate) => write!(f, ", {immediate}"),
            Extension::Invalidate(ieth) => write!(f, ", {ieth}"),
            Extension::Aeth(aeth) => write!(f, ", {aeth}"),
            Extension::AtomicAck(aeth, atomic) => write!(f, ", {aeth}, {atomic}"),
            Extension::Atomic(atomic) => write!(f, ", {atomic}"),
        }
    }
}
