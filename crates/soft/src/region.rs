//! Regions and memory windows.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use secure_rdma_rdma::{Access, LKey, Memory, MemoryWindow, RKey, Region, Registration, Result};

use crate::core::{Grave, Owner};
use crate::engine::WindowId;

/// The device's part of a region.
struct Registered {
    owner: Arc<Owner>,
    lkey: LKey,
}

impl Registration for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        self.owner.inter(Grave::Region(self.lkey));
    }
}

/// Registers memory. Nothing is pinned, so that it neither blocks nor fails for RLIMIT_MEMLOCK.
pub(crate) fn register(owner: &Arc<Owner>, memory: Arc<Memory>, access: Access) -> Result<Arc<Region>> {
    owner.check()?;
    let keys = owner.with(|state| state.engine.register(Arc::clone(&memory), access))?;
    let registration = Box::new(Registered { owner: Arc::clone(owner), lkey: keys.lkey });
    Ok(Arc::new(Region::new(registration, memory, keys.address, keys.lkey, keys.rkey)))
}

/// A type 2 memory window.
struct SoftWindow {
    owner: Arc<Owner>,
    id: WindowId,
}

/// Makes a memory window.
pub(crate) fn create_window(owner: &Arc<Owner>) -> Result<Arc<dyn MemoryWindow>> {
    owner.check()?;
    let id = owner.with(|state| state.engine.create_window());
    Ok(Arc::new(SoftWindow { owner: Arc::clone(owner), id }))
}

impl MemoryWindow for SoftWindow {
    fn next_key(&self) -> RKey {
        let drawn = self.owner.with(|state| state.engine.next_window_key(self.id));
        // Without random bytes there is no key. A bind with one that was not given fails, which is the way to say so.
        drawn.unwrap_or(RKey::new(0))
    }

    /// The engine's name of it, by which the engine knows it when it is bound.
    fn as_any(&self) -> &dyn Any {
        &self.id
    }
}

impl Drop for SoftWindow {
    fn drop(&mut self) {
        self.owner.inter(Grave::Window(self.id));
    }
}

impl fmt::Debug for SoftWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftWindow").field("id", &self.id).finish_non_exhaustive()
    }
}
