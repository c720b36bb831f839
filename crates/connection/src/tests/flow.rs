//! Messages, credits and buffers.

use secure_rdma_rdma::ErrorCode;

use super::{World, message};
use crate::options::{ConnectionOptions, PoolOptions};

/// Around every border of the framing: nothing, one segment, the length prefix, two segments.
fn lengths() -> impl Iterator<Item = usize> {
    let borders = [0, 4096, 8184, 8192, 12_280, 65_536];
    borders.into_iter().flat_map(|border: usize| border.saturating_sub(9)..border + 10)
}

#[test]
fn messages_of_every_border_length_arrive_whole() {
    for shared in [true, false] {
        let world = World::with(|info| {
            if !shared {
                info.limits.max_shared_receives = 0;
            }
        });
        let [a, b] = world.pair(&ConnectionOptions::default());
        for (i, length) in lengths().enumerate() {
            a.channel.send(&message(i, length)).unwrap();
            assert_eq!(b.next().unwrap().unwrap(), message(i, length), "{length} bytes");
        }
        assert_eq!(world.fabric.counters().rnr_naks, 0);
    }
}

#[test]
fn both_ways_at_once_in_order() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions { receive_buffer_size: 100_000, ..Default::default() });
    let length = |i: usize| (i * 7919) % 20_000;
    std::thread::scope(|scope| {
        for (end, name) in [(&a, "a"), (&b, "b")] {
            scope.spawn(move || {
                for i in 0..2000 {
                    while let Err(error) = end.channel.send(&message(i, length(i))) {
                        assert_eq!(error.code(), ErrorCode::SendBufferFull);
                        std::thread::yield_now();
                    }
                }
            });
            scope.spawn(move || {
                for i in 0..2000 {
                    assert_eq!(end.next().unwrap().unwrap(), message(i, length(i)), "message {i} at {name}");
                }
            });
        }
    });
    assert_eq!(world.fabric.counters().rnr_naks, 0);
    assert_eq!(world.fabric.counters().overruns, 0);
}

#[test]
fn a_receiver_that_does_not_read_makes_the_sender_wait() {
    let world = World::new();
    let options = ConnectionOptions { receive_buffer_size: 64 << 10, ..Default::default() };
    let [a, b] = world.pair(&options);
    for i in 0..1000 {
        a.channel.send(&message(i, 3000)).unwrap();
    }
    // It comes to rest: the receiver holds no more than its bound, nothing was RNR NAKed, the rest waits here.
    a.until("the sender to run out of credits", |a| {
        a.stats().credits_available <= 1 && a.stats().work_in_flight == 0
    });
    let held = b.channel.stats();
    let bound = (options.receive_buffer_size + usize::from(options.credits) * 4096) as u64;
    assert!(held.bytes_ready <= bound, "{} bytes are held, more than {bound}", held.bytes_ready);
    assert!(a.channel.stats().bytes_queued > 2_000_000);
    assert_eq!(world.fabric.counters().rnr_naks, 0);
    for i in 0..1000 {
        assert_eq!(b.next().unwrap().unwrap(), message(i, 3000));
    }
    a.until("every message to be acknowledged", |a| a.lock().transmit.done() == 1000);
}

#[test]
fn empty_messages_are_bounded_too() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions { receive_buffer_size: 6400, ..Default::default() });
    for _ in 0..10_000 {
        a.channel.send(&[]).unwrap();
    }
    a.until("the sender to run out of credits", |a| {
        a.stats().credits_available <= 1 && a.stats().work_in_flight == 0
    });
    // Each counts 64 bytes, also where several share a segment.
    let bound = (6400 + 16 * 4096) / 64;
    assert!(b.channel.stats().messages_ready <= bound, "{} wait", b.channel.stats().messages_ready);
    for _ in 0..10_000 {
        assert_eq!(b.next().unwrap().unwrap(), []);
    }
}

/// What waits together travels together: a credit then carries many small messages, in any mixture of lengths.
#[test]
fn small_messages_that_wait_share_segments() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    let length = |i: usize| [64, 0, 1, 700, 4032, 64, 3968, 4096, 5000, 9][i % 10];
    world.fabric.pause();
    for i in 0..1000 {
        a.channel.send(&message(i, length(i))).unwrap();
    }
    world.fabric.resume();
    for i in 0..1000 {
        assert_eq!(b.next().unwrap().unwrap(), message(i, length(i)), "message {i}");
    }
    let before = a.channel.stats().segments_sent;
    world.fabric.pause();
    for i in 0..1600 {
        a.channel.send(&message(i, 64)).unwrap();
    }
    world.fabric.resume();
    for i in 0..1600 {
        assert_eq!(b.next().unwrap().unwrap(), message(i, 64), "message {i}");
    }
    let segments = a.channel.stats().segments_sent - before;
    assert!(segments < 100, "{segments} segments for 1600 messages of 64 bytes, of which 32 fit into one");
    a.until("all to be done", |a| a.lock().transmit.done() == 2600);
    assert_eq!((a.channel.stats().messages_sent, b.channel.stats().messages_received), (2600, 2600));
    assert_eq!(world.fabric.counters().rnr_naks, 0);
}

