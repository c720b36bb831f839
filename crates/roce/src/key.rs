//! A remote key as a packet carries it.

use std::fmt;

/// An R_Key on the wire. Whoever knows it can use the region behind it, so it never shows in `Debug`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PacketKey(u32);

impl PacketKey {
    /// A key of this value.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// The number itself. Whoever calls this answers for where it goes.
    #[must_use]
    pub const fn expose(self) -> u32 {
        self.0
    }

    pub(crate) const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_be_bytes(bytes))
    }

    pub(crate) const fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }
}

impl fmt::Debug for PacketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PacketKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_hides_the_number() {
        let key = PacketKey::new(0x1234_5678);
        assert_eq!(format!("{key:?}"), "PacketKey(…)");
        assert_eq!(PacketKey::from_bytes(key.to_bytes()).expose(), 0x1234_5678);
    }
}
