//! What tests need behind the traits: the driver without our transition table, and what it says of a queue pair.
//! No part of the crate's promises.

use std::sync::Arc;

use rdma_sys::{ibv_qp_attr, ibv_qp_init_attr};
use secure_rdma_rdma::{AttrMask, Error, ErrorCode, QpAttr, Qpn, ReceiveQueue};

use crate::{device, modify, shared};

/// Calls `ibv_modify_qp` with any mask. The device must be open in this process, and the queue pair be its.
///
/// # Errors
/// The driver's errno, or ENOENT where there is no such queue pair.
pub fn modify_unchecked(device: &str, qpn: Qpn, attr: &QpAttr, mask: AttrMask) -> Result<(), i32> {
    let owner = device::find_open(device).ok_or(libc::ENOENT)?;
    let body = owner.bodies().into_iter().find(|body| body.qpn() == qpn).ok_or(libc::ENOENT)?;
    let from = body.state();
    modify::raw(&owner, &body, attr, mask)?;
    if let Some(to) = attr.state.filter(|_| mask.contains(AttrMask::STATE)) {
        body.moved(from, to);
    }
    Ok(())
}

/// Makes a shared receive queue even where we do not use them. The device must be open in this process.
///
/// # Errors
/// As [`secure_rdma_rdma::Device::create_receive_queue`]; `ERR_RDMA_DEVICE_NOT_FOUND` where it is not open.
pub fn create_receive_queue(device: &str, capacity: u32) -> Result<Arc<dyn ReceiveQueue>, Error> {
    let Some(owner) = device::find_open(device) else {
        return Err(Error::new(ErrorCode::DeviceNotFound, format!("{device} is not open")));
    };
    shared::make(&owner, capacity, owner.shared.max_receives)
}

/// What the driver says of a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queried {
    /// `enum ibv_qp_state`.
    pub state: u32,
    /// Whether what was begun before SQD is still under way.
    pub is_draining: bool,
    /// The own next PSN.
    pub sq_psn: u32,
    /// The peer's next PSN.
    pub rq_psn: u32,
    /// The peer's QPN.
    pub dest_qpn: u32,
    /// `enum ibv_mtu`.
    pub path_mtu: u32,
    /// The retransmission timeout's code.
    pub timeout: u8,
    /// Repetitions without an answer.
    pub retry_count: u8,
    /// Repetitions after an RNR NAK.
    pub rnr_retry: u8,
    /// Code of the wait that an RNR NAK asks for.
    pub min_rnr_timer: u8,
    /// `enum ibv_access_flags`.
    pub access: u32,
    /// Whether the address vector has a GRH.
    pub is_global: u8,
    /// Hop limit of the GRH.
    pub hop_limit: u8,
    /// Index of the own GID.
    pub source_gid_index: u8,
}

/// Calls `ibv_query_qp`.
///
/// # Errors
/// The driver's errno, or ENOENT where there is no such queue pair.
pub fn query(device: &str, qpn: Qpn) -> Result<Queried, i32> {
    let owner = device::find_open(device).ok_or(libc::ENOENT)?;
    let body = owner.bodies().into_iter().find(|body| body.qpn() == qpn).ok_or(libc::ENOENT)?;
    // SAFETY: the structure holds numbers only, for which zero is a value.
    let mut attr: ibv_qp_attr = unsafe { std::mem::zeroed() };
    // SAFETY: the structure holds numbers and pointers, for which zero is a value.
    let mut init: ibv_qp_init_attr = unsafe { std::mem::zeroed() };
    let mask = i32::try_from(AttrMask::all().difference(AttrMask::RATE_LIMIT).bits()).unwrap_or(i32::MAX);
    // SAFETY: the queue pair is alive while `body` is in the table, and both places are valid.
    let answer = unsafe { (owner.verbs().ibv_query_qp)(body.qp(), &raw mut attr, mask, &raw mut init) };
    if let Some(errno) = crate::errno::of(answer) {
        return Err(errno);
    }
    Ok(Queried {
        state: attr.qp_state,
        is_draining: attr.sq_draining != 0,
        sq_psn: attr.sq_psn,
        rq_psn: attr.rq_psn,
        dest_qpn: attr.dest_qp_num,
        path_mtu: attr.path_mtu,
        timeout: attr.timeout,
        retry_count: attr.retry_cnt,
        rnr_retry: attr.rnr_retry,
        min_rnr_timer: attr.min_rnr_timer,
        access: attr.qp_access_flags,
        is_global: attr.ah_attr.is_global,
        hop_limit: attr.ah_attr.grh.hop_limit,
        source_gid_index: attr.ah_attr.grh.sgid_index,
    })
}
