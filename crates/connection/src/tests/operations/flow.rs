//! Operations without end: credits, the send queue, and how many may wait.

use std::sync::atomic::{AtomicBool, Ordering};

use secure_rdma_rdma::{Error, ErrorCode};

use super::super::{World, message};
use super::{ALL, carry_out, done, grant, outcome};
use crate::connection::Received;
use crate::operations::Operation;
use crate::options::ConnectionOptions;
use crate::regions::SharedRegion;
use crate::transmit::MOST_OPERATIONS;

#[test]
fn a_write_with_immediate_waits_for_credit_and_nothing_is_rnr_naked() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions { receive_buffer_size: 640, ..Default::default() });
    let granted = grant(&world, &a, 1, 64, ALL);
    let remote = granted.remote.whole();
    let list: Vec<_> = (0..500)
        .map(|i| Operation::Write { local: &[], remote: &remote, immediate: Some(i), fence: false })
        .collect();
    a.channel.post(&list).unwrap();
    a.until("the sender to run out of credits", |a| {
        a.stats().credits_available <= 1 && a.stats().work_in_flight == 0
    });
    let held = b.channel.stats().immediates_ready;
    assert!(held <= 10 + 16, "{held} unread immediates are held");
    for i in 0..500 {
        b.until("the next immediate", |b| match b.take_immediate() {
            Received::Message(immediate) => {
                assert_eq!(immediate, i);
                true
            }
            _ => false,
        });
    }
    a.until("all to be done", |a| a.lock().transmit.done() == 500);
    assert_eq!(world.fabric.counters().rnr_naks, 0);
}

/// Without probes nothing would come by that posts it: the peer reads nothing, so that it gives no credits.
#[test]
fn what_waits_behind_something_that_is_taken_back_is_posted() {
    let world = World::new();
    let options = ConnectionOptions { receive_buffer_size: 640, path_probe: None, ..Default::default() };
    for withdraws in [true, false] {
        let [a, b] = world.pair(&options);
        let granted = grant(&world, &a, 1, 64, ALL);
        let remote = granted.remote.whole();
        let told = Operation::Write { local: &[], remote: &remote, immediate: Some(7), fence: false };
        let ids = a.channel.post(&[told; 100]).unwrap();
        a.until("the sender to run out of credits", |a| {
            a.stats().credits_available <= 1 && a.stats().work_in_flight == 0
        });
        world.fabric.settle();
        let first = done(&a) + 1;
        let add = Operation::FetchAndAdd { remote: &remote, add: 1, fence: false };
        let last = a.channel.post(&[add]).unwrap().start;
        assert_eq!((a.channel.stats().work_in_flight, last), (0, ids.end), "it waits for its turn");
        for id in first..ids.end {
            if withdraws {
                assert!(a.channel.take_back(|transmit| transmit.withdraw(id)), "{id}");
            } else {
                a.channel.take_back(|transmit| transmit.disregard(id));
            }
        }
        a.until("what waited behind them to be done", |a| a.lock().transmit.done() == last);
        assert_eq!(granted.memory.fetch_add(0, 0).unwrap(), 1);
        assert!(first > 16 && b.channel.stats().immediates_ready == first - 1);
    }
}

/// Credits ride on messages; where only operations flow they must go back alone, before the queue is empty.
#[test]
fn operations_without_end_leave_the_peer_its_credits() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 64, ALL);
    let local = SharedRegion::allocate(64).unwrap();
    let (slice, remote) = ([local.whole().unwrap()], granted.remote.whole());
    let list = vec![Operation::write(&slice, &remote); 1000];
    a.channel.register(&local).unwrap();
    world.fabric.pause();
    for i in 0..100 {
        b.channel.send(&message(i, 3000)).unwrap();
    }
    a.channel.post(&list).unwrap();
    world.fabric.resume();
    let read = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !read.load(Ordering::Relaxed) {
                match a.channel.post(&list) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.code(), ErrorCode::OperationLimit),
                }
                std::thread::yield_now();
            }
        });
        for i in 0..100 {
            assert_eq!(a.next().unwrap().unwrap(), message(i, 3000));
        }
        read.store(true, Ordering::Relaxed);
    });
}

/// §F.4 #37: whatever is posted, the device's queues hold it, a probe and the drain marker.
#[test]
fn the_send_queue_never_overruns() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions { path_probe: None, ..Default::default() });
    let granted = grant(&world, &a, 1, 64, ALL);
    let remote = granted.remote.whole();
    world.fabric.pause();
    for _ in 0..50 {
        let list = [Operation::write(&[], &remote), Operation::Send { message: &[1; 64] }];
        a.channel.post(&list.repeat(50)).unwrap();
    }
    assert!(a.channel.stats().work_in_flight <= 126, "{}", a.channel.stats().work_in_flight);
    a.channel.with(|state, _| {
        let queue_pair = state.queue_pair.clone().unwrap();
        state.transmit.posting_mut().probe(queue_pair.as_ref()).unwrap();
    });
    // Were there no room for the marker, the queue pair would be let go of at once. Under the lock, since the flush waits
    // for that.
    a.channel.with(|state, after| {
        a.channel.fail(state, after, Error::new(ErrorCode::Work, "by the test"));
        assert!(state.drains.is_some());
    });
    world.fabric.resume();
    a.until("all to be flushed", |a| a.lock().drains.is_none());
    let counters = world.fabric.counters();
    assert_eq!((counters.overruns, a.channel.stats().work_in_flight), (0, 0));
}

/// §F.4 #39.
#[test]
fn operations_that_nobody_awaits_are_bounded() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 64, ALL);
    let remote = granted.remote.whole();
    world.fabric.pause();
    let mut accepted = 0_usize;
    let refused = (0..1_000_000).find_map(|_| {
        let posted = a.channel.post(&[Operation::write(&[], &remote)]);
        accepted += usize::from(posted.is_ok());
        posted.err()
    });
    assert_eq!(refused.unwrap().code(), ErrorCode::OperationLimit);
    assert!(accepted <= MOST_OPERATIONS + 126, "{accepted} were accepted");
    // As one list: all or nothing.
    let list = vec![Operation::write(&[], &remote); MOST_OPERATIONS + 1];
    assert_eq!(a.channel.post(&list).unwrap_err().code(), ErrorCode::OperationLimit);
    world.fabric.resume();
    a.until("all to be done", |a| a.lock().transmit.done() == accepted as u64);
    // Outcomes that nobody takes count as well.
    let atomics = vec![Operation::FetchAndAdd { remote: &remote, add: 1, fence: false }; MOST_OPERATIONS];
    let ids = carry_out(&a, &atomics);
    assert_eq!(a.channel.post(&atomics[..1]).unwrap_err().code(), ErrorCode::OperationLimit);
    assert!(outcome(&a, ids.start).is_some());
    a.channel.post(&atomics[..1]).unwrap();
}
