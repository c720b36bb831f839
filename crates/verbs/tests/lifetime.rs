//! Beginnings and ends on a real `rdma_rxe`: who may drop what where, and what is left when a device goes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use common::*;
use secure_rdma_rdma::{
    Access, Addressing, AsyncEvent, Completion, CompletionKind, Device, Devices, ErrorCode, Memory,
    QueuePair, QueuePairHandler, SendOperation, WorkId,
};
use secure_rdma_verbs::{Verbs, testing};

/// A handler that owns its end and acts on completions.
struct Acting {
    end: Mutex<Option<End>>,
    act: fn(&Self, &[Completion]),
    done: AtomicUsize,
}

impl QueuePairHandler for Acting {
    fn completed(&self, batch: &[Completion]) {
        (self.act)(self, batch);
    }

    fn happened(&self, _event: AsyncEvent) {}
}

impl Acting {
    /// A handler whose end is on the device of `address`, not connected yet.
    fn new(address: &str, act: fn(&Self, &[Completion])) -> Arc<Self> {
        let handler = Arc::new(Self { end: Mutex::new(None), act, done: AtomicUsize::new(0) });
        let weak: Weak<Self> = Arc::downgrade(&handler);
        let end = End::with_handler(address, Sizes::default(), Arc::default(), weak);
        *handler.end.lock().unwrap() = Some(end);
        handler
    }

