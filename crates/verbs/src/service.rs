//! The one thread of an open device: it waits for completions and asynchronous events, tells the handlers, and
//! destroys what was dropped.
//!
//! No lock is held while a handler runs, so that a handler may post, and may drop its queue pair. Queue pairs die
//! here and nowhere else; each event is acknowledged as soon as it is taken, so that destroying never waits.

use std::collections::VecDeque;
use std::ffi::c_int;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rdma_sys::ibv_wc;
use secure_rdma_rdma::{AsyncEvent, Completion, Error, ErrorCode, QueuePairHandler, Result, Slice};

use crate::body::Body;
use crate::core::Core;
use crate::errno;
use crate::events;

/// Completions per call of a handler, at the most.
const BATCH: usize = 64;

/// Batches of one queue pair before the others have their turn.
const TURNS: usize = 8;

/// How often the thread looks whether the device is still listed. Drivers that cannot be torn from their users
/// (rxe) report no removal: the kernel waits for us to close the device.
const WATCH: Duration = Duration::from_millis(500);

struct Service {
    core: Arc<Core>,
    /// Queue pairs that may have completions left, each once.
    ready: VecDeque<u64>,
    raw: Box<[ibv_wc]>,
    batch: Vec<Completion>,
    retired: Vec<Slice>,
    /// What sysfs said of the device when it was opened.
    identity: Option<(u64, u64)>,
    /// When sysfs was last asked.
    watched: Instant,
}

/// Why the thread is awake.
#[derive(Clone, Copy, Debug, Default)]
struct Woken {
    by_us: bool,
    by_completions: bool,
    by_events: bool,
    broken: bool,
}

/// Starts the thread. It ends when the last [`crate::core::Owner`] is gone.
pub(crate) fn start(core: Arc<Core>) -> Result<()> {
    let context = core.domain.context();
    set_nonblocking(core.domain.channel_fd())?;
    set_nonblocking(context.async_fd())?;
    let name = format!("rdma {}", core.name);
    let spawned = thread::Builder::new().name(name).spawn(move || Service::new(core).run());
    spawned.map(drop).map_err(|cause| {
        let errno = cause.raw_os_error().unwrap_or(0);
        Error::new(
            ErrorCode::DeviceOpen,
            format!("the service thread cannot be started: {cause}. Raise the limit on threads (ulimit -u)"),
        )
        .with_syscall("clone", errno)
    })
}

impl Service {
    fn new(core: Arc<Core>) -> Self {
        let identity = identity(&core.node);
        // SAFETY: the structure holds numbers only, for which zero is a value.
        let raw = (0..BATCH).map(|_| unsafe { std::mem::zeroed() }).collect();
        Self {
            core,
            ready: VecDeque::new(),
            raw,
            batch: Vec::with_capacity(BATCH),
            retired: Vec::with_capacity(BATCH),
            identity,
            watched: Instant::now(),
        }
    }

    fn run(mut self) {
        loop {
            let woken = self.wait();
            if woken.by_us {
                self.core.settle();
            }
            if woken.by_completions {
                self.take_completion_events();
            }
            self.drain();
            if woken.broken || (woken.by_events && events::dispatch(&self.core)) || self.is_unlisted() {
                events::lost(&self.core);
            }
            self.bury();
            // Every queue pair holds the owner, so that at the end all of them are in the graveyard or gone.
            if self.core.is_closing() && !self.core.has_graves() {
                return;
            }
        }
    }

    fn wait(&self) -> Woken {
        let watched = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let gone = self.core.is_gone();
        let mut descriptors = [
            watched(self.core.wake_fd()),
            watched(if gone { -1 } else { self.core.domain.channel_fd() }),
            watched(if gone { -1 } else { self.core.domain.context().async_fd() }),
        ];
        let timeout = match (self.ready.is_empty() && !self.core.has_graves(), gone) {
            (false, _) => 0,
            (true, true) => -1,
            (true, false) => c_int::try_from(WATCH.as_millis()).unwrap_or(c_int::MAX),
        };
        let count = descriptors.len() as libc::nfds_t;
        // SAFETY: the array has `count` entries.
        let answer = unsafe { libc::poll(descriptors.as_mut_ptr(), count, timeout) };
        if answer <= 0 {
            // Nothing, or a signal.
            return Woken::default();
        }
        let [us, completions, events] = descriptors.map(|descriptor| descriptor.revents);
        Woken {
            by_us: us != 0,
            by_completions: completions & libc::POLLIN != 0,
            by_events: events & libc::POLLIN != 0,
            broken: (completions | events) & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0,
        }
    }

