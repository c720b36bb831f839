//! Everything that the fabric's lock protects: devices, queue pairs, and who is to be served next.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::device::FakeDevice;
use super::region::Keys;
use super::service::{News, Notice};
use super::settings::{Call, Counters};
use super::state::{QpKey, State};
use crate::{AsyncEvent, DeviceInfo, Error, GoneNotice, PortInfo, PortState, ReceiveRequest};

/// How many completions one call of a handler gets at the most.
const BATCH: usize = 64;

pub(super) struct World {
    pub(super) stopped: bool,
    pub(super) paused: bool,
    pub(super) blackhole: bool,
    pub(super) largest_payload: Option<usize>,
    pub(super) retry_budget: Option<Duration>,
    pub(super) devices: Vec<DeviceState>,
    pub(super) queue_pairs: HashMap<QpKey, State>,
    pub(super) receive_queues: HashMap<u64, SharedReceives>,
    pub(super) next_receive_queue: u64,
    pub(super) next_domain: u64,
    pub(super) tally: Counters,
    /// Whether a handler is being called at this moment.
    pub(super) telling_now: bool,
    /// Queue pairs that may have something to send; each at most once.
    sending: VecDeque<QpKey>,
    /// Queue pairs whose handlers have something to hear; each at most once.
    telling: VecDeque<QpKey>,
    /// When queue pairs that wait for a repetition are to be looked at again.
    timers: BTreeSet<(Instant, QpKey)>,
}

/// One device's part of the world.
pub(super) struct DeviceState {
    pub(super) info: DeviceInfo,
    pub(super) keys: Arc<Keys>,
    pub(super) opened: Weak<FakeDevice>,
    pub(super) gone: bool,
    /// Who is told when it is.
    pub(super) gone_notices: Vec<GoneNotice>,
    /// Whether it has memory windows.
    pub(super) windows: bool,
    /// Whether a window opens its range alone.
    pub(super) window_ranges: bool,
    /// Cut off without any event.
    pub(super) cut: bool,
    /// Gives no completion any more.
    pub(super) stalled: bool,
    /// Hears no acknowledgement any more.
    pub(super) unacknowledged: bool,
    pub(super) faults: Vec<(Call, Error)>,
}

impl DeviceState {
    /// An error that a test has ordered for this call.
    pub(super) fn ordered_failure(&mut self, call: Call) -> Option<Error> {
        let index = self.faults.iter().position(|(ordered, _)| *ordered == call)?;
        Some(self.faults.remove(index).1)
    }

    /// Whether packets can go out and come in at a port, as far as the device is concerned.
    pub(super) fn carries(&self, port: &PortInfo) -> bool {
        !self.gone && !self.cut && port.state == PortState::Active
    }

    pub(super) fn port(&self, number: u8) -> Option<&PortInfo> {
        self.info.ports.iter().find(|port| port.number == number)
    }
}

/// A receive queue that many queue pairs share.
pub(super) struct SharedReceives {
    pub(super) capacity: usize,
    pub(super) requests: VecDeque<ReceiveRequest>,
}

impl World {
    pub(super) fn new() -> Self {
        Self {
            stopped: false,
            paused: false,
            blackhole: false,
            largest_payload: None,
            retry_budget: Some(Duration::from_millis(400)),
            devices: Vec::new(),
            queue_pairs: HashMap::new(),
            receive_queues: HashMap::new(),
            next_receive_queue: 0,
            next_domain: 1,
            tally: Counters::default(),
            telling_now: false,
            sending: VecDeque::new(),
            telling: VecDeque::new(),
            timers: BTreeSet::new(),
        }
    }

    /// Puts a queue pair in line for the wire, unless it waits for a repetition.
    pub(super) fn want_to_send(&mut self, key: QpKey) {
        if let Some(state) = self.queue_pairs.get_mut(&key)
            && state.wait_until.is_none()
            && state.has_something_to_send()
            && !std::mem::replace(&mut state.in_line_to_send, true)
        {
            self.sending.push_back(key);
        }
    }

