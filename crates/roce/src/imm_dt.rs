//! Immediate data: 4 bytes that go to the receiver's completion (brief §2.2).

use std::fmt;

/// Bytes of an `ImmDt`.
pub const LENGTH: usize = 4;

/// The immediate, as a number; verbs' `imm_data` is the same number in big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImmDt {
    /// The number.
    pub value: u32,
}

impl ImmDt {
    /// Reads the number.
    #[inline]
    #[must_use]
    pub const fn parse(bytes: [u8; LENGTH]) -> Self {
        Self { value: u32::from_be_bytes(bytes) }
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; LENGTH] {
        self.value.to_be_bytes()
    }
}

impl fmt::Display for ImmDt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "immediate 0x{:08x}", self.value)
    }
}
