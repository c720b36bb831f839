//! Everything ends, whenever and wherever it is dropped.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use common::{ALL, End, PATIENCE, SEND, Terms, bring_up, connected, open, region, remote, request};
use secure_rdma_rdma::{
    AsyncEvent, Completion, Device, Devices, Memory, QpAttr, QpState, QueuePair, QueuePairHandler,
    ReceiveRequest, SendOperation, WcStatus, WorkId,
};
use secure_rdma_soft::{SoftDevice, SoftDevices, SoftOptions};

fn named(name: &str) -> Arc<SoftDevice> {
    open(SoftOptions { name: name.to_owned(), ..SoftOptions::default() })
}

/// How many threads of this process serve a device of this name.
fn threads(name: &str) -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|comm| comm.trim() == format!("rdma {name}")).count()
}

/// A thread takes its name when it first runs, and loses it when it is gone.
fn has_one_thread(name: &str) {
    wait_until("the thread starts", || threads(name) > 0);
    assert_eq!(threads(name), 1);
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_device_has_one_thread_until_its_last_part_is_dropped() {
    let device = named("thread-a");
    has_one_thread("thread-a");
    let parts: Vec<Box<dyn std::any::Any>> = vec![
        Box::new(End::new(&device, &Terms::default()).pair),
        Box::new(region(&device, 64, ALL)),
        Box::new(device.create_receive_queue(4).unwrap()),
        Box::new(device.create_memory_window().unwrap()),
        Box::new(device.poller()),
    ];
    drop(device);
    for part in parts {
        assert_eq!(threads("thread-a"), 1);
        drop(part);
    }
    wait_until("the thread ends", || threads("thread-a") == 0);
}

#[test]
fn receives_that_were_posted_do_not_keep_a_device_open() {
    let device = named("thread-b");
    has_one_thread("thread-b");
    let memory = region(&device, 64, ALL);
    let queue = device.create_receive_queue(4).unwrap().unwrap();
    queue.post_receive(&[ReceiveRequest::new(WorkId(1), &memory, 0, 64)]).unwrap();
    drop((device, memory));
    assert_eq!(threads("thread-b"), 1);
    // The engine has the receive, which has the region, which has the device.
    drop(queue);
    wait_until("the thread ends", || threads("thread-b") == 0);
}

#[test]
fn the_device_of_the_process_is_one_and_counted() {
    let (one, other) = (SoftDevices.open("soft").unwrap(), SoftDevices.open("soft").unwrap());
    has_one_thread("soft");
    drop(one);
    let region = other.register(Arc::new(Memory::allocate(64).unwrap()), ALL).unwrap();
    drop(other);
    assert_eq!(threads("soft"), 1, "a region holds it");
    drop(region);
    wait_until("the thread ends", || threads("soft") == 0);
    let again = SoftDevices.open("soft").unwrap();
    has_one_thread("soft");
    assert_eq!(again.name(), "soft");
    assert!(SoftDevices.open("rxe0").is_err());
    let listed = SoftDevices.list().unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].ports.len()), (1, "soft", 1));
}

/// Drops everything that it holds when it is first told something.
struct DropsAll {
    held: Mutex<Option<Box<dyn std::any::Any + Send>>>,
    told: Mutex<Vec<WcStatus>>,
}

impl QueuePairHandler for DropsAll {
    fn completed(&self, batch: &[Completion]) {
        self.told.lock().unwrap().extend(batch.iter().map(|one| one.status));
        self.held.lock().unwrap().take();
    }
    fn happened(&self, _event: AsyncEvent) {}
}

#[test]
fn the_last_handle_may_be_dropped_inside_a_handler() {
    let device = named("thread-b");
    let handler = Arc::new(DropsAll { held: Mutex::default(), told: Mutex::default() });
    let as_handler: Arc<dyn QueuePairHandler> = Arc::clone(&handler) as _;
    let weak: Weak<dyn QueuePairHandler> = Arc::downgrade(&as_handler);
    let config = secure_rdma_rdma::QueuePairConfig {
        max_send: 4,
        max_receive: 4,
        max_sge: 1,
        receive_queue: None,
        handler: weak,
    };
    let pair = device.create_queue_pair(config).unwrap();
    common::init(pair.as_ref());
    let region = region(&device, 64, ALL);
    let requests: Vec<_> = (0..4).map(|id| ReceiveRequest::new(WorkId(id), &region, 0, 64)).collect();
    pair.post_receive(&requests).unwrap();
    let moved = Arc::clone(&pair);
    *handler.held.lock().unwrap() = Some(Box::new((device, pair, region, requests)));
    moved.modify(&QpAttr::to(QpState::Err)).unwrap();
    drop(moved);
    wait_until("all are told", || handler.told.lock().unwrap().len() == 4);
    wait_until("the thread ends", || threads("thread-b") == 0);
    assert_eq!(*handler.told.lock().unwrap(), [WcStatus::WR_FLUSH_ERR; 4]);
}

