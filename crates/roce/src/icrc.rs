//! The invariant CRC: CRC-32 over what no router changes (brief §5).
//!
//! `FF×8 | IP header, masked | UDP header, masked | BTH, byte 4 masked | the rest, to the end of the padding`, and the
//! result least significant byte first behind it.
//!
//! IP and UDP headers differ within a flow only in lengths and ID, and the CRC is linear: a context keeps the register
//! behind both headers with lengths and ID of zero, and tables say what each byte of those changes. The masked byte of
//! the BTH is taken back to the register before it in the same way. So one pass over the UDP payload as it stands is
//! all that is left per packet.
//!
//! The pass is `crc32fast`'s (1.5.5, with VPCLMULQDQ where rustc ≥ 1.89 and the processor have it) rather than
//! `crc-fast`'s (1.10), as measured on a Xeon of model 167 (benches/icrc.rs): 5.4 ns against 23 for 64 B, 20 against 33
//! for 1 KiB, 43 against 60 to 79 for 4 KiB; and `crc-fast` needs a newer Rust than ours. With the headers, 8.4 ns for 96 B.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{bth, gf2, id_solver};

/// Bytes of an ICRC.
pub const LENGTH: usize = 4;

/// The register behind the eight bytes 0xFF that stand for InfiniBand's local route header.
const AFTER_LOCAL_ROUTE: u32 = 0xDEBB_20E3;

const UDP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// An ICRC's number of its bytes on the wire.
#[inline]
pub(crate) const fn from_wire(bytes: [u8; LENGTH]) -> u32 {
    u32::from_le_bytes(bytes)
}

/// The addresses of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Endpoints {
    V4 { source: Ipv4Addr, destination: Ipv4Addr },
    V6 { source: Ipv6Addr, destination: Ipv6Addr },
}

/// What all packets of a flow (addresses and UDP ports) have in common in their ICRCs. 12 bytes, made in some 20 ns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IcrcContext {
    /// The register behind the UDP header, for lengths of 0, and on IPv4 for ID 0 and DF clear.
    register: u32,
    v4: bool,
}

/// What a received packet's ICRC says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcrcCheck {
    /// It is right for the ID that was expected, with DF set: all 32 bits speak for the packet. On IPv6 this is the
    /// only good answer.
    Expected,
    /// It is right for this ID: some 16 bits speak for the packet.
    OtherId {
        /// The IPv4 ID that the packet was sent with, unless it is corrupt after all.
        id: u16,
        /// Whether "don't fragment" was set.
        dont_fragment: bool,
    },
    /// It is wrong: the packet is corrupt, or its addresses or ports were changed on the way.
    Wrong,
}

impl IcrcContext {
    /// The context of packets between these addresses and ports, in this direction.
    #[must_use]
    pub fn new(endpoints: Endpoints, source_port: u16, destination_port: u16) -> Self {
        let mut headers = [0xFF; IPV6_HEADER + UDP_HEADER];
        let (v4, length) = match endpoints {
            Endpoints::V4 { source, destination } => {
                // Version and IHL · TOS · length, ID, flags as 0 · TTL · UDP · checksum · addresses.
                headers[..12].copy_from_slice(&[0x45, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 17, 0xFF, 0xFF]);
                headers[12..16].copy_from_slice(&source.octets());
                headers[16..20].copy_from_slice(&destination.octets());
                (true, IPV4_HEADER)
            }
            Endpoints::V6 { source, destination } => {
                // Version, traffic class, flow label · length as 0 · UDP · hop limit · addresses.
                headers[..8].copy_from_slice(&[0x6F, 0xFF, 0xFF, 0xFF, 0, 0, 17, 0xFF]);
                headers[8..24].copy_from_slice(&source.octets());
                headers[24..40].copy_from_slice(&destination.octets());
                (false, IPV6_HEADER)
            }
        };
        let [source_high, source_low] = source_port.to_be_bytes();
        let [destination_high, destination_low] = destination_port.to_be_bytes();
        headers[length..length + UDP_HEADER].copy_from_slice(&[
            source_high,
            source_low,
            destination_high,
            destination_low,
            0,
            0,
            0xFF,
            0xFF,
        ]);
        Self { register: advance(AFTER_LOCAL_ROUTE, &headers[..length + UDP_HEADER]), v4 }
    }

