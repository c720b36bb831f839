//! The packet sequence number, and the one place where a starting PSN comes from.

use std::fmt;

use crate::{Error, ErrorCode, Result};

/// A packet sequence number: 24 bits, counted modulo 2^24 (IBTA 9.2.9).
///
/// Whoever knows it can inject packets into a connection, so it never shows in `Debug`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Psn(u32);

impl Psn {
    /// Takes a number of at most 24 bits.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        if value < 1 << 24 { Some(Self(value)) } else { None }
    }

    /// Draws a starting PSN: 24 uniform bits from `entropy`.
    ///
    /// Every starting PSN of this project comes from here, one call per direction. No bit is forced, no
    /// clock and no generator of our own is asked.
    ///
    /// # Errors
    /// [`ErrorCode::Entropy`] when the operating system gives no random bytes.
    pub fn draw(entropy: &dyn Entropy) -> Result<Self> {
        let mut bytes = [0_u8; 3];
        entropy.fill(&mut bytes)?;
        Ok(Self(u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]])))
    }

    /// The number itself. Whoever calls this answers for where it goes.
    #[must_use]
    pub const fn expose(self) -> u32 {
        self.0
    }
}

impl fmt::Debug for Psn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psn(…)")
    }
}

/// A source of random bytes. Tests put another one in place of the operating system's.
pub trait Entropy: Send + Sync {
    /// Fills `bytes` with uniform random bits.
    ///
    /// # Errors
    /// [`ErrorCode::Entropy`] when there are none to be had.
    fn fill(&self, bytes: &mut [u8]) -> Result<()>;
}

/// The operating system's random bytes: getrandom(2) on Linux.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        getrandom::fill(bytes).map_err(|cause| {
            Error::new(
                ErrorCode::Entropy,
                format!(
                    "the operating system gave no random bytes: {cause}. Does a sandbox forbid getrandom(2)?"
                ),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed([u8; 3]);
    impl Entropy for Fixed {
        fn fill(&self, bytes: &mut [u8]) -> Result<()> {
            bytes.copy_from_slice(&self.0);
            Ok(())
        }
    }

    #[test]
    fn a_replaced_source_decides_every_bit() {
        for value in [0_u32, 1, 0x12_3456, 0x80_0000, 0xFF_FFFE, 0xFF_FFFF] {
            let [_, a, b, c] = value.to_be_bytes();
            assert_eq!(Psn::draw(&Fixed([a, b, c])).unwrap().expose(), value);
        }
    }

    #[test]
    fn debug_hides_the_number() {
        assert_eq!(format!("{:?}", Psn::new(0x12_3456).unwrap()), "Psn(…)");
    }

    #[test]
    fn more_than_24_bits_is_refused() {
        assert!(Psn::new(1 << 24).is_none());
        assert!(Psn::new(u32::MAX).is_none());
    }
}
