//! Every operation between two devices over real sockets, on both address families.

#![allow(clippy::cast_possible_truncation, clippy::unwrap_used)]

mod common;

use std::net::IpAddr;
use std::sync::Arc;

use common::{ALL, End, SEND, Terms, bring_up, bytes, connected, device, read_back, region, remote, request};
use secure_rdma_rdma::{
    Access, CompletionKind, Device, MemoryWindow, PathMtu, ReceiveRequest, SendFlags, SendOperation,
    SendRequest, Slice, WcStatus, WorkId,
};

fn both_families() -> Vec<IpAddr> {
    vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()]
}

fn terms(address: IpAddr, path_mtu: PathMtu) -> Terms {
    Terms { address, path_mtu, ..Terms::default() }
}

fn every_operation(terms: &Terms) {
    let (one, other) = connected(terms);
    let mtu = terms.path_mtu.bytes();
    let (ours, theirs) = (one.region(1 << 20), other.region(1 << 20));
    for length in [0, 1, mtu - 1, mtu, mtu + 1, 3 * mtu, 300_000] {
        let sent = bytes(length, 3);
        ours.memory().write(0, &sent).unwrap();

        other.receive(1, &theirs, 100, length.max(1));
        one.send(request(2, SendOperation::Send { immediate: Some(0xA1B2_C3D4) }, &ours, 0, length));
        let (done, received) = (one.done(), other.done());
        assert_eq!((done.id, done.kind), (WorkId(2), CompletionKind::Send));
        assert_eq!((received.id, received.kind), (WorkId(1), CompletionKind::Receive));
        assert_eq!((received.byte_len as usize, received.immediate), (length, Some(0xA1B2_C3D4)));
        assert_eq!(read_back(&theirs, 100, length), sent);

        let write = SendOperation::Write { remote: remote(&theirs, 7), immediate: None };
        one.send(request(3, write, &ours, 0, length));
        assert_eq!(one.done().id, WorkId(3));
        assert_eq!(read_back(&theirs, 7, length), sent);

        other.receive(4, &theirs, 0, 0);
        let write = SendOperation::Write { remote: remote(&theirs, 50), immediate: Some(9) };
        one.send(request(5, write, &ours, 0, length));
        let received = other.done();
        assert_eq!(received.kind, CompletionKind::ReceiveWriteImmediate);
        assert_eq!((received.byte_len as usize, received.immediate), (length, Some(9)));
        assert_eq!(one.done().id, WorkId(5));
        assert_eq!(read_back(&theirs, 50, length), sent);

        let read = SendOperation::Read { remote: remote(&theirs, 50) };
        one.send(request(6, read, &ours, 500_000, length));
        assert_eq!(one.done().id, WorkId(6));
        assert_eq!(read_back(&ours, 500_000, length), sent);
    }

    theirs.memory().write(800, &5_u64.to_ne_bytes()).unwrap();
    one.send(request(7, SendOperation::FetchAdd { remote: remote(&theirs, 800), add: 10 }, &ours, 8, 8));
    one.done();
    assert_eq!(read_back(&ours, 8, 8), 5_u64.to_ne_bytes());
    let swap = SendOperation::CompareSwap { remote: remote(&theirs, 800), compare: 15, swap: 99 };
    one.send(request(8, swap, &ours, 16, 8));
    one.done();
    assert_eq!(
        (read_back(&ours, 16, 8), read_back(&theirs, 800, 8)),
        (15_u64.to_ne_bytes().into(), 99_u64.to_ne_bytes().into())
    );
}

#[test]
fn every_operation_over_ipv4() {
    every_operation(&terms(both_families()[0], PathMtu::Bytes4096));
}

#[test]
fn every_operation_over_ipv6() {
    every_operation(&terms(both_families()[1], PathMtu::Bytes4096));
}

#[test]
fn every_operation_at_every_path_mtu() {
    for path_mtu in [PathMtu::Bytes256, PathMtu::Bytes512, PathMtu::Bytes1024, PathMtu::Bytes2048] {
        every_operation(&terms(both_families()[0], path_mtu));
    }
}

