//! Which IPv4 ID makes a received ICRC right (brief §9.3).
//!
//! The ICRC covers the ID and the flags, which a UDP socket cannot read. CRC is linear: what is wrong in those four
//! bytes shows in the ICRC as their difference times a power of x, whatever the rest of the packet holds. So the
//! difference is the error times the inverse of that power: one multiplication, and no elimination over 16 columns.
//! All 2^32 errors have a difference, but only 2^16 one that touches the ID alone, so that 16 bits of check are left.

use crate::gf2;

/// From the start of the four bytes (ID, flags, fragment offset) to that of the UDP payload.
const BEFORE_PAYLOAD: usize = 4 + 12 + 8;
/// The ICRC is no part of what it covers.
const ICRC_LENGTH: usize = crate::icrc::LENGTH;

/// "Don't fragment" within the four bytes, as [`Ipv4Difference`] counts them.
const DONT_FRAGMENT: u16 = 0x4000;

/// Lengths up to this many words have their power in a table: all that a path MTU of 4096 has.
const TABLE_WORDS: usize = 1056;

/// x^-8(20 + 4·n) at n.
static INVERSES: [u32; TABLE_WORDS] = {
    let mut table = [0; TABLE_WORDS];
    let step = gf2::x_to_minus_bytes(4);
    let mut value = gf2::x_to_minus_bytes(BEFORE_PAYLOAD - ICRC_LENGTH);
    let mut words = 0;
    while words < TABLE_WORDS {
        table[words] = value;
        value = gf2::multiply(value, step);
        words += 1;
    }
    table
};

const MINUS_BYTE: u32 = gf2::x_to_minus_bytes(1);

/// How the second word of a packet's IPv4 header differs from that for which an ICRC was computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Difference {
    /// ID as assumed, XOR ID as sent.
    pub id: u16,
    /// Whether "don't fragment" is the opposite of what was assumed.
    pub dont_fragment: bool,
}

/// Finds the difference that explains `error`, the received ICRC XOR the computed one, in a datagram whose UDP payload,
/// ICRC included, has `length` bytes. `None` if none does: the packet is corrupt.
///
/// A random error passes with a probability of 2^-16, and of 2^-15 if a difference in `dont_fragment` is allowed too.
#[must_use]
pub fn solve_id(length: usize, error: u32) -> Option<Ipv4Difference> {
    let word = gf2::multiply(error, inverse(length));
    let [id_high, id_low, flags_high, flags_low] = word.to_le_bytes();
    let id = u16::from_be_bytes([id_high, id_low]);
    match u16::from_be_bytes([flags_high, flags_low]) {
        0 => Some(Ipv4Difference { id, dont_fragment: false }),
        DONT_FRAGMENT => Some(Ipv4Difference { id, dont_fragment: true }),
        _ => None,
    }
}

fn inverse(length: usize) -> u32 {
    let (words, odd) = (length / 4, length % 4);
    let whole = INVERSES.get(words).copied().unwrap_or_else(|| {
        let bytes = BEFORE_PAYLOAD - ICRC_LENGTH + 4 * words;
        gf2::power(MINUS_BYTE, bytes)
    });
    // Only a peer's wrong padding makes a length that is no multiple of 4.
    if odd == 0 { whole } else { gf2::multiply(whole, gf2::power(MINUS_BYTE, odd)) }
}
