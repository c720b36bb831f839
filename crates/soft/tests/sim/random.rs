//! Random numbers of a seed.

use std::sync::Mutex;

use oorandom::Rand64;
use secure_rdma_rdma::{Entropy, Result};

/// A stream of random numbers that is the same for the same seed and purpose.
pub struct Random(Rand64);

impl Random {
    /// `purpose` separates streams, so that what one fault draws does not shift what another does.
    pub fn new(seed: u64, purpose: u64) -> Self {
        Self(Rand64::new(u128::from(seed) << 64 | u128::from(purpose.wrapping_mul(0x9E37_79B9_7F4A_7C15))))
    }

    pub fn u64(&mut self) -> u64 {
        self.0.rand_u64()
    }

    /// From 0 to `end` − 1; 0 where that is empty.
    pub fn below(&mut self, end: u64) -> u64 {
        // The bias of a product's upper half is 2^-40 for what is asked here.
        ((u128::from(self.u64()) * u128::from(end)) >> 64) as u64
    }

    pub fn range(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// True with a chance of `millionths` in 10^6.
    pub fn chance(&mut self, millionths: u32) -> bool {
        self.below(1_000_000) < u64::from(millionths)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// Exponentially distributed with this mean, at most twenty times it.
    pub fn exponential(&mut self, mean: u64) -> u64 {
        let unit = (self.u64() >> 11) as f64 / (1_u64 << 53) as f64;
        (-(1.0 - unit).ln() * mean as f64).min(mean as f64 * 20.0) as u64
    }
}

/// The entropy that an engine is given.
pub struct Seeded(Mutex<Random>);

impl Seeded {
    pub fn new(seed: u64, purpose: u64) -> Self {
        Self(Mutex::new(Random::new(seed, purpose)))
    }
}

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        let mut random = self.0.lock().unwrap();
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

/// PSNs: 24 bits, compared by the sign of their difference (brief §3.1). Written apart from the engine's.
pub mod psn {
    pub const MASK: u32 = 0xFF_FFFF;

    pub fn add(psn: u32, count: u32) -> u32 {
        psn.wrapping_add(count) & MASK
    }

    /// `a − b`, negative where `a` is older.
    pub fn minus(a: u32, b: u32) -> i32 {
        (a.wrapping_sub(b) << 8).cast_signed() >> 8
    }
}
