//! Work requests: what is posted to a queue pair.

use std::sync::Arc;

use bitflags::bitflags;
use smallvec::SmallVec;

use crate::{Access, Error, MemoryWindow, RKey, Region, Slice};

/// What the poster calls a work request by; its completion carries the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(pub u64);

/// A range of the peer's memory that the peer has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteSlice {
    /// The address in the peer's own numbering.
    pub address: u64,
    /// The key that the peer gave for it.
    pub rkey: RKey,
}

/// What a send work request does.
#[derive(Clone, Debug)]
pub enum SendOperation {
    /// SEND: consumes a receive work request of the peer.
    Send {
        /// 32 bits that the peer finds in its completion.
        immediate: Option<u32>,
    },
    /// RDMA WRITE into the peer's memory; with an immediate it also consumes a receive work request.
    Write {
        /// Where to.
        remote: RemoteSlice,
        /// 32 bits that the peer finds in its completion.
        immediate: Option<u32>,
    },
    /// RDMA READ from the peer's memory.
    Read {
        /// Where from.
        remote: RemoteSlice,
    },
    /// Atomic compare-and-swap on 8 aligned bytes; the old value lands in the local slice.
    CompareSwap {
        /// Which 8 bytes.
        remote: RemoteSlice,
        /// The value that must be there.
        compare: u64,
        /// The value that replaces it.
        swap: u64,
    },
    /// Atomic fetch-and-add on 8 aligned bytes; the old value lands in the local slice.
    FetchAdd {
        /// Which 8 bytes.
        remote: RemoteSlice,
        /// What is added, modulo 2^64.
        add: u64,
    },
    /// SEND that also ends one of the peer's keys: the receive's completion names it.
    SendInvalidate {
        /// The peer's key. It must be that of a window bound to the peer's queue pair, or the connection ends.
        rkey: RKey,
    },
    /// Binds a type 2 memory window to this queue pair and to a range of a region. Nothing of it goes over the wire.
    Bind {
        /// The window.
        window: Arc<dyn MemoryWindow>,
        /// The key that opens it from now on: one that [`MemoryWindow::next_key`] gave.
        rkey: RKey,
        /// The range. Its region must have [`Access::MEMORY_WINDOW_BIND`].
        target: Slice,
        /// What the peer may do there: remote rights only, of which the region need have none.
        access: Access,
    },
    /// Ends a window's binding: its key opens nothing any more when this completes. Waits for everything posted
    /// earlier. Nothing of it goes over the wire.
    Invalidate {
        /// The own key.
        rkey: RKey,
    },
}

impl SendOperation {
    /// Whether it is carried out by the own device alone, and takes no local bytes and no PSN.
    #[must_use]
    pub const fn is_local(&self) -> bool {
        matches!(self, Self::Bind { .. } | Self::Invalidate { .. })
    }
}

bitflags! {
    /// How a send work request is carried out.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SendFlags: u8 {
        /// Wait for all earlier READs and atomics of this queue pair.
        const FENCE = 1;
        /// Raise a solicited event at the peer.
        const SOLICITED = 1 << 1;
    }
}

/// A send work request. Its slices keep their regions alive until it completes or is flushed.
#[derive(Clone, Debug)]
pub struct SendRequest {
    /// The number that its completion carries.
    pub id: WorkId,
    /// What to do.
    pub operation: SendOperation,
    /// The local bytes: the source, or for READs and atomics the destination.
    pub local: SmallVec<[Slice; 1]>,
    /// How to do it.
    pub flags: SendFlags,
}

/// A receive work request.
#[derive(Clone, Debug)]
pub struct ReceiveRequest {
    /// The number that its completion carries.
    pub id: WorkId,
    /// Where a message lands. The region must have [`crate::Access::LOCAL_WRITE`].
    pub local: SmallVec<[Slice; 1]>,
}

impl ReceiveRequest {
    /// A receive into one range of a region.
    #[must_use]
    pub fn new(id: WorkId, region: &Arc<Region>, offset: usize, length: usize) -> Self {
        Self { id, local: smallvec::smallvec![Slice::new(region, offset, length)] }
    }
}

/// A list was not posted to its end. The first `posted` requests are on the queue and will complete; the
/// others are not.
#[derive(Debug)]
pub struct PostError {
    /// How many requests of the list were posted.
    pub posted: usize,
    /// Why the next one was not.
    pub error: Error,
}
