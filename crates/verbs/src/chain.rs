//! Lists of work requests as the driver takes them, built in buffers that are kept.

use std::ffi::c_int;
use std::ptr;

use rdma_sys::{
    atomic_t, bind_mw_tso_union_t, ibv_recv_wr, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode,
    imm_data_invalidated_rkey_union_t, rdma_t, wr_t,
};
use secure_rdma_rdma::{SendFlags, SendOperation, SendRequest, Slice};

use crate::window::VerbsWindow;

/// A request of a chain: the two kinds link in the same way.
pub(crate) trait Link {
    /// Sets where the request's entries are, and the request after it.
    fn link(&mut self, entries: *mut ibv_sge, next: *mut Self);
    /// How many entries it has.
    fn entries(&self) -> usize;
}

impl Link for ibv_send_wr {
    fn link(&mut self, entries: *mut ibv_sge, next: *mut Self) {
        self.sg_list = entries;
        self.next = next;
    }

    fn entries(&self) -> usize {
        usize::try_from(self.num_sge).unwrap_or(0)
    }
}

impl Link for ibv_recv_wr {
    fn link(&mut self, entries: *mut ibv_sge, next: *mut Self) {
        self.sg_list = entries;
        self.next = next;
    }

    fn entries(&self) -> usize {
        usize::try_from(self.num_sge).unwrap_or(0)
    }
}

/// A linked list of requests and their scatter/gather entries.
pub(crate) struct Chain<T> {
    requests: Vec<T>,
    entries: Vec<ibv_sge>,
}

// SAFETY: the pointers in the requests lead only into the chain's own buffers, and are set anew by each `head`.
unsafe impl<T> Send for Chain<T> {}

impl<T: Link> Chain<T> {
    /// An empty chain.
    pub(crate) fn new() -> Self {
        Self { requests: Vec::new(), entries: Vec::new() }
    }

    /// Empties it, and keeps its buffers.
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
        self.entries.clear();
    }

    /// How many requests it has.
    pub(crate) fn len(&self) -> usize {
        self.requests.len()
    }

    fn gather(&mut self, slices: &[Slice]) -> c_int {
        self.entries.extend(slices.iter().map(entry));
        c_int::try_from(slices.len()).unwrap_or(c_int::MAX)
    }

    /// Links the requests and gives the first, or null. Valid until the chain is changed.
    pub(crate) fn head(&mut self) -> *mut T {
        let first = self.requests.as_mut_ptr();
        let mut entries = self.entries.as_mut_ptr();
        let last = self.requests.len().saturating_sub(1);
        for (index, request) in self.requests.iter_mut().enumerate() {
            let next = if index == last { ptr::null_mut() } else { first.wrapping_add(index + 1) };
            request.link(entries, next);
            entries = entries.wrapping_add(request.entries());
        }
        if self.requests.is_empty() { ptr::null_mut() } else { first }
    }

    /// How many requests stand before `bad`, the one that the driver refused.
    ///
    /// Without one (null) all count as posted: the provider filled its queue and failed to ring the doorbell, so
    /// the device may still carry them out.
    pub(crate) fn posted_before(&self, bad: *const T) -> usize {
        let offset = (bad as usize).checked_sub(self.requests.as_ptr() as usize);
        offset.map(|offset| offset / size_of::<T>()).filter(|index| *index < self.len()).unwrap_or(self.len())
    }
}