    /// Takes every event of the channel, and arms its queue before draining it: a completion in between then makes
    /// another event.
    fn take_completion_events(&mut self) {
        let verbs = self.core.verbs();
        loop {
            let (mut cq, mut context) = (std::ptr::null_mut(), std::ptr::null_mut());
            let channel = self.core.domain.channel();
            // SAFETY: the channel is open, and both places are valid.
            let answer = unsafe { (verbs.ibv_get_cq_event)(channel, &raw mut cq, &raw mut context) };
            if answer != 0 {
                if errno::last() == libc::EIO {
                    events::lost(&self.core);
                }
                return;
            }
            // SAFETY: the queue is alive: only this thread destroys queues.
            unsafe { (verbs.ibv_ack_cq_events)(cq, 1) };
            let token = context.addr() as u64;
            if let Some(body) = self.core.body(token) {
                // Events may come faster than they are taken: what completes meanwhile makes another for the same queue.
                if !body.set_listed(true) {
                    self.ready.push_back(token);
                }
                if body.arm() != 0 {
                    // No event would come for what completes from now on: better an end than silence.
                    body.failed();
                    tell(&[body], |handler| handler.happened(AsyncEvent::CompletionQueueError));
                }
            }
        }
    }

    fn drain(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else { return };
            let Some(body) = self.core.body(token) else { continue };
            body.set_listed(false);
            let mut empty = false;
            for _ in 0..TURNS {
                empty = self.drain_batch(&body);
                if empty {
                    break;
                }
            }
            if !empty {
                body.set_listed(true);
                self.ready.push_back(token);
            }
        }
    }

    /// Tells the handler of one batch; gives whether the queue is empty now.
    fn drain_batch(&mut self, body: &Body) -> bool {
        let Some(handler) = body.handler() else { return true };
        // A negative answer is a broken queue: the driver reports that by an event of its own.
        let count = usize::try_from(body.poll(&mut self.raw)).unwrap_or(0);
        for wc in self.raw.iter().take(count) {
            self.batch.extend(body.read(wc, &mut self.retired));
        }
        if !self.batch.is_empty() {
            guarded(|| handler.completed(&self.batch));
        }
        self.batch.clear();
        self.retired.clear();
        count < self.raw.len()
    }

    /// Destroys one queue pair that was dropped: it takes milliseconds (rxe: 1 to 30), and the others' completions
    /// come in between. The counts on its regions go when the device has let go of them.
    fn bury(&mut self) {
        let Some(body) = self.core.exhume() else { return };
        if !body.destroy(&self.core, &mut self.raw) {
            // The device may still touch the memory: better lost than written to.
            std::mem::forget(Arc::clone(&body));
        }
        self.core.remove(body.token());
    }

    /// Whether the device that was opened is no longer listed; asked now and then.
    fn is_unlisted(&mut self) -> bool {
        if self.identity.is_none() || self.watched.elapsed() < WATCH {
            return false;
        }
        self.watched = Instant::now();
        identity(&self.core.node) != self.identity
    }
}

/// Calls a handler. Its panic must not end the thread on which every other connection depends.
pub(crate) fn guarded(call: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(call));
}

/// Tells all handlers of an event.
pub(crate) fn tell(bodies: &[Arc<Body>], tell: impl Fn(&dyn QueuePairHandler)) {
    for handler in bodies.iter().filter_map(|body| body.handler()) {
        guarded(|| tell(handler.as_ref()));
    }
}

/// What tells one device from a later one of the same name.
fn identity(node: &str) -> Option<(u64, u64)> {
    let found = fs::metadata(format!("/sys/class/infiniband_verbs/{node}")).ok()?;
    Some((found.dev(), found.ino()))
}

fn set_nonblocking(descriptor: c_int) -> Result<()> {
    // SAFETY: the descriptor is open.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFL) };
    // SAFETY: the descriptor is open.
    if flags < 0 || unsafe { libc::fcntl(descriptor, libc::F_SETFL, flags | libc::O_NONBLOCK) } < 0 {
        let what = "a descriptor of the device cannot be made non-blocking";
        return Err(errno::error(ErrorCode::DeviceOpen, what, "fcntl", errno::last()));
    }
    Ok(())
}
