//! Memory of regions as `ArrayBuffer`s: JavaScript sees it, and can take none of it away.

use std::ffi::c_void;
use std::sync::Arc;

use napi::bindgen_prelude::{ArrayBuffer, Env, FromNapiValue};
use napi::{Status, sys};
use secure_rdma_rdma::Memory;

use crate::process::drop_elsewhere;

/// An `ArrayBuffer` over `memory`, which lives at least as long.
///
/// JavaScript can move its bytes to another `ArrayBuffer`, by `ArrayBuffer.prototype.transfer`, and that one to another
/// thread. Node lets go of the bytes when the environment ends that made the first one, wherever they are by then: their
/// addresses stay readable for ever in that case.
///
/// # Errors
/// When Node makes none.
pub(crate) fn show(env: &Env, memory: &Arc<Memory>) -> napi::Result<ArrayBuffer<'static>> {
    let (raw, data, length) = (env.raw(), memory.address().as_ptr().cast::<c_void>(), memory.len());
    // A failure below leaks it: whether Node still calls `release` is not known then.
    let shown = Box::into_raw(Box::new(Arc::clone(memory)));
    let mut buffer = std::ptr::null_mut();
    // SAFETY: the memory is mapped, so many bytes long, and stays so until `release`, which takes `shown` back.
    let status = unsafe {
        sys::napi_create_external_arraybuffer(raw, data, length, Some(release), shown.cast(), &raw mut buffer)
    };
    if status != sys::Status::napi_ok {
        return Err(napi::Error::new(Status::from(status), "Node made no ArrayBuffer".to_owned()));
    }
    // SAFETY: an `ArrayBuffer` that was made just above, in the caller's scope.
    unsafe { ArrayBuffer::from_napi_value(raw, buffer) }
}

/// Node lets go of the bytes.
unsafe extern "C" fn release(env: sys::napi_env, _: *mut c_void, shown: *mut c_void) {
    // SAFETY: made by `show`, and given to Node, which calls this once.
    let memory = *unsafe { Box::from_raw(shown.cast::<Arc<Memory>>()) };
    if is_ending(env) {
        memory.keep_readable();
    }
    drop_elsewhere(memory);
}

/// Whether the environment is being torn down: JavaScript cannot run there any more. It is asked of Node, whose own hooks for
/// memory of others run before all that an addon can add.
fn is_ending(env: sys::napi_env) -> bool {
    let (mut scope, mut global, mut found) = (std::ptr::null_mut(), std::ptr::null_mut(), false);
    // SAFETY: Node calls on the environment's thread, and with it alive.
    if unsafe { sys::napi_open_handle_scope(env, &raw mut scope) } != sys::Status::napi_ok {
        return true;
    }
    // SAFETY: as above.
    let has_global = unsafe { sys::napi_get_global(env, &raw mut global) } == sys::Status::napi_ok;
    let mut look = || {
        let name = c"undefined".as_ptr();
        // SAFETY: as above, and `global` is a value of the scope that is open.
        unsafe { sys::napi_has_named_property(env, global, name, &raw mut found) }
    };
    // Looking a name up may run JavaScript, and is refused where that cannot be.
    let runs = has_global && look() == sys::Status::napi_ok;
    // SAFETY: it was opened above.
    let _ = unsafe { sys::napi_close_handle_scope(env, scope) };
    !runs
}
