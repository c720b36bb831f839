//! The packet sequence number as a packet carries it, and its arithmetic modulo 2^24.

use std::fmt;

/// A PSN on the wire: 24 bits, counted modulo 2^24.
///
/// Whoever knows it can inject packets into a connection, so it never shows in `Debug`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketPsn(u32);

impl PacketPsn {
    /// The low 24 bits of `value`; the kernel masks in the same way.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(value & 0x00FF_FFFF)
    }

    /// The number itself. Whoever calls this answers for where it goes.
    #[must_use]
    pub const fn expose(self) -> u32 {
        self.0
    }

    /// The PSN `count` further.
    #[must_use]
    pub const fn plus(self, count: u32) -> Self {
        Self::new(self.0.wrapping_add(count))
    }

    /// The PSN `count` before.
    #[must_use]
    pub const fn minus(self, count: u32) -> Self {
        Self::new(self.0.wrapping_sub(count))
    }

    /// How much newer this PSN is than `other`: from -2^23 to 2^23 - 1, negative if it is older.
    #[must_use]
    pub const fn distance_from(self, other: Self) -> i32 {
        (self.0.wrapping_sub(other.0) << 8).cast_signed() >> 8
    }

    /// Whether this PSN comes before `other`.
    #[must_use]
    pub const fn is_before(self, other: Self) -> bool {
        self.distance_from(other) < 0
    }

    /// Whether this PSN comes after `other`.
    #[must_use]
    pub const fn is_after(self, other: Self) -> bool {
        self.distance_from(other) > 0
    }

    pub(crate) const fn from_bytes([a, b, c]: [u8; 3]) -> Self {
        Self(u32::from_be_bytes([0, a, b, c]))
    }

    pub(crate) const fn to_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }
}

impl fmt::Debug for PacketPsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketPsn(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 0x00FF_FFFF;

    #[test]
    fn distances_wrap() {
        for start in [0, 1, 0x12_3456, 0x7F_FFFF, 0x80_0000, MOST - 1, MOST] {
            let psn = PacketPsn::new(start);
            for step in [0, 1, 2, 128, 0x7F_FFFE, 0x7F_FFFF] {
                let later = psn.plus(step);
                assert_eq!(later.expose(), (start + step) % (MOST + 1));
                assert_eq!(later.minus(step), psn);
                assert_eq!(i64::from(later.distance_from(psn)), i64::from(step));
                assert_eq!(i64::from(psn.distance_from(later)), -i64::from(step));
                assert_eq!((later.is_after(psn), psn.is_before(later)), (step > 0, step > 0));
            }
            let half = psn.plus(0x80_0000);
            assert_eq!((half.distance_from(psn), psn.distance_from(half)), (-0x80_0000, -0x80_0000));
        }
    }

    #[test]
    fn debug_hides_the_number() {
        assert_eq!(format!("{:?}", PacketPsn::new(0x12_3456)), "PacketPsn(…)");
    }

    #[test]
    fn more_than_24_bits_are_cut_off() {
        assert_eq!(PacketPsn::new(0xFF00_0005), PacketPsn::new(5));
        assert_eq!(PacketPsn::from_bytes([0x12, 0x34, 0x56]).expose(), 0x12_3456);
        assert_eq!(PacketPsn::new(0x12_3456).to_bytes(), [0x12, 0x34, 0x56]);
    }
}
