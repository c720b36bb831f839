//! The random keys that a peer has to know: R_Keys.

use std::fmt;
use std::hash::Hasher;

use secure_rdma_rdma::{Entropy, Result};
use siphasher::sip::SipHasher13;

/// A permutation of `2 · HALF` bits that nobody without its key can predict: a Feistel network whose round function is
/// SipHash-1-3.
struct Permutation<const HALF: u32> {
    /// Holds the key; each evaluation works on a copy.
    keyed: SipHasher13,
}

/// Four rounds make a pseudorandom permutation of a pseudorandom function (Luby and Rackoff), as long as few values were
/// seen. Eight leave room for as many as a peer can collect.
const ROUNDS: u8 = 8;

impl<const HALF: u32> Permutation<HALF> {
    const MASK: u32 = (1 << HALF) - 1;

    fn draw(entropy: &dyn Entropy) -> Result<Self> {
        let mut key = [0; 16];
        entropy.fill(&mut key)?;
        Ok(Self { keyed: SipHasher13::new_with_key(&key) })
    }

    /// Where `value`, of which only the low `2 · HALF` bits count, goes.
    fn apply(&self, value: u32) -> u32 {
        let (mut left, mut right) = ((value >> HALF) & Self::MASK, value & Self::MASK);
        for round in 0..ROUNDS {
            let mut hasher = self.keyed;
            let [a, b, c, d] = right.to_le_bytes();
            hasher.write(&[round, a, b, c, d]);
            let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
            (left, right) = (right, left ^ (u32::from_le_bytes([a, b, c, d]) & Self::MASK));
        }
        left << HALF | right
    }
}

/// Draws L_Keys and R_Keys: 32 unpredictable bits each, none twice among 2^32 − 1 of them, and never 0, which a zeroed
/// field of a program would name.
///
/// A counter goes through a keyed permutation, so that no set of used keys is kept. When the counter has gone round, after
/// weeks of a thousand keys a second, another permutation follows; whoever keeps keys alive for so long has to
/// look whether a key is free (the table of regions does).
pub(super) struct KeySequence {
    permutation: Permutation<16>,
    counter: u32,
    drawn: u64,
}

impl KeySequence {
    /// # Errors
    /// [`ErrorCode::Entropy`].
    pub(super) fn new(entropy: &dyn Entropy) -> Result<Self> {
        let mut counter = [0; 4];
        entropy.fill(&mut counter)?;
        let permutation = Permutation::draw(entropy)?;
        Ok(Self { permutation, counter: u32::from_le_bytes(counter), drawn: 0 })
    }

    /// # Errors
    /// [`ErrorCode::Entropy`], once in 2^32 draws.
    pub(super) fn draw(&mut self, entropy: &dyn Entropy) -> Result<u32> {
        loop {
            if self.drawn == 1 << 32 {
                *self = Self::new(entropy)?;
            }
            let key = self.permutation.apply(self.counter);
            self.counter = self.counter.wrapping_add(1);
            self.drawn += 1;
            if key != 0 {
                return Ok(key);
            }
        }
    }
}

