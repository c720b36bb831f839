//! Registered memory.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::{LKey, Memory, RKey};

/// What a device keeps for a region; dropping it deregisters. It is dropped before the memory is unmapped.
pub trait Registration: Any + Send + Sync {}

/// A memory region: [`Memory`] that one device may touch.
///
/// Every posted work request holds a count on its regions until it completes, so that a region can be dropped
/// at any time.
pub struct Region {
    // Field order is drop order: deregister first, then unmap.
    registration: Box<dyn Registration>,
    memory: Arc<Memory>,
    address: u64,
    lkey: LKey,
    rkey: RKey,
}

impl Region {
    /// Made by a device when it has registered `memory`. `address` is how work requests name its first byte.
    #[must_use]
    pub fn new(
        registration: Box<dyn Registration>,
        memory: Arc<Memory>,
        address: u64,
        lkey: LKey,
        rkey: RKey,
    ) -> Self {
        Self { registration, memory, address, lkey, rkey }
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// The address by which work requests and peers name the first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The key for local work requests.
    #[must_use]
    pub fn lkey(&self) -> LKey {
        self.lkey
    }

    /// The key for the peer. Without remote rights it opens nothing.
    #[must_use]
    pub fn rkey(&self) -> RKey {
        self.rkey
    }

    /// The device's own part.
    #[must_use]
    pub fn registration(&self) -> &dyn Registration {
        self.registration.as_ref()
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region").field("length", &self.memory.len()).finish_non_exhaustive()
    }
}

/// A range of a region, and a count on it.
#[derive(Clone, Debug)]
pub struct Slice {
    /// The region.
    pub region: Arc<Region>,
    /// First byte, from the region's start.
    pub offset: usize,
    /// Length in bytes, below 2^31.
    pub length: usize,
}

impl Slice {
    /// A range of `region`. Devices check the bounds when it is posted.
    #[must_use]
    pub fn new(region: &Arc<Region>, offset: usize, length: usize) -> Self {
        Self { region: Arc::clone(region), offset, length }
    }

    /// Whether the range lies inside the region.
    #[must_use]
    pub fn is_inside(&self) -> bool {
        self.offset.checked_add(self.length).is_some_and(|end| end <= self.region.memory.len())
    }
}
