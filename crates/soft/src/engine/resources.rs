//! The responder's resources: what it needs to answer a READ or an atomic again.

use std::collections::VecDeque;

use secure_rdma_rdma::RKey;

/// A READ or an atomic of the peer that was executed.
#[derive(Clone, Copy)]
pub(super) struct Resource {
    /// The request's PSN, as a count.
    pub(super) first: u64,
    /// One past its last response's.
    pub(super) end: u64,
    /// The MSN that its answers carry.
    pub(super) msn: u32,
    pub(super) kind: Kind,
    /// Whether an answer is still to be sent.
    pub(super) pending: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Memory is read when a response is sent, and so again when it is sent again.
    Read(Read),
    /// Never executed again: what the memory held is kept.
    Atomic { original: u64 },
}

#[derive(Clone, Copy)]
pub(super) struct Read {
    pub(super) address: u64,
    pub(super) rkey: RKey,
    pub(super) length: u32,
    /// The range of responses that was asked for last, and the next of them to send.
    pub(super) start: u64,
    pub(super) next: u64,
    pub(super) until: u64,
    /// One past the newest response that was ever sent: what comes before it is a repetition.
    pub(super) sent: u64,
}

/// A ring of `max_dest_rd_atomic` entries, of which the oldest makes room for a new one (IBTA 9.7.5.1.4; rxe keeps the
/// same, `rxe_resp.c`, `rxe_prepare_res`).
#[derive(Default)]
pub(super) struct Resources {
    entries: VecDeque<Resource>,
    depth: usize,
    /// The number of the oldest entry: an entry keeps its number.
    oldest: u64,
}

/// Names an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResourceId(u64);

impl Resources {
    pub(super) fn set_depth(&mut self, depth: u8) {
        self.depth = usize::from(depth);
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.entries.capacity() * size_of::<Resource>()
    }

    /// Whether any request of the kind is taken at all.
    pub(super) fn is_none(&self) -> bool {
        self.depth == 0
    }

    /// Whether another entry has room: a ring full of READs that are not answered yet has none.
    pub(super) fn has_room(&self) -> bool {
        self.entries.len() < self.depth || self.entries.front().is_some_and(|oldest| !oldest.pending)
    }

    pub(super) fn push(&mut self, resource: Resource) -> ResourceId {
        while self.entries.len() >= self.depth.max(1) {
            self.entries.pop_front();
            self.oldest = self.oldest.wrapping_add(1);
        }
        let id = ResourceId(self.oldest.wrapping_add(self.entries.len() as u64));
        self.entries.push_back(resource);
        id
    }

    pub(super) fn get(&mut self, id: ResourceId) -> Option<&mut Resource> {
        let index = usize::try_from(id.0.wrapping_sub(self.oldest)).ok()?;
        self.entries.get_mut(index)
    }

    /// The entry that a request with this PSN made or belongs to.
    pub(super) fn find(&mut self, count: u64) -> Option<(ResourceId, &mut Resource)> {
        let index = self.entries.iter().position(|entry| (entry.first..entry.end).contains(&count))?;
        let id = ResourceId(self.oldest.wrapping_add(index as u64));
        self.entries.get_mut(index).map(|entry| (id, entry))
    }
}
