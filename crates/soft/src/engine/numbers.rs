//! The random numbers of queue pairs.

use std::collections::VecDeque;
use std::fmt;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{Entropy, Error, ErrorCode, Qpn, Result};

/// How long a destroyed queue pair's number is not drawn again, at the least: packets of the old connection, and whoever had
/// learned the number, must not meet a new one.
const QUARANTINE: Duration = Duration::from_secs(2 * 60 * 60);

/// Numbers that were released within the same stretch of this length become free together, when the quarantine of the last
/// that could be is over.
const STRETCH: Duration = Duration::from_secs(15 * 60);

/// The smallest QPN that is drawn. Those below are where other devices begin to count.
const FIRST_QPN: u32 = 0x00_0100;
/// The largest: 0xFFFFFF means "multicast" in a packet.
const LAST_QPN: u32 = 0xFF_FFFE;

/// Half of all numbers: beyond that a draw would take too many tries, and a guess would hit too often.
const MOST: usize = 1 << 23;

/// Draws QPNs: uniform among those that are neither in use nor were within [`QUARANTINE`].
///
/// One bit for each number, in 2 MiB that the system hands out as they are touched. Those in quarantine take at the most as
/// much again for each of ten stretches, however many come and go.
pub(super) struct QueuePairNumbers {
    /// In use or in quarantine.
    taken: Bits,
    count: usize,
    /// Numbers in quarantine, by the stretch of their release, oldest first.
    quarantine: VecDeque<(u64, Released)>,
    /// What stretches are counted from: the first release.
    epoch: Option<Instant>,
    most: usize,
}

impl QueuePairNumbers {
    pub(super) fn new() -> Self {
        Self { taken: Bits::new(), count: 0, quarantine: VecDeque::new(), epoch: None, most: MOST }
    }

    /// Takes a number.
    ///
    /// # Errors
    /// [`ErrorCode::Entropy`]; [`ErrorCode::Resource`] when 2^23 numbers are in use or in quarantine.
    pub(super) fn draw(&mut self, now: Instant, entropy: &dyn Entropy) -> Result<Qpn> {
        self.end_quarantines(now);
        if self.count >= self.most {
            return Err(Error::new(
                ErrorCode::Resource,
                format!(
                    "{} queue pairs are in use or were within the last hours: wait until their numbers may be used again",
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
            if self.taken.set(number) {
                self.count += 1;
                return Ok(qpn);
            }
        }
    }

    /// Puts the number of a destroyed queue pair into quarantine. One that was not drawn is ignored.
    pub(super) fn release(&mut self, now: Instant, qpn: Qpn) {
        if !self.taken.has(qpn.get()) {
            return;
        }
        let stretch = stretch_at(*self.epoch.get_or_insert(now), now);
        match self.quarantine.back_mut() {
            // A clock that goes back releases into the newest stretch: never too early.
            Some((newest, released)) if *newest >= stretch => released.add(qpn.get()),
            _ => {
                let mut released = Released::default();
                released.add(qpn.get());
                self.quarantine.push_back((stretch, released));
            }
        }
    }

    fn end_quarantines(&mut self, now: Instant) {
        let Some(stretch) = self.epoch.map(|epoch| stretch_at(epoch, now)) else { return };
        // Whole ones: of the last release in it, too, the quarantine is over.
        let quarantine = 1 + QUARANTINE.as_secs() / STRETCH.as_secs();
        while let Some((_, released)) = self
            .quarantine
            .front()
            .is_some_and(|(of, _)| of.saturating_add(quarantine) <= stretch)
            .then(|| self.quarantine.pop_front())
            .flatten()
        {
            self.count = self.count.saturating_sub(released.clear_in(&mut self.taken));
        }
    }
}

/// The stretch in which `now` is.
fn stretch_at(epoch: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(epoch).as_secs() / STRETCH.as_secs()
}

impl fmt::Debug for QueuePairNumbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePairNumbers").field("taken", &self.count).finish_non_exhaustive()
    }
}

/// A set of numbers: one bit each.
struct Bits(Vec<u64>);

impl Bits {
    fn new() -> Self {
        Self(vec![0; 1 << 18])
    }

