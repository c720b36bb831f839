//! What a test build can be told: faults of the embedded device.

use napi_derive::napi;
use secure_rdma_soft::faults;

/// Drops packets that arrive at this process' embedded device, if their UDP payload is longer than so many bytes.
#[napi(catch_unwind)]
pub fn soft_drop(longer_than: u32) {
    faults::drop_longer_than(longer_than as usize);
}

/// Lets them pass again.
#[napi(catch_unwind)]
pub fn soft_pass() {
    faults::drop_longer_than(usize::MAX);
}

/// How many were dropped so far.
#[napi(catch_unwind)]
#[must_use]
pub fn soft_dropped() -> f64 {
    // Exact up to 2^53.
    #[allow(clippy::cast_precision_loss, reason = "a test counts fewer")]
    let count = faults::dropped() as f64;
    count
}
