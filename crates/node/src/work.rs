//! What takes its time, off the event loop.

use std::future::Future;
use std::sync::{Arc, Mutex};

use napi::bindgen_prelude::Either;
use napi_derive::napi;
use secure_rdma_rdma::Result;
use secure_rdma_session::Task;

use crate::bell::{Bell, lock};
use crate::environment::value;
use crate::error::NativeError;
use crate::process::Process;

/// Where something leaves what came of it.
pub(crate) struct Slot<T> {
    outcome: Arc<Mutex<Option<Result<T>>>>,
    bell: Bell,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self { outcome: Arc::clone(&self.outcome), bell: self.bell.clone() }
    }
}

impl<T> Slot<T> {
    pub(crate) fn new(bell: Bell) -> Self {
        Self { outcome: Arc::default(), bell }
    }

    /// What came of it, once.
    pub(crate) fn take(&self) -> Option<Result<T>> {
        lock(&self.outcome).take()
    }

    pub(crate) fn put(&self, result: Result<T>) {
        *lock(&self.outcome) = Some(result);
        self.bell.ring();
    }
}

/// Runs `future` on the control thread; what comes of it goes to `slot`.
pub(crate) fn put_later<T: Send + 'static>(
    process: &Process,
    slot: &Slot<T>,
    future: impl Future<Output = Result<T>> + Send + 'static,
) -> Task {
    let slot = slot.clone();
    process.runtime.spawn(async move { slot.put(future.await) })
}

/// Something that is under way and gives nothing but its end.
#[napi]
pub struct Work {
    slot: Slot<()>,
}

#[napi]
impl Work {
    /// `true` when it is done, or why it failed; `null` while neither is known.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take(&self) -> Option<Either<bool, NativeError>> {
        self.slot.take().map(|result| value(result.map(|()| true)))
    }
}

impl Work {
    pub(crate) fn of(slot: Slot<()>) -> Self {
        Self { slot }
    }
}
