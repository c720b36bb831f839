//! The one thread of an open device: it waits for packets, for the engine's next timeout and for whoever wakes it.
//!
//! It stands back while a [`crate::Poller`] is at work.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{Error, ErrorCode, Result};

use crate::core::{Core, lock};
use crate::receive::{Sockets, guarded};
use crate::stand_by::Watch;
use crate::waiter::{Armed, Waiter};

/// Starts the thread. It ends when the last [`crate::core::Owner`] is gone.
pub(crate) fn start(core: Arc<Core>) -> Result<()> {
    let name = format!("rdma {}", core.name);
    let spawned = thread::Builder::new().name(name).spawn(move || {
        if catch_unwind(AssertUnwindSafe(|| run(&core))).is_err() {
            core.lost();
        }
    });
    spawned.map(drop).map_err(|cause| {
        let errno = cause.raw_os_error().unwrap_or(0);
        Error::new(ErrorCode::DeviceOpen, format!("the service thread cannot be started: {cause}"))
            .with_syscall("clone", errno)
    })
}

fn run(core: &Core) {
    let mut look = Sockets::ALL;
    let mut armed = Armed::default();
    let mut watch = Watch::default();
    while !core.is_closing() {
        if core.pollers.load(Ordering::Acquire) > 0 {
            core.stand_by(&mut watch, &mut armed);
            look = Sockets::ALL;
            continue;
        }
        let mut intake = lock(&core.intake);
        look = core.round(&mut intake, look, false).more;
        if !look.is_empty() {
            continue;
        }
        if let Some(round) = core.spin(&mut intake, false) {
            look = round.more;
            continue;
        }
        drop(intake);
        let rest = core.fall_asleep();
        // Whoever dropped something meanwhile found the engine in use, and has left it to us.
        core.settle_graves();
        look = match rest {
            Some(at) => {
                let asleep = Instant::now();
                let come = core.wait(&core.service_waiter, &mut armed, at, None);
                if !come.is_empty() {
                    lock(&core.intake).spin.slept(asleep.elapsed());
                }
                come
            }
            None => Sockets::ALL,
        };
    }
}

impl Core {
    /// Waits until `at` and at the most for `most`, until somebody wakes us, a packet comes, or a socket that was full
    /// takes more. Tells where packets have come.
    pub(crate) fn wait(
        &self,
        waiter: &Waiter,
        armed: &mut Armed,
        at: Option<Instant>,
        most: Option<Duration>,
    ) -> Sockets {
        let woken = waiter.wait(armed, &self.ports, at, most, self.blocked_at());
        if woken.room {
            self.set_blocked(None);
            // A poller that has gone to sleep meanwhile waits for that no more.
            if self.pollers.load(Ordering::Acquire) > 0
                && std::ptr::eq(waiter, &raw const self.service_waiter)
            {
                self.poller_waiter.wake();
            }
        }
        woken.come
    }

    /// The engine has panicked: nothing that it says can be relied on, so that every queue pair hears of the end.
    fn lost(&self) {
        if !self.gone().set() {
            return;
        }
        self.tell_gone();
        for notify in self.gone().take_notices() {
            guarded(notify);
        }
    }
}
