//! What peers publish, as JavaScript holds it.

use napi::bindgen_prelude::Either;
use napi_derive::napi;
use secure_rdma_connection::RemoteRegion;
use secure_rdma_session::Task;

use crate::environment::value;
use crate::error::NativeError;
use crate::report::number;
use crate::work::Slot;

/// A range of the peer's memory. Address and key stay on this side of the border.
#[napi]
pub struct NativeRemote {
    region: RemoteRegion,
}

impl NativeRemote {
    pub(crate) fn region(&self) -> &RemoteRegion {
        &self.region
    }
}

#[napi]
impl NativeRemote {
    /// Its length in bytes.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn byte_length(&self) -> f64 {
        number(self.region.len())
    }

    /// What may be done with it: bits of `enum ibv_access_flags`.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn access(&self) -> u32 {
        self.region.access().bits()
    }

    /// Whether the peer has taken it back.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.region.is_revoked()
    }
}

/// A wait for something that the peer is to publish. Dropping it gives the wait up.
#[napi]
pub struct Seeking {
    slot: Slot<RemoteRegion>,
    task: Task,
}

#[napi]
impl Seeking {
    /// What was found, or why nothing was; `null` while neither is known.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take(&self) -> Option<Either<NativeRemote, NativeError>> {
        self.slot.take().map(|result| value(result.map(|region| NativeRemote { region })))
    }

    /// Gives the wait up.
    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.task.abort();
    }
}

impl Seeking {
    pub(crate) fn of(slot: Slot<RemoteRegion>, task: Task) -> Self {
        Self { slot, task }
    }
}

impl Drop for Seeking {
    fn drop(&mut self) {
        self.task.abort();
    }
}
