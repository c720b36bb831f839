//! What is posted and not yet completed: which number its poster gave, and the regions that must stay until then.
//!
//! The driver's `wr_id` is ours, not the poster's. It says by itself which queue a completion belongs to (the
//! opcode of a failed completion means nothing) and where its slot is, and a number that was never given out, or
//! was completed before, finds no slot.

use secure_rdma_rdma::{Slice, WorkId};
use smallvec::SmallVec;

/// Set in the `wr_id` of every receive.
const RECEIVE: u64 = 1 << 63;

/// Whether a `wr_id` is that of a receive.
pub(crate) fn is_receive(wr_id: u64) -> bool {
    wr_id & RECEIVE != 0
}

struct Slot {
    id: WorkId,
    live: bool,
    /// Counts the slot's uses, so that a late or repeated completion does not meet a newer request.
    generation: u32,
    slices: SmallVec<[Slice; 1]>,
}

impl Slot {
    fn vacant() -> Self {
        Self { id: WorkId(0), live: false, generation: 0, slices: SmallVec::new() }
    }

    fn fill(&mut self, id: WorkId, slices: &[Slice]) {
        self.id = id;
        self.live = true;
        self.slices.extend(slices.iter().cloned());
    }

    fn clear(&mut self, retired: &mut Vec<Slice>) -> WorkId {
        self.live = false;
        retired.extend(self.slices.drain(..));
        self.id
    }
}

/// Sends, in the order of posting. A `wr_id` is the count of sends posted before it.
pub(crate) struct SendRing {
    slots: Box<[Slot]>,
    head: u64,
    tail: u64,
}

impl SendRing {
    /// Room for `capacity` sends, at least 1.
    pub(crate) fn new(capacity: u32) -> Self {
        Self { slots: (0..capacity.max(1)).map(|_| Slot::vacant()).collect(), head: 0, tail: 0 }
    }

    /// How many can be posted now.
    pub(crate) fn room(&self) -> usize {
        let outstanding = usize::try_from(self.tail - self.head).unwrap_or(usize::MAX);
        self.slots.len().saturating_sub(outstanding)
    }

    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        let index =
            number.checked_rem(self.slots.len() as u64).and_then(|index| usize::try_from(index).ok())?;
        self.slots.get_mut(index)
    }

    /// Takes a slot, or nothing where there is no room. Gives the `wr_id`.
    pub(crate) fn push(&mut self, id: WorkId, slices: &[Slice]) -> Option<u64> {
        if self.room() == 0 {
            return None;
        }
        let number = self.tail;
        self.slot(number)?.fill(id, slices);
        self.tail += 1;
        Some(number)
    }

    /// Undoes the last `count` pushes: the driver did not take them.
    pub(crate) fn take_back(&mut self, count: usize, retired: &mut Vec<Slice>) {
        for _ in 0..count {
            if self.tail == self.head {
                return;
            }
            self.tail -= 1;
            if let Some(slot) = self.slot(self.tail) {
                slot.clear(retired);
            }
        }
    }

    /// Ends a send; its slices go to `retired`. Nothing for a number that is not outstanding.
    pub(crate) fn complete(&mut self, wr_id: u64, retired: &mut Vec<Slice>) -> Option<WorkId> {
        if wr_id < self.head || wr_id >= self.tail {
            return None;
        }
        let slot = self.slot(wr_id).filter(|slot| slot.live)?;
        let id = slot.clear(retired);
        while self.head < self.tail && self.slot(self.head).is_some_and(|slot| !slot.live) {
            self.head += 1;
        }
        Some(id)
    }
}

/// Receives: those of one queue pair complete in order, those of a shared queue in any.
pub(crate) struct ReceiveSlots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    capacity: u32,
}