    fn has(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word & bit(number) != 0)
    }

    /// Adds a number; tells whether that changed anything.
    fn set(&mut self, number: u32) -> bool {
        let Some(word) = self.0.get_mut(number as usize / 64) else { return false };
        let before = *word;
        *word |= bit(number);
        *word != before
    }

    /// Takes those out that are in `word` of the place `index`; tells how many were there.
    fn clear(&mut self, index: usize, word: u64) -> usize {
        let Some(own) = self.0.get_mut(index) else { return 0 };
        let cleared = *own & word;
        *own ^= cleared;
        cleared.count_ones() as usize
    }
}

fn bit(number: u32) -> u64 {
    1 << (number % 64)
}

/// Numbers that become free together.
enum Released {
    /// Few: of a set, each would take a page.
    Few(Vec<u32>),
    Many(Bits),
}

/// 64 KiB. Beyond, all 2 MiB of a set are worth it.
const FEW: usize = 1 << 14;

impl Default for Released {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Released {
    fn add(&mut self, number: u32) {
        match self {
            Self::Few(numbers) if numbers.len() < FEW => numbers.push(number),
            Self::Few(numbers) => {
                let mut bits = Bits::new();
                for one in numbers.iter().copied().chain([number]) {
                    bits.set(one);
                }
                *self = Self::Many(bits);
            }
            Self::Many(bits) => {
                bits.set(number);
            }
        }
    }

    /// Takes them out of `taken`; tells how many were there.
    fn clear_in(&self, taken: &mut Bits) -> usize {
        match self {
            Self::Few(numbers) => {
                numbers.iter().map(|number| taken.clear(*number as usize / 64, bit(*number))).sum()
            }
            Self::Many(bits) => {
                let words = bits.0.iter().enumerate().filter(|(_, word)| **word != 0);
                words.map(|(index, word)| taken.clear(index, *word)).sum()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Mutex;

    use super::*;
    use crate::engine::keys::tests::{chi_squared, seeded};

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
    fn a_number_stays_in_quarantine_for_two_hours_at_the_least() {
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
        assert_eq!(numbers.draw(after(5 * 3600), &entropy).unwrap().get(), 0x1002, "not a moment too early");
        assert_eq!(numbers.draw(after(5 * 3600 + 15 * 60), &entropy).unwrap().get(), 0x1000);
        assert!(numbers.quarantine.is_empty());
        assert_eq!(numbers.count, 3, "only what was drawn is given back");
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
        let later = start + QUARANTINE + STRETCH;
        let again: Vec<_> = (0..1000).map(|_| numbers.draw(later, &entropy).unwrap()).collect();
        assert_eq!(again.iter().collect::<HashSet<_>>().len(), 1000);
        assert!(numbers.quarantine.is_empty());
    }

    #[test]
    fn however_many_come_and_go_each_becomes_free_again_and_memory_stays_bounded() {
        let (entropy, start) = (seeded(10), Instant::now());
        let mut numbers = QueuePairNumbers::new();
        let mut free_at = std::collections::HashMap::new();
        // Many in every second hour, few in the others.
        for minute in 0..8 * 60_u64 {
            let now = start + Duration::from_secs(60 * minute);
            let many = if minute % 120 == 0 { FEW + 1000 } else { 1 };
            for _ in 0..many {
                let qpn = numbers.draw(now, &entropy).unwrap();
                assert!(free_at.insert(qpn, now + QUARANTINE).is_none_or(|free| free <= now), "too early");
                numbers.release(now, qpn);
            }
            assert!(numbers.quarantine.len() <= 10);
        }
        assert!(numbers.draw(start + Duration::from_secs(12 * 3600), &entropy).is_ok());
        assert_eq!((numbers.count, numbers.quarantine.len()), (1, 0));
        assert_eq!(numbers.taken.0.iter().map(|word| word.count_ones()).sum::<u32>(), 1);
    }

    #[test]
    fn debug_tells_no_number() {
        let mut numbers = QueuePairNumbers::new();
        numbers.draw(Instant::now(), &seeded(9)).unwrap();
        assert_eq!(format!("{numbers:?}"), "QueuePairNumbers { taken: 1, .. }");
    }
}
