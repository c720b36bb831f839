//! Regions, and the keys that open them.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    Access, Entropy, Error, ErrorCode, LKey, Memory, OsEntropy, RKey, Region, Registration, Result, Slice,
};

/// A device's table of R_Keys. Its lock is taken inside the world's, never the other way round.
#[derive(Default)]
pub(super) struct Keys(Mutex<HashMap<u32, Opened>>);

/// What an R_Key opens.
#[derive(Clone)]
pub(super) struct Opened {
    memory: Arc<Memory>,
    address: u64,
    access: Access,
}

impl Opened {
    /// The offset of `length` bytes at `address`, when they lie inside and `right` is granted.
    pub(super) fn offset(&self, address: u64, length: usize, right: Access) -> Option<usize> {
        let offset = usize::try_from(address.checked_sub(self.address)?).ok()?;
        let inside = offset.checked_add(length)? <= self.memory.len();
        (inside && self.access.contains(right)).then_some(offset)
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Keys {
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Opened>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    pub(super) fn find(&self, key: RKey) -> Option<Opened> {
        self.lock().get(&key.expose()).cloned()
    }
}

/// The fake's part of a region; dropping it closes its key.
struct Registered {
    keys: Arc<Keys>,
    rkey: u32,
    access: Access,
}

impl Registration for Registered {}

impl Drop for Registered {
    fn drop(&mut self) {
        let closed = self.keys.lock().remove(&self.rkey);
        // The memory goes when the lock is free again.
        drop(closed);
    }
}

/// 32 random bits.
fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    OsEntropy.fill(&mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}

pub(super) fn register(keys: &Arc<Keys>, memory: Arc<Memory>, access: Access) -> Result<Arc<Region>> {
    let remote_change = Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
    if access.intersects(remote_change) && !access.contains(Access::LOCAL_WRITE) {
        return Err(Error::new(
            ErrorCode::InvalidArgument,
            "a region that the peer may change needs LOCAL_WRITE too (ibv_reg_mr(3))",
        ));
    }
    let address = memory.address().addr().get() as u64;
    let lkey = random()?;
    let mut table = keys.lock();
    let rkey = loop {
        let rkey = random()?;
        if !table.contains_key(&rkey) {
            break rkey;
        }
    };
    table.insert(rkey, Opened { memory: Arc::clone(&memory), address, access });
    drop(table);
    let registration = Box::new(Registered { keys: Arc::clone(keys), rkey, access });
    Ok(Arc::new(Region::new(registration, memory, address, LKey(lkey), RKey::new(rkey))))
}

fn registered(region: &Region) -> Option<&Registered> {
    (region.registration() as &dyn Any).downcast_ref()
}

/// Checks the local slices of a work request when it is posted.
pub(super) fn check_slices(slices: &[Slice], keys: &Arc<Keys>, max_sge: usize, longest: u32) -> Result<()> {
    let refuse = |why: String| Err(Error::new(ErrorCode::InvalidArgument, why));
    if slices.len() > max_sge {
        return refuse(format!("{} slices in a work request of at most {max_sge}", slices.len()));
    }
    for slice in slices {
        if !registered(&slice.region).is_some_and(|part| Arc::ptr_eq(&part.keys, keys)) {
            return refuse("the region is registered with another device".to_owned());
        }
        if !slice.is_inside() {
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
