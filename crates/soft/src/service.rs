//! The one thread of an open device: it waits for packets, for the engine's next timeout and for whoever wakes it.
//!
//! It stands back while a [`crate::Poller`] is at work.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use secure_rdma_rdma::{Error, ErrorCode, Result};
use smallvec::SmallVec;

use crate::core::{Core, lock, try_lock};
use crate::receive::{Sockets, guarded};

/// How long a poller that does not look is trusted to look again. Then the service thread does a round for it, so that
/// no peer takes us for dead.
const PATIENCE: Duration = Duration::from_millis(10);

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
    let mut seen = 0;
    let mut look = Sockets::ALL;
    while !core.is_closing() {
        if core.pollers.load(Ordering::Acquire) > 0 {
            core.wait(Some(PATIENCE), false, true);
            let polls = core.polls.load(Ordering::Acquire);
            if polls == seen
                && let Some(mut intake) = try_lock(&core.intake)
            {
                core.round(&mut intake, Sockets::ALL, false);
            }
            seen = polls;
            look = Sockets::ALL;
            continue;
        }
        look = core.round(&mut lock(&core.intake), look, false).more;
        if look.is_empty() {
            look = match core.fall_asleep() {
                Some(pause) => core.wait(pause, false, false),
                None => Sockets::ALL,
            };
        }
    }
}

impl Core {
    /// Waits, at most for `pause`, until somebody wakes us, a packet comes, or a socket that was full takes more; if
    /// `aside`, only until somebody wakes us. Tells where packets have come.
    pub(crate) fn wait(&self, pause: Option<Duration>, poller: bool, aside: bool) -> Sockets {
        let bell = self.bell(poller);
        let mut descriptors: SmallVec<[PollFd<'_>; 5]> = SmallVec::new();
        descriptors.push(PollFd::new(bell, PollFlags::POLLIN));
        if !aside {
            let receiving = self.ports.iter().map(|family| (&family.receive, PollFlags::POLLIN));
            let sending = self.ports.iter().map(|family| (&family.send, PollFlags::POLLOUT));
            let sending = sending.filter(|_| self.is_blocked());
            descriptors
                .extend(receiving.chain(sending).map(|(socket, what)| PollFd::new(socket.as_fd(), what)));
        }
        let answer = ppoll(&mut descriptors, pause.map(TimeSpec::from_duration), None);
        let mut come = Sockets::default();
        if matches!(answer, Err(Errno::EINTR) | Ok(0)) {
            return come;
        }
        for (index, descriptor) in descriptors.iter().enumerate() {
            let found = descriptor.revents().unwrap_or(PollFlags::empty());
            if found.is_empty() {
                continue;
            }
            match index {
                0 => self.silence(poller),
                // An error waits to be taken like a packet.
                _ if !found.contains(PollFlags::POLLOUT) => come.insert(index - 1),
                _ => self.unblock(),
            }
        }
        come
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
