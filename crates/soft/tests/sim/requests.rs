//! Work requests as the model sees them.

use super::memory::Pieces;

/// What a send request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Send { immediate: Option<u32> },
    SendInvalidate { rkey: u32 },
    Write { address: u64, rkey: u32, immediate: Option<u32> },
    Read { address: u64, rkey: u32 },
    CompareSwap { address: u64, rkey: u32, compare: u64, swap: u64 },
    FetchAdd { address: u64, rkey: u32, add: u64 },
    Bind { window: usize, rkey: u32 },
    Invalidate { rkey: u32 },
}

impl Kind {
    pub fn is_local(self) -> bool {
        matches!(self, Self::Bind { .. } | Self::Invalidate { .. })
    }

    pub fn is_atomic(self) -> bool {
        matches!(self, Self::CompareSwap { .. } | Self::FetchAdd { .. })
    }

    /// Whether only an answer of its own completes it.
    pub fn has_response(self) -> bool {
        self.is_atomic() || matches!(self, Self::Read { .. })
    }
}

/// A posted send request.
#[derive(Clone, Debug)]
pub struct Posted {
    pub id: u64,
    pub kind: Kind,
    pub local: Pieces,
    pub length: usize,
    pub fence: bool,
    /// PSNs: the first, and how many; 0 for what is local.
    pub first: u32,
    pub count: u32,
    /// How many responses of a READ or atomic have been placed.
    pub placed: u32,
    /// Whether the peer has acknowledged it.
    pub done: bool,
    /// The status with which a NAK that has arrived may end it.
    pub refused: Option<u32>,
    /// RNR NAKs for it since the last progress.
    pub not_ready: u32,
    /// The value of an atomic's answer.
    pub original: Option<u64>,
}

/// A posted receive request.
#[derive(Clone, Debug)]
pub struct Receive {
    pub id: u64,
    pub local: Pieces,
    pub length: usize,
}

/// A completion that the model expects on a receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub id: u64,
    pub status: u32,
    pub byte_len: u32,
    pub immediate: Option<u32>,
    pub invalidated: Option<u32>,
    pub by_write: bool,
}
