//! How other threads tell JavaScript that there is news: one call per batch, "come and drain".

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use napi::Status;
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};

/// The JavaScript function that drains. Weak: it never keeps the event loop alive unless it is asked to.
pub(crate) type Drain = ThreadsafeFunction<(), (), (), Status, false, true, 0>;

/// Locks without caring for a panic elsewhere: what is behind our locks is whole between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The bells of one environment.
pub(crate) struct Tower {
    /// `None` when the environment is being torn down. Held while JavaScript is called, so that teardown waits for
    /// the call to end: Node 20 and 22 crash when a thread calls into an environment that goes away.
    drain: Mutex<Option<Drain>>,
    rung: Mutex<Rung>,
}

#[derive(Default)]
struct Rung {
    ids: HashSet<u32>,
    /// JavaScript has been called and has not come yet.
    called: bool,
}

impl Tower {
    pub(crate) fn new(drain: Drain) -> Self {
        Self { drain: Mutex::new(Some(drain)), rung: Mutex::default() }
    }

    /// The ids that have rung since the last call.
    pub(crate) fn drain(&self) -> Vec<u32> {
        let mut rung = lock(&self.rung);
        rung.called = false;
        rung.ids.drain().collect()
    }

    /// There was no room for the news of these.
    pub(crate) fn put_back(&self, ids: Vec<u32>) {
        if !ids.is_empty() {
            lock(&self.rung).ids.extend(ids);
        }
    }

    /// After this no thread calls JavaScript any more, and none is doing so.
    pub(crate) fn silence(&self) {
        let drain = lock(&self.drain).take();
        drop(drain);
    }

    /// Runs `with` on the function that drains, unless the environment is going away.
    pub(crate) fn with_drain<T>(&self, with: impl FnOnce(&Drain) -> T) -> Option<T> {
        lock(&self.drain).as_ref().map(with)
    }

    /// While `work` runs, on the environment's own thread, bells do not call JavaScript. Tells whether one has rung: then the
    /// caller is to.
    pub(crate) fn attend<T>(&self, work: impl FnOnce() -> T) -> (T, bool) {
        let attending = Attending(ATTENDED.replace(std::ptr::from_ref(self).addr()));
        let done = work();
        drop(attending);
        (done, !lock(&self.rung).ids.is_empty())
    }

    fn ring(&self, id: u32) {
        {
            let mut rung = lock(&self.rung);
            if !rung.ids.insert(id)
                || ATTENDED.get() == std::ptr::from_ref(self).addr()
                || std::mem::replace(&mut rung.called, true)
            {
                return;
            }
        }
        // A queue that is full or closing needs no answer: nobody is there to come.
        self.with_drain(|drain| drain.call((), ThreadsafeFunctionCallMode::NonBlocking));
    }
}

/// Puts back what was attended before, also where a panic passes.
struct Attending(usize);

impl Drop for Attending {
    fn drop(&mut self) {
        ATTENDED.set(self.0);
    }
}

thread_local! {
    /// The address of the tower whose bells this thread answers itself.
    static ATTENDED: Cell<usize> = const { Cell::new(0) };
}

/// The bell of one object of an environment. Cheap to clone; any thread may ring it, and it never blocks for long.
#[derive(Clone)]
pub(crate) struct Bell {
    tower: Arc<Tower>,
    id: u32,
}

impl Bell {
    pub(crate) fn new(tower: Arc<Tower>, id: u32) -> Self {
        Self { tower, id }
    }

    /// Says that the object has news.
    pub(crate) fn ring(&self) {
        self.tower.ring(self.id);
    }
}
