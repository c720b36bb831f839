//! What arrives.

use std::sync::{Arc, Mutex, OnceLock, Weak};

use super::harness::{End, LONG, assert_unmade, devices, join, pair};
use crate::fake::{Fabric, connect};
use crate::{
    Access, AsyncEvent, Completion, CompletionKind, Device, Memory, QueuePair, QueuePairConfig,
    QueuePairHandler, RKey, ReceiveRequest, Region, RemoteSlice, SendFlags, SendOperation, SendRequest,
    Slice, WorkId,
};

use CompletionKind::{Receive, ReceiveWriteImmediate, Send};

#[test]
fn messages_go_both_ways() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    one.receive(1, 1000, 100);
    other.receive(2, 1000, 100);
    other.receive(3, 2000, 0);
    one.put(0, b"from one");
    other.put(0, b"from the other");
    one.send(10, 0, 8);
    one.post(11, SendOperation::Send { immediate: Some(77) }, 0, 0);
    other.send(20, 0, 14);

    let mut done = one.log.completions(3);
    done.sort_by_key(|done| done.id);
    assert_eq!(
        done.iter().map(|done| (done.kind, done.byte_len)).collect::<Vec<_>>(),
        [(Receive, 14), (Send, 0), (Send, 0)]
    );
    let done = other.log.completions(3);
    let received: Vec<_> = done.iter().filter(|done| done.kind == Receive).collect();
    assert_eq!((received[0].byte_len, received[0].immediate), (8, None));
    assert_eq!((received[1].byte_len, received[1].immediate), (0, Some(77)));
    assert_eq!(one.get(1000, 14), b"from the other");
    assert_eq!(other.get(1000, 8), b"from one");
    drop((one, other));
    assert_unmade(&fabric);
}

#[test]
fn writes_reads_and_atomics_reach_the_region() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    other.receive(1, 0, 0);
    one.put(0, &[7; 5000]);
    one.post(1, SendOperation::Write { remote: other.remote(100), immediate: None }, 0, 5000);
    one.post(2, SendOperation::Write { remote: other.remote(6000), immediate: Some(5) }, 0, 10);
    one.post(3, SendOperation::Read { remote: other.remote(6000) }, 8000, 10);
    one.post(4, SendOperation::FetchAdd { remote: other.remote(16), add: u64::MAX }, 9000, 8);
    one.post(5, SendOperation::CompareSwap { remote: other.remote(16), compare: u64::MAX, swap: 9 }, 9008, 8);
    one.post(6, SendOperation::CompareSwap { remote: other.remote(16), compare: 0, swap: 1 }, 9016, 8);
    // Of a message without bytes neither key nor address is looked at.
    let nowhere = RemoteSlice { address: 1, rkey: RKey::new(0) };
    one.post(7, SendOperation::Write { remote: nowhere, immediate: None }, 0, 0);

    assert_eq!(one.log.outcomes(7), (1..=7).map(|id| (Send, id, 0)).collect::<Vec<_>>());
    let received = other.log.completions(1)[0];
    assert_eq!((received.kind, received.byte_len, received.immediate), (ReceiveWriteImmediate, 10, Some(5)));
    assert_eq!(other.get(100, 5000), [7; 5000]);
    assert_eq!(one.get(8000, 10), [7; 10]);
    let words = |bytes: Vec<u8>| u64::from_ne_bytes(bytes.try_into().unwrap());
    assert_eq!(words(one.get(9000, 8)), 0);
    assert_eq!(words(one.get(9008, 8)), u64::MAX);
    assert_eq!(words(one.get(9016, 8)), 9);
    assert_eq!(words(other.get(16, 8)), 9);
}

#[test]
fn a_message_is_gathered_and_scattered_over_slices() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    one.put(0, b"abcdef");
    let slices = |end: &End, a: usize, b: usize| {
        [Slice::new(&end.region, a, 3), Slice::new(&end.region, b, 3)].into_iter().collect()
    };
    other
        .queue_pair
        .post_receive(&[ReceiveRequest { id: WorkId(1), local: slices(&other, 10, 20) }])
        .unwrap();
    let operation = SendOperation::Send { immediate: None };
    let request =
        SendRequest { id: WorkId(2), operation, local: slices(&one, 3, 0), flags: SendFlags::FENCE };
    one.queue_pair.post_send(&[request]).unwrap();
    assert_eq!(other.log.completions(1)[0].byte_len, 6);
    assert_eq!((other.get(10, 3), other.get(20, 3)), (b"def".to_vec(), b"abc".to_vec()));
}

#[test]
fn a_shared_receive_queue_serves_several_queue_pairs() {
    let fabric = Fabric::new();
    let (device, peer) = devices(&fabric);
    let shared = device.create_receive_queue(4).unwrap().unwrap();
    let ends: Vec<_> = (0..2).map(|_| End::new(&device, 4, Some(Arc::clone(&shared)))).collect();
    let peers: Vec<_> = (0..2).map(|_| End::new(&peer, 4, None)).collect();
    for (end, peer) in ends.iter().zip(&peers) {
        join(end, peer);
    }
    let receives: Vec<_> = (0..4).map(|id| ReceiveRequest::new(WorkId(id), &ends[0].region, 0, 64)).collect();
    shared.post_receive(&receives).unwrap();
    let refused = shared.post_receive(&receives[..1]).unwrap_err();
    assert_eq!((refused.posted, refused.error.code().as_str()), (0, "ERR_RDMA_QUEUE_FULL"));
    let own = ends[0].queue_pair.post_receive(&receives[..1]).unwrap_err();
    assert_eq!(own.error.code().as_str(), "ERR_RDMA_INVALID_ARGUMENT");

    for (end, peer) in ends.iter().zip(&peers) {
        peer.send(0, 0, 8);
        peer.send(1, 0, 8);
        assert_eq!(end.log.completions(2).len(), 2);
    }
    drop((ends, peers, receives, refused, own));
    assert_eq!(fabric.counters().receive_queues, 1);
    drop(shared);
    assert_unmade(&fabric);
}

