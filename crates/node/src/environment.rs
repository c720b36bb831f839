//! What belongs to one JavaScript environment: the main thread's, or a worker's.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use napi::bindgen_prelude::{Either, Env, Function, JsValue, Result};
use napi::sys;
use napi_derive::napi;

use crate::bell::{Bell, Tower, lock};
use crate::buffers;
use crate::connecting::Connecting;
use crate::connection::Held;
use crate::device::{Counting, Listing};
use crate::error::NativeError;
use crate::loop_poller::Polling;
use crate::options::{NativeConnect, NativeListen};
use crate::region::NativeRegion;
use crate::server::Listening;

/// How long the end of an environment waits for the ends of its connections.
const FAREWELL: Duration = Duration::from_millis(100);

/// Something that ends with its environment. No method blocks.
pub(crate) trait Tenant: Send + Sync {
    /// Ends it at once.
    fn evict(&self);

    /// Whether nothing of it runs any more.
    fn is_gone(&self) -> bool;
}

/// One JavaScript environment, as other threads know it.
pub(crate) struct House {
    tower: Arc<Tower>,
    tenants: Mutex<Vec<Weak<dyn Tenant>>>,
    /// Connections by the ids under which their news come.
    connections: Mutex<HashMap<u32, Weak<Held>>>,
    external_allowed: bool,
    polling: Polling,
    env: AtomicPtr<sys::napi_env__>,
    /// JavaScript's function that drains.
    drain: AtomicPtr<sys::napi_ref__>,
}

impl House {
    /// There is a connection of the embedded device. On the environment's thread.
    pub(crate) fn poll(self: &Arc<Self>) {
        self.polling.begin(self, self.env.load(Ordering::Relaxed));
    }

    /// The bells.
    pub(crate) fn tower(&self) -> &Tower {
        &self.tower
    }

    /// Calls JavaScript, on the environment's thread and from its loop, as a function that drains would be called later.
    pub(crate) fn call_drain(&self) {
        let env = self.env.load(Ordering::Relaxed);
        let (mut scope, mut drain, mut global) =
            (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: an environment that lives, on its thread.
        if unsafe { sys::napi_open_handle_scope(env, &raw mut scope) } != sys::Status::napi_ok {
            return;
        }
        // SAFETY: the reference is the environment's, and lives as long.
        unsafe { sys::napi_get_reference_value(env, self.drain.load(Ordering::Relaxed), &raw mut drain) };
        // SAFETY: as above.
        unsafe { sys::napi_get_global(env, &raw mut global) };
        let (context, none, nothing) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null_mut());
        // SAFETY: the values are of the scope that is open.
        let status = unsafe { sys::napi_make_callback(env, context, global, drain, 0, none, nothing) };
        if status == sys::Status::napi_pending_exception {
            let mut exception = std::ptr::null_mut();
            // SAFETY: there is one.
            unsafe { sys::napi_get_and_clear_last_exception(env, &raw mut exception) };
            // SAFETY: it is a value of the scope that is open. What is thrown in a callback ends a process.
            unsafe { sys::napi_fatal_exception(env, exception) };
        }
        // SAFETY: it was opened above.
        unsafe { sys::napi_close_handle_scope(env, scope) };
    }

    pub(crate) fn bell(&self, id: u32) -> Bell {
        Bell::new(Arc::clone(&self.tower), id)
    }

    /// Whether memory of ours can be an `ArrayBuffer` here: see [`buffers::are_external_allowed`].
    pub(crate) fn external_allowed(&self) -> bool {
        self.external_allowed
    }

    /// Has `tenant` evicted at the environment's end.
    pub(crate) fn enter(&self, tenant: Weak<dyn Tenant>) {
        let mut tenants = lock(&self.tenants);
        // Swept when it would grow: the cost per tenant stays constant.
        if tenants.len() == tenants.capacity() {
            tenants.retain(|tenant| tenant.strong_count() > 0);
        }
        tenants.push(tenant);
    }

    /// News that come under `id` are this connection's.
    pub(crate) fn introduce(&self, id: u32, held: &Arc<Held>) {
        lock(&self.connections).insert(id, Arc::downgrade(held));
    }

    /// No more.
    pub(crate) fn forget(&self, id: u32, held: &Arc<Held>) {
        let mut connections = lock(&self.connections);
        // Another may have the id by now.
        if connections.get(&id).is_some_and(|known| std::ptr::eq(known.as_ptr(), Arc::as_ptr(held))) {
            connections.remove(&id);
        }
    }

