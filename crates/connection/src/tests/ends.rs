//! How connections end, and that nothing is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use secure_rdma_rdma::{AsyncEvent, Error, ErrorCode};
use secure_rdma_session::UpperLayer;

use super::{End, World, message, until};
use crate::channel::{Channel, Life};
use crate::connection::{CloseReason, Closed};
use crate::options::{ConnectionOptions, PoolOptions};

fn closed(channel: &Channel) -> Option<Closed> {
    match &channel.lock().life {
        Life::Over(closed) => Some(closed.clone()),
        _ => None,
    }
}

fn code(end: &End) -> Option<ErrorCode> {
    closed(&end.channel)?.error.map(|error| error.code())
}

#[test]
fn end_is_found_behind_the_last_message_and_the_other_way_goes_on() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    for i in 0..100 {
        a.channel.send(&message(i, 9000)).unwrap();
    }
    assert_eq!(a.channel.end().unwrap(), 101);
    assert_eq!(a.channel.send(&[1]).unwrap_err().code(), ErrorCode::Ended);
    for i in 0..100 {
        assert_eq!(b.next().unwrap().unwrap(), message(i, 9000));
    }
    assert_eq!(b.next().unwrap(), None);
    assert_eq!(a.channel.end().unwrap(), 101, "a second end() is the same end");
    b.channel.send(b"still here").unwrap();
    assert_eq!(a.next().unwrap().unwrap(), b"still here");
}

#[test]
fn close_delivers_what_was_sent() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    for i in 0..100 {
        a.channel.send(&message(i, 9000)).unwrap();
    }
    a.channel.close();
    for i in 0..50 {
        assert_eq!(b.next().unwrap().unwrap(), message(i, 9000));
    }
    a.until("close to have told the peer", |a| matches!(a.lock().life, Life::Closing { told: true }));
    b.upper.peer_closed();
    a.upper.peer_closed();
    a.until("the end", |a| closed(a).is_some());
    assert_eq!(closed(&a.channel).unwrap().reason, CloseReason::Closed);
    b.until("the peer to be over", |b| closed(b).is_some());
    assert_eq!(closed(&b.channel).unwrap().reason, CloseReason::PeerClosed);
    assert!(closed(&b.channel).unwrap().error.is_none());
    for i in 50..100 {
        assert_eq!(
            b.next().unwrap().unwrap(),
            message(i, 9000),
            "unread messages are given out after the end"
        );
    }
    assert_eq!(b.next().unwrap(), None);
    assert_eq!(b.channel.send(&[1]).unwrap_err().code(), ErrorCode::Closed);
    until("queue pairs to go while handles live", || world.fabric.counters().queue_pairs == 0);
}

#[test]
fn a_close_that_cannot_drain_ends_with_an_error() {
    let world = World::new();
    let options = ConnectionOptions { receive_buffer_size: 1, ..Default::default() };
    let [a, _b] = world.pair(&options);
    for i in 0..100 {
        a.channel.send(&message(i, 9000)).unwrap();
    }
    a.channel.close();
    for _ in 0..40 {
        // Ticks without time in between would take work that is under way for a dead path.
        world.fabric.settle();
        a.upper.tick(Instant::now()).unwrap();
    }
    assert_eq!(code(&a), Some(ErrorCode::CloseTimeout));
}

#[test]
fn destroying_under_load_gives_every_buffer_back() {
    let world = World::new();
    let options = ConnectionOptions::default();
    let keeper = world.pair(&options);
    for round in 0..50 {
        let [a, b] = world.pair(&options);
        for i in 0..50 {
            a.channel.send(&message(i, 9000)).unwrap();
            b.channel.send(&message(i, 9000)).unwrap();
        }
        a.channel.destroy(None);
        assert_eq!(code(&a), Some(ErrorCode::Destroyed));
        assert_eq!(closed(&a.channel).unwrap().reason, CloseReason::Destroyed);
        b.upper.lost(Error::new(ErrorCode::PeerLost, format!("round {round}")));
        assert_eq!(code(&b), Some(ErrorCode::PeerLost));
        assert_eq!(b.next().map_or_else(|e| e.code(), |_| ErrorCode::PeerLost), ErrorCode::PeerLost);
    }
    until("only the keeper's queue pairs to be left", || world.fabric.counters().queue_pairs == 2);
    // The keeper's window is whole: had buffers been lost, this would stand still.
    let [a, b] = &keeper;
    for i in 0..2000 {
        a.channel.send(&message(i, 4096)).unwrap();
    }
    for i in 0..2000 {
        assert_eq!(b.next().unwrap().unwrap(), message(i, 4096));
    }
    drop(keeper);
    until("everything to be unmade", || world.fabric.counters().all_unmade());
}

