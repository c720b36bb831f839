//! Memory regions and type 2 memory windows: which key opens which bytes, to whom.
//!
//! A device has one protection domain. What keeps connections apart are windows: the key of a window opens nothing on
//! another queue pair than that it was bound on.

mod memory_windows;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use secure_rdma_rdma::{Access, Entropy, Error, ErrorCode, LKey, Memory, Qpn, RKey, Result};
use smallvec::SmallVec;

use memory_windows::Window;
pub use memory_windows::WindowId;

use super::keys::KeySequence;

/// What a region is known by. Its R_Key opens nothing unless the region has remote rights.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    /// The address by which work requests and peers name the first byte: random, a multiple of 4096.
    pub address: u64,
    /// For local work requests.
    pub lkey: LKey,
    /// For the peer.
    pub rkey: RKey,
}

/// Why a peer may not touch what it asked for. The peer is told the same for all (NAK 0x62); the counters tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Refusal {
    /// No region with remote rights and no bound window has this key.
    UnknownKey,
    /// The key is that of a window bound on another queue pair.
    OtherQueuePair,
    /// The key does not give this right.
    Rights,
    /// The range is not wholly inside.
    Bounds,
}

/// Which bytes an R_Key opens, for what, to whom.
struct Opening {
    memory: Arc<Memory>,
    /// The address of the first byte.
    first: u64,
    length: u64,
    /// Where the first byte is in `memory`.
    offset: usize,
    access: Access,
    /// Where the key is that of a window: on which queue pair alone it is worth something.
    bound: Option<Binding>,
}

#[derive(Clone, Copy)]
struct Binding {
    qpn: Qpn,
    window: WindowId,
    region: u32,
}

struct LocalRegion {
    memory: Arc<Memory>,
    address: u64,
    access: Access,
    rkey: u32,
    windows: SmallVec<[WindowId; 2]>,
}

/// The rights that a peer can have.
const REMOTE: Access = Access::REMOTE_WRITE.union(Access::REMOTE_READ).union(Access::REMOTE_ATOMIC);

/// Those of them that need LOCAL_WRITE too (`ibv_reg_mr`(3)).
const CHANGES: Access = Access::REMOTE_WRITE.union(Access::REMOTE_ATOMIC);

/// The regions and windows of an engine.
///
/// Maps are hashed by a fixed function without a secret: their keys are random by themselves, and a peer can only look
/// one up, never add one.
pub(super) struct Regions {
    entropy: Arc<dyn Entropy>,
    keys: KeySequence,
    /// By L_Key.
    regions: FxHashMap<u32, LocalRegion>,
    /// By R_Key.
    openings: FxHashMap<u32, Opening>,
    windows: FxHashMap<u64, Window>,
    /// Which windows are bound on a queue pair.
    bound_on: FxHashMap<Qpn, SmallVec<[WindowId; 4]>>,
    next_window: u64,
}

impl Regions {
    /// # Errors
    /// [`ErrorCode::Entropy`].
    pub(super) fn new(entropy: Arc<dyn Entropy>) -> Result<Self> {
        Ok(Self {
            keys: KeySequence::new(entropy.as_ref())?,
            entropy,
            regions: FxHashMap::default(),
            openings: FxHashMap::default(),
            windows: FxHashMap::default(),
            bound_on: FxHashMap::default(),
            next_window: 0,
        })
    }

    fn draw_key(&mut self) -> Result<u32> {
        loop {
            let key = self.keys.draw(self.entropy.as_ref())?;
            // Only a key of 2^32 draws ago can be in use.
            if !self.openings.contains_key(&key) && !self.regions.contains_key(&key) {
                return Ok(key);
            }
        }
    }

    /// A random multiple of 4096 at which `length` bytes end before 2^64.
    fn draw_address(&self, length: u64) -> Result<u64> {
        loop {
            let mut bytes = [0; 8];
            self.entropy.fill(&mut bytes)?;
            let address = u64::from_le_bytes(bytes) & !0xFFF;
            if address.checked_add(length).is_some() {
                return Ok(address);
            }
        }
    }

    /// Registers memory.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] for memory that the peer may change and the device may not (`ibv_reg_mr`(3)),
    /// [`ErrorCode::Entropy`].
    pub(super) fn register(&mut self, memory: Arc<Memory>, access: Access) -> Result<Keys> {
        if access.intersects(CHANGES) && !access.contains(Access::LOCAL_WRITE) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "a region that the peer may change needs LOCAL_WRITE too (ibv_reg_mr(3))",
            ));
        }
        let length = memory.len() as u64;
        let (lkey, rkey) = (self.draw_key()?, self.draw_key()?);
        let address = self.draw_address(length)?;
        if access.intersects(REMOTE) {
            let memory = Arc::clone(&memory);
            self.openings
                .insert(rkey, Opening { memory, first: address, length, offset: 0, access, bound: None });
        }
        self.regions.insert(lkey, LocalRegion { memory, address, access, rkey, windows: SmallVec::new() });
        Ok(Keys { address, lkey: LKey(lkey), rkey: RKey::new(rkey) })
    }

    /// Ends a region. Its keys open nothing any more, and neither do those of windows bound to it.
    pub(super) fn deregister(&mut self, lkey: LKey) {
        let Some(region) = self.regions.remove(&lkey.0) else { return };
        self.openings.remove(&region.rkey);
        for window in region.windows {
            self.unbind(window);
        }
    }

    /// The local rights of a region, or `None` where no region has this L_Key.
    pub(super) fn local(&self, lkey: LKey) -> Option<Access> {
        self.regions.get(&lkey.0).map(|region| region.access)
    }

    /// Where the `length` bytes at `address` are, if `rkey` gives the peer of `qpn` the rights `needed` to all of them.
    ///
    /// A request of 0 bytes is not asked about (IBTA 9.7.4.1.4: key and address are not checked then). Each packet of a long
    /// request asks again, so that a region that has gone is not written to.
    ///
    /// # Errors
    /// [`Refusal`]: NAK 0x62.
    pub(super) fn remote(
        &self,
        qpn: Qpn,
        rkey: RKey,
        address: u64,
        length: u64,
        needed: Access,
    ) -> Result<(&Arc<Memory>, usize), Refusal> {
        let opening = self.openings.get(&rkey.expose()).ok_or(Refusal::UnknownKey)?;
        if opening.bound.is_some_and(|binding| binding.qpn != qpn) {
            return Err(Refusal::OtherQueuePair);
        }
        if !opening.access.contains(needed) {
            return Err(Refusal::Rights);
        }
        let from = address.checked_sub(opening.first).ok_or(Refusal::Bounds)?;
        if from.checked_add(length).is_none_or(|end| end > opening.length) {
            return Err(Refusal::Bounds);
        }
        let from = usize::try_from(from).map_err(|_| Refusal::Bounds)?;
        let offset = opening.offset.checked_add(from).ok_or(Refusal::Bounds)?;
        Ok((&opening.memory, offset))
    }
}

impl fmt::Debug for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Regions")
            .field("regions", &self.regions.len())
            .field("windows", &self.windows.len())
            .finish_non_exhaustive()
    }
}