    /// Calls `tell` with the id of each object that has rung, and with the connection where it is one, until it declines.
    /// Tells whether it has had all.
    pub(crate) fn drain(&self, mut tell: impl FnMut(u32, Option<&Held>) -> bool) -> bool {
        let mut rung = self.tower.drain();
        while let Some(id) = rung.pop() {
            let held = lock(&self.connections).get(&id).and_then(Weak::upgrade);
            if !tell(id, held.as_deref()) {
                rung.push(id);
                break;
            }
        }
        let all = rung.is_empty();
        self.tower.put_back(rung);
        all
    }

    fn close(&self) {
        self.tower.silence();
        self.polling.end();
        let tenants: Vec<_> = lock(&self.tenants).drain(..).filter_map(|tenant| tenant.upgrade()).collect();
        for tenant in &tenants {
            tenant.evict();
        }
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline && !tenants.iter().all(|tenant| tenant.is_gone()) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// One JavaScript environment. Made once, when the module is loaded in it.
#[napi]
pub struct Environment {
    house: Arc<House>,
}

#[napi]
impl Environment {
    /// `drain` is called when there is news; it must call `drain()`, and must not throw.
    ///
    /// # Errors
    /// When Node refuses the function or the cleanup hook.
    #[napi(constructor, catch_unwind)]
    pub fn new(env: Env, drain: Function<'_, (), ()>) -> Result<Self> {
        let mut reference = std::ptr::null_mut();
        // SAFETY: the function is one of this environment, on its thread.
        let status = unsafe { sys::napi_create_reference(env.raw(), drain.raw(), 1, &raw mut reference) };
        napi::check_status!(status, "Node made no reference")?;
        let drain = drain
            .build_threadsafe_function()
            .callee_handled::<false>()
            .weak::<true>()
            .max_queue_size::<0>()
            .build()?;
        let house = Arc::new(House {
            tower: Arc::new(Tower::new(drain)),
            tenants: Mutex::default(),
            connections: Mutex::default(),
            external_allowed: buffers::are_external_allowed(&env)?,
            polling: Polling::default(),
            env: AtomicPtr::new(env.raw()),
            drain: AtomicPtr::new(reference),
        });
        // Added after the function was made, hence run before Node takes that down.
        env.add_env_cleanup_hook(Arc::clone(&house), |house| {
            // A panic must not reach Node, and there is nobody left to tell.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| house.close()));
        })?;
        Ok(Self { house })
    }

    /// Lets the environment keep the event loop alive, or no more.
    #[napi(catch_unwind)]
    pub fn keep_alive(&self, env: Env, alive: bool) {
        self.house.tower.with_drain(|drain| {
            let raw = drain.raw();
            // Neither fails on a function that lives, and while `with_drain` runs it does.
            if alive {
                // SAFETY: `raw` is alive, and this is its environment's thread.
                unsafe { sys::napi_ref_threadsafe_function(env.raw(), raw) }
            } else {
                // SAFETY: as above.
                unsafe { sys::napi_unref_threadsafe_function(env.raw(), raw) }
            }
        });
    }

    /// Whether memory of ours can be an `ArrayBuffer` here. Without it messages are copied.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn takes_external_buffers(&self) -> bool {
        self.house.external_allowed()
    }

    /// Allocates a region of so many bytes.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn allocate(&self, bytes: f64) -> Either<NativeRegion, NativeError> {
        value(NativeRegion::allocate(&self.house, bytes))
    }

    /// Begins to list the devices. `id` rings when the list is there.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn devices(&self, id: u32) -> Either<Listing, NativeError> {
        value(Listing::begin(self.house.bell(id)))
    }

    /// Begins to look at the counters of a device's port. `id` rings when they are there.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn device_counters(&self, id: u32, device: String, port: u8) -> Either<Counting, NativeError> {
        value(Counting::begin(self.house.bell(id), device, port))
    }

    /// Begins to connect. `id` rings when there is a question, or the outcome.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn connect(&self, id: u32, options: NativeConnect) -> Either<Connecting, NativeError> {
        value(Connecting::begin(&self.house, id, options))
    }

    /// Begins to listen. `id` rings when the server is there, and then for the server's news.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn listen(&self, id: u32, options: NativeListen) -> Either<Listening, NativeError> {
        value(Listening::begin(&self.house, id, options))
    }
}

impl Environment {
    pub(crate) fn house(&self) -> &House {
        &self.house
    }
}

/// A result as a value for JavaScript.
pub(crate) fn value<T>(result: secure_rdma_rdma::Result<T>) -> Either<T, NativeError> {
    match result {
        Ok(value) => Either::A(value),
        Err(error) => Either::B(error.into()),
    }
}
