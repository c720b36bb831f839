//! Two queue pairs on a fabric, and handlers that write down what they are told.

use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use crate::fake::{Fabric, FakeDevice, connect, init};
use crate::{
    Access, AsyncEvent, Completion, CompletionKind, Device, Memory, QueuePair, QueuePairConfig,
    QueuePairHandler, ReceiveQueue, ReceiveRequest, Region, RemoteSlice, SendFlags, SendOperation,
    SendRequest, Slice, WorkId,
};

pub(super) const ALL: Access = Access::all();
pub(super) const LONG: Duration = Duration::from_secs(10);

/// Writes down completions and events, and makes sure that it is never called by whoever made it.
pub(super) struct Log {
    made_on: ThreadId,
    heard: Mutex<Heard>,
    more: Condvar,
}

impl Log {
    pub(super) fn new() -> Arc<Self> {
        let made_on = std::thread::current().id();
        Arc::new(Self { made_on, heard: Mutex::default(), more: Condvar::new() })
    }
}

#[derive(Default)]
pub(super) struct Heard {
    pub(super) completions: Vec<Completion>,
    pub(super) events: Vec<AsyncEvent>,
}

impl QueuePairHandler for Log {
    fn completed(&self, batch: &[Completion]) {
        assert!(!batch.is_empty());
        assert_ne!(std::thread::current().id(), self.made_on);
        self.heard.lock().unwrap().completions.extend_from_slice(batch);
        self.more.notify_all();
    }

    fn happened(&self, event: AsyncEvent) {
        self.heard.lock().unwrap().events.push(event);
        self.more.notify_all();
    }
}

impl Log {
    pub(super) fn wait_for<T>(&self, what: &str, found: impl Fn(&Heard) -> Option<T>) -> T {
        let deadline = Instant::now() + LONG;
        let mut heard = self.heard.lock().unwrap();
        loop {
            if let Some(found) = found(&heard) {
                return found;
            }
            let left = deadline.checked_duration_since(Instant::now()).unwrap_or_else(|| {
                panic!("waited in vain for {what}; heard {:?} {:?}", heard.completions, heard.events)
            });
            heard = self.more.wait_timeout(heard, left).unwrap().0;
        }
    }

    pub(super) fn completions(&self, count: usize) -> Vec<Completion> {
        self.wait_for(&format!("{count} completions"), |heard| {
            (heard.completions.len() >= count).then(|| heard.completions.clone())
        })
    }

    /// Kind, number and status of each, once `count` are there.
    pub(super) fn outcomes(&self, count: usize) -> Vec<(CompletionKind, u64, u32)> {
        self.completions(count).iter().map(|done| (done.kind, done.id.0, done.status.0)).collect()
    }

    pub(super) fn event(&self, event: AsyncEvent) {
        self.wait_for(&format!("{event:?}"), |heard| heard.events.contains(&event).then_some(()));
    }

    pub(super) fn so_far(&self) -> (usize, usize) {
        let heard = self.heard.lock().unwrap();
        (heard.completions.len(), heard.events.len())
    }
}

/// One end: device, queue pair, log, and a region of 64 KiB.
pub(super) struct End {
    pub(super) queue_pair: Arc<dyn QueuePair>,
    pub(super) log: Arc<Log>,
    pub(super) region: Arc<Region>,
    pub(super) device: Arc<FakeDevice>,
}

pub(super) fn config(log: &Arc<Log>, depth: u32) -> QueuePairConfig {
    let handler: Weak<Log> = Arc::downgrade(log);
    QueuePairConfig { max_send: depth, max_receive: depth, max_sge: 2, receive_queue: None, handler }
}

impl End {
    pub(super) fn new(device: &Arc<FakeDevice>, depth: u32, shared: Option<Arc<dyn ReceiveQueue>>) -> Self {
        let log = Log::new();
        let config = QueuePairConfig { receive_queue: shared, ..config(&log, depth) };
        let queue_pair = device.create_queue_pair(config).unwrap();
        let memory = Arc::new(Memory::allocate(64 << 10).unwrap());
        let region = device.register(memory, ALL.difference(Access::MEMORY_WINDOW_BIND)).unwrap();
        Self { queue_pair, log, region, device: Arc::clone(device) }
    }

    pub(super) fn receive(&self, id: u64, offset: usize, length: usize) {
        self.queue_pair
            .post_receive(&[ReceiveRequest::new(WorkId(id), &self.region, offset, length)])
            .unwrap();
    }

    pub(super) fn request(
        &self,
        id: u64,
        operation: SendOperation,
        offset: usize,
        length: usize,
    ) -> SendRequest {
        let local = smallvec::smallvec![Slice::new(&self.region, offset, length)];
        SendRequest { id: WorkId(id), operation, local, flags: SendFlags::empty() }
    }

    pub(super) fn post(&self, id: u64, operation: SendOperation, offset: usize, length: usize) {
        self.queue_pair.post_send(&[self.request(id, operation, offset, length)]).unwrap();
    }

    pub(super) fn send(&self, id: u64, offset: usize, length: usize) {
        self.post(id, SendOperation::Send { immediate: None }, offset, length);
    }

    pub(super) fn put(&self, offset: usize, bytes: &[u8]) {
        self.region.memory().write(offset, bytes).unwrap();
    }

    pub(super) fn get(&self, offset: usize, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.region.memory().append_to(offset, length, &mut bytes).unwrap();
        bytes
    }

    /// How the other end names `offset` of this one's region.
    pub(super) fn remote(&self, offset: u64) -> RemoteSlice {
        RemoteSlice { address: self.region.address() + offset, rkey: self.region.rkey() }
    }
}

pub(super) fn devices(fabric: &Fabric) -> (Arc<FakeDevice>, Arc<FakeDevice>) {
    (fabric.device("fake0", [10, 0, 0, 1].into()), fabric.device("fake1", [10, 0, 0, 2].into()))
}

/// Two ends, connected, with `depth` places in every queue.
pub(super) fn pair(fabric: &Fabric, depth: u32) -> (End, End) {
    let (one, other) = devices(fabric);
    let (one, other) = (End::new(&one, depth, None), End::new(&other, depth, None));
    join(&one, &other);
    (one, other)
}

pub(super) fn join(one: &End, other: &End) {
    init(&*one.queue_pair).unwrap();
    connect((&one.device, &*one.queue_pair), (&other.device, &*other.queue_pair)).unwrap();
}

/// Everything is dropped: nothing may be left.
pub(super) fn assert_unmade(fabric: &Fabric) {
    fabric.settle();
    assert!(fabric.counters().all_unmade(), "{:?}", fabric.counters());
    assert_eq!(fabric.counters().handler_panics, 0);
}
