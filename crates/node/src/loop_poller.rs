//! The main thread receives for the embedded device while it waits for events anyway: a packet then wakes the thread that
//! has to answer it, and not another that wakes it.
//!
//! libuv tells when the device has something (`uv_poll_t`), and before each wait there is a moment to look for what is about
//! to come (`uv_prepare_t`). Workers leave it to the device's own thread: their environments end at any time, and one thread
//! receives for all of a device. Where one of them has a connection, the main thread leaves it too.

use std::ffi::{CStr, c_int, c_void};
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, OnceLock};

use napi::sys;
use secure_rdma_soft::{LoopPoller, SoftDevices, Turn};

use crate::environment::House;

/// Whether an environment other than the main thread's has, or had, a connection of the embedded device.
static OTHERS: AtomicBool = AtomicBool::new(false);

/// A handle or a loop of libuv's: what is in it is its own affair.
type Handle = c_void;

// `uv_handle_type` and `uv_poll_event` of uv.h; its numbers are the same in all versions of libuv 1.
const UV_POLL: c_int = 8;
const UV_PREPARE: c_int = 9;
const UV_READABLE: c_int = 1;

/// What is used of libuv. Node exports it; the addon must load where nobody does.
#[derive(Clone, Copy)]
struct Uv {
    default_loop: unsafe extern "C" fn() -> *mut Handle,
    backend_timeout: unsafe extern "C" fn(*const Handle) -> c_int,
    handle_size: unsafe extern "C" fn(c_int) -> usize,
    set_data: unsafe extern "C" fn(*mut Handle, *mut c_void),
    unref: unsafe extern "C" fn(*mut Handle),
    close: unsafe extern "C" fn(*mut Handle, Option<unsafe extern "C" fn(*mut Handle)>),
    poll_init: unsafe extern "C" fn(*mut Handle, *mut Handle, c_int) -> c_int,
    poll_start:
        unsafe extern "C" fn(*mut Handle, c_int, unsafe extern "C" fn(*mut Handle, c_int, c_int)) -> c_int,
    prepare_init: unsafe extern "C" fn(*mut Handle, *mut Handle) -> c_int,
    prepare_start: unsafe extern "C" fn(*mut Handle, unsafe extern "C" fn(*mut Handle)) -> c_int,
}

/// A symbol of this program as the function that it is.
fn symbol<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: `name` ends with a zero, and the default handle is always good.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if found.is_null() {
        return None;
    }
    // SAFETY: callers name a function of uv.h and its type, and both are as large as a pointer.
    Some(unsafe { std::mem::transmute_copy::<*mut c_void, F>(&found) })
}

impl Uv {
    fn find() -> Option<Self> {
        Some(Self {
            default_loop: symbol(c"uv_default_loop")?,
            backend_timeout: symbol(c"uv_backend_timeout")?,
            handle_size: symbol(c"uv_handle_size")?,
            set_data: symbol(c"uv_handle_set_data")?,
            unref: symbol(c"uv_unref")?,
            close: symbol(c"uv_close")?,
            poll_init: symbol(c"uv_poll_init")?,
            poll_start: symbol(c"uv_poll_start")?,
            prepare_init: symbol(c"uv_prepare_init")?,
            prepare_start: symbol(c"uv_prepare_start")?,
        })
    }

    /// Memory for a handle, as its type needs it: freed by [`free`], after libuv has closed it.
    fn allocate(self, kind: c_int) -> Option<NonNull<Handle>> {
        // SAFETY: it only looks up the size of a type.
        let size = unsafe { (self.handle_size)(kind) };
        // SAFETY: any size may be asked for.
        NonNull::new(unsafe { libc::calloc(1, size) })
    }
}

/// The handles in the loop of the main thread, and what they use.
struct Turns {
    uv: Uv,
    event_loop: *mut Handle,
    poll: NonNull<Handle>,
    prepare: NonNull<Handle>,
    poller: LoopPoller,
    slot: Arc<Slot>,
    house: Arc<House>,
}

/// Where the handles' memory is; null while there are none. Only its environment's thread looks at it.
type Slot = AtomicPtr<Turns>;

/// Of an environment: whether its loop receives for the embedded device.
#[derive(Debug, Default)]
pub(crate) struct Polling(Arc<Slot>);

impl Polling {
    /// There is a connection of the embedded device. To be called on the environment's thread, as all methods.
    pub(crate) fn begin(&self, house: &Arc<House>, env: sys::napi_env) {
        if !self.0.load(Ordering::Acquire).is_null() {
            return;
        }
        let Some(uv) = Uv::find() else { return };
        let mut event_loop = std::ptr::null_mut();
        // SAFETY: the environment is the caller's, on its thread.
        let status = unsafe { sys::napi_get_uv_event_loop(env, &raw mut event_loop) };
        let event_loop: *mut Handle = event_loop.cast();
        // SAFETY: it only gives an address.
        if status != sys::Status::napi_ok || event_loop != unsafe { (uv.default_loop)() } {
            OTHERS.store(true, Ordering::Release);
            return;
        }
        if !OTHERS.load(Ordering::Acquire)
            && let Some(device) = SoftDevices::opened()
        {
            Turns::start(uv, event_loop, device.loop_poller(), &self.0, house);
        }
    }

