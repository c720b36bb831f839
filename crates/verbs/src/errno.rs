//! errno becomes a sentence.

use std::ffi::c_int;
use std::io;

use secure_rdma_rdma::{Error, ErrorCode};

/// The calling thread's errno.
pub(crate) fn last() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The errno of a call that answers with 0, with an errno, or with -1 and an errno beside it.
pub(crate) fn of(answer: c_int) -> Option<i32> {
    match answer {
        0 => None,
        1.. => Some(answer),
        _ => Some(last()),
    }
}

/// The system's text for an errno, without Rust's suffix.
pub(crate) fn text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// An error of a call: "what: text".
pub(crate) fn error(code: ErrorCode, what: &str, syscall: &'static str, errno: i32) -> Error {
    Error::new(code, format!("{what}: {syscall} says {}", text(errno))).with_syscall(syscall, errno)
}