#[test]
fn a_window_opens_a_range_until_it_is_invalidated() {
    let terms = Terms::default();
    let (one, other) = connected(&terms);
    let ours = one.region(4096);
    let theirs = region(&other.device, 4096, Access::LOCAL_WRITE | Access::MEMORY_WINDOW_BIND);
    let window = other.device.create_memory_window().unwrap().unwrap();
    let rkey = window.next_key();
    let bind = |window: &Arc<dyn MemoryWindow>| SendRequest {
        id: WorkId(1),
        operation: SendOperation::Bind {
            window: Arc::clone(window),
            rkey,
            target: Slice::new(&theirs, 1000, 100),
            access: Access::REMOTE_WRITE,
        },
        local: [].into_iter().collect(),
        flags: SendFlags::empty(),
    };
    other.send(bind(&window));
    assert_eq!(other.done().id, WorkId(1));
    let target = |offset| secure_rdma_rdma::RemoteSlice { address: theirs.address() + offset, rkey };
    ours.memory().write(0, b"through the window").unwrap();
    one.send(request(2, SendOperation::Write { remote: target(1000), immediate: None }, &ours, 0, 18));
    one.done();
    assert_eq!(read_back(&theirs, 1000, 18), b"through the window");

    // SEND with invalidate ends it, and the receive's completion names the key.
    other.receive(3, &theirs, 0, 100);
    one.send(request(4, SendOperation::SendInvalidate { rkey }, &ours, 0, 5));
    one.done();
    assert_eq!(other.done().invalidated, Some(rkey));
    one.send(request(5, SendOperation::Write { remote: target(1000), immediate: None }, &ours, 0, 18));
    assert_eq!(one.told.next().status, WcStatus::REM_ACCESS_ERR);
}

#[test]
fn many_queue_pairs_receive_from_one_queue() {
    let terms = Terms::default();
    let (sender, receiver) = (device(), device());
    let queue = receiver.create_receive_queue(64).unwrap().unwrap();
    let theirs = region(&receiver, 64 * 64, ALL);
    let receives: Vec<_> =
        (0..64).map(|id| ReceiveRequest::new(WorkId(id), &theirs, id as usize * 64, 64)).collect();
    queue.post_receive(&receives).unwrap();
    let ends: Vec<_> = (0..8)
        .map(|_| {
            let ends = (End::new(&sender, &terms), End::sharing(&receiver, &terms, Some(Arc::clone(&queue))));
            bring_up(&ends.0, &ends.1, &terms);
            ends
        })
        .collect();
    let ours = region(&sender, 4096, ALL);
    for (number, (one, _)) in ends.iter().enumerate() {
        for round in 0..8 {
            ours.memory().write(number * 8 + round, &[number as u8]).unwrap();
            one.send(request(round as u64, SEND, &ours, number * 8 + round, 1));
        }
    }
    for (number, (one, other)) in ends.iter().enumerate() {
        for _ in 0..8 {
            one.done();
            let received = other.done();
            assert_eq!(read_back(&theirs, received.id.0 as usize * 64, 1), [number as u8]);
        }
    }
    for device in [&receiver, &sender] {
        // On a busy machine an acknowledgement may come after its request was sent again.
        let counters = device.counters().engine;
        assert_eq!(counters.dropped(), counters.dropped_response_psn);
        assert!(counters.dropped_response_psn == 0 || counters.timeouts > 0);
    }
}

#[test]
fn both_ends_may_be_on_one_device() {
    let terms = Terms::default();
    let device = device();
    let (one, other) = (End::new(&device, &terms), End::new(&device, &terms));
    bring_up(&one, &other, &terms);
    let region = one.region(100_000);
    other.receive(1, &region, 50_000, 50_000);
    region.memory().write(0, &bytes(50_000, 1)).unwrap();
    one.send(request(2, SEND, &region, 0, 50_000));
    one.done();
    other.done();
    assert_eq!(read_back(&region, 50_000, 50_000), bytes(50_000, 1));
}

#[test]
fn what_is_counted_is_told_by_name_and_each_name_once() {
    let (one, other) = connected(&Terms::default());
    let region = one.region(64);
    other.receive(1, &other.region(64), 0, 64);
    one.send(request(2, SEND, &region, 0, 64));
    one.done();
    let told = Device::counters(&*one.device, 1);
    let names: std::collections::HashSet<_> = told.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len(), told.len());
    let value = |wanted: &str| told.iter().find(|(name, _)| name == wanted).unwrap().1;
    assert!(value("rdma_sends") >= 1 && value("socket_sent_packets") >= 1);
    assert!(Device::counters(&*one.device, 2).is_empty(), "it has one port");
}
