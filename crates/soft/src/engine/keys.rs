//! The random numbers that a peer has to know: R_Keys and QPNs.

use std::collections::VecDeque;
use std::fmt;
use std::hash::Hasher;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{Entropy, Error, ErrorCode, Qpn, Result};
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

/// How long a destroyed queue pair's number is not drawn again: packets of the old connection, and whoever had learned the
/// number, must not meet a new one.
pub(super) const QUARANTINE: Duration = Duration::from_secs(2 * 60 * 60);

/// The smallest QPN that is drawn. Those below are where other devices begin to count.
pub(super) const FIRST_QPN: u32 = 0x00_0100;
/// The largest: 0xFFFFFF means "multicast" in a packet.
pub(super) const LAST_QPN: u32 = 0xFF_FFFE;

/// Half of all numbers: beyond that a draw would take too many tries, and a guess would hit too often.
const MOST: usize = 1 << 23;

/// Draws QPNs: uniform among those that are neither in use nor were within [`QUARANTINE`].
///
/// One bit for each number, in 2 MiB that the system hands out as they are touched, and 8 bytes more for each in
/// quarantine: at most 64 MiB.
pub(super) struct QueuePairNumbers {
    /// One bit per number: in use or in quarantine.
    taken: Vec<u64>,
    count: usize,
    /// Numbers in quarantine and the second at which each is free again, in the order of their release.
    quarantine: VecDeque<(u32, u32)>,
    /// What the seconds are counted from: the first release.
    epoch: Option<Instant>,
    most: usize,
}

impl QueuePairNumbers {
    pub(super) fn new() -> Self {
        Self { taken: vec![0; 1 << 18], count: 0, quarantine: VecDeque::new(), epoch: None, most: MOST }
    }

    /// Takes a number.
    ///
    /// # Errors
    /// [`ErrorCode::Entropy`]; [`ErrorCode::Resource`] when 2^23 numbers are in use or were within two hours.
    pub(super) fn draw(&mut self, now: Instant, entropy: &dyn Entropy) -> Result<Qpn> {
        self.end_quarantines(now);
        if self.count >= self.most {
            return Err(Error::new(
                ErrorCode::Resource,
                format!(
                    "{} queue pairs were made within two hours: wait until their numbers may be used again",
                    self.count
                ),
            ));
        }
        loop {
            let mut bytes = [0; 3];
            entropy.fill(&mut bytes)?;
            let number = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
            let Some(qpn) = Qpn::new(number).filter(|_| (FIRST_QPN..=LAST_QPN).contains(&number)) else {
                continue;
            };
            if self.mark(number, true) {
                self.count += 1;
                return Ok(qpn);
            }
        }
    }

    /// Puts the number of a destroyed queue pair into quarantine. One that was not drawn is ignored.
    pub(super) fn release(&mut self, now: Instant, qpn: Qpn) {
        let number = qpn.get();
        let epoch = *self.epoch.get_or_insert(now);
        let free_at =
            now.saturating_duration_since(epoch).saturating_add(QUARANTINE).as_secs().saturating_add(1);
        if self.is_taken(number) {
            self.quarantine.push_back((u32::try_from(free_at).unwrap_or(u32::MAX), number));
        }
    }

    fn end_quarantines(&mut self, now: Instant) {
        let Some(epoch) = self.epoch else { return };
        let second = now.saturating_duration_since(epoch).as_secs();
        while let Some((free_at, number)) = self.quarantine.front().copied()
            && u64::from(free_at) <= second
        {
            self.quarantine.pop_front();
            if self.mark(number, false) {
                self.count -= 1;
            }
        }
    }