    /// The device's own thread receives from now on.
    pub(crate) fn end(&self) {
        Turns::stop(&self.0);
    }
}

impl Turns {
    fn start(uv: Uv, event_loop: *mut Handle, poller: LoopPoller, slot: &Arc<Slot>, house: &Arc<House>) {
        let descriptor = poller.as_fd().as_raw_fd();
        let Some((poll, prepare)) = uv.allocate(UV_POLL).zip(uv.allocate(UV_PREPARE)) else { return };
        // SAFETY: the memory is as large as the handle's type, and the descriptor is an open one.
        if unsafe { (uv.poll_init)(event_loop, poll.as_ptr(), descriptor) } != 0 {
            for handle in [poll, prepare] {
                free(handle.as_ptr());
            }
            return;
        }
        // SAFETY: the memory is as large as the handle's type.
        unsafe { (uv.prepare_init)(event_loop, prepare.as_ptr()) };
        let (slot_too, house) = (Arc::clone(slot), Arc::clone(house));
        let turns = Box::new(Self { uv, event_loop, poll, prepare, poller, slot: slot_too, house });
        let turns = Box::into_raw(turns);
        slot.store(turns, Ordering::Release);
        for handle in [poll, prepare] {
            // SAFETY: an initialised handle of this thread's loop.
            unsafe { (uv.set_data)(handle.as_ptr(), turns.cast()) };
            // SAFETY: as above. Connections keep the loop alive, or do not: this never does.
            unsafe { (uv.unref)(handle.as_ptr()) };
        }
        // SAFETY: as above. It cannot fail for a handle that is not closing and has a callback.
        unsafe { (uv.poll_start)(poll.as_ptr(), UV_READABLE, on_readable) };
        // SAFETY: as above.
        unsafe { (uv.prepare_start)(prepare.as_ptr(), on_prepare) };
    }

    fn stop(slot: &Slot) {
        let turns = slot.swap(std::ptr::null_mut(), Ordering::AcqRel);
        if turns.is_null() {
            return;
        }
        // SAFETY: it came out of a box, and whoever takes it out of the slot is the only one who has it.
        let turns = unsafe { Box::from_raw(turns) };
        for handle in [turns.poll, turns.prepare] {
            // SAFETY: a handle of this thread's loop that is not closing yet; no callback but this is called any more.
            unsafe { (turns.uv.close)(handle.as_ptr(), Some(closed)) };
        }
    }

    /// Turns, in a callback of one of the handles, with JavaScript told at once of what each has brought.
    fn turn(handle: *mut Handle, mut readable: bool, before_wait: bool) {
        let turns: *const Self = data_of(handle).cast();
        // SAFETY: the data of a handle that is not closing is what `start` made.
        let Some(first) = (unsafe { turns.as_ref() }) else { return };
        let slot = Arc::clone(&first.slot);
        for _ in 0..TURNS {
            // SAFETY: while the slot holds it nobody has freed it. JavaScript may have ended it meanwhile.
            let Some(turns) = (unsafe { slot.load(Ordering::Acquire).as_ref() }) else { return };
            // SAFETY: it only looks at the loop, whose thread this is.
            let looks = before_wait && unsafe { (turns.uv.backend_timeout)(turns.event_loop) } != 0;
            let work = || turns.poller.turn(std::mem::take(&mut readable), looks);
            let (turn, rung) = turns.house.tower().attend(work);
            let house = Arc::clone(&turns.house);
            let ends = OTHERS.load(Ordering::Acquire) || turn == Turn::Closed;
            if ends {
                Self::stop(&slot);
            }
            // Nobody else will: the bells have relied on it.
            if rung {
                house.call_drain();
            }
            if ends || !(rung || turn == Turn::News) {
                return;
            }
        }
        // SAFETY: as above.
        if let Some(turns) = unsafe { slot.load(Ordering::Acquire).as_ref() } {
            turns.poller.wake();
        }
    }
}

/// Turns in one callback at the most: the loop has other things to do.
const TURNS: usize = 16;

/// No panic reaches libuv: there is nobody to tell, and the device's own thread stands in.
fn guarded(turn: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(turn));
}

unsafe extern "C" fn on_readable(handle: *mut Handle, _status: c_int, _events: c_int) {
    guarded(|| Turns::turn(handle, true, false));
}

unsafe extern "C" fn on_prepare(handle: *mut Handle) {
    guarded(|| Turns::turn(handle, false, true));
}

unsafe extern "C" fn closed(handle: *mut Handle) {
    free(handle);
}

fn data_of(handle: *mut Handle) -> *mut c_void {
    static GET_DATA: OnceLock<Option<unsafe extern "C" fn(*const Handle) -> *mut c_void>> = OnceLock::new();
    match GET_DATA.get_or_init(|| symbol(c"uv_handle_get_data")) {
        // SAFETY: a handle of this thread's loop.
        Some(get_data) => unsafe { get_data(handle) },
        None => std::ptr::null_mut(),
    }
}

fn free(handle: *mut Handle) {
    // SAFETY: it came from `Uv::allocate`, and libuv knows it no more.
    unsafe { libc::free(handle) };
}