impl Chain<ibv_send_wr> {
    /// Appends a send.
    pub(crate) fn push(&mut self, wr_id: u64, request: &SendRequest) {
        // SAFETY: the structure holds numbers, pointers and unions of them, for which zero is a value.
        let mut wr: ibv_send_wr = unsafe { std::mem::zeroed() };
        wr.wr_id = wr_id;
        wr.num_sge = self.gather(&request.local);
        wr.send_flags = ibv_send_flags::IBV_SEND_SIGNALED.0;
        if request.flags.contains(SendFlags::FENCE) {
            wr.send_flags |= ibv_send_flags::IBV_SEND_FENCE.0;
        }
        if request.flags.contains(SendFlags::SOLICITED) {
            wr.send_flags |= ibv_send_flags::IBV_SEND_SOLICITED.0;
        }
        match &request.operation {
            &SendOperation::Send { immediate } => {
                wr.opcode = ibv_wr_opcode::IBV_WR_SEND;
                if immediate.is_some() {
                    wr.opcode = ibv_wr_opcode::IBV_WR_SEND_WITH_IMM;
                }
                wr.imm_data_invalidated_rkey_union = on_the_wire(immediate);
            }
            &SendOperation::Write { remote, immediate } => {
                wr.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                if immediate.is_some() {
                    wr.opcode = ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
                }
                wr.imm_data_invalidated_rkey_union = on_the_wire(immediate);
                wr.wr = wr_t { rdma: rdma_t { remote_addr: remote.address, rkey: remote.rkey.expose() } };
            }
            &SendOperation::Read { remote } => {
                wr.opcode = ibv_wr_opcode::IBV_WR_RDMA_READ;
                wr.wr = wr_t { rdma: rdma_t { remote_addr: remote.address, rkey: remote.rkey.expose() } };
            }
            &SendOperation::CompareSwap { remote, compare, swap } => {
                wr.opcode = ibv_wr_opcode::IBV_WR_ATOMIC_CMP_AND_SWP;
                let (remote_addr, rkey) = (remote.address, remote.rkey.expose());
                wr.wr = wr_t { atomic: atomic_t { remote_addr, compare_add: compare, swap, rkey } };
            }
            &SendOperation::FetchAdd { remote, add } => {
                wr.opcode = ibv_wr_opcode::IBV_WR_ATOMIC_FETCH_AND_ADD;
                let (remote_addr, rkey) = (remote.address, remote.rkey.expose());
                wr.wr = wr_t { atomic: atomic_t { remote_addr, compare_add: add, swap: 0, rkey } };
            }
            SendOperation::SendInvalidate { rkey } => {
                wr.opcode = ibv_wr_opcode::IBV_WR_SEND_WITH_INV;
                wr.imm_data_invalidated_rkey_union.invalidated_rkey = rkey.expose();
            }
            SendOperation::Bind { window, rkey, target, access } => {
                wr.opcode = ibv_wr_opcode::IBV_WR_BIND_MW;
                let window = window.as_any().downcast_ref::<VerbsWindow>();
                if let Some(bind_mw) = window.and_then(|window| window.binding(*rkey, target, *access)) {
                    wr.bind_mw_tso_union = bind_mw_tso_union_t { bind_mw };
                }
            }
            SendOperation::Invalidate { rkey } => {
                wr.opcode = ibv_wr_opcode::IBV_WR_LOCAL_INV;
                wr.send_flags |= ibv_send_flags::IBV_SEND_FENCE.0;
                wr.imm_data_invalidated_rkey_union.invalidated_rkey = rkey.expose();
            }
        }
        self.requests.push(wr);
    }
}

impl Chain<ibv_recv_wr> {
    /// Appends a receive.
    pub(crate) fn push(&mut self, wr_id: u64, slices: &[Slice]) {
        let num_sge = self.gather(slices);
        self.requests.push(ibv_recv_wr { wr_id, next: ptr::null_mut(), sg_list: ptr::null_mut(), num_sge });
    }
}

fn on_the_wire(immediate: Option<u32>) -> imm_data_invalidated_rkey_union_t {
    imm_data_invalidated_rkey_union_t { imm_data: immediate.unwrap_or(0).to_be() }
}

/// A slice whose bounds have been checked, as the driver takes it.
fn entry(slice: &Slice) -> ibv_sge {
    ibv_sge {
        addr: slice.region.address().wrapping_add(slice.offset as u64),
        length: u32::try_from(slice.length).unwrap_or(0),
        lkey: slice.region.lkey().0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_links_its_requests_and_finds_the_refused_one() {
        let mut chain = Chain::<ibv_recv_wr>::new();
        assert!(chain.head().is_null());
        for wr_id in 0..5 {
            chain.push(wr_id, &[]);
        }
        let mut seen = Vec::new();
        let mut at = chain.head();
        while !at.is_null() {
            assert_eq!(chain.posted_before(at), seen.len());
            // SAFETY: the pointer leads into the chain, which has not changed.
            let request = unsafe { at.read() };
            seen.push(request.wr_id);
            at = request.next;
        }
        assert_eq!(seen, [0, 1, 2, 3, 4]);
        assert_eq!(chain.posted_before(ptr::null()), 5);
        chain.clear();
        assert_eq!(chain.len(), 0);
    }
}
