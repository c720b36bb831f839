//! Short messages on their way out, several in one crossing.

use napi::bindgen_prelude::Either;
use napi_derive::napi;
use secure_rdma_connection::Operation;
use secure_rdma_rdma::{Error, Result};
use smallvec::SmallVec;

use crate::connection::{NativeConnection, id_value};
use crate::error::NativeError;
use crate::process::refuse_fork;

#[napi]
impl NativeConnection {
    /// Queues copies of the messages that follow each other in `bytes`, as many as there are lengths up to `count`, and
    /// posts them as one list; gives the first one's id.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn send_many(&self, bytes: &[u8], lengths: &[u32], count: u32) -> Either<f64, NativeError> {
        id_value(self.post_messages(bytes, lengths.get(..count as usize)))
    }
}

impl NativeConnection {
    fn post_messages(&self, mut bytes: &[u8], lengths: Option<&[u32]>) -> Result<u64> {
        refuse_fork()?;
        let malformed = || Error::internal("messages that are longer than their bytes");
        let mut messages: SmallVec<[Operation<'_>; 64]> = SmallVec::new();
        for length in lengths.ok_or_else(malformed)? {
            let (message, rest) = bytes.split_at_checked(*length as usize).ok_or_else(malformed)?;
            messages.push(Operation::Send { message });
            bytes = rest;
        }
        Ok(self.connection().post(&messages)?.start)
    }
}