    fn wait(&self, count: usize) {
        let start = Instant::now();
        while self.done.load(Ordering::SeqCst) < count {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{} of {count}",
                self.done.load(Ordering::SeqCst)
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Connects the ends of two handlers.
fn connect(handlers: [&Arc<Acting>; 2]) {
    let ends = handlers.map(|handler| handler.end.lock().unwrap().take().unwrap());
    bring_up(&ends, Addressing::Verbs);
    for (handler, end) in handlers.into_iter().zip(ends) {
        *handler.end.lock().unwrap() = Some(end);
    }
}

/// Answers each message with one, from inside the callback.
fn answer(this: &Acting, batch: &[Completion]) {
    let end = this.end.lock().unwrap();
    let end = end.as_ref().unwrap();
    for completion in batch.iter().filter(|one| one.kind == CompletionKind::Receive) {
        assert!(completion.status.is_success(), "{completion:?}");
        end.receive(completion.id.0, 0, 64);
        if this.done.fetch_add(1, Ordering::SeqCst) < ROUNDS {
            end.post(7, SEND, 128, 32);
        }
    }
}

const ROUNDS: usize = 500;

#[test]
#[ignore = "needs an rxe device"]
fn a_handler_may_post() {
    let _alone = alone();
    let handlers = V4.map(|address| Acting::new(address, answer));
    connect([&handlers[0], &handlers[1]]);
    for handler in &handlers {
        let end = handler.end.lock().unwrap();
        (0..4).for_each(|id| end.as_ref().unwrap().receive(id, 0, 64));
    }
    handlers[0].end.lock().unwrap().as_ref().unwrap().post(7, SEND, 128, 32);
    handlers[0].wait(ROUNDS);
}

#[test]
#[ignore = "needs an rxe device"]
fn a_handler_may_drop_its_queue_pair_and_the_last_handle_of_the_device() {
    let _alone = alone();
    let before = V4.map(|address| held(&local(address).device));
    for _ in 0..20 {
        let handlers = V4.map(|address| {
            Acting::new(address, |this, _| {
                let end = this.end.lock().unwrap().take();
                drop(end);
                this.done.fetch_add(1, Ordering::SeqCst);
            })
        });
        connect([&handlers[0], &handlers[1]]);
        for handler in &handlers {
            let end = handler.end.lock().unwrap();
            (0..8).for_each(|id| end.as_ref().unwrap().receive(id, 0, 64));
        }
        for handler in &handlers {
            let end = handler.end.lock().unwrap();
            // One end may be gone already: the other's message has reached it.
            if let Some(end) = end.as_ref() {
                (0..8).for_each(|id| end.post(id, SEND, 128, 32));
            }
        }
        handlers.iter().for_each(|handler| handler.wait(1));
        settles("rxe0", before[0]);
        settles("rxe1", before[1]);
        assert_eq!(
            handlers.map(|handler| handler.done.load(Ordering::SeqCst)),
            [1, 1],
            "no call after the drop"
        );
    }
}

#[test]
#[ignore = "needs an rxe device"]
fn a_panic_in_a_handler_leaves_other_connections_alone() {
    let _alone = alone();
    let handlers = V4.map(|address| {
        Acting::new(address, |this, _| {
            this.done.fetch_add(1, Ordering::SeqCst);
            panic!("this panic is part of the test");
        })
    });
    connect([&handlers[0], &handlers[1]]);
    handlers[1].end.lock().unwrap().as_ref().unwrap().receive(1, 0, 64);
    handlers[0].end.lock().unwrap().as_ref().unwrap().post(1, SEND, 128, 32);
    handlers.iter().for_each(|handler| handler.wait(1));
    let [us, them] = connected(Sizes::default());
    them.receive(1, 0, 64);
    us.post(1, SEND, 0, 8);
    us.log.successes(1);
    them.log.successes(1);
}

#[test]
#[ignore = "needs an rxe device"]
fn destroying_in_flight_neither_hangs_nor_leaks() {
    let _alone = alone();
    let before = [held("rxe0"), held("rxe1")];
    for round in 0..30_u64 {
        let [us, them] = connected(Sizes::default());
        for id in 0..32 {
            them.receive(id, 0, 65_536);
            us.post(id, SEND, 0, 65_536);
            us.receive(id, 0, 65_536);
            them.post(id, SendOperation::Read { remote: us.remote(0) }, 0, 65_536);
        }
        std::thread::sleep(Duration::from_micros(round * 150));
        // Both ends at once, from two threads.
        let other = std::thread::spawn(move || drop(them));
        drop(us);
        other.join().unwrap();
    }
    settles("rxe0", before[0]);
    settles("rxe1", before[1]);
}

#[test]
#[ignore = "needs an rxe device"]
fn there_is_one_service_thread_per_open_device() {
    let _alone = alone();
    let threads = || {
        let names = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| {
            let name = std::fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
            name.starts_with("rdma ").then(|| name.trim().to_owned())
        });
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let gone = || {
        let start = Instant::now();
        while !threads().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(5), "{:?}", threads());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    gone();
    let ends: Vec<_> = (0..10).map(|_| connected(Sizes::default())).collect();
    assert_eq!(threads(), ["rdma rxe0", "rdma rxe1"]);
    drop(ends);
    gone();
}

#[test]
#[ignore = "needs an rxe device"]
fn a_removed_device_is_told_and_nothing_hangs() {
    let _alone = alone();
    run("ip link add away type dummy; ip addr add 10.79.0.1/24 dev away; ip link set away up; \
         rdma link add rxe9 type rxe netdev away; sleep 0.3");
    let ends = ["10.79.0.1", "10.79.0.1"]
        .map(|address| End::new(address, Sizes { shared: Some(4), ..Sizes::default() }));
    bring_up(&ends, Addressing::Verbs);
    ends[1].receive(1, 0, 64);
    ends[0].post(1, SEND, 0, 8);
    ends[0].log.successes(1);
    // The kernel waits for us to close the device.
    let start = Instant::now();
    let mut removal = Command::new("rdma").args(["link", "del", "rxe9"]).spawn().unwrap();
    for end in &ends {
        end.log.event(AsyncEvent::DeviceGone);
        assert_eq!(end.pair.state(), secure_rdma_rdma::QpState::Err);
    }
    let told = start.elapsed();
    let [us, them] = ends;
    assert_eq!(us.log.now().1, [AsyncEvent::DeviceGone], "told once");
    let error =
        us.device.register(Arc::new(Memory::allocate(4096).unwrap()), Access::LOCAL_WRITE).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeviceLost);
    drop((us, them));
    assert!(removal.wait().unwrap().success());
    assert!(
        told < Duration::from_secs(3) && start.elapsed() < Duration::from_secs(6),
        "{told:?} {:?}",
        start.elapsed()
    );
    assert!(Verbs.open("rxe9").is_err());
    run("ip link del away");
}

#[test]
#[ignore = "needs an rxe device"]
fn a_vanished_network_interface_takes_the_device_with_it() {
    let _alone = alone();
    run("ip link add pulled type dummy; ip addr add 10.80.0.1/24 dev pulled; ip link set pulled up; \
         rdma link add rxe6 type rxe netdev pulled; sleep 0.3");
    let end = End::new("10.80.0.1", Sizes::default());
    end.init();
    let mut removal = Command::new("ip").args(["link", "del", "pulled"]).spawn().unwrap();
    end.log.event(AsyncEvent::DeviceGone);
    drop(end);
    assert!(removal.wait().unwrap().success());
}

#[test]
#[ignore = "needs an rxe device"]
fn no_descriptor_outlives_exec() {
    let _alone = alone();
    let ends = connected(Sizes::default());
    let mut seen = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).unwrap_or_default().to_string_lossy().into_owned();
        if !["infiniband", "eventfd", "uverbs"].iter().any(|name| target.contains(name)) {
            continue;
        }
        seen += 1;
        let number = entry.file_name().into_string().unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let flags = i32::from_str_radix(flags, 8).unwrap();
        assert_ne!(flags & libc::O_CLOEXEC, 0, "{target} has flags {flags:o}");
    }
    assert!(seen >= 6, "command, completion, asynchronous and wake-up descriptor of two devices: {seen}");
    drop(ends);
}