#[test]
fn what_is_too_long_or_too_much_is_refused_at_once() {
    let world = World::new();
    let options =
        ConnectionOptions { max_message_size: 10_000, send_buffer_size: 50_000, ..Default::default() };
    let [a, _b] = world.pair(&options);
    let error = a.channel.send(&message(0, 10_001)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::MessageTooLarge);
    assert!(error.message().contains("10001") && error.message().contains("maxMessageSize"));
    world.fabric.pause();
    let refused = (0..100).find_map(|i| a.channel.send(&message(i, 10_000)).err()).unwrap();
    assert_eq!(refused.code(), ErrorCode::SendBufferFull);
    assert!(a.channel.stats().bytes_queued <= 50_000);
    world.fabric.resume();
    a.until("the queue to empty", |a| a.stats().bytes_queued == 0 && a.stats().work_in_flight == 0);
    a.channel.send(&message(0, 10_000)).unwrap();
}

#[test]
fn a_message_is_taken_back_only_before_it_begins() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    world.fabric.pause();
    let ids: Vec<_> = (0..60).map(|i| a.channel.send(&message(i, 4000)).unwrap()).collect();
    let withdraw = |id| a.channel.lock().transmit.withdraw(id);
    assert!(!withdraw(ids[0]), "it is on the queue pair");
    assert!(withdraw(ids[40]) && withdraw(ids[59]));
    assert!(!withdraw(ids[40]), "twice");
    assert!(!withdraw(1000) && !withdraw(0), "never sent");
    world.fabric.resume();
    for i in (0..59).filter(|i| *i != 40) {
        assert_eq!(b.next().unwrap().unwrap(), message(i, 4000));
    }
    a.until("all to be acknowledged", |a| a.lock().transmit.done() >= ids[58]);
    assert_eq!(a.channel.stats().messages_sent, 58);
}

#[test]
fn many_connections_share_few_send_buffers() {
    let world = World::new();
    let pool = PoolOptions { send_buffers: 2, ..Default::default() };
    let options = ConnectionOptions { pool, ..Default::default() };
    let pairs: Vec<_> = (0..16).map(|_| world.pair(&options)).collect();
    for (a, _) in pairs.iter().map(|[a, b]| (a, b)) {
        for i in 0..50 {
            a.channel.send(&message(i, 5000)).unwrap();
        }
    }
    for [_, b] in &pairs {
        for i in 0..50 {
            assert_eq!(b.next().unwrap().unwrap(), message(i, 5000));
        }
    }
    assert_eq!(world.fabric.counters().rnr_naks, 0);
}

#[test]
fn a_full_receive_pool_refuses_by_name_and_recovers() {
    let world = World::new();
    let pool = PoolOptions { receive_buffers: 40, ..Default::default() };
    let options = ConnectionOptions { pool, ..Default::default() };
    let first = world.pair(&options);
    let second = world.pair(&options);
    let error = world.prepare(0, &options).err().unwrap();
    assert_eq!(error.code(), ErrorCode::ReceivePoolFull);
    assert!(error.message().contains("pool.receiveBuffers"), "{error}");
    drop(first);
    super::until("the first one's place", || world.prepare(0, &options).is_ok());
    drop(second);
    super::until("everything to be unmade", || world.fabric.counters().all_unmade());
}

#[test]
fn sends_that_nobody_awaits_are_bounded_even_when_they_are_empty() {
    let world = World::new();
    let options =
        ConnectionOptions { send_buffer_size: 64_000, receive_buffer_size: 1, ..Default::default() };
    let [a, _b] = world.pair(&options);
    for length in [0, 1] {
        let accepted = (0..10_000).take_while(|i| a.channel.send(&message(*i, length)).is_ok()).count();
        assert!(accepted < 1100, "{accepted} messages of {length} bytes were taken in");
    }
}

#[test]
fn an_idle_connection_falls_silent_whatever_its_credits() {
    for credits in [4, 5, 16] {
        let world = World::new();
        let [a, b] = world.pair(&ConnectionOptions { credits, ..Default::default() });
        a.channel.send(b"x").unwrap();
        assert_eq!(b.next().unwrap().unwrap(), b"x");
        world.fabric.settle();
        let sent = [a.channel.stats().segments_sent, b.channel.stats().segments_sent];
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert_eq!(
            [a.channel.stats().segments_sent, b.channel.stats().segments_sent],
            sent,
            "{credits} credits"
        );
        assert!(sent.iter().sum::<u64>() < 10, "{sent:?} segments for one message with {credits} credits");
    }
}

#[test]
fn a_peer_that_acknowledges_nothing_leaves_send_buffers_to_the_others() {
    let world = World::new();
    let pool = PoolOptions { send_buffers: 16, ..Default::default() };
    let options = ConnectionOptions { pool, credits: 8, ..Default::default() };
    let [silent, _] = world.pair(&options);
    let [a, b] = world.pair(&options);
    // It grants whatever one could wish for, and then its acknowledgements stop.
    silent.channel.with(|state, _| state.credits.receive(1000)).unwrap();
    world.fabric.pause();
    for i in 0..100 {
        silent.channel.send(&message(i, 4096)).unwrap();
        a.channel.send(&message(i, 4096)).unwrap();
    }
    assert_eq!(silent.channel.stats().work_in_flight, 8);
    assert!(a.channel.stats().work_in_flight > 0);
    world.fabric.resume();
    for i in 0..100 {
        assert_eq!(b.next().unwrap().unwrap(), message(i, 4096));
    }
}
