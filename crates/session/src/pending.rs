//! The handshakes that are under way at a listener: at most so many, and who gives way when they are full.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use secure_rdma_rdma::Phase;
use tokio::sync::Notify;

use crate::Pin;

/// A handshake is left in peace for so long after each step: enough for an honest peer's next one, and short enough that
/// a flood of newcomers is taken in faster than it fills the kernel's queue.
const PEACE: Duration = Duration::from_millis(20);

/// How much later the stall of a peer counts whose certificate has been verified: a lost packet of its proof of path costs
/// half a second, in which a flood of strangers must not push it out.
const VERIFIED: Duration = Duration::from_secs(2);

/// How far one handshake has come. Only a step forward counts as progress: a byte does not.
#[derive(Debug)]
pub(crate) struct Progress(Mutex<Inner>);

#[derive(Clone, Copy, Debug)]
struct Inner {
    phase: Phase,
    since: Instant,
    grace: Duration,
    over: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let (since, grace) = (Instant::now(), Duration::ZERO);
        Self(Mutex::new(Inner { phase: Phase::Connect, since, grace, over: false }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step forward.
    pub(crate) fn enter(&self, phase: Phase) {
        let mut inner = self.inner();
        inner.phase = phase;
        inner.since = Instant::now();
    }

    /// The handshake has failed; only its farewell is left.
    pub(crate) fn over(&self) {
        self.inner().over = true;
    }

    pub(crate) fn phase(&self) -> Phase {
        self.inner().phase
    }

    /// How long it has stalled, as far as eviction goes; `None` when it may be evicted before all others.
    fn stalled(&self, now: Instant) -> Option<Duration> {
        let inner = *self.inner();
        (!inner.over).then(|| now.saturating_duration_since(inner.since + inner.grace))
    }
}

struct Slot {
    progress: Arc<Progress>,
    evict: Arc<Notify>,
    /// Orders the equally stalled: the older goes.
    begun: Instant,
    /// The key of the peer that has grace here.
    key: Option<Pin>,
}

/// All of them.
pub(crate) struct Pending {
    slots: Mutex<HashMap<u64, Slot>>,
    most: usize,
    closed: AtomicBool,
}

/// Why there is no room yet.
pub(crate) enum Full {
    /// Ask again after this time.
    For(Duration),
    /// The listener is closed.
    Closed,
}

impl Pending {
    pub(crate) fn new(most: usize) -> Self {
        Self { slots: Mutex::default(), most, closed: AtomicBool::new(false) }
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<u64, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn count(&self) -> usize {
        self.slots().len()
    }

    /// Makes room for handshake `id`, at the cost of the one that has stalled longest where there is none. Gives its
    /// ticket, and whether another was evicted.
    pub(crate) fn admit(self: &Arc<Self>, id: u64) -> Result<(Ticket, bool), Full> {
        let now = Instant::now();
        let mut slots = self.slots();
        if self.closed.load(Ordering::Acquire) {
            return Err(Full::Closed);
        }
        let mut evicted = false;
        if slots.len() >= self.most {
            let longest = slots
                .iter()
                .map(|(id, slot)| (slot.progress.stalled(now).unwrap_or(Duration::MAX), slot.begun, *id))
                .max_by(|one, other| one.0.cmp(&other.0).then(other.1.cmp(&one.1)));
            if let Some((stalled, _, victim)) = longest {
                if stalled < PEACE {
                    return Err(Full::For(PEACE - stalled));
                }
                if let Some(slot) = slots.remove(&victim) {
                    slot.evict.notify_one();
                    evicted = stalled != Duration::MAX;
                }
            }
        }
        let (progress, evict) = (Arc::new(Progress::new()), Arc::new(Notify::new()));
        let slot = Slot { progress: Arc::clone(&progress), evict: Arc::clone(&evict), begun: now, key: None };
        slots.insert(id, slot);
        Ok((Ticket { id, progress, evict, pending: Arc::clone(self) }, evicted))
    }

    /// The certificate of handshake `id` has been verified, and this is its key: its stalls count later from now on. One
    /// key has that in half of the places at the most. Whatever more it begins gives way as a stranger does, so that no
    /// credential holds all places against the others, and who shares one among many machines is not refused.
    fn verified(&self, id: u64, key: Pin) {
        let mut slots = self.slots();
        let same = slots.values().filter(|slot| slot.key == Some(key)).count();
        if same >= (self.most / 2).max(1) {
            return;
        }
        if let Some(slot) = slots.get_mut(&id) {
            slot.key = Some(key);
            slot.progress.inner().grace = VERIFIED;
        }
    }

    /// Evicts everyone and admits nobody any more.
    pub(crate) fn close(&self) {
        let mut slots = self.slots();
        self.closed.store(true, Ordering::Release);
        for (_, slot) in slots.drain() {
            slot.evict.notify_one();
        }
    }

    /// Does `work` unless it is closed. What is done before [`Pending::close`] is done when that returns.
    pub(crate) fn unless_closed(&self, work: impl FnOnce()) {
        let _slots = self.slots();
        if !self.is_closed() {
            work();
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// A handshake's place. Dropping it gives the place back.
pub(crate) struct Ticket {
    id: u64,
    pub(crate) progress: Arc<Progress>,
    evict: Arc<Notify>,
    pending: Arc<Pending>,
}

impl Ticket {
    /// The peer's certificate has been verified. A peer that was asked for none stays a stranger.
    pub(crate) fn verified(&self, key: Option<Pin>) {
        if let Some(key) = key {
            self.pending.verified(self.id, key);
        }
    }

    /// Waits until the place is wanted by someone else, or the listener closes.
    pub(crate) async fn evicted(&self) {
        self.evict.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.pending.slots().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aged(ticket: &Ticket, age: Duration) {
        ticket.progress.inner().since = Instant::now().checked_sub(age).unwrap();
    }

    fn key(name: u8) -> Pin {
        Pin::new([name; 32])
    }

    fn is_evicted(ticket: &Ticket) -> bool {
        !ticket.pending.slots().contains_key(&ticket.id)
    }

    #[test]
    fn the_longest_stalled_gives_way_and_a_byte_is_no_progress() {
        let pending = Arc::new(Pending::new(3));
        let tickets: Vec<_> = (0..3).map(|id| pending.admit(id).ok().unwrap().0).collect();
        for (ticket, age) in tickets.iter().zip([300, 500, 400]) {
            aged(ticket, Duration::from_millis(age));
        }
        let (_newcomer, evicted) = pending.admit(9).ok().unwrap();
        assert!(evicted);
        assert_eq!(tickets.iter().map(is_evicted).collect::<Vec<_>>(), [false, true, false]);
        tickets[2].progress.enter(Phase::Tls);
        let (_newcomer, _) = pending.admit(10).ok().unwrap();
        assert_eq!(tickets.iter().map(is_evicted).collect::<Vec<_>>(), [true, true, false]);
    }

    #[test]
    fn who_has_just_stepped_forward_is_left_in_peace() {
        let pending = Arc::new(Pending::new(1));
        let (first, _) = pending.admit(0).ok().unwrap();
        assert!(matches!(pending.admit(1), Err(Full::For(wait)) if wait <= PEACE));
        assert!(!is_evicted(&first));
        first.progress.over();
        let (_second, evicted) = pending.admit(1).ok().unwrap();
        assert!(!evicted, "a farewell that is cut short is no eviction");
    }

    #[test]
    fn strangers_go_before_the_verified() {
        let pending = Arc::new(Pending::new(2));
        let (verified, _) = pending.admit(0).ok().unwrap();
        let (stranger, _) = pending.admit(1).ok().unwrap();
        verified.verified(Some(key(1)));
        verified.progress.enter(Phase::Path);
        aged(&verified, Duration::from_millis(1500));
        aged(&stranger, Duration::from_millis(100));
        let (stranger, _) = {
            let next = pending.admit(2).ok().unwrap();
            assert!(is_evicted(&stranger));
            next
        };
        aged(&verified, Duration::from_millis(2500));
        aged(&stranger, Duration::from_millis(100));
        let _next = pending.admit(3).ok().unwrap();
        assert!(is_evicted(&verified), "but not for ever");
    }

    #[test]
    fn who_was_asked_for_no_certificate_stays_a_stranger() {
        let pending = Arc::new(Pending::new(2));
        let (far, _) = pending.admit(0).ok().unwrap();
        let (near, _) = pending.admit(1).ok().unwrap();
        far.verified(None);
        far.progress.enter(Phase::Path);
        aged(&far, Duration::from_millis(200));
        aged(&near, Duration::from_millis(100));
        let _next = pending.admit(2).ok().unwrap();
        assert_eq!([is_evicted(&far), is_evicted(&near)], [true, false], "how far it has come is no merit");
    }

    #[test]
    fn one_key_holds_half_of_the_places_at_the_most() {
        let pending = Arc::new(Pending::new(8));
        let begin = |id, name| {
            let (ticket, _) = pending.admit(id).ok().unwrap();
            ticket.verified(Some(key(name)));
            aged(&ticket, Duration::from_millis(500));
            ticket
        };
        // All places, all verified, all with one key.
        let mut greedy: Vec<_> = (0..8).map(|id| begin(id, 1)).collect();
        // Others come, and the greedy one's second half goes, whatever its certificate.
        let others: Vec<_> = (8..11).map(|id| begin(id, 2)).collect();
        let gone: Vec<_> = greedy.iter().map(is_evicted).collect();
        assert_eq!(gone, [false, false, false, false, true, true, true, false]);
        assert!(!others.iter().any(is_evicted));
        // A place that is given back is there for the key's next.
        greedy.truncate(3);
        let next = begin(12, 1);
        assert!(next.progress.inner().grace == VERIFIED);
        assert!(begin(13, 1).progress.inner().grace == Duration::ZERO);
    }

    #[test]
    fn a_dropped_ticket_gives_its_place_back_and_closing_ends_all() {
        let pending = Arc::new(Pending::new(1));
        drop(pending.admit(0).ok().unwrap());
        let (ticket, evicted) = pending.admit(1).ok().unwrap();
        assert!(!evicted);
        pending.close();
        assert!(is_evicted(&ticket) && matches!(pending.admit(2), Err(Full::Closed)));
    }
}