#[test]
fn what_is_in_flight_when_a_queue_pair_is_dropped_is_let_go_of() {
    for round in 0..20 {
        let (one, other) = connected(&Terms::default());
        let memory = Arc::new(Memory::allocate(1 << 20).unwrap());
        let watched = Arc::downgrade(&memory);
        let ours = one.device.register(memory, ALL).unwrap();
        let theirs = other.region(1 << 20);
        let write = SendOperation::Write { remote: remote(&theirs, 0), immediate: None };
        for id in 0..8 {
            one.send(request(id, write.clone(), &ours, 0, 1 << 20));
        }
        drop(ours);
        assert!(watched.upgrade().is_some(), "posted requests hold their region");
        let End { device, pair, told } = one;
        if round % 2 == 0 {
            drop(other);
        }
        drop(pair);
        wait_until("the region is let go of", || watched.upgrade().is_none());
        while let Some(completion) = told.try_next() {
            assert_eq!(completion.status, WcStatus::SUCCESS, "nothing is flushed");
        }
        drop(device);
    }
}

#[test]
fn a_region_lives_until_its_last_request_is_done() {
    let (one, other) = connected(&Terms::default());
    let theirs = other.region(4096);
    let memory = Arc::new(Memory::allocate(4096).unwrap());
    memory.write(0, b"still here").unwrap();
    let watched = Arc::downgrade(&memory);
    let ours = one.device.register(memory, ALL).unwrap();
    let write = SendOperation::Write { remote: remote(&theirs, 0), immediate: None };
    one.send(request(1, write, &ours, 0, 10));
    drop(ours);
    one.done();
    assert_eq!(common::read_back(&theirs, 0, 10), b"still here");
    wait_until("the region is let go of", || watched.upgrade().is_none());
}

#[test]
fn a_thousand_queue_pairs_have_one_thread() {
    let (sender, receiver) = (named("many-a"), named("many-b"));
    let terms = Terms { depth: 4, ..Terms::default() };
    let (ours, theirs) = (region(&sender, 4096, ALL), region(&receiver, 4096, ALL));
    let ends: Vec<_> = (0..1000)
        .map(|_| {
            let ends = (End::new(&sender, &terms), End::new(&receiver, &terms));
            bring_up(&ends.0, &ends.1, &terms);
            ends.1.receive(1, &theirs, 0, 64);
            ends
        })
        .collect();
    has_one_thread("many-a");
    has_one_thread("many-b");
    for (one, _) in &ends {
        one.send(request(2, SEND, &ours, 0, 64));
    }
    for (one, other) in &ends {
        one.done();
        other.done();
    }
    let mut qpns: Vec<_> = ends.iter().map(|(one, _)| one.pair.qpn()).collect();
    qpns.sort_unstable();
    qpns.dedup();
    assert_eq!(qpns.len(), 1000);
}

#[test]
fn handlers_are_called_one_at_a_time_and_never_by_who_posts() {
    struct Alone {
        inside: Mutex<()>,
        count: Mutex<(usize, Option<std::thread::ThreadId>)>,
    }
    impl QueuePairHandler for Alone {
        fn completed(&self, batch: &[Completion]) {
            let _inside = self.inside.try_lock().expect("one call at a time");
            let mut count = self.count.lock().unwrap();
            count.0 += batch.len();
            let thread = *count.1.get_or_insert(std::thread::current().id());
            assert_eq!(thread, std::thread::current().id());
        }
        fn happened(&self, _event: AsyncEvent) {}
    }
    let terms = Terms { depth: 1024, ..Terms::default() };
    let device = named("alone");
    let handler = Arc::new(Alone { inside: Mutex::default(), count: Mutex::default() });
    let as_handler: Arc<dyn QueuePairHandler> = Arc::clone(&handler) as _;
    let config = secure_rdma_rdma::QueuePairConfig {
        handler: Arc::downgrade(&as_handler),
        ..common::config(&terms, &Arc::default())
    };
    let pair = device.create_queue_pair(config).unwrap();
    common::init(pair.as_ref());
    pair.modify(&QpAttr::to(QpState::Err)).unwrap();
    let region = region(&device, 64, ALL);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for id in 0..200 {
                    pair.post_receive(&[ReceiveRequest::new(WorkId(id), &region, 0, 64)]).unwrap();
                }
            });
        }
    });
    wait_until("all are told", || handler.count.lock().unwrap().0 == 800);
    assert_ne!(handler.count.lock().unwrap().1, Some(std::thread::current().id()));
    let _: &dyn QueuePair = pair.as_ref();
}
