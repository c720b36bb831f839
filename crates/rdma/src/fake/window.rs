//! Memory windows: how they are bound and end.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::region::{Keys, Opened, Scope, bindable, random, range_of};
use super::state::QpKey;
use super::world::World;
use crate::{Access, MemoryWindow, RKey, Result, Slice, WcStatus};

/// A window of a device; dropping it ends its binding.
pub(super) struct FakeWindow {
    keys: Arc<Keys>,
    domain: u64,
    /// The upper 24 bits of all its keys.
    index: u32,
    /// The lower 8 bits of the next.
    next: AtomicU32,
}

impl FakeWindow {
    pub(super) fn create(keys: &Arc<Keys>, domain: u64) -> Result<Arc<Self>> {
        let mut table = keys.lock();
        let index = loop {
            let index = random()? & !0xFF;
            if !table.opened.keys().any(|key| key & !0xFF == index) && table.windows.insert(index) {
                break index;
            }
        };
        drop(table);
        Ok(Arc::new(Self { keys: Arc::clone(keys), domain, index, next: AtomicU32::new(1) }))
    }

    /// Whether it belongs to a queue pair of this device and domain.
    pub(super) fn is_of(&self, keys: &Arc<Keys>, domain: u64) -> bool {
        Arc::ptr_eq(&self.keys, keys) && self.domain == domain
    }
}

impl MemoryWindow for FakeWindow {
    fn next_key(&self) -> RKey {
        RKey::new(self.index | self.next.fetch_add(1, Ordering::Relaxed) & 0xFF)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl fmt::Debug for FakeWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeWindow").finish_non_exhaustive()
    }
}

/// Takes a bound key of this window's out of the table.
fn unbind(keys: &Keys, matches: impl Fn(u32, &Opened) -> bool) -> Option<Opened> {
    let mut table = keys.lock();
    let bound = table.opened.iter().find_map(|(key, opened)| {
        (matches!(opened.scope, Scope::Bound { .. }) && matches(*key, opened)).then_some(*key)
    })?;
    table.opened.remove(&bound)
}

impl Drop for FakeWindow {
    fn drop(&mut self) {
        // What it opened goes when the lock is free again.
        let ended = unbind(&self.keys, |key, _| key & !0xFF == self.index);
        self.keys.lock().windows.remove(&self.index);
        drop(ended);
    }
}

impl World {
    /// Binds a window on a queue pair, as its send queue comes to it.
    pub(super) fn bind(
        &mut self,
        key: QpKey,
        window: &Arc<dyn MemoryWindow>,
        rkey: RKey,
        target: &Slice,
        access: Access,
    ) -> Result<(), WcStatus> {
        let keys = Arc::clone(&self.devices[key.device].keys);
        let Some(state) = self.queue_pairs.get(&key) else { return Err(WcStatus::WR_FLUSH_ERR) };
        let domain = state.domain;
        let Some(window) = window.as_any().downcast_ref::<FakeWindow>() else {
            return Err(WcStatus::MW_BIND_ERR);
        };
        let remote = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        let good = window.is_of(&keys, domain)
            && rkey.expose() & !0xFF == window.index
            && bindable(&target.region, &keys, domain)
            && target.is_inside()
            && remote.contains(access);
        let mut table = keys.lock();
        // A type 2 window that is bound must be invalidated before it is bound again.
        if !good || table.opened.keys().any(|key| key & !0xFF == window.index) {
            return Err(WcStatus::MW_BIND_ERR);
        }
        let keeps = self.devices[key.device].window_ranges;
        let (offset, length) = if keeps { (target.offset, target.length) } else { range_of(&target.region) };
        let opened = Opened {
            memory: Arc::clone(target.region.memory()),
            address: target.region.address() + offset as u64,
            offset,
            length,
            access,
            scope: Scope::Bound { qpn: key.qpn, _region: Arc::clone(&target.region) },
        };
        table.opened.insert(rkey.expose(), opened);
        Ok(())
    }

    /// Ends the binding of `rkey`, which must be of a window that is bound to this queue pair.
    pub(super) fn invalidate(&mut self, key: QpKey, rkey: RKey) -> bool {
        let keys = Arc::clone(&self.devices[key.device].keys);
        unbind(&keys, |bound, opened| {
            let here = matches!(opened.scope, Scope::Bound { qpn, .. } if qpn == key.qpn);
            here && bound == rkey.expose()
        })
        .is_some()
    }
}
