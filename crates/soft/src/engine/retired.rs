//! What finished requests held, to be dropped where no lock is held.

use std::sync::Arc;

use secure_rdma_rdma::{MemoryWindow, Slice};
use smallvec::SmallVec;

/// Slices and windows of requests that are finished.
///
/// With the last slice of a region goes the region, and with it its registration, which calls the engine again. So they
/// are collected here, and [`super::Engine::take_retired`] hands them out.
#[derive(Debug, Default)]
pub struct Retired {
    slices: Vec<SmallVec<[Slice; 1]>>,
    windows: Vec<Arc<dyn MemoryWindow>>,
}

impl Retired {
    /// Whether there is nothing to drop.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.windows.is_empty()
    }

    /// Drops what is held, and keeps the room for more.
    pub fn clear(&mut self) {
        self.slices.clear();
        self.windows.clear();
    }

    pub(super) fn slices(&mut self, slices: SmallVec<[Slice; 1]>) {
        if !slices.is_empty() {
            self.slices.push(slices);
        }
    }

    pub(super) fn window(&mut self, window: Arc<dyn MemoryWindow>) {
        self.windows.push(window);
    }
}
