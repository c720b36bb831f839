//! The invalidate extended transport header: a key of the receiver's that ends (brief §2.2).

use std::fmt;

use crate::PacketKey;

/// Bytes of an IETH.
pub const LENGTH: usize = 4;

/// The field of an IETH. `Debug` and `Display` hide the R_Key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ieth {
    /// The R_Key to invalidate.
    pub rkey: PacketKey,
}

impl Ieth {
    /// Reads the key.
    #[inline]
    #[must_use]
    pub const fn parse(bytes: [u8; LENGTH]) -> Self {
        Self { rkey: PacketKey::from_bytes(bytes) }
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; LENGTH] {
        self.rkey.to_bytes()
    }
}

impl fmt::Display for Ieth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("invalidate")
    }
}