#[test]
#[ignore = "needs an rxe device"]
fn a_forked_child_is_refused_every_call() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    // SAFETY: the child only makes calls that refuse, and leaves by _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let posted = us.pair.post_send(&[us.request(1, SEND, 0, 8)]).is_err();
        let registered = us.device.create_receive_queue(4).is_err();
        let moved = us.pair.modify(&secure_rdma_rdma::QpAttr::to(secure_rdma_rdma::QpState::Err)).is_err();
        // What the child drops stays the parent's.
        drop((us, them));
        // SAFETY: _exit takes a number.
        unsafe { libc::_exit(i32::from(posted) + 2 * i32::from(registered) + 4 * i32::from(moved)) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 7));
    them.receive(1, 0, 64);
    us.fill(0, b"parent");
    us.post(1, SEND, 0, 6);
    us.log.successes(1);
    them.log.successes(1);
    assert_eq!(them.bytes(0, 6), b"parent");
}

/// Half a message takes a receive from the shared queue, the queue pair dies, and the receive is lost. When this fails
/// because nothing is lost, rxe has been repaired, and `listing` may let its shared queues be used.
#[test]
#[ignore = "needs an rxe device"]
fn rxe_loses_receives_of_a_shared_queue_which_is_why_it_is_not_used() {
    let _alone = alone();
    let device = Verbs.open("rxe1").unwrap();
    let queue = testing::create_receive_queue("rxe1", 4).unwrap();
    let region = device.register(Arc::new(Memory::allocate(REGION).unwrap()), Access::LOCAL_WRITE).unwrap();
    let post = |id| {
        let request = secure_rdma_rdma::ReceiveRequest::new(WorkId(id), &region, 0, REGION);
        queue.post_receive(&[request])
    };
    (0..4).for_each(|id| post(id).unwrap());
    let pair = |log: &Arc<Log>| {
        let weak: Weak<Log> = Arc::downgrade(log);
        let config = secure_rdma_rdma::QueuePairConfig {
            max_send: 4,
            max_receive: 8,
            max_sge: 1,
            receive_queue: Some(Arc::clone(&queue)),
            handler: weak,
        };
        device.create_queue_pair(config).unwrap()
    };
    let end = || {
        let log = Arc::new(Log::default());
        let (device, local): (Arc<dyn Device>, _) = (Arc::clone(&device), local(V4[1]));
        let pair: Arc<dyn QueuePair> = pair(&log);
        End { device, local, log, pair, region: Arc::clone(&region), shared: None }
    };
    let mut received = 0;
    for round in 0..60_u64 {
        let ends = [End::new(V4[0], Sizes::default()), end()];
        bring_up(&ends, Addressing::Verbs);
        ends[0].post(1, SEND, 0, REGION);
        std::thread::sleep(Duration::from_micros(200 + 67 * round));
        let [us, them] = ends;
        let log = Arc::clone(&them.log);
        drop(them);
        drop(us);
        std::thread::sleep(Duration::from_millis(2));
        for completion in log.completions(log.now().0) {
            received += 1;
            post(completion.id.0).unwrap();
        }
    }
    let ends = [End::new(V4[0], Sizes::default()), end()];
    bring_up(&ends, Addressing::Verbs);
    for id in 0..4 {
        ends[0].post(id, SEND, 0, 64);
    }
    let start = Instant::now();
    while ends[1].log.now().0 < 4 && start.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let left = ends[1].log.now().0;
    assert!(
        left < 4,
        "of 4 receives {left} are left after 60 queue pairs died in a message ({received} received)"
    );
}
