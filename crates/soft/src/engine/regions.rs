//! Memory regions and type 2 memory windows: which key opens which bytes, to whom.
//!
//! A device has one protection domain. What keeps connections apart are windows: the key of a window opens nothing on
//! another queue pair than that it was bound on.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use rustc_hash::FxHashMap;
use secure_rdma_rdma::{Access, Entropy, Error, ErrorCode, LKey, Memory, Qpn, RKey, Result};
use smallvec::SmallVec;

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

/// A memory window of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowId(u64);

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

/// Why a window could not be bound (IBTA 10.6.7.2.5): the bind completes with MW_BIND_ERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum BindRefusal {
    /// The window is not one of this engine.
    UnknownWindow,
    /// It is bound: a type 2 window must be invalidated first.
    Bound,
    /// The key is not one that [`Regions::next_key`] gave for this window, or was used.
    Key,
    /// No region has this L_Key.
    UnknownRegion,
    /// The region lacks MEMORY_WINDOW_BIND, or LOCAL_WRITE where the peer may change it.
    RegionRights,
    /// The rights are not remote ones only, or none.
    Access,
    /// The range is empty or not wholly inside the region.
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

#[derive(Default)]
struct Window {
    bound: Option<u32>,
    /// Keys given and not yet used, the oldest first.
    given: VecDeque<u32>,
}

