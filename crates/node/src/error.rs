//! Errors as values for JavaScript.

use napi_derive::napi;
use secure_rdma_rdma::{Error, ErrorCode};

/// An error as it crosses to JavaScript; thrown there as an `RdmaError`.
#[napi(object)]
#[derive(Clone, Debug)]
pub struct NativeError {
    /// `ERR_RDMA_…`.
    pub code: String,
    /// What happened, to what, and the remedy.
    pub message: String,
    /// The system or library call that failed.
    pub syscall: Option<String>,
    /// Its errno.
    pub errno: Option<i32>,
    /// The status of the completion (`enum ibv_wc_status`).
    pub wc_status: Option<u32>,
    /// How far the connection had come.
    pub phase: Option<String>,
}

impl From<&Error> for NativeError {
    fn from(error: &Error) -> Self {
        Self {
            code: error.code().as_str().to_owned(),
            message: error.message().to_owned(),
            syscall: error.syscall().map(str::to_owned),
            errno: error.errno(),
            wc_status: error.wc_status(),
            phase: error.phase().map(|phase| phase.as_str().to_owned()),
        }
    }
}

impl From<Error> for NativeError {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

/// Every code that a `NativeError` can have.
#[napi(catch_unwind)]
#[must_use]
pub fn error_codes() -> Vec<String> {
    ErrorCode::ALL.iter().map(|code| code.as_str().to_owned()).collect()
}
