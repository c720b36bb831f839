//! Regions, and the keys that open them.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    Access, Entropy, Error, ErrorCode, LKey, Memory, OsEntropy, Qpn, RKey, Region, Registration, Result,
    Slice,
};

/// A device's table of R_Keys. Its lock is taken inside the world's, never the other way round.
#[derive(Default)]
pub(super) struct Keys(Mutex<Table>);

#[derive(Default)]
pub(super) struct Table {
    pub(super) opened: HashMap<u32, Opened>,
    /// The upper 24 bits of the keys of windows that are alive: no other key has them.
    pub(super) windows: HashSet<u32>,
    registrations: u64,
}

/// What an R_Key opens.
#[derive(Clone)]
pub(super) struct Opened {
    pub(super) memory: Arc<Memory>,
    /// The peer's name of the first byte.
    pub(super) address: u64,
    /// Where that byte is in the memory.
    pub(super) offset: usize,
    pub(super) length: usize,
    pub(super) access: Access,
    pub(super) scope: Scope,
}

/// On which queue pairs a key is worth something.
#[derive(Clone)]
pub(super) enum Scope {
    /// A region's: all those of its protection domain.
    Domain(u64),
    /// A window's: the one that it was bound on. It keeps its region.
    Bound { qpn: Qpn, _region: Arc<Region> },
}

impl Opened {
    /// The offset of `length` bytes at `address`, when they lie inside and `right` is granted.
    pub(super) fn offset(&self, address: u64, length: usize, right: Access) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.address)?).ok()?;
        let inside = offset.checked_add(length)? <= self.length;
        (inside && self.access.contains(right)).then_some(self.offset + offset)
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Keys {
    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Regions, windows, bound windows, and registrations ever.
    pub(super) fn counts(&self) -> (usize, usize, usize, u64) {
        let table = self.lock();
        let bound =
            table.opened.values().filter(|opened| matches!(opened.scope, Scope::Bound { .. })).count();
        (table.opened.len() - bound, table.windows.len(), bound, table.registrations)
    }

    /// What `key` opens to the peer of the queue pair `qpn` in `domain`.
    pub(super) fn find(&self, key: RKey, qpn: Qpn, domain: u64) -> Option<Opened> {
        let opened = self.lock().opened.get(&key.expose()).cloned()?;
        let valid = match &opened.scope {
            Scope::Domain(of) => *of == domain,
            Scope::Bound { qpn: of, .. } => *of == qpn,
        };
        valid.then_some(opened)
    }
}

/// The fake's part of a region; dropping it closes its key.
struct Registered {
    keys: Arc<Keys>,
    rkey: u32,
    access: Access,
    domain: u64,
    offset: usize,
    length: usize,
}

impl Registration for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        let closed = self.keys.lock().opened.remove(&self.rkey);
        // The memory goes when the lock is free again.
        drop(closed);
    }
}

/// 32 random bits.
pub(super) fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    OsEntropy.fill(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

pub(super) fn register(
    keys: &Arc<Keys>,
    domain: u64,
    memory: Arc<Memory>,
    (offset, length): (usize, usize),
    access: Access,
) -> Result<Arc<Region>> {
    let refuse = |why: &str| Err(Error::new(ErrorCode::InvalidArgument, why));
    let remote_change = Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
    if access.intersects(remote_change) && !access.contains(Access::LOCAL_WRITE) {
        return refuse("a region that the peer may change needs LOCAL_WRITE too (ibv_reg_mr(3))");
    }
    if length == 0 || offset.checked_add(length).is_none_or(|end| end > memory.len()) {
        return refuse("the range to register does not lie inside the memory");
    }
    let address = memory.address().addr().get() as u64;
    let lkey = random()?;
    let mut table = keys.lock();
    let rkey = loop {
        let rkey = random()?;
        if !table.opened.contains_key(&rkey) && !table.windows.contains(&(rkey & !0xFF)) {
            break rkey;
        }
    };
    let opened = Opened {
        memory: Arc::clone(&memory),
        address: address + offset as u64,
        offset,
        length,
        access,
        scope: Scope::Domain(domain),
    };
    table.opened.insert(rkey, opened);
    table.registrations += 1;
    drop(table);
    let registration = Box::new(Registered { keys: Arc::clone(keys), rkey, access, domain, offset, length });
    Ok(Arc::new(Region::new(registration, memory, address, LKey(lkey), RKey::new(rkey))))
}

/// The part of the memory that is registered: offset and length.
pub(super) fn range_of(region: &Region) -> (usize, usize) {
    registered(region).map_or((0, 0), |part| (part.offset, part.length))
}

/// Whether windows may be bound to a region of this device and domain.
pub(super) fn bindable(region: &Region, keys: &Arc<Keys>, domain: u64) -> bool {
    registered(region).is_some_and(|part| {
        Arc::ptr_eq(&part.keys, keys)
            && part.domain == domain
            && part.access.contains(Access::MEMORY_WINDOW_BIND | Access::LOCAL_WRITE)
    })
}

fn registered(region: &Region) -> Option<&Registered> {
    (region.registration() as &dyn Any).downcast_ref()
}

/// Checks the local slices of a work request when it is posted.
pub(super) fn check_slices(
    slices: &[Slice],
    (keys, domain): (&Arc<Keys>, u64),
    max_sge: usize,
    longest: u32,
) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorCode::InvalidArgument, why));
    if slices.len() > max_sge {
        return refuse(format!("{} slices in a work request of at most {max_sge}", slices.len()));
    }
    for slice in slices {
        let Some(part) =
            registered(&slice.region).filter(|part| Arc::ptr_eq(&part.keys, keys) && part.domain == domain)
        else {
            return refuse("the region is registered with another device or protection domain".to_owned());
        };
        let end = slice.offset.saturating_add(slice.length);
        if !slice.is_inside() || slice.offset < part.offset || end > part.offset + part.length {
            return refuse(format!(
                "{} bytes at offset {} do not lie inside a region of {} bytes",
                slice.length,
                slice.offset,
                slice.region.memory().len()
            ));
        }
    }
    let total = length(slices);
    if total > longest as usize {
        return refuse(format!("a message of {total} bytes: the device takes at most {longest}"));
    }
    Ok(())
}

pub(super) fn length(slices: &[Slice]) -> usize {
    slices.iter().fold(0, |sum, slice| sum.saturating_add(slice.length))
}

/// Copies the slices' bytes into one message. `None` when a slice is not inside, which posting has excluded.
pub(super) fn gather(slices: &[Slice]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length(slices));
    for slice in slices {
        slice.region.memory().append_to(slice.offset, slice.length, &mut bytes).ok()?;
    }
    Some(bytes)
}

/// Whether the device may write into all of them.
pub(super) fn writable(slices: &[Slice]) -> bool {
    slices
        .iter()
        .all(|slice| registered(&slice.region).is_some_and(|part| part.access.contains(Access::LOCAL_WRITE)))
}

/// Spreads a message over the slices, filling each in turn.
pub(super) fn scatter(slices: &[Slice], mut bytes: &[u8]) -> Option<()> {
    for slice in slices {
        let (now, later) = bytes.split_at(slice.length.min(bytes.len()));
        slice.region.memory().write(slice.offset, now).ok()?;
        bytes = later;
    }
    bytes.is_empty().then_some(())
}
