//! Memory that is shown to JavaScript.

use napi::bindgen_prelude::{BufferSlice, Env};
use napi::{Status, sys};

/// From this length on a message is handed to JavaScript as it is; below, copying it is cheaper than watching over it.
const HAND_OVER: usize = 16 * 1024;

/// Whether an environment takes memory of ours as an `ArrayBuffer`. Electron's do not (its pointer compression wants all
/// memory of V8 in one place); asked once for each environment.
///
/// napi-rs copies there without a word. That serves a message, which is JavaScript's own; it would not serve a region,
/// which peers write to behind JavaScript's back: who makes one has to ask.
pub(crate) fn are_external_allowed(env: &Env) -> napi::Result<bool> {
    let mut buffer = std::ptr::null_mut();
    #[cfg(feature = "fake")]
    if std::env::var_os("SECURE_RDMA_TEST_NO_EXTERNAL_BUFFERS").is_some() {
        return judge(sys::Status::napi_no_external_buffers_allowed);
    }
    // Of no length, at an address that is never read: nothing is to be freed.
    // SAFETY: the environment is the caller's, on its thread; the memory of an empty buffer need not exist.
    let status = unsafe {
        sys::napi_create_external_arraybuffer(
            env.raw(),
            std::ptr::null_mut(),
            0,
            None,
            std::ptr::null_mut(),
            &raw mut buffer,
        )
    };
    judge(status)
}

fn judge(status: sys::napi_status) -> napi::Result<bool> {
    match status {
        sys::Status::napi_ok => Ok(true),
        sys::Status::napi_no_external_buffers_allowed => Ok(false),
        other => Err(napi::Error::new(Status::from(other), "Node made no ArrayBuffer".to_owned())),
    }
}

/// A message as a Buffer of JavaScript's own.
pub(crate) fn message(
    env: &Env,
    message: Vec<u8>,
    external_allowed: bool,
) -> napi::Result<BufferSlice<'static>> {
    if external_allowed && message.len() >= HAND_OVER {
        BufferSlice::from_data(env, message)
    } else {
        BufferSlice::copy_from(env, message)
    }
}
