//! Faults that tests ask for: a wire that is cut. Behind the feature `faults`, and never in a published build.
//!
//! Of the whole process, since it stands for the network: what arrives at any of its embedded devices is dropped before
//! the engine sees it. Captures show it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Datagrams of more bytes than this are dropped.
static LONGEST: AtomicUsize = AtomicUsize::new(usize::MAX);
static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Drops datagrams of more than `length` bytes from now on; `usize::MAX` lets all pass again.
pub fn drop_longer_than(length: usize) {
    LONGEST.store(length, Ordering::Release);
}

/// How many were dropped so far.
#[must_use]
pub fn dropped() -> u64 {
    DROPPED.load(Ordering::Acquire)
}

/// Whether to drop a datagram of `length` bytes. It is counted then.
pub(crate) fn drops(length: usize) -> bool {
    let drop = length > LONGEST.load(Ordering::Acquire);
    if drop {
        DROPPED.fetch_add(1, Ordering::AcqRel);
    }
    drop
}