/// How many keys given for one window wait to be used; of more, the oldest are forgotten.
const MOST_GIVEN: usize = 64;

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

    /// Makes a window, bound to nothing.
    pub(super) fn create_window(&mut self) -> WindowId {
        let id = self.next_window;
        self.next_window += 1;
        self.windows.insert(id, Window::default());
        WindowId(id)
    }

    /// A key for the window's next bind; each call gives another.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] where there is no such window, [`ErrorCode::Entropy`].
    pub(super) fn next_key(&mut self, window: WindowId) -> Result<RKey> {
        let key = self.draw_key()?;
        let Some(window) = self.windows.get_mut(&window.0) else {
            return Err(Error::new(ErrorCode::InvalidArgument, "the memory window has been destroyed"));
        };
        if window.given.len() == MOST_GIVEN {
            window.given.pop_front();
        }
        window.given.push_back(key);
        Ok(RKey::new(key))
    }

    /// Binds a window to `length` bytes from `offset` of a region, and to a queue pair.
    ///
    /// # Errors
    /// [`BindRefusal`]; nothing has changed then.
    #[expect(clippy::too_many_arguments, reason = "a bind names all of these")]
    pub(super) fn bind(
        &mut self,
        qpn: Qpn,
        window: WindowId,
        rkey: RKey,
        lkey: LKey,
        offset: usize,
        length: usize,
        access: Access,
    ) -> Result<(), BindRefusal> {
        let bound = self.windows.get_mut(&window.0).ok_or(BindRefusal::UnknownWindow)?;
        if bound.bound.is_some() {
            return Err(BindRefusal::Bound);
        }
        let key = rkey.expose();
        let given = bound.given.iter().position(|given| *given == key).ok_or(BindRefusal::Key)?;
        let region = self.regions.get_mut(&lkey.0).ok_or(BindRefusal::UnknownRegion)?;
        if access.is_empty() || !REMOTE.contains(access) {
            return Err(BindRefusal::Access);
        }
        let needed = if access.intersects(CHANGES) { Access::LOCAL_WRITE } else { Access::empty() };
        if !region.access.contains(needed | Access::MEMORY_WINDOW_BIND) {
            return Err(BindRefusal::RegionRights);
        }
        if length == 0 || offset.checked_add(length).is_none_or(|end| end > region.memory.len()) {
            return Err(BindRefusal::Bounds);
        }
        bound.given.remove(given);
        bound.bound = Some(key);
        region.windows.push(window);
        self.bound_on.entry(qpn).or_default().push(window);
        let opening = Opening {
            memory: Arc::clone(&region.memory),
            // Cannot wrap: the region's end does not.
            first: region.address.wrapping_add(offset as u64),
            length: length as u64,
            offset,
            access,
            bound: Some(Binding { qpn, window, region: lkey.0 }),
        };
        self.openings.insert(key, opening);
        Ok(())
    }

    /// Ends the binding of a window of this queue pair, by its key: LOCAL_INV, and the peer's SEND with invalidate.
    ///
    /// # Errors
    /// [`Refusal::UnknownKey`] also for the key of a region, which cannot be invalidated; [`Refusal::OtherQueuePair`].
    pub(super) fn invalidate(&mut self, qpn: Qpn, rkey: RKey) -> Result<(), Refusal> {
        let binding =
            self.openings.get(&rkey.expose()).and_then(|opening| opening.bound).ok_or(Refusal::UnknownKey)?;
        if binding.qpn != qpn {
            return Err(Refusal::OtherQueuePair);
        }
        self.unbind(binding.window);
        Ok(())
    }

    /// Destroys a window; where it is bound, its key opens nothing any more.
    pub(super) fn destroy_window(&mut self, window: WindowId) {
        self.unbind(window);
        self.windows.remove(&window.0);
    }

    /// Ends the bindings of all windows on a queue pair that is destroyed or forgets everything.
    pub(super) fn unbind_all(&mut self, qpn: Qpn) {
        for window in self.bound_on.remove(&qpn).unwrap_or_default() {
            self.unbind(window);
        }
    }

    fn unbind(&mut self, window: WindowId) {
        let Some(key) = self.windows.get_mut(&window.0).and_then(|window| window.bound.take()) else {
            return;
        };
        let Some(binding) = self.openings.remove(&key).and_then(|opening| opening.bound) else { return };
        if let Some(region) = self.regions.get_mut(&binding.region) {
            region.windows.retain(|other| *other != window);
        }
        if let Some(bound) = self.bound_on.get_mut(&binding.qpn) {
            bound.retain(|other| *other != window);
            if bound.is_empty() {
                self.bound_on.remove(&binding.qpn);
            }
        }
    }

    /// The queue pair on which the window with this key is bound: for a planted defect.
    #[cfg(feature = "defects")]
    pub(super) fn owner(&self, rkey: RKey) -> Option<Qpn> {
        self.openings.get(&rkey.expose())?.bound.map(|binding| binding.qpn)
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

#[cfg(test)]
mod tests {
    use secure_rdma_rdma::OsEntropy;

    use super::*;

    const ALL: Access = REMOTE.union(Access::LOCAL_WRITE).union(Access::MEMORY_WINDOW_BIND);
    const READ: Access = Access::REMOTE_READ;
    const WRITE: Access = Access::REMOTE_WRITE;

    fn qpn(number: u32) -> Qpn {
        Qpn::new(number).unwrap()
    }

    fn regions() -> Regions {
        Regions::new(Arc::new(OsEntropy)).unwrap()
    }

    fn memory(length: usize) -> Arc<Memory> {
        Arc::new(Memory::allocate(length).unwrap())
    }

    /// A region of `length` bytes with `access`.
    fn region(regions: &mut Regions, length: usize, access: Access) -> Keys {
        regions.register(memory(length), access).unwrap()
    }

    /// A window bound on queue pair 0x100 to `length` bytes from `offset`.
    fn bound(regions: &mut Regions, keys: Keys, offset: usize, length: usize) -> (WindowId, RKey) {
        let window = regions.create_window();
        let rkey = regions.next_key(window).unwrap();
        regions.bind(qpn(0x100), window, rkey, keys.lkey, offset, length, REMOTE).unwrap();
        (window, rkey)
    }

    fn ask(regions: &Regions, rkey: RKey, address: u64, length: u64) -> Result<usize, Refusal> {
        regions.remote(qpn(0x100), rkey, address, length, READ).map(|(_, offset)| offset)
    }

    #[test]
    fn bounds_of_64_bytes_are_exact() {
        let mut regions = regions();
        let keys = region(&mut regions, 64, ALL);
        let large = region(&mut regions, 192, ALL);
        let (_, window) = bound(&mut regions, large, 64, 64);
        let mut allowed = 0;
        for (rkey, first, offset) in
            [(keys.rkey, keys.address, 0), (window, large.address.wrapping_add(64), 64)]
        {
            for start in -16_i64..=80 {
                for length in 1..=112 {
                    let answer = ask(&regions, rkey, first.wrapping_add_signed(start), length);
                    let inside = start >= 0 && start + length.cast_signed() <= 64;
                    let expected = inside.then(|| offset + usize::try_from(start).unwrap());
                    assert_eq!(answer.ok(), expected, "{length} bytes at {start}");
                    assert!(answer.is_ok() || answer == Err(Refusal::Bounds));
                    allowed += u32::from(inside);
                }
            }
        }
        assert_eq!(allowed, 2 * 64 * 65 / 2);
    }

    #[test]
    fn bounds_agree_with_integers_that_cannot_overflow() {
        let mut state = 0x9E37_79B9_7F4A_7C15_u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let mut table = regions();
        let keys = region(&mut table, 64, ALL);
        let key = keys.rkey.expose();
        let (mut inside, mut outside) = (0, 0);
        for _ in 0..1_000_000 {
            // Values near the corners of the range meet each other often.
            let corners = [0, u64::MAX, 1 << 63, 1 << 32, random(), random() >> (random() % 64)];
            let mut pick = |near: &[u64]| {
                let of = usize::try_from(random() % (near.len() + corners.len()) as u64).unwrap();
                let corner = near.iter().chain(&corners).nth(of).copied().unwrap();
                corner.wrapping_add(random() % 9).wrapping_sub(4)
            };
            let length = pick(&[64]);
            let first = pick(&[u64::MAX - 64]).min(u64::MAX - length);
            let end = first.wrapping_add(length);
            let address = pick(&[first, end]);
            let asked = pick(&[length, end.wrapping_sub(address), address.wrapping_neg()]);
            let opening = table.openings.get_mut(&key).unwrap();
            (opening.first, opening.length) = (first, length);
            let model = i128::from(address) >= i128::from(first)
                && i128::from(address) + i128::from(asked) <= i128::from(first) + i128::from(length);
            let answer = ask(&table, keys.rkey, address, asked);
            let expected =
                if model { Ok(usize::try_from(address - first).unwrap()) } else { Err(Refusal::Bounds) };
            assert_eq!(answer, expected, "{asked:#x} bytes at {address:#x} of {length:#x} at {first:#x}");
            *(if model { &mut inside } else { &mut outside }) += 1;
        }
        assert!(inside > 100_000 && outside > 100_000, "{inside} inside, {outside} outside");
    }

    #[test]
    fn each_right_opens_itself_alone() {
        let mut regions = regions();
        for granted in 0..8_u32 {
            let rights = Access::from_bits_truncate(granted << 1);
            let local = if granted & 5 == 0 { Access::empty() } else { Access::LOCAL_WRITE };
            let keys = region(&mut regions, 64, rights | local);
            for needed in [READ, WRITE, Access::REMOTE_ATOMIC] {
                let answer = regions.remote(qpn(0x100), keys.rkey, keys.address, 8, needed);
                let expected = match () {
                    () if rights.contains(needed) => Ok(0),
                    () if rights.is_empty() => Err(Refusal::UnknownKey),
                    () => Err(Refusal::Rights),
                };
                assert_eq!(answer.map(|(_, offset)| offset), expected, "{rights:?} for {needed:?}");
            }
        }
    }

    #[test]
    fn a_key_for_local_work_opens_nothing_to_the_peer() {
        let mut regions = regions();
        let keys = region(&mut regions, 64, ALL);
        assert_eq!(ask(&regions, RKey::new(keys.lkey.0), keys.address, 8), Err(Refusal::UnknownKey));
        assert_eq!(ask(&regions, RKey::new(0), keys.address, 8), Err(Refusal::UnknownKey));
        assert!(regions.local(LKey(keys.rkey.expose())).is_none());
        assert_eq!(regions.local(keys.lkey), Some(ALL));
    }

    #[test]
    fn memory_that_the_peer_may_change_and_the_device_may_not_is_refused() {
        let mut regions = regions();
        for access in [WRITE, Access::REMOTE_ATOMIC, READ | WRITE] {
            let error = regions.register(memory(64), access).unwrap_err();
            assert_eq!(error.code(), ErrorCode::InvalidArgument);
        }
        assert!(regions.register(memory(64), READ).is_ok());
    }

    #[test]
    fn addresses_are_random_pages_and_never_wrap() {
        /// Gives the eight bytes of each number, the last for ever.
        struct Numbers(std::sync::Mutex<Vec<u64>>);
        impl Entropy for Numbers {
            fn fill(&self, bytes: &mut [u8]) -> Result<()> {
                let mut numbers = self.0.lock().unwrap();
                let number = if numbers.len() > 1 { numbers.remove(0) } else { numbers[0] };
                bytes.iter_mut().zip(number.to_le_bytes().iter().cycle()).for_each(|(to, from)| *to = *from);
                Ok(())
            }
        }
        let mut table = regions();
        table.entropy =
            Arc::new(Numbers(std::sync::Mutex::new(vec![u64::MAX, u64::MAX - 4096, 0x1234_5678_9ABC])));
        assert_eq!(region(&mut table, 8193, ALL).address, 0x1234_5678_9000, "two would have wrapped");

        let mut table = regions();
        let addresses: Vec<u64> = (0..256).map(|_| region(&mut table, 64, ALL).address).collect();
        assert!(addresses.iter().all(|address| address % 4096 == 0));
        let any = addresses.iter().fold(0, |any, address| any | address);
        let all = addresses.iter().fold(u64::MAX, |all, address| all & address);
        assert_eq!((any, all), (!0xFFF, 0), "each of the upper 52 bits is both");
    }

    #[test]
    fn a_window_opens_its_range_on_its_queue_pair_until_it_is_invalidated() {
        let mut regions = regions();
        let keys = region(&mut regions, 4096, Access::LOCAL_WRITE | Access::MEMORY_WINDOW_BIND);
        let (window, rkey) = bound(&mut regions, keys, 100, 50);
        let first = keys.address + 100;
        assert_eq!(ask(&regions, rkey, first, 50), Ok(100));
        assert_eq!(ask(&regions, rkey, first + 1, 50), Err(Refusal::Bounds));
        assert_eq!(ask(&regions, rkey, keys.address, 50), Err(Refusal::Bounds));
        let other = regions.remote(qpn(0x101), rkey, first, 50, READ).map(|_| ());
        assert_eq!(other, Err(Refusal::OtherQueuePair));

        assert_eq!(regions.invalidate(qpn(0x101), rkey), Err(Refusal::OtherQueuePair));
        assert_eq!(ask(&regions, rkey, first, 50), Ok(100), "another's connection ends nothing");
        assert_eq!(regions.invalidate(qpn(0x100), rkey), Ok(()));
        assert_eq!(ask(&regions, rkey, first, 50), Err(Refusal::UnknownKey));
        assert_eq!(regions.invalidate(qpn(0x100), rkey), Err(Refusal::UnknownKey));

        let again = regions.next_key(window).unwrap();
        assert_ne!(again, rkey);
        let bind =
            |regions: &mut Regions, rkey| regions.bind(qpn(0x101), window, rkey, keys.lkey, 0, 4096, READ);
        assert_eq!(bind(&mut regions, rkey), Err(BindRefusal::Key), "a key is bound once");
        assert_eq!(bind(&mut regions, again), Ok(()));
        let now = regions.remote(qpn(0x101), again, keys.address, 4096, READ).map(|(_, offset)| offset);
        assert_eq!(now, Ok(0));
    }

    #[test]
    fn a_region_cannot_be_invalidated() {
        let mut regions = regions();
        let keys = region(&mut regions, 64, ALL);
        assert_eq!(regions.invalidate(qpn(0x100), keys.rkey), Err(Refusal::UnknownKey));
        assert_eq!(ask(&regions, keys.rkey, keys.address, 64), Ok(0));
    }

    #[test]
    fn binds_that_break_a_rule_change_nothing() {
        let mut regions = regions();
        let keys = region(&mut regions, 64, ALL);
        let unbindable = region(&mut regions, 64, ALL - Access::MEMORY_WINDOW_BIND);
        let unwritable = region(&mut regions, 64, Access::MEMORY_WINDOW_BIND);
        let window = regions.create_window();
        let rkey = regions.next_key(window).unwrap();
        let gone = regions.create_window();
        let of_gone = regions.next_key(gone).unwrap();
        regions.destroy_window(gone);
        assert_eq!(regions.next_key(gone).unwrap_err().code(), ErrorCode::InvalidArgument);
        let cases = [
            (gone, of_gone, keys.lkey, 0, 64, READ, BindRefusal::UnknownWindow),
            (window, of_gone, keys.lkey, 0, 64, READ, BindRefusal::Key),
            (window, RKey::new(0), keys.lkey, 0, 64, READ, BindRefusal::Key),
            (window, keys.rkey, keys.lkey, 0, 64, READ, BindRefusal::Key),
            (window, rkey, LKey(keys.rkey.expose()), 0, 64, READ, BindRefusal::UnknownRegion),
            (window, rkey, unbindable.lkey, 0, 64, READ, BindRefusal::RegionRights),
            (window, rkey, unwritable.lkey, 0, 64, WRITE, BindRefusal::RegionRights),
            (window, rkey, unwritable.lkey, 0, 64, Access::REMOTE_ATOMIC, BindRefusal::RegionRights),
            (window, rkey, keys.lkey, 0, 64, Access::empty(), BindRefusal::Access),
            (window, rkey, keys.lkey, 0, 64, READ | Access::LOCAL_WRITE, BindRefusal::Access),
            (window, rkey, keys.lkey, 0, 64, READ | Access::MEMORY_WINDOW_BIND, BindRefusal::Access),
            (window, rkey, keys.lkey, 0, 0, READ, BindRefusal::Bounds),
            (window, rkey, keys.lkey, 0, 65, READ, BindRefusal::Bounds),
            (window, rkey, keys.lkey, 64, 1, READ, BindRefusal::Bounds),
            (window, rkey, keys.lkey, usize::MAX, 2, READ, BindRefusal::Bounds),
        ];
        for (window, rkey, lkey, offset, length, access, refusal) in cases {
            assert_eq!(regions.bind(qpn(0x100), window, rkey, lkey, offset, length, access), Err(refusal));
        }
        assert!(regions.bound_on.is_empty() && regions.openings.len() == 2);
        assert_eq!(
            regions.bind(qpn(0x100), window, rkey, unwritable.lkey, 0, 64, READ),
            Ok(()),
            "positive control"
        );
        let second = regions.next_key(window).unwrap();
        let bind = regions.bind(qpn(0x100), window, second, keys.lkey, 0, 64, READ);
        assert_eq!(bind, Err(BindRefusal::Bound));
    }

    #[test]
    fn keys_can_be_given_ahead_but_not_without_end() {
        let mut regions = regions();
        let keys = region(&mut regions, 64, ALL);
        let window = regions.create_window();
        let given: Vec<_> = (0..=MOST_GIVEN).map(|_| regions.next_key(window).unwrap()).collect();
        let bind =
            |regions: &mut Regions, rkey| regions.bind(qpn(0x100), window, rkey, keys.lkey, 0, 64, READ);
        assert_eq!(bind(&mut regions, given[0]), Err(BindRefusal::Key), "forgotten");
        for rkey in &given[1..] {
            assert_eq!(bind(&mut regions, *rkey), Ok(()));
            assert_eq!(regions.invalidate(qpn(0x100), *rkey), Ok(()));
        }
        assert!(regions.windows[&window.0].given.is_empty());
    }

    #[test]
    fn what_ends_takes_its_windows_along_and_leaves_no_trace() {
        let mut table = regions();
        let (first, second) = (region(&mut table, 64, ALL), region(&mut table, 64, ALL));
        let (window, of_first) = bound(&mut table, first, 0, 64);
        let (_, of_second) = bound(&mut table, second, 0, 64);
        table.deregister(first.lkey);
        table.deregister(first.lkey);
        assert_eq!(ask(&table, first.rkey, first.address, 8), Err(Refusal::UnknownKey));
        assert_eq!(ask(&table, of_first, first.address, 8), Err(Refusal::UnknownKey));
        assert_eq!(ask(&table, of_second, second.address, 8), Ok(0));
        assert!(table.local(first.lkey).is_none());

        let rkey = table.next_key(window).unwrap();
        table.bind(qpn(0x101), window, rkey, second.lkey, 0, 64, READ).unwrap();
        table.unbind_all(qpn(0x100));
        assert_eq!(ask(&table, of_second, second.address, 8), Err(Refusal::UnknownKey));
        assert!(
            table.remote(qpn(0x101), rkey, second.address, 8, READ).is_ok(),
            "another queue pair's stays"
        );
        table.destroy_window(window);
        assert!(table.remote(qpn(0x101), rkey, second.address, 8, READ).is_err());

        assert!(table.bound_on.is_empty() && table.windows.len() == 1);
        assert_eq!(table.openings.len(), 1);
        assert!(table.regions[&second.lkey.0].windows.is_empty());
    }

    #[test]
    fn an_ended_region_lets_go_of_its_memory() {
        let mut table = regions();
        let memory = memory(64);
        let keys = table.register(Arc::clone(&memory), ALL).unwrap();
        bound(&mut table, keys, 0, 64);
        assert_eq!(Arc::strong_count(&memory), 4);
        table.deregister(keys.lkey);
        assert_eq!(Arc::strong_count(&memory), 1);
    }

    #[test]
    fn no_two_keys_are_equal_and_none_is_0() {
        let mut table = regions();
        let mut drawn = std::collections::HashSet::from([0]);
        for _ in 0..1000 {
            let keys = region(&mut table, 64, READ);
            assert!(drawn.insert(keys.lkey.0) && drawn.insert(keys.rkey.expose()));
            let window = table.create_window();
            assert!(drawn.insert(table.next_key(window).unwrap().expose()));
        }
    }
}
