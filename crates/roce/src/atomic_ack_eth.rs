//! The atomic acknowledge extended transport header: what the 8 bytes held before (brief §2.2).

use std::fmt;

/// Bytes of an `AtomicAckETH`.
pub const LENGTH: usize = 8;

/// The field of an `AtomicAckETH`: remote data, so `Debug` and `Display` hide it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AtomicAckEth {
    /// What the memory held before the atomic; big-endian on the wire, host order in memory.
    pub original: u64,
}

impl AtomicAckEth {
    /// Reads the field.
    #[inline]
    #[must_use]
    pub const fn parse(bytes: [u8; LENGTH]) -> Self {
        Self { original: u64::from_be_bytes(bytes) }
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; LENGTH] {
        self.original.to_be_bytes()
    }
}

impl fmt::Debug for AtomicAckEth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtomicAckEth").finish_non_exhaustive()
    }
}

impl fmt::Display for AtomicAckEth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("8 B original")
    }
}
