//! Which regions are registered with one open device: each once, however many connections use it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use secure_rdma_rdma::{Access, Device, Region, Result};

use crate::regions::{RegionId, SharedRegion};

/// How something can be opened to one peer alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opens {
    /// By a memory window that is bound to its queue pair.
    Windows,
    /// By a registration in the protection domain of its queue pair, which is this one's alone.
    OwnDomain,
    /// In no way.
    Nothing,
}

impl Opens {
    /// What local operations need, and windows. The key of such a registration opens nothing to any peer.
    fn local(self) -> Access {
        match self {
            Self::Windows => Access::LOCAL_WRITE | Access::MEMORY_WINDOW_BIND,
            Self::OwnDomain | Self::Nothing => Access::LOCAL_WRITE,
        }
    }
}

/// The registrations of one open device, or of one connection's protection domain.
#[derive(Debug)]
pub(crate) struct Registrations {
    device: Arc<dyn Device>,
    opens: Opens,
    table: Mutex<Table>,
    /// One registers at a time, so that nothing is registered twice. Not held by anyone who posts.
    growth: Mutex<()>,
}

#[derive(Debug, Default)]
struct Table {
    /// Kept until the region is closed or dropped.
    whole: HashMap<RegionId, Arc<Region>>,
    /// Kept by what was bound to them.
    parts: HashMap<Part, Weak<Region>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Part {
    region: RegionId,
    offset: usize,
    length: usize,
    access: Access,
}

impl Registrations {
    pub(crate) fn new(device: &Arc<dyn Device>, opens: Opens) -> Arc<Self> {
        Arc::new(Self { device: Arc::clone(device), opens, table: Mutex::default(), growth: Mutex::new(()) })
    }

    pub(crate) fn opens(&self) -> Opens {
        self.opens
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The registration of a region, if there is one.
    pub(crate) fn find(&self, region: &SharedRegion) -> Option<Arc<Region>> {
        self.lock().whole.get(&region.id()).cloned()
    }

    /// Registers a region, where it is not yet. **Blocks** while pages are pinned.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_CLOSED`; those of [`Device::register`].
    pub(crate) fn register(self: &Arc<Self>, region: &SharedRegion) -> Result<Arc<Region>> {
        let _one_at_a_time = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
        region.check_open()?;
        if let Some(known) = self.find(region) {
            return Ok(known);
        }
        let registered = self.device.register(Arc::clone(region.memory()), self.opens.local())?;
        // A close in the meantime finds it, or is found.
        region.held_by(self, || {
            self.lock().whole.insert(region.id(), Arc::clone(&registered));
        })?;
        Ok(registered)
    }

    /// Registers a part of a region and nothing else of it, with the rights `remote` beside the local ones; the same
    /// part with the same rights once for all who hold it. **Blocks** while pages are pinned.
    ///
    /// # Errors
    /// As for [`Registrations::register`].
    pub(crate) fn register_part(
        &self,
        region: &SharedRegion,
        offset: usize,
        length: usize,
        remote: Access,
    ) -> Result<Arc<Region>> {
        let _one_at_a_time = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
        region.check_open()?;
        let access = self.opens.local() | remote;
        let part = Part { region: region.id(), offset, length, access };
        if let Some(known) = self.lock().parts.get(&part).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let memory = Arc::clone(region.memory());
        let registered = self.device.register_range(memory, offset, length, access)?;
        let mut table = self.lock();
        table.parts.retain(|_, known| known.strong_count() > 0);
        table.parts.insert(part, Arc::downgrade(&registered));
        Ok(registered)
    }

    /// Lets go of a region's registration: it ends when the last work that names it has completed.
    pub(crate) fn forget(&self, region: RegionId) {
        let registered = self.lock().whole.remove(&region);
        // Deregistered without the lock: it may take its time.
        drop(registered);
    }
}