impl fmt::Debug for KeySequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySequence").field("drawn", &self.drawn).finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use super::*;

    /// A generator with a seed (SplitMix64), so that a test is the same each time.
    pub(in crate::engine) struct Seeded(Mutex<u64>);

    impl Entropy for Seeded {
        fn fill(&self, bytes: &mut [u8]) -> Result<()> {
            let mut state = self.0.lock().unwrap();
            for byte in bytes {
                *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mixed = (*state ^ *state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                *byte = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB).to_le_bytes()[5];
            }
            Ok(())
        }
    }

    pub(in crate::engine) fn seeded(seed: u64) -> Seeded {
        Seeded(Mutex::new(seed))
    }

    #[test]
    fn no_key_comes_twice_in_a_million() {
        let entropy = seeded(1);
        let mut keys = KeySequence::new(&entropy).unwrap();
        let drawn: HashSet<u32> = (0..1 << 20).map(|_| keys.draw(&entropy).unwrap()).collect();
        assert_eq!(drawn.len(), 1 << 20);
        assert!(!drawn.contains(&0));
    }

    #[test]
    fn the_permutation_meets_every_value_once() {
        fn check<const HALF: u32>() {
            for seed in 0..8 {
                let permutation = Permutation::<HALF>::draw(&seeded(seed)).unwrap();
                let met: HashSet<u32> = (0..1 << (2 * HALF)).map(|value| permutation.apply(value)).collect();
                assert_eq!(met.len(), 1 << (2 * HALF), "{HALF} bits a half");
                assert!(met.iter().all(|value| value >> (2 * HALF) == 0));
            }
        }
        check::<1>();
        check::<4>();
        check::<8>();
    }

    #[test]
    fn zero_is_left_out_and_another_permutation_follows_the_last_key() {
        let entropy = seeded(3);
        let mut keys = KeySequence::new(&entropy).unwrap();
        // The counter that becomes 0, found by inverting the network.
        let (mut left, mut right) = (0_u32, 0_u32);
        for round in (0..ROUNDS).rev() {
            let mut hasher = keys.permutation.keyed;
            hasher.write(&[&[round][..], &left.to_le_bytes()].concat());
            let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
            (left, right) = (right ^ (u32::from_le_bytes([a, b, c, d]) & 0xFFFF), left);
        }
        keys.counter = left << 16 | right;
        assert_eq!(keys.permutation.apply(keys.counter), 0, "positive control");
        assert_ne!(keys.draw(&entropy).unwrap(), 0);
        assert_eq!(keys.drawn, 2, "one was left out");

        let before = keys.permutation.apply(7);
        keys.drawn = 1 << 32;
        keys.draw(&entropy).unwrap();
        assert_eq!(keys.drawn, 1);
        assert_ne!(keys.permutation.apply(7), before);
    }

    /// Pearson's χ² of `counts` against a uniform distribution.
    pub(in crate::engine) fn chi_squared(counts: &[u32]) -> f64 {
        let expected = f64::from(counts.iter().sum::<u32>()) / counts.len() as f64;
        counts.iter().map(|count| (f64::from(*count) - expected).powi(2) / expected).sum()
    }

    #[test]
    fn keys_are_uniform_in_each_byte_and_differ_in_half_their_bits() {
        let entropy = seeded(4);
        let mut keys = KeySequence::new(&entropy).unwrap();
        let mut counts = vec![[0_u32; 256]; 4];
        let (mut flipped, mut before) = (0, keys.draw(&entropy).unwrap());
        for _ in 0..1 << 18 {
            let key = keys.draw(&entropy).unwrap();
            key.to_le_bytes()
                .iter()
                .enumerate()
                .for_each(|(byte, value)| counts[byte][usize::from(*value)] += 1);
            flipped += (key ^ before).count_ones();
            before = key;
        }
        // 255 degrees of freedom: mean 255, standard deviation 22.6; six of them.
        counts.iter().for_each(|counts| assert!(chi_squared(counts) < 391.0));
        let mean = f64::from(flipped) / f64::from(1 << 18);
        assert!((mean - 16.0).abs() < 0.05, "{mean} of 32 bits change from key to key");
    }

    #[test]
    fn another_key_gives_another_order() {
        let first = |seed| {
            let entropy = seeded(seed);
            let mut keys = KeySequence::new(&entropy).unwrap();
            [0; 8].map(|_| keys.draw(&entropy).unwrap())
        };
        assert_eq!(first(5), first(5));
        assert!(first(5).iter().all(|key| !first(6).contains(key)));
    }

    #[test]
    fn debug_tells_no_key() {
        let entropy = seeded(9);
        assert_eq!(format!("{:?}", KeySequence::new(&entropy).unwrap()), "KeySequence { drawn: 0, .. }");
    }
}
