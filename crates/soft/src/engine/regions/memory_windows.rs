//! Type 2 memory windows: what binds them to a range of a region and to a queue pair, and what ends that.

use std::collections::VecDeque;
use std::sync::Arc;

use secure_rdma_rdma::{Access, Error, ErrorCode, LKey, Qpn, RKey, Result};

use super::{Binding, CHANGES, Opening, REMOTE, Refusal, Regions};

/// A memory window of one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowId(u64);

/// Why a window could not be bound (IBTA 10.6.7.2.5): the bind completes with MW_BIND_ERR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::engine) enum BindRefusal {
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

#[derive(Default)]
pub(super) struct Window {
    bound: Option<u32>,
    /// Keys given and not yet used, the oldest first.
    given: VecDeque<u32>,
}

/// How many keys given for one window wait to be used; of more, the oldest are forgotten.
const MOST_GIVEN: usize = 64;

impl Regions {
    /// Makes a window, bound to nothing.
    pub(in crate::engine) fn create_window(&mut self) -> WindowId {
        let id = self.next_window;
        self.next_window += 1;
        self.windows.insert(id, Window::default());
        WindowId(id)
    }

    /// A key for the window's next bind; each call gives another.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] where there is no such window, [`ErrorCode::Entropy`].
    pub(in crate::engine) fn next_key(&mut self, window: WindowId) -> Result<RKey> {
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
    pub(in crate::engine) fn bind(
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
    pub(in crate::engine) fn invalidate(&mut self, qpn: Qpn, rkey: RKey) -> Result<(), Refusal> {
        let binding =
            self.openings.get(&rkey.expose()).and_then(|opening| opening.bound).ok_or(Refusal::UnknownKey)?;
        if binding.qpn != qpn {
            return Err(Refusal::OtherQueuePair);
        }
        self.unbind(binding.window);
        Ok(())
    }

    /// Destroys a window; where it is bound, its key opens nothing any more.
    pub(in crate::engine) fn destroy_window(&mut self, window: WindowId) {
        self.unbind(window);
        self.windows.remove(&window.0);
    }

    /// Ends the bindings of all windows on a queue pair that is destroyed or forgets everything.
    pub(in crate::engine) fn unbind_all(&mut self, qpn: Qpn) {
        for window in self.bound_on.remove(&qpn).unwrap_or_default() {
            self.unbind(window);
        }
    }

    pub(super) fn unbind(&mut self, window: WindowId) {
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
    pub(in crate::engine) fn owner(&self, rkey: RKey) -> Option<Qpn> {
        self.openings.get(&rkey.expose())?.bound.map(|binding| binding.qpn)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ALL, READ, WRITE, ask, bound, qpn, region, regions};
    use super::*;

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
}
