//! Memory of regions as `ArrayBuffer`s: JavaScript sees it, and can take none of it away.

use std::ffi::c_void;
use std::sync::Arc;

use napi::bindgen_prelude::{ArrayBuffer, Env, FromNapiValue};
use napi::{Status, sys};
use secure_rdma_rdma::Memory;

use crate::process::drop_elsewhere;

/// What an `ArrayBuffer` over memory of ours holds. Used on its environment's thread alone.
struct Shown {
    memory: Arc<Memory>,
    env: sys::napi_env,
    /// The `ArrayBuffer`, weakly.
    buffer: sys::napi_ref,
    /// Whether its environment is being torn down.
    leaving: bool,
    /// Whether the bytes then belonged to another `ArrayBuffer`, which may be another thread's.
    moved: bool,
}

/// An `ArrayBuffer` over `memory`, which lives at least as long.
///
/// JavaScript can detach it and move its bytes to another one, by `ArrayBuffer.prototype.transfer`, and that one to
/// another thread. Node lets go of the bytes when the environment that made the first one ends, wherever they are: then
/// they are never freed.
///
/// # Errors
/// When Node makes none.
pub(crate) fn show(env: &Env, memory: &Arc<Memory>) -> napi::Result<ArrayBuffer<'static>> {
    let raw = env.raw();
    let data = memory.address().as_ptr().cast::<c_void>();
    let shown = Box::new(Shown {
        memory: Arc::clone(memory),
        env: raw,
        buffer: std::ptr::null_mut(),
        leaving: false,
        moved: false,
    });
    // A failure below leaks it: whether Node still calls `release` is not known then.
    let shown = Box::into_raw(shown);
    let mut buffer = std::ptr::null_mut();
    // SAFETY: the memory is mapped, so many bytes long, and stays so until `release`, which frees `shown`.
    check(unsafe {
        sys::napi_create_external_arraybuffer(
            raw,
            data,
            memory.len(),
            Some(release),
            shown.cast(),
            &raw mut buffer,
        )
    })?;
    let mut reference = std::ptr::null_mut();
    // SAFETY: `buffer` was made just above, in this scope.
    check(unsafe { sys::napi_create_reference(raw, buffer, 0, &raw mut reference) })?;
    // SAFETY: `release` has not run, since JavaScript has not: `shown` is there, and nobody else looks at it.
    unsafe { (*shown).buffer = reference };
    // Added after Node's own for the buffer, hence run before it.
    // SAFETY: `release` removes the hook before it frees `shown`.
    check(unsafe { sys::napi_add_env_cleanup_hook(raw, Some(leave), shown.cast()) })?;
    // SAFETY: `buffer` is an `ArrayBuffer` of this scope.
    unsafe { ArrayBuffer::from_napi_value(raw, buffer) }
}

/// The environment ends: looks where the bytes are.
unsafe extern "C" fn leave(shown: *mut c_void) {
    // SAFETY: `release` frees it, and removes this hook before.
    let shown = unsafe { &mut *shown.cast::<Shown>() };
    shown.leaving = true;
    shown.moved = !is_in_place(shown.env, shown.buffer).unwrap_or(false);
}

/// Whether the `ArrayBuffer` is there and has its bytes.
fn is_in_place(env: sys::napi_env, reference: sys::napi_ref) -> napi::Result<bool> {
    let mut scope = std::ptr::null_mut();
    // SAFETY: the environment is not gone: its hooks run on its thread.
    check(unsafe { sys::napi_open_handle_scope(env, &raw mut scope) })?;
    let mut buffer = std::ptr::null_mut();
    // SAFETY: the reference is deleted in `release` alone.
    let found = check(unsafe { sys::napi_get_reference_value(env, reference, &raw mut buffer) });
    let mut detached = buffer.is_null();
    let looked = match found {
        // SAFETY: an `ArrayBuffer` in the scope opened above.
        Ok(()) if !detached => {
            check(unsafe { sys::napi_is_detached_arraybuffer(env, buffer, &raw mut detached) })
        }
        other => other,
    };
    // SAFETY: opened above, and nothing of it is used any more.
    check(unsafe { sys::napi_close_handle_scope(env, scope) })?;
    looked.map(|()| !detached)
}

/// Node lets go of the bytes.
unsafe extern "C" fn release(env: sys::napi_env, _: *mut c_void, shown: *mut c_void) {
    // SAFETY: made by `show`, and given to Node, which calls this once.
    let Shown { memory, buffer, leaving, moved, .. } = *unsafe { Box::from_raw(shown.cast::<Shown>()) };
    if !leaving {
        // SAFETY: compares the address alone.
        let _ = unsafe { sys::napi_remove_env_cleanup_hook(env, Some(leave), shown) };
    }
    if !buffer.is_null() {
        // SAFETY: made in `show`, and nobody else deletes it.
        let _ = unsafe { sys::napi_delete_reference(env, buffer) };
    }
    if moved {
        std::mem::forget(memory);
    } else {
        drop_elsewhere(memory);
    }
}

fn check(status: sys::napi_status) -> napi::Result<()> {
    match status {
        sys::Status::napi_ok => Ok(()),
        other => Err(napi::Error::new(Status::from(other), "Node made no ArrayBuffer".to_owned())),
    }
}
