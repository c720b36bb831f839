//! What belongs to one JavaScript environment: the main thread's, or a worker's.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use napi::bindgen_prelude::{Env, Function, Result};
use napi::sys;
use napi_derive::napi;

use crate::bell::Tower;

/// One JavaScript environment. Made once, when the module is loaded in it.
#[napi]
pub struct Environment {
    tower: Arc<Tower>,
}

#[napi]
impl Environment {
    /// `drain` is called when there is news; it must call `take()`, and must not throw.
    ///
    /// # Errors
    /// When Node refuses the function or the cleanup hook.
    #[napi(constructor, catch_unwind)]
    pub fn new(env: Env, drain: Function<'_, (), ()>) -> Result<Self> {
        let drain = drain
            .build_threadsafe_function()
            .callee_handled::<false>()
            .weak::<true>()
            .max_queue_size::<0>()
            .build()?;
        let tower = Arc::new(Tower::new(drain));
        env.add_env_cleanup_hook(Arc::clone(&tower), |tower| {
            // A panic must not reach Node; and there is nobody left to tell.
            let _ = std::panic::catch_unwind(AssertUnwindSafe(|| tower.silence()));
        })?;
        Ok(Self { tower })
    }

    /// The ids of the objects that have news.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take(&self) -> Vec<u32> {
        self.tower.drain()
    }

    /// Lets the environment keep the event loop alive, or no more.
    #[napi(catch_unwind)]
    pub fn keep_alive(&self, env: Env, alive: bool) {
        self.tower.with_drain(|drain| {
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
}
