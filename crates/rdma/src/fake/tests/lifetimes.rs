//! What lives how long, and that dropping at any time is safe.

use std::sync::{Arc, Mutex, Weak, mpsc};

use super::harness::{End, LONG, assert_unmade, devices, pair};
use crate::fake::{Fabric, connect};
use crate::{
    Access, AsyncEvent, Completion, Device, Devices, Memory, QpAttr, QpState, QueuePair, QueuePairConfig,
    QueuePairHandler, ReceiveRequest, WorkId,
};

/// Drops its queue pair in the first callback.
struct DropsItself {
    queue_pair: Mutex<Option<Arc<dyn QueuePair>>>,
    told: mpsc::Sender<usize>,
}

impl QueuePairHandler for DropsItself {
    fn completed(&self, batch: &[Completion]) {
        self.queue_pair.lock().unwrap().take();
        self.told.send(batch.len()).unwrap();
    }

    fn happened(&self, _event: AsyncEvent) {
        self.queue_pair.lock().unwrap().take();
        self.told.send(0).unwrap();
    }
}

#[test]
fn a_handler_may_drop_its_queue_pair_in_a_callback() {
    let fabric = Fabric::new();
    let (device, peer) = devices(&fabric);
    let (told, heard) = mpsc::channel();
    let handler = Arc::new(DropsItself { queue_pair: Mutex::new(None), told });
    let weak: Weak<DropsItself> = Arc::downgrade(&handler);
    let config =
        QueuePairConfig { max_send: 4, max_receive: 100, max_sge: 1, receive_queue: None, handler: weak };
    let queue_pair = device.create_queue_pair(config).unwrap();
    let peer = End::new(&peer, 100, None);
    connect((&device, &*queue_pair), (&peer.device, &*peer.queue_pair)).unwrap();
    let memory = Arc::new(Memory::allocate(64).unwrap());
    let region = device.register(memory, Access::LOCAL_WRITE).unwrap();
    let receives: Vec<_> = (0..100).map(|id| ReceiveRequest::new(WorkId(id), &region, 0, 64)).collect();
    queue_pair.post_receive(&receives).unwrap();
    drop((receives, region));
    *handler.queue_pair.lock().unwrap() = Some(queue_pair);

    fabric.pause();
    (0..100).for_each(|id| peer.send(id, 0, 8));
    fabric.set_retry_budget(std::time::Duration::ZERO);
    fabric.resume();
    heard.recv_timeout(LONG).unwrap();
    // The peer's next message meets no queue pair.
    peer.log.wait_for("a retry exceeded", |heard| {
        heard.completions.iter().find(|done| done.status.0 == 12).map(drop)
    });
    fabric.settle();
    assert!(heard.try_recv().is_err(), "told after it was dropped");
    assert_eq!((fabric.counters().queue_pairs, fabric.counters().regions), (1, 1));
    drop((peer, handler));
    assert_unmade(&fabric);
}

#[test]
fn the_last_count_on_a_handler_may_be_the_service_threads() {
    for _ in 0..200 {
        let fabric = Fabric::new();
        let (one, other) = pair(&fabric, 8);
        other.receive(0, 0, 8);
        one.send(0, 0, 8);
        // Handler and queue pair go while the service thread may be calling.
        drop(other);
        drop(one);
        assert_unmade(&fabric);
    }
}

#[test]
fn a_region_lives_until_its_work_request_is_done() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    fabric.pause();
    one.send(0, 0, 8);
    other.receive(0, 0, 8);
    let (End { queue_pair, log, region, device }, remote) = (one, other);
    drop(region);
    assert_eq!(fabric.counters().regions, 2);
    fabric.resume();
    log.completions(1);
    fabric.settle();
    assert_eq!(fabric.counters().regions, 1);
    drop((queue_pair, log, device, remote));
    assert_unmade(&fabric);
}

#[test]
fn a_queue_pair_that_is_dropped_forgets_what_was_posted() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    fabric.pause();
    one.send(0, 0, 8);
    one.receive(1, 0, 8);
    let End { queue_pair, log, region, .. } = one;
    drop((queue_pair, region));
    fabric.resume();
    fabric.settle();
    assert_eq!(log.so_far(), (0, 0));
    assert_eq!(fabric.counters().regions, 1);
    drop(other);
    assert_unmade(&fabric);
}

#[test]
fn reset_forgets_without_completions() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    fabric.pause();
    one.send(0, 0, 8);
    one.receive(1, 0, 8);
    one.queue_pair.modify(&QpAttr::to(QpState::Reset)).unwrap();
    fabric.resume();
    fabric.settle();
    assert_eq!((one.log.so_far(), fabric.counters().work_requests), ((0, 0), 0));
    // It can be brought up again, with its peer.
    other.queue_pair.modify(&QpAttr::to(QpState::Reset)).unwrap();
    connect((&one.device, &*one.queue_pair), (&other.device, &*other.queue_pair)).unwrap();
    other.receive(2, 0, 8);
    one.send(3, 0, 8);
    assert_eq!(one.log.outcomes(1)[0].2, 0);
}

#[test]
fn an_open_device_is_handed_out_again_and_a_closed_one_anew() {
    let fabric = Fabric::new();
    let device = fabric.device("fake0", [10, 0, 0, 1].into());
    let host = fabric.host([&device]);
    let again = host.open("fake0").unwrap();
    assert!(std::ptr::addr_eq(Arc::as_ptr(&device), Arc::as_ptr(&again)));
    assert_eq!(fabric.counters().open_devices, 1);
    drop((device, again));
    assert_eq!(fabric.counters().open_devices, 0);
    let anew = host.open("fake0").unwrap();
    anew.register(Arc::new(Memory::allocate(1).unwrap()), Access::empty()).unwrap();
    assert_unmade(&fabric);
}

#[test]
fn a_queue_pair_keeps_its_device_open_and_its_fabric_alive() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    let (End { queue_pair, log, region, device }, other) = (one, other);
    drop((fabric, device));
    other.receive(0, 0, 8);
    let local = smallvec::smallvec![crate::Slice::new(&region, 0, 8)];
    let operation = crate::SendOperation::Send { immediate: None };
    let flags = crate::SendFlags::empty();
    queue_pair.post_send(&[crate::SendRequest { id: WorkId(0), operation, local, flags }]).unwrap();
    assert_eq!(log.outcomes(1)[0].2, 0);
}

#[test]
fn the_service_thread_ends_with_the_last_handle() {
    let fabric = Fabric::new();
    let thread = fabric.handle.watch();
    let (one, other) = pair(&fabric, 8);
    drop((fabric, other));
    assert!(thread.upgrade().is_some());
    drop(one);
    let deadline = std::time::Instant::now() + LONG;
    while thread.strong_count() > 0 {
        assert!(std::time::Instant::now() < deadline, "it is still there");
        std::thread::yield_now();
    }
}
