//! Taking the sockets over from the service thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::core::{Core, Owner, try_lock};
use crate::receive::{Intake, Sockets};

/// While it lives its holder, and not the service thread, receives, handles timeouts and calls handlers: a thread that
/// waits for an answer need not be woken by another. One that looks again and again sees a packet within a microsecond,
/// and uses a whole processor for that.
///
/// Handlers are called on the thread that polls. A holder that does not look for 1 to 2 ms while packets come is stood in for
/// by the service thread, until it looks again; drop the poller when the waiting is over. Many may exist; one thread at a
/// time is at work, and the others' calls do nothing then.
///
/// ```no_run
/// # fn done() -> bool { true }
/// let device = secure_rdma_soft::SoftDevices::open_soft()?;
/// let poller = device.poller();
/// while !done() {
///     poller.poll(); // or, without using a processor: poller.wait(None)
/// }
/// # Ok::<(), secure_rdma_rdma::Error>(())
/// ```
pub struct Poller {
    owner: Arc<Owner>,
}

impl Poller {
    pub(crate) fn new(owner: Arc<Owner>) -> Self {
        owner.add_poller();
        Self { owner }
    }

    /// Handles what is there, and tells whether there was anything. Never blocks. Does nothing, and tells false, inside
    /// a handler's call, and while another thread is at work.
    pub fn poll(&self) -> bool {
        let looks = self.owner.polls.fetch_add(1, Ordering::Relaxed);
        let Some(mut intake) = try_lock(&self.owner.intake) else { return false };
        self.owner.look_for_room(&mut intake);
        let look = intake.glance(looks);
        self.owner.round(&mut intake, look, true).busy
    }

    /// Waits until there is something to handle, handles it, and tells true; false when `timeout` has passed without
    /// (`None`: no limit). It may return early, after something that concerned no handler. Inside a handler's call it
    /// returns at once.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        if self.owner.is_serving() {
            return false;
        }
        let end = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let Some(mut intake) = try_lock(&self.owner.intake) else { return false };
        // Waiting tells where to look.
        let mut look = Sockets::default();
        loop {
            self.owner.polls.fetch_add(1, Ordering::Relaxed);
            if self.owner.round(&mut intake, look, true).busy {
                return true;
            }
            if self.owner.spin(&mut intake, true).is_some() {
                return true;
            }
            look = Sockets::default();
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) || self.owner.is_gone() {
                return false;
            }
            let rest = self.owner.fall_asleep();
            self.owner.settle_graves();
            if let Some(at) = rest {
                let asleep = Instant::now();
                let waiter = &self.owner.poller_waiter;
                look = self.owner.wait(waiter, &mut intake.armed, at, left);
                if !look.is_empty() {
                    intake.spin.slept(asleep.elapsed());
                }
            }
        }
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.owner.remove_poller();
    }
}

impl Core {
    pub(crate) fn add_poller(&self) {
        if self.pollers.fetch_add(1, Ordering::AcqRel) == 0 {
            self.with(|state| state.engine.set_watched(true));
        }
        // The service thread may be waiting for packets: from now on it waits for us.
        self.wake_service();
    }

    /// Looks whether a socket that was full takes more: who waits is told, and who polls must ask.
    pub(crate) fn look_for_room(&self, intake: &mut Intake) {
        if self.is_blocked() {
            self.wait(&self.poller_waiter, &mut intake.armed, None, Some(Duration::ZERO));
        }
    }

    pub(crate) fn remove_poller(&self) {
        if self.pollers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.with(|state| state.engine.set_watched(self.pollers.load(Ordering::Acquire) > 0));
        }
        self.wake_service();
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").field("device", &self.owner.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use secure_rdma_rdma::SendOperation;

    use crate::common::{End, Terms, connected, request};

    /// One that is full, until it is waited for once.
    fn full(one: &End, terms: &Terms) {
        let owner = one.device.owner();
        let (place, _) = owner.ports.sender(terms.address).unwrap();
        owner.set_blocked(Some(place));
    }

    #[test]
    fn who_only_looks_notices_that_a_full_socket_takes_more() {
        let terms = Terms::default();
        for of_a_loop in [false, true] {
            let (one, other) = connected(&terms);
            let (ours, theirs) = (one.region(64), other.region(64));
            other.receive(1, &theirs, 0, 64);
            let look: Box<dyn Fn()> = if of_a_loop {
                let poller = one.device.loop_poller();
                Box::new(move || _ = poller.turn(false, false))
            } else {
                let poller = one.device.poller();
                Box::new(move || _ = poller.poll())
            };
            full(&one, &terms);
            one.send(request(1, SendOperation::Send { immediate: None }, &ours, 0, 64));
            look();
            assert!(!one.device.owner().is_blocked(), "one look is enough");
            while one.told.is_empty() {
                look();
            }
            one.done();
        }
    }
}