    fn is_taken(&self, number: u32) -> bool {
        self.taken.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    /// Sets the number's bit, and says whether that changed it.
    fn mark(&mut self, number: u32, taken: bool) -> bool {
        let before = self.is_taken(number);
        if let Some(word) = self.taken.get_mut(number as usize / 64)
            && before != taken
        {
            *word ^= 1 << (number % 64);
        }
        before != taken
    }
}

impl fmt::Debug for QueuePairNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePairNumbers")
            .field("taken", &self.count)
            .field("in_quarantine", &self.quarantine.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use super::*;

    /// A generator with a seed (SplitMix64), so that a test is the same each time.
    struct Seeded(Mutex<u64>);

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

    fn seeded(seed: u64) -> Seeded {
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
    fn chi_squared(counts: &[u32]) -> f64 {
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
    fn queue_pair_numbers_are_uniform_in_their_range() {
        let (entropy, now) = (seeded(7), Instant::now());
        let mut numbers = QueuePairNumbers::new();
        let mut counts = [0_u32; 256];
        for _ in 0..1 << 17 {
            let number = numbers.draw(now, &entropy).unwrap().get();
            assert!((0x100..=0xFF_FFFE).contains(&number));
            counts[(number >> 16) as usize] += 1;
        }
        assert!(chi_squared(&counts) < 391.0, "{}", chi_squared(&counts));
    }

    /// Gives the listed three bytes, again and again.
    struct Fixed(Mutex<VecDeque<u32>>);

    impl Entropy for Fixed {
        fn fill(&self, bytes: &mut [u8]) -> Result<()> {
            let number =
                self.0.lock().unwrap().pop_front().ok_or(Error::new(ErrorCode::Entropy, "no more"))?;
            bytes.copy_from_slice(&number.to_be_bytes()[1..]);
            Ok(())
        }
    }

    fn fixed(numbers: impl IntoIterator<Item = u32>) -> Fixed {
        Fixed(Mutex::new(numbers.into_iter().collect()))
    }

    #[test]
    fn the_range_ends_where_it_should() {
        let mut numbers = QueuePairNumbers::new();
        let entropy = fixed([0, 1, 0xFF, 0xFF_FFFF, 0x100, 0xFF_FFFE]);
        let drawn = [0; 2].map(|_| numbers.draw(Instant::now(), &entropy).unwrap().get());
        assert_eq!(drawn, [0x100, 0xFF_FFFE]);
        assert!(numbers.draw(Instant::now(), &entropy).is_err(), "no entropy, no number");
    }

    #[test]
    fn a_number_stays_in_quarantine_for_two_hours() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut numbers = QueuePairNumbers::new();
        let entropy = fixed([0x1000, 0x1000, 0x1001, 0x1000, 0x1002, 0x1000]);
        let first = numbers.draw(start, &entropy).unwrap();
        assert_eq!(
            numbers.draw(after(3 * 3600), &entropy).unwrap().get(),
            0x1001,
            "in use, for however long"
        );
        numbers.release(after(3 * 3600), first);
        numbers.release(after(3 * 3600), Qpn::new(0x7777).unwrap());
        assert_eq!(numbers.quarantine.len(), 1, "only what was drawn");
        assert_eq!(numbers.draw(after(5 * 3600), &entropy).unwrap().get(), 0x1002, "not a moment too early");
        assert_eq!(numbers.draw(after(5 * 3600 + 2), &entropy).unwrap().get(), 0x1000);
        assert!(numbers.quarantine.is_empty());
        assert_eq!(numbers.count, 3);
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_ends_no_quarantine_early() {
        let start = Instant::now();
        let mut numbers = QueuePairNumbers::new();
        let entropy = fixed([0x1000, 0x1001, 0x1000, 0x1002]);
        let first = numbers.draw(start, &entropy).unwrap();
        numbers.release(start + Duration::from_secs(10), first);
        assert_eq!(numbers.draw(start, &entropy).unwrap().get(), 0x1001);
        assert_eq!(numbers.draw(start + Duration::from_secs(10), &entropy).unwrap().get(), 0x1002);
    }

    #[test]
    fn more_numbers_than_the_bound_are_refused_until_some_are_free() {
        let (entropy, start) = (seeded(8), Instant::now());
        let mut numbers = QueuePairNumbers::new();
        numbers.most = 1000;
        let drawn: Vec<_> = (0..1000).map(|_| numbers.draw(start, &entropy).unwrap()).collect();
        assert_eq!(numbers.draw(start, &entropy).unwrap_err().code(), ErrorCode::Resource);
        drawn.iter().for_each(|qpn| numbers.release(start, *qpn));
        assert_eq!(numbers.draw(start + QUARANTINE, &entropy).unwrap_err().code(), ErrorCode::Resource);
        let later = start + QUARANTINE + Duration::from_secs(1);
        let again: Vec<_> = (0..1000).map(|_| numbers.draw(later, &entropy).unwrap()).collect();
        assert_eq!(again.iter().collect::<HashSet<_>>().len(), 1000);
        assert!(numbers.quarantine.is_empty());
    }

    #[test]
    fn debug_tells_no_key() {
        let entropy = seeded(9);
        assert_eq!(format!("{:?}", KeySequence::new(&entropy).unwrap()), "KeySequence { drawn: 0, .. }");
        let mut numbers = QueuePairNumbers::new();
        numbers.draw(Instant::now(), &entropy).unwrap();
        assert_eq!(format!("{numbers:?}"), "QueuePairNumbers { taken: 1, in_quarantine: 0, .. }");
    }
}