#[test]
fn a_cut_wire_ends_a_sender_with_the_path() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    world.fabric.blackhole(true);
    a.channel.send(b"into the dark").unwrap();
    a.until("the end", |a| closed(a).is_some());
    assert_eq!(code(&a), Some(ErrorCode::Path));
    let error = closed(&a.channel).unwrap().error.unwrap();
    assert_eq!(error.wc_status(), Some(12));
    assert!(error.message().contains("4791"), "{error}");
    drop(b);
}

#[test]
fn a_cut_wire_is_noticed_by_who_only_receives() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    world.fabric.set_retry_budget(std::time::Duration::from_secs(60));
    world.fabric.blackhole(true);
    for _ in 0..20 {
        a.upper.tick(Instant::now()).unwrap();
    }
    assert_eq!(code(&a), Some(ErrorCode::Path), "20 ticks are 5 s");
}

#[test]
fn an_idle_path_is_proven_without_the_peers_help() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    for _ in 0..40 {
        a.upper.tick(Instant::now()).unwrap();
        world.fabric.settle();
    }
    assert!(a.channel.stats().path_probes >= 5);
    assert!(closed(&a.channel).is_none() && closed(&b.channel).is_none());
}

#[test]
fn events_of_the_device_reach_the_connection() {
    for event in [AsyncEvent::DeviceGone, AsyncEvent::QueuePairFatal, AsyncEvent::CompletionQueueError] {
        let world = World::new();
        let [a, _b] = world.pair(&ConnectionOptions::default());
        if event == AsyncEvent::DeviceGone {
            // The others flush what is posted, and the flush may be told before the event.
            a.channel.send(&message(1, 50_000)).unwrap();
        }
        world.devices[0].inject(event);
        a.until("the end", |a| closed(a).is_some());
        assert_eq!(code(&a), Some(ErrorCode::DeviceLost), "{event:?}");
    }
}

#[test]
fn observers_are_told_once_the_connection_is_over() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    a.channel.observe(Arc::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    assert_eq!(calls.load(Ordering::Relaxed), 1, "what happened before is news too");
    a.channel.destroy(None);
    assert!(calls.load(Ordering::Relaxed) >= 2);
}

#[test]
fn half_made_connections_leave_nothing() {
    let world = World::new();
    let options = ConnectionOptions::default();
    drop(world.prepare(0, &options).unwrap());
    let prepared = world.prepare(0, &options).unwrap();
    secure_rdma_rdma::fake::init(prepared.queue_pair.as_ref()).unwrap();
    prepared.upper.post_receives().unwrap();
    drop(prepared);
    until("everything to be unmade", || world.fabric.counters().all_unmade());
}

#[test]
fn a_peer_that_closes_without_its_last_message_is_lost() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    b.channel.send(b"only this").unwrap();
    b.until("its acknowledgement", |b| b.lock().transmit.done() == 1);
    a.upper.peer_closed();
    a.until("the end", |a| closed(a).is_some());
    assert_eq!(code(&a), Some(ErrorCode::PeerLost));
    assert_eq!(a.next().unwrap().unwrap(), b"only this");
    assert_eq!(a.next().unwrap_err().code(), ErrorCode::PeerLost);
}

#[test]
fn of_two_who_close_at_once_only_who_had_sent_all_says_so() {
    let world = World::new();
    let options = ConnectionOptions { receive_buffer_size: 10_000, ..ConnectionOptions::default() };
    let [a, b] = world.pair(&options);
    a.channel.send(b"all").unwrap();
    a.channel.close();
    for i in 0..100 {
        b.channel.send(&message(i, 9000)).unwrap();
    }
    // The other side reads nothing, so this close cannot tell everything.
    b.channel.close();
    a.until("close to have told the peer", |a| matches!(a.lock().life, Life::Closing { told: true }));
    b.upper.peer_closed();
    b.until("the end", |b| closed(b).is_some());
    assert_eq!(closed(&b.channel).unwrap().reason, CloseReason::PeerClosed);
    assert_eq!(b.next().unwrap().unwrap(), b"all");
    assert_eq!(b.next().unwrap(), None);
    // The peer's answer, without an END.
    a.upper.peer_closed();
    a.until("the end", |a| closed(a).is_some());
    assert_eq!(closed(&a.channel).unwrap().reason, CloseReason::Closed);
}

#[test]
fn what_has_arrived_is_read_although_both_close_at_once() {
    for _ in 0..20 {
        let world = World::new();
        let [a, b] = world.pair(&ConnectionOptions::default());
        for end in [&a, &b] {
            for i in 0..5 {
                end.channel.send(&message(i, 5000)).unwrap();
            }
        }
        a.channel.close();
        b.channel.close();
        for end in [&a, &b] {
            end.until("close to have told the peer", |end| {
                matches!(end.lock().life, Life::Closing { told: true })
            });
        }
        for end in [&a, &b] {
            end.upper.peer_closed();
            for i in 0..5 {
                assert_eq!(end.next().unwrap().unwrap(), message(i, 5000));
            }
            assert_eq!(end.next().unwrap(), None);
            end.until("the end", |end| closed(end).is_some());
            assert_eq!(closed(&end.channel).unwrap().reason, CloseReason::Closed);
        }
    }
}