impl ReceiveSlots {
    /// Room for `capacity` receives.
    pub(crate) fn new(capacity: u32) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), capacity }
    }

    /// How many can be posted now.
    #[cfg(test)]
    fn room(&self) -> usize {
        (self.capacity as usize).saturating_sub(self.slots.len()) + self.free.len()
    }

    /// Takes a slot, or nothing where there is no room. Gives the `wr_id`.
    pub(crate) fn insert(&mut self, id: WorkId, slices: &[Slice]) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).ok().filter(|index| *index < self.capacity)?;
                self.slots.push(Slot::vacant());
                index
            }
        };
        let slot = self.slots.get_mut(index as usize)?;
        slot.generation = slot.generation.wrapping_add(1) & 0x7FFF_FFFF;
        slot.fill(id, slices);
        Some(RECEIVE | u64::from(slot.generation) << 32 | u64::from(index))
    }

    fn find(&mut self, wr_id: u64) -> Option<(u32, &mut Slot)> {
        let index = u32::try_from(wr_id & 0xFFFF_FFFF).ok()?;
        let slot = self.slots.get_mut(index as usize)?;
        let right = is_receive(wr_id) && slot.live && u64::from(slot.generation) == (wr_id & !RECEIVE) >> 32;
        right.then_some((index, slot))
    }

    /// Ends a receive; its slices go to `retired`. Nothing for a number that is not outstanding.
    pub(crate) fn complete(&mut self, wr_id: u64, retired: &mut Vec<Slice>) -> Option<WorkId> {
        let (index, slot) = self.find(wr_id)?;
        let id = slot.clear(retired);
        self.free.push(index);
        Some(id)
    }

    /// The slices of an outstanding receive.
    pub(crate) fn slices(&mut self, wr_id: u64) -> Option<&[Slice]> {
        self.find(wr_id).map(|(_, slot)| slot.slices.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_refuses_when_full_and_goes_on_when_the_oldest_completes() {
        let mut ring = SendRing::new(3);
        let mut retired = Vec::new();
        let ids: Vec<_> = (0..3).map(|n| ring.push(WorkId(n), &[]).unwrap()).collect();
        assert_eq!((ring.room(), ring.push(WorkId(9), &[])), (0, None));
        assert_eq!(ring.complete(ids[1], &mut retired), Some(WorkId(1)));
        assert_eq!(ring.room(), 0, "the oldest still holds the ring");
        assert_eq!(ring.complete(ids[0], &mut retired), Some(WorkId(0)));
        assert_eq!(ring.room(), 2);
        assert_eq!(ring.complete(ids[0], &mut retired), None, "completed before");
        assert_eq!(ring.complete(77, &mut retired), None, "never posted");
    }

    #[test]
    fn a_ring_takes_back_what_the_driver_refused() {
        let mut ring = SendRing::new(4);
        let first = ring.push(WorkId(1), &[]).unwrap();
        let second = ring.push(WorkId(2), &[]).unwrap();
        ring.take_back(1, &mut Vec::new());
        assert_eq!(ring.complete(second, &mut Vec::new()), None);
        assert_eq!(ring.push(WorkId(3), &[]), Some(second));
        assert_eq!(ring.complete(first, &mut Vec::new()), Some(WorkId(1)));
        assert_eq!(ring.complete(second, &mut Vec::new()), Some(WorkId(3)));
        ring.take_back(5, &mut Vec::new());
        assert_eq!(ring.room(), 4);
    }

    #[test]
    fn a_receive_number_is_good_once() {
        let mut slots = ReceiveSlots::new(2);
        let mut retired = Vec::new();
        let first = slots.insert(WorkId(10), &[]).unwrap();
        let second = slots.insert(WorkId(11), &[]).unwrap();
        assert!(is_receive(first) && is_receive(second));
        assert_eq!((slots.room(), slots.insert(WorkId(12), &[])), (0, None));
        assert_eq!(slots.complete(second, &mut retired), Some(WorkId(11)));
        assert_eq!(slots.complete(second, &mut retired), None);
        let third = slots.insert(WorkId(12), &[]).unwrap();
        assert_ne!(second, third, "same slot, another generation");
        assert_eq!(slots.complete(second, &mut retired), None);
        assert_eq!(slots.complete(first & !RECEIVE, &mut retired), None);
        assert_eq!(slots.complete(u64::MAX, &mut retired), None);
        assert_eq!(slots.complete(third, &mut retired), Some(WorkId(12)));
        assert_eq!(slots.room(), 1);
    }
}