/// Keeps `WINDOW` messages in flight from its callbacks and checks each one that arrives.
struct Pump {
    queue_pair: OnceLock<Arc<dyn QueuePair>>,
    region: Arc<Region>,
    progress: Mutex<Progress>,
    done: std::sync::Condvar,
}

#[derive(Default)]
struct Progress {
    sent: u32,
    acknowledged: u32,
    received: u32,
}

const WINDOW: u32 = 32;
const MESSAGES: u32 = 10_000;
const ROOM: usize = 4096;

fn length_of(message: u32) -> usize {
    (message as usize * 7919) % ROOM
}

impl Pump {
    fn receive(&self, slot: u64) {
        let offset = usize::try_from(slot).unwrap() * ROOM;
        let request = ReceiveRequest::new(WorkId(slot), &self.region, offset, ROOM);
        self.queue_pair.get().unwrap().post_receive(&[request]).unwrap();
    }

    fn send(&self, message: u32) {
        let length = length_of(message);
        let offset = (WINDOW + message % WINDOW) as usize * ROOM;
        self.region.memory().write(offset, &vec![message.to_le_bytes()[0]; length]).unwrap();
        let local = smallvec::smallvec![Slice::new(&self.region, offset, length)];
        let operation = SendOperation::Send { immediate: Some(message) };
        let id = WorkId(u64::from(message));
        let request = SendRequest { id, operation, local, flags: SendFlags::empty() };
        self.queue_pair.get().unwrap().post_send(&[request]).unwrap();
    }
}

impl QueuePairHandler for Pump {
    fn completed(&self, batch: &[Completion]) {
        let mut progress = self.progress.lock().unwrap();
        for done in batch {
            assert!(done.status.is_success(), "{done:?}");
            if done.kind == Send {
                assert_eq!(done.id.0, u64::from(progress.acknowledged));
                progress.acknowledged += 1;
                if progress.sent < MESSAGES {
                    self.send(progress.sent);
                    progress.sent += 1;
                }
            } else {
                let message = progress.received;
                assert_eq!((done.immediate, done.byte_len as usize), (Some(message), length_of(message)));
                let mut bytes = Vec::new();
                let offset = usize::try_from(done.id.0).unwrap() * ROOM;
                self.region.memory().append_to(offset, length_of(message), &mut bytes).unwrap();
                assert!(bytes.iter().all(|byte| *byte == message.to_le_bytes()[0]));
                progress.received += 1;
                self.receive(done.id.0);
            }
        }
        self.done.notify_all();
    }

    fn happened(&self, event: AsyncEvent) {
        panic!("{event:?}");
    }
}

#[test]
fn ten_thousand_messages_go_both_ways_at_once_posted_from_callbacks() {
    let fabric = Fabric::new();
    let (one, other) = devices(&fabric);
    let pumps: Vec<_> = [&one, &other]
        .into_iter()
        .map(|device| {
            let memory = Arc::new(Memory::allocate(2 * WINDOW as usize * ROOM).unwrap());
            let region = device.register(memory, Access::LOCAL_WRITE).unwrap();
            let pump = Arc::new(Pump {
                queue_pair: OnceLock::new(),
                region,
                progress: Mutex::default(),
                done: std::sync::Condvar::new(),
            });
            let weak: Weak<Pump> = Arc::downgrade(&pump);
            let config = QueuePairConfig {
                max_send: WINDOW,
                max_receive: WINDOW,
                max_sge: 1,
                receive_queue: None,
                handler: weak,
            };
            assert!(pump.queue_pair.set(device.create_queue_pair(config).unwrap()).is_ok());
            pump
        })
        .collect();
    let queue_pair = |index: usize| &**pumps[index].queue_pair.get().unwrap();
    connect((&one, queue_pair(0)), (&other, queue_pair(1))).unwrap();
    for pump in &pumps {
        (0..u64::from(WINDOW)).for_each(|slot| pump.receive(slot));
        let mut progress = pump.progress.lock().unwrap();
        (0..WINDOW).for_each(|message| pump.send(message));
        progress.sent = WINDOW;
    }
    for pump in &pumps {
        let progress = pump.progress.lock().unwrap();
        let (progress, late) = pump
            .done
            .wait_timeout_while(progress, LONG * 3, |now| {
                now.acknowledged < MESSAGES || now.received < MESSAGES
            })
            .unwrap();
        assert!(!late.timed_out(), "{} sent, {} received", progress.acknowledged, progress.received);
    }
    fabric.settle();
    assert_eq!(fabric.counters().acknowledged, 2 * u64::from(MESSAGES));
    assert_eq!(fabric.counters().lost, 0);
    drop(pumps);
    assert_unmade(&fabric);
}