#[test]
fn a_connection_that_is_over_holds_nothing_of_the_device_however_long_it_is_kept() {
    let world = World::new();
    let pool = PoolOptions { receive_buffers: 16, ..PoolOptions::default() };
    let options = ConnectionOptions { credits: 16, pool, ..ConnectionOptions::default() };
    let mut kept = Vec::new();
    for _ in 0..3 {
        let [a, b] = world.pair(&options);
        a.channel.send(b"kept").unwrap();
        b.until("the message", |b| b.stats().messages_received == 1);
        for end in [&a, &b] {
            end.channel.destroy(None);
        }
        for end in [&a, &b] {
            end.until("the drain", |end| end.lock().reservation.is_none());
        }
        assert_eq!(b.next().unwrap().unwrap(), b"kept");
        kept.push([a, b]);
    }
}

#[test]
fn a_path_that_is_not_proven_is_told_in_the_devices_words_alone() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    a.channel.lock().path.clear();
    world.fabric.blackhole(true);
    a.channel.send(b"lost").unwrap();
    a.until("the end", |a| closed(a).is_some());
    let error = closed(&a.channel).unwrap().error.unwrap();
    assert_eq!(error.code(), ErrorCode::Path);
    assert_eq!(error.message(), secure_rdma_rdma::WcStatus::RETRY_EXC_ERR.meaning());
}

#[test]
fn a_peer_that_closes_before_we_know_that_we_are_connected_is_not_forgotten() {
    for end_first in [true, false] {
        let world = World::new();
        let options = ConnectionOptions::default();
        let [a, b] = world.proven(&options);
        b.channel.open(None, "between two tests".to_owned());
        b.channel.send(b"short and gone").unwrap();
        b.channel.close();
        if end_first {
            b.until("its END to be acknowledged", |b| matches!(b.lock().life, Life::Closing { told: true }));
        }
        a.upper.peer_closed();
        a.channel.open(None, "between two tests".to_owned());
        a.until("the end", |a| closed(a).is_some());
        if end_first {
            assert_eq!(closed(&a.channel).unwrap().reason, CloseReason::PeerClosed);
            assert_eq!(a.next().unwrap().unwrap(), b"short and gone");
            assert_eq!(a.next().unwrap(), None);
        }
    }
}

#[test]
fn a_bring_up_that_is_given_up_while_it_proves_the_path_leaves_nothing() {
    let world = World::new();
    let options = ConnectionOptions::default();
    let keeper = world.pair(&options);
    world.fabric.set_retry_budget(std::time::Duration::from_secs(60));
    for _ in 0..300 {
        world.fabric.pause();
        drop(world.proving(&options));
        world.fabric.resume();
    }
    until("only the keeper's queue pairs to be left", || world.fabric.counters().queue_pairs == 2);
    drop(world.pair(&options));
    drop(keeper);
    until("everything to be unmade", || world.fabric.counters().all_unmade());
}

#[test]
fn a_control_channel_that_vanishes_takes_the_connection_along() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    let End { channel, upper } = a;
    drop(upper);
    assert_eq!(closed(&channel).unwrap().error.unwrap().code(), ErrorCode::Internal);
    drop(b);
}

#[test]
fn the_end_tells_whether_all_that_was_sent_had_arrived() {
    let world = World::new();
    let options = ConnectionOptions { receive_buffer_size: 1, ..Default::default() };
    // More than a peer takes that does not read, then as much as it does.
    for (count, delivered) in [(100, false), (3, true)] {
        let [a, b] = world.pair(&options);
        for i in 0..count {
            a.channel.send(&message(i, 9000)).unwrap();
        }
        world.fabric.settle();
        b.channel.close();
        a.until("the peer's END", |a| a.lock().receive.ended());
        a.upper.peer_closed();
        a.until("the end", |a| closed(a).is_some());
        let end = closed(&a.channel).unwrap();
        assert_eq!((end.reason, end.delivered), (CloseReason::PeerClosed, delivered));
    }
}

#[test]
fn a_message_whose_acknowledgement_was_not_looked_at_yet_had_arrived() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    b.channel.end().unwrap();
    a.until("the peer's END", |a| a.lock().receive.ended());
    let id = a.channel.send(&[1]).unwrap();
    // The wire carries it while nobody looks: our completion queue is read behind the peer's close.
    let state = a.channel.lock();
    assert_eq!(b.next().unwrap().unwrap(), [1]);
    drop(state);
    a.upper.peer_closed();
    a.until("the end", |a| closed(a).is_some());
    assert!(closed(&a.channel).unwrap().delivered);
    assert_eq!(a.channel.lock().transmit.done(), id);
}
