//! Regions: memory that connections read from, write to, and publish to their peers.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use secure_rdma_rdma::{Error, ErrorCode, Memory, Result};

use crate::registrations::Registrations;

/// What tells regions of one process apart. None is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RegionId(u64);

impl RegionId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Memory of our own for one-sided operations. It is registered with each open device when a connection there first
/// uses it, once, and all connections of that device share the registration. By itself it opens nothing to any peer:
/// [`crate::Connection::publish`] does, to one peer at a time.
///
/// Clones are handles to the same region. The registrations end with [`SharedRegion::close`] or the last handle, but
/// not before work that was posted has completed and what is published of it is taken back; the memory outlives them.
#[derive(Clone)]
pub struct SharedRegion(Arc<Inner>);

struct Inner {
    id: RegionId,
    memory: Arc<Memory>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    closed: bool,
    holders: Vec<Weak<Registrations>>,
}

impl SharedRegion {
    /// Maps `bytes` zeroed bytes. Nothing is registered yet.
    ///
    /// # Errors
    /// `ERR_RDMA_INVALID_ARGUMENT` for 0 bytes or more than there can be, `ERR_RDMA_NO_MEMORY`.
    pub fn allocate(bytes: usize) -> Result<Self> {
        Ok(Self::from_memory(Arc::new(Memory::allocate(bytes)?)))
    }

    /// A region of memory that somebody else holds too. Two regions of the same memory are registered apart.
    #[must_use]
    pub fn from_memory(memory: Arc<Memory>) -> Self {
        Self(Arc::new(Inner { id: RegionId::next(), memory, state: Mutex::default() }))
    }

    /// The memory. Peers and devices may change it at any time while something of it is published or in flight.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.0.memory
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.memory.len()
    }

    /// Never true: an empty region cannot be allocated.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.memory.is_empty()
    }

    /// A range of it. It may be empty: a WRITE of no bytes is one.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_BOUNDS` when it does not lie inside, `ERR_RDMA_REGION_CLOSED`.
    pub fn slice(&self, offset: usize, length: usize) -> Result<RegionSlice> {
        self.check_open()?;
        check_bounds("the region", offset as u64, length as u64, self.len() as u64)?;
        Ok(RegionSlice { region: self.clone(), offset, length })
    }

    /// All of it.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_CLOSED`.
    pub fn whole(&self) -> Result<RegionSlice> {
        self.slice(0, self.len())
    }

    /// Copies from `offset` into `bytes`.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_BOUNDS`; nothing is copied then. `ERR_RDMA_REGION_CLOSED`.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.slice(offset, bytes.len())?;
        self.0.memory.read(offset, bytes)
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// As for [`SharedRegion::read`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.slice(offset, bytes.len())?;
        self.0.memory.write(offset, bytes)
    }

    /// Ends the region for all its handles and slices: nothing new is done with it. What is in flight completes, and
    /// what is published stays so until it is unpublished or its connection ends. Idempotent.
    pub fn close(&self) {
        let holders = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.holders)
        };
        forget(self.0.id, &holders);
    }

    /// Whether it is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    pub(crate) fn id(&self) -> RegionId {
        self.0.id
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed() { Err(closed()) } else { Ok(()) }
    }

    /// Notes who has registered the region, and runs `enter` in the same step: whoever closes the region comes before
    /// both or after both.
    pub(crate) fn held_by(&self, holder: &Arc<Registrations>, enter: impl FnOnce()) -> Result<()> {
        let mut state = self.lock();
        if state.closed {
            return Err(closed());
        }
        state.holders.retain(|holder| holder.strong_count() > 0);
        state.holders.push(Arc::downgrade(holder));
        enter();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        forget(self.id, &std::mem::take(&mut state.holders));
    }
}

fn forget(region: RegionId, holders: &[Weak<Registrations>]) {
    for holder in holders.iter().filter_map(Weak::upgrade) {
        holder.forget(region);
    }
}

fn closed() -> Error {
    Error::new(ErrorCode::RegionClosed, "the region is closed: nothing more can be done with it")
}

/// Refuses a range of `length` bytes from `offset` that does not lie inside `whole` bytes.
pub(crate) fn check_bounds(of: &str, offset: u64, length: u64, whole: u64) -> Result<()> {
    if offset.checked_add(length).is_some_and(|end| end <= whole) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::RegionBounds,
        format!("{length} bytes from offset {offset} do not lie inside {of} of {whole} bytes"),
    ))
}

impl fmt::Debug for SharedRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedRegion")
            .field("length", &self.len())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

/// A range of a region. Its bounds are good for as long as it lives; the region may be closed meanwhile.
#[derive(Clone, Debug)]
pub struct RegionSlice {
    region: SharedRegion,
    offset: usize,
    length: usize,
}

impl RegionSlice {
    /// The region.
    #[must_use]
    pub fn region(&self) -> &SharedRegion {
        &self.region
    }

    /// Its first byte, from the region's start.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A range of it; `offset` counts from its own begin.
    ///
    /// # Errors
    /// As for [`SharedRegion::slice`].
    pub fn slice(&self, offset: usize, length: usize) -> Result<Self> {
        self.region.check_open()?;
        check_bounds("the slice", offset as u64, length as u64, self.length as u64)?;
        Ok(Self { region: self.region.clone(), offset: self.offset + offset, length })
    }

    /// Copies from `offset`, counted from its own begin, into `bytes`.
    ///
    /// # Errors
    /// As for [`SharedRegion::read`].
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let part = self.slice(offset, bytes.len())?;
        self.region.read(part.offset, bytes)
    }

    /// Copies `bytes` to `offset`, counted from its own begin.
    ///
    /// # Errors
    /// As for [`SharedRegion::read`].
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let part = self.slice(offset, bytes.len())?;
        self.region.write(part.offset, bytes)
    }
}