    /// Computes the ICRC of a packet whose UDP payload, up to and without the ICRC, is `covered`.
    ///
    /// `ipv4_id` and `dont_fragment` do not count on IPv6. Lengths beyond a UDP datagram's have no meaning.
    #[inline]
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // a UDP datagram's length has 16 bits
    pub fn icrc(&self, ipv4_id: u16, dont_fragment: bool, covered: &[u8]) -> u32 {
        let udp_length = (covered.len() + LENGTH + UDP_HEADER) as u16;
        let mut register = self.register ^ UDP_LENGTH.of(udp_length);
        if self.v4 {
            register ^= IPV4_LENGTH.of(udp_length.wrapping_add(IPV4_HEADER as u16)) ^ IPV4_ID.of(ipv4_id);
            if dont_fragment {
                register ^= IPV4_DONT_FRAGMENT;
            }
        } else {
            register ^= IPV6_LENGTH.of(udp_length);
        }
        let congestion = covered.get(4).copied().unwrap_or(0xFF);
        register ^= BTH_MASK[usize::from(congestion)];
        !advance(register, covered)
    }

    /// Ends a packet: `packet` is the whole of it, from BTH to ICRC, with headers and payload in place. Writes zeros to
    /// the padding that the BTH counts, and the ICRC for this ID and DF set behind it.
    ///
    /// Answers the ICRC; `None` if `packet` has no room for a BTH, the padding and an ICRC, and nothing is written then.
    #[inline]
    pub fn finish(&self, ipv4_id: u16, packet: &mut [u8]) -> Option<u32> {
        let (covered, last) = packet.split_last_chunk_mut::<LENGTH>()?;
        let pad = usize::from(bth::pad_count(*covered.get(1)?));
        let end = covered.len().checked_sub(pad).filter(|end| *end >= bth::LENGTH)?;
        covered.get_mut(end..)?.fill(0);
        let icrc = self.icrc(ipv4_id, true, covered);
        *last = icrc.to_le_bytes();
        Some(icrc)
    }

    /// Judges the ICRC of a received UDP payload: quickly if the packet has the ID that is expected (0, or the index
    /// within a GSO batch) and DF set; otherwise it finds the ID out.
    #[inline]
    #[must_use]
    pub fn check(&self, expected_id: u16, udp_payload: &[u8]) -> IcrcCheck {
        let Some((covered, received)) = udp_payload.split_last_chunk() else { return IcrcCheck::Wrong };
        let error = self.icrc(expected_id, true, covered) ^ from_wire(*received);
        if error == 0 {
            return IcrcCheck::Expected;
        }
        if !self.v4 {
            return IcrcCheck::Wrong;
        }
        match id_solver::solve_id(udp_payload.len(), error) {
            Some(found) => {
                IcrcCheck::OtherId { id: expected_id ^ found.id, dont_fragment: !found.dont_fragment }
            }
            None => IcrcCheck::Wrong,
        }
    }
}

/// Without the register, from which ports could be guessed.
impl fmt::Debug for IcrcContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IcrcContext").field("v4", &self.v4).finish_non_exhaustive()
    }
}

/// Runs `bytes` through the CRC's register.
#[inline]
fn advance(register: u32, bytes: &[u8]) -> u32 {
    // The crate takes and gives finished CRCs, which are complements of the register.
    let mut crc = crc32fast::Hasher::new_with_initial(!register);
    crc.update(bytes);
    !crc.finalize()
}

/// What a 16-bit field changes in the register behind the UDP header.
struct Field {
    high: [u32; 256],
    low: [u32; 256],
}

impl Field {
    /// Of a field after which `after` bytes of headers follow.
    const fn new(after: usize) -> Self {
        Self { high: byte_table(after + 1), low: byte_table(after) }
    }

    #[inline]
    fn of(&self, value: u16) -> u32 {
        let [high, low] = value.to_be_bytes();
        self.high[usize::from(high)] ^ self.low[usize::from(low)]
    }
}

/// What a byte changes in the register `after` bytes behind it.
const fn byte_table(after: usize) -> [u32; 256] {
    let weight = gf2::x_to_bytes(after + 1);
    let mut table = [0; 256];
    let mut byte = 0_u32;
    while byte < 256 {
        table[byte as usize] = gf2::multiply(byte, weight);
        byte += 1;
    }
    table
}

static UDP_LENGTH: Field = Field::new(2);
static IPV4_LENGTH: Field = Field::new(16 + UDP_HEADER);
static IPV4_ID: Field = Field::new(14 + UDP_HEADER);
static IPV6_LENGTH: Field = Field::new(34 + UDP_HEADER);
/// Bit 14 of flags and fragment offset.
const IPV4_DONT_FRAGMENT: u32 = gf2::multiply(0x40, gf2::x_to_bytes(13 + UDP_HEADER + 1));

/// At a byte: the change in the register before the BTH that makes the BTH's byte 4 count as 0xFF.
static BTH_MASK: [u32; 256] = {
    let back = gf2::x_to_minus_bytes(4);
    let mut table = [0; 256];
    let mut byte = 0_u32;
    while byte < 256 {
        table[byte as usize] = gf2::multiply(byte ^ 0xFF, back);
        byte += 1;
    }
    table
};
