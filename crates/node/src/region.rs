//! Regions as JavaScript holds them.

use std::sync::Arc;

use napi::bindgen_prelude::{ArrayBuffer, Env};
use napi_derive::napi;
use secure_rdma_connection::{RegionSlice, SharedRegion};
use secure_rdma_rdma::{Error, ErrorCode, Result};

use crate::environment::House;
use crate::process::{drop_elsewhere, refuse_fork};
use crate::shown::show;

/// A region.
#[napi]
pub struct NativeRegion {
    /// There until the drop.
    region: Option<SharedRegion>,
}

impl NativeRegion {
    /// Allocates one, of as many bytes as a number of JavaScript's tells exactly.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "JavaScript has checked the length"
    )]
    pub(crate) fn allocate(house: &Arc<House>, bytes: f64) -> Result<Self> {
        refuse_fork()?;
        if !house.external_allowed() {
            return Err(Error::new(
                ErrorCode::NoExternalBuffers,
                "this JavaScript environment takes no memory of others as an ArrayBuffer (Electron's do not): regions can only \
                 be made in node's own",
            ));
        }
        Ok(Self { region: Some(SharedRegion::allocate(bytes as usize)?) })
    }

    pub(crate) fn region(&self) -> Result<&SharedRegion> {
        self.region.as_ref().ok_or_else(|| Error::internal("a region without its memory"))
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "JavaScript has checked both")]
    pub(crate) fn slice(&self, offset: f64, length: f64) -> Result<RegionSlice> {
        self.region()?.slice(offset as usize, length as usize)
    }
}

#[napi]
impl NativeRegion {
    /// Its memory. To be asked for once.
    ///
    /// # Errors
    /// When Node makes no `ArrayBuffer`.
    #[napi(catch_unwind)]
    pub fn buffer(&self, env: Env) -> napi::Result<ArrayBuffer<'static>> {
        let region = self.region().map_err(|error| napi::Error::from_reason(error.message()))?;
        show(&env, region.memory())
    }

    /// Copies bytes to its begin.
    ///
    /// # Errors
    /// When they are longer.
    #[napi(catch_unwind)]
    pub fn fill(&self, bytes: &[u8]) -> napi::Result<()> {
        let filled = self.region().and_then(|region| region.write(0, bytes));
        filled.map_err(|error| napi::Error::from_reason(error.message()))
    }

    /// Nothing new is done with it.
    #[napi(catch_unwind)]
    pub fn close(&self) {
        if let (Ok(()), Some(region)) = (refuse_fork(), &self.region) {
            region.close();
        }
    }
}

impl Drop for NativeRegion {
    fn drop(&mut self) {
        drop_elsewhere(self.region.take());
    }
}
