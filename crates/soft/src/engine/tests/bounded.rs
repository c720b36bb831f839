//! What a peer, or a program, can ask for without end, and what that costs (reliability §F.4 #36, #38, #39).

use std::time::Duration;

use secure_rdma_rdma::{QpState, SendOperation};

use super::pair::{ALL, CAPS, Options, Pair, remote};
use crate::engine::Arrival;

const SEND: SendOperation = SendOperation::Send { immediate: None };

#[test]
fn a_sender_without_receives_waits_for_ever_only_if_it_was_asked_to_and_costs_its_peer_nothing() {
    let mut pair = Pair::with(Options { rnr_retry: 7, ..Options::default() });
    let (local, inbox) = (pair.sides[0].region(64, ALL), pair.sides[1].region(64, ALL));
    for _ in 0..100 {
        pair.send(0, SEND, &[(&local, 0, 64)]);
    }
    let memory = |pair: &Pair| pair.sides[1].engine.queue_pairs[&pair.sides[1].qpn].memory();
    pair.exchange();
    let before = memory(&pair);
    // With 6 it would have been given up after 4 ms.
    for _ in 0..10_000 {
        assert!(pair.wait(Duration::from_secs(1)), "it goes on trying");
        pair.exchange();
    }
    assert!(pair.sides[1].engine.counters().send_rnr_err >= 1000, "the control: it was refused each time");
    assert_eq!(memory(&pair), before);
    assert!(pair.sides[0].completions.is_empty());
    for _ in 0..100 {
        pair.receive(1, &inbox, 0, 64);
    }
    pair.run();
    assert_eq!(pair.sides[0].statuses().iter().filter(|(_, status)| *status == 0).count(), 100);
}

/// Two sides of which one has asked for 4 MiB, and the requests for as much as it may have in flight have arrived.
fn asked_for_much() -> Pair {
    let mut pair = Pair::new();
    let (local, far) = (pair.sides[0].region(4 << 20, ALL), pair.sides[1].region(4 << 20, ALL));
    pair.send(0, SendOperation::Read { remote: remote(&far, 0) }, &[(&local, 0, 4 << 20)]);
    let mut buffer = Vec::new();
    while let Some(transmit) = pair.sides[0].engine.poll_transmit(pair.now, 64, &mut buffer) {
        for (segment, bytes) in buffer.chunks(transmit.segment_size).enumerate() {
            let arrival = Arrival { segment: segment as u16, ..pair.arrival(1) };
            pair.sides[1].engine.handle_packet(pair.now, &arrival, bytes);
        }
        buffer.clear();
    }
    pair
}

#[test]
fn a_read_is_answered_as_the_window_allows_and_no_further_when_its_queue_pair_ends() {
    let responses = asked_for_much().take(1).len();
    assert!(
        (17..=128).contains(&responses),
        "of 4096 responses as many as the window of the peer: {responses}"
    );

    let mut pair = asked_for_much();
    let mut buffer = Vec::new();
    let transmit = pair.sides[1].engine.poll_transmit(pair.now, 16, &mut buffer).unwrap();
    let first = buffer.len().div_ceil(transmit.segment_size);
    assert!((1..=16).contains(&first), "{first}");
    pair.move_to_state(1, QpState::Err);
    assert!(pair.take(1).is_empty(), "the rest stays where it is");
}

#[test]
fn of_a_million_requests_the_queue_takes_what_it_has_room_for() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(64, ALL);
    let far = pair.sides[1].region(64, ALL);
    let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    let most = usize::try_from(CAPS.max_send).unwrap();
    let fill: Vec<_> = (0..1000).map(|_| pair.sides[0].request(write.clone(), &[(&local, 0, 8)])).collect();
    let qpn = pair.sides[0].qpn;
    let refused = pair.sides[0].engine.post_send(pair.now, qpn, &fill).unwrap_err();
    assert_eq!(refused.posted, most);
    let before = pair.sides[0].engine.queue_pairs[&qpn].memory();
    for _ in 0..1000 {
        let refused = pair.sides[0].engine.post_send(pair.now, qpn, &fill).unwrap_err();
        assert_eq!(refused.posted, 0);
    }
    assert_eq!(pair.sides[0].engine.queue_pairs[&qpn].memory(), before);
    pair.run();
    assert_eq!(pair.sides[0].completions.len(), most);
}
