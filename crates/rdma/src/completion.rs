//! Completions: what became of a work request.

use std::fmt;

use crate::{RKey, WorkId};

/// The status of a completion. The numbers are those of `enum ibv_wc_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct WcStatus(pub u32);

impl WcStatus {
    /// The work is done; for a request, the peer's device has acknowledged it.
    pub const SUCCESS: Self = Self(0);
    /// A message was longer than the receive that it met.
    pub const LOC_LEN_ERR: Self = Self(1);
    /// The device could not carry out the request as it was posted: a READ with an initiator depth of 0, a
    /// malformed work request.
    pub const LOC_QP_OP_ERR: Self = Self(2);
    /// The device may not touch the local memory in this way: a receive into a region without LOCAL_WRITE.
    pub const LOC_PROT_ERR: Self = Self(4);
    /// The queue pair was flushed: an earlier request failed, or it was moved to ERR.
    pub const WR_FLUSH_ERR: Self = Self(5);
    /// A window could not be bound: it is bound already, or the region does not allow it.
    pub const MW_BIND_ERR: Self = Self(6);
    /// The peer answered "invalid request".
    pub const REM_INV_REQ_ERR: Self = Self(9);
    /// The peer answered "remote access error": key, range or right.
    pub const REM_ACCESS_ERR: Self = Self(10);
    /// The peer answered "operational error".
    pub const REM_OP_ERR: Self = Self(11);
    /// No answer after all repetitions.
    pub const RETRY_EXC_ERR: Self = Self(12);
    /// The peer had no receive posted, after all repetitions.
    pub const RNR_RETRY_EXC_ERR: Self = Self(13);

    /// Whether the work is done.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// The name without `IBV_WC_`, as in rdma-core's `ibv_wc_status_str` table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        const NAMES: [&str; 24] = [
            "SUCCESS",
            "LOC_LEN_ERR",
            "LOC_QP_OP_ERR",
            "LOC_EEC_OP_ERR",
            "LOC_PROT_ERR",
            "WR_FLUSH_ERR",
            "MW_BIND_ERR",
            "BAD_RESP_ERR",
            "LOC_ACCESS_ERR",
            "REM_INV_REQ_ERR",
            "REM_ACCESS_ERR",
            "REM_OP_ERR",
            "RETRY_EXC_ERR",
            "RNR_RETRY_EXC_ERR",
            "LOC_RDD_VIOL_ERR",
            "REM_INV_RD_REQ_ERR",
            "REM_ABORT_ERR",
            "INV_EECN_ERR",
            "INV_EEC_STATE_ERR",
            "FATAL_ERR",
            "RESP_TIMEOUT_ERR",
            "GENERAL_ERR",
            "TM_ERR",
            "TM_RNDV_INCOMPLETE",
        ];
        if (self.0 as usize) < NAMES.len() { NAMES[self.0 as usize] } else { "UNKNOWN" }
    }

    /// What it usually means, for an error message.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self.0 {
            1 => "a message was longer than the receive buffer that it met",
            2 => "the device could not carry out the request as it was posted",
            4 => "the device may not touch the local memory of the request",
            5 => "the queue pair had already failed or was closed",
            6 => "a memory window could not be bound",
            9 => "the peer refused the request as invalid",
            10 => "the peer refused the key, the range or the right",
            11 => "the peer could not carry out the request",
            12 => "the peer did not answer after every repetition",
            13 => "the peer had no receive posted after every repetition",
            _ => "the device reported a failure",
        }
    }
}

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name(), self.0)
    }
}

/// Which queue a completion comes from, and for receives how the message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletionKind {
    /// A send work request: SEND, WRITE, READ or an atomic.
    Send,
    /// A receive work request consumed by a SEND.
    Receive,
    /// A receive work request consumed by a WRITE with immediate; no bytes were placed in it.
    ReceiveWriteImmediate,
}

/// One completion. Of a failed one only `id`, `kind`, `status` and `vendor_error` mean anything.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// The number that the poster gave.
    pub id: WorkId,
    /// Send or receive queue. Devices keep this true for failed completions too.
    pub kind: CompletionKind,
    /// How it ended.
    pub status: WcStatus,
    /// Bytes received.
    pub byte_len: u32,
    /// The immediate that the peer sent.
    pub immediate: Option<u32>,
    /// The own key that the peer's SEND with invalidate has ended.
    pub invalidated: Option<RKey>,
    /// The vendor's own code of a failure.
    pub vendor_error: u32,
}
