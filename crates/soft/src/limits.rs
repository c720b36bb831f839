//! What the embedded device can do.

use secure_rdma_rdma::DeviceLimits;

/// Limits of number are those of memory, and so generous; each is there so that a mistake ends in an error.
pub(crate) fn limits() -> DeviceLimits {
    DeviceLimits {
        max_work_requests: 1 << 16,
        max_sge: 32,
        max_completions: 1 << 18,
        max_responder_resources: 128,
        max_initiator_depth: 128,
        max_shared_receives: 1 << 20,
        max_message: (1 << 31) - 1,
    }
}