    /// Puts a queue pair in line for its handler to be called.
    pub(super) fn want_to_tell(&mut self, key: QpKey) {
        if let Some(state) = self.queue_pairs.get_mut(&key)
            && !(state.completions.is_empty() && state.events.is_empty())
            && !std::mem::replace(&mut state.in_line_to_tell, true)
        {
            self.telling.push_back(key);
        }
    }

    /// Tells a queue pair's handler of an event, after the completions that are there already.
    pub(super) fn raise(&mut self, key: QpKey, event: AsyncEvent) {
        if let Some(state) = self.queue_pairs.get_mut(&key) {
            state.events.push_back(event);
        }
        self.want_to_tell(key);
    }

    pub(super) fn wait(&mut self, key: QpKey, until: Instant) {
        self.stop_waiting(key);
        if let Some(state) = self.queue_pairs.get_mut(&key) {
            state.wait_until = Some(until);
            self.timers.insert((until, key));
        }
    }

    pub(super) fn stop_waiting(&mut self, key: QpKey) {
        if let Some(until) = self.queue_pairs.get_mut(&key).and_then(|state| state.wait_until.take()) {
            self.timers.remove(&(until, key));
        }
    }

    pub(super) fn remove_queue_pair(&mut self, key: QpKey) -> Option<State> {
        self.stop_waiting(key);
        self.queue_pairs.remove(&key)
    }

    /// Looks again at the queue pairs whose wait is over.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some((_, key)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.stop_waiting(key);
            self.want_to_send(key);
        }
    }

    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Puts one queue pair's next messages on the wire. False when none has any, or the wire is paused.
    pub(super) fn transmit(&mut self, now: Instant) -> bool {
        if self.paused {
            return false;
        }
        let Some(key) = self.sending.pop_front() else { return false };
        if let Some(state) = self.queue_pairs.get_mut(&key) {
            state.in_line_to_send = false;
            self.send_some(key, now);
            self.want_to_send(key);
        }
        true
    }

    /// The next call of a handler. Its completions leave the queues here, so that the handler finds room for more.
    pub(super) fn next_notice(&mut self) -> Option<Notice> {
        while let Some(key) = self.telling.pop_front() {
            let Some(state) = self.queue_pairs.get_mut(&key) else { continue };
            state.in_line_to_tell = false;
            let news = if state.completions.is_empty() {
                state.events.pop_front().map(News::Event)
            } else {
                Some(News::Completions(state.take_completions(BATCH)))
            };
            // A count on a handler must leave with the notice: if it were dropped here, the handler's queue pair
            // could be dropped with it, which takes the lock that is held.
            let notice = news.and_then(|news| Some(Notice { handler: state.handler.upgrade()?, news }));
            self.want_to_tell(key);
            if notice.is_some() {
                return notice;
            }
        }
        None
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.telling_now && self.telling.is_empty() && (self.paused || self.sending.is_empty())
    }

    pub(super) fn keys_of(&self, device: usize) -> Vec<QpKey> {
        self.queue_pairs.keys().filter(|key| key.device == device).copied().collect()
    }

    pub(super) fn set_ports(&mut self, device: usize, to: PortState) {
        for port in &mut self.devices[device].info.ports {
            port.state = to;
        }
    }

    pub(super) fn counters(&self) -> Counters {
        let counts: Vec<_> = self.devices.iter().map(|device| device.keys.counts()).collect();
        let posted = self.queue_pairs.values().map(|state| state.sends.len() + state.receives.len());
        let shared = self.receive_queues.values().map(|queue| queue.requests.len());
        Counters {
            open_devices: self.devices.iter().filter(|device| device.opened.strong_count() > 0).count(),
            queue_pairs: self.queue_pairs.len(),
            regions: counts.iter().map(|counts| counts.0).sum(),
            windows: counts.iter().map(|counts| counts.1).sum(),
            bound_windows: counts.iter().map(|counts| counts.2).sum(),
            registrations: counts.iter().map(|counts| counts.3).sum(),
            receive_queues: self.receive_queues.len(),
            work_requests: posted.chain(shared).sum(),
            ..self.tally
        }
    }
}
