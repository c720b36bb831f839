//! Acknowledgements that stay behind what answers the message.

use std::time::Duration;

use secure_rdma_rdma::SendOperation;
use secure_rdma_roce::{Extension, Opcode};

use super::pair::{ALL, Pair};

const HOLD: Duration = Duration::from_micros(20);

/// Side 1 is watched, has receives, and is sent a SEND by each call of the first; the second has it answer.
fn watched() -> (Pair, impl FnMut(&mut Pair, u32), impl FnMut(&mut Pair)) {
    let mut pair = Pair::new();
    let inbox = pair.sides[1].region(4096, ALL);
    for _ in 0..16 {
        pair.receive(1, &inbox, 0, 4096);
    }
    pair.sides[1].engine.set_watched(true);
    let comes = |pair: &mut Pair, psn: u32| {
        pair.forge(1, Opcode::SendOnly, psn & 0x00FF_FFFF, Extension::None, &[7; 64]);
    };
    let answers = move |pair: &mut Pair| {
        pair.send(1, SendOperation::Send { immediate: None }, &[(&inbox, 0, 64)]);
    };
    (pair, comes, answers)
}

fn opcodes(pair: &mut Pair) -> Vec<(Opcode, u32)> {
    pair.take(1).iter().map(|headers| (headers.bth.opcode, headers.bth.psn.expose())).collect()
}

const FIRST: u32 = 0xFF_FFFE;

#[test]
fn one_acknowledgement_stands_for_several_messages_that_are_answered_at_once() {
    let (mut pair, mut comes, mut answers) = watched();
    for number in 0..3 {
        comes(&mut pair, FIRST + number);
        answers(&mut pair);
        assert_eq!(opcodes(&mut pair), [(Opcode::SendOnly, (FIRST + number) & 0x00FF_FFFF)]);
        pair.now += HOLD / 4;
    }
    assert_eq!(pair.sides[1].engine.poll_timeout(), Some(pair.now + HOLD / 4));
    pair.now += HOLD / 4;
    pair.sides[1].engine.handle_timeout(pair.now);
    assert_eq!(opcodes(&mut pair), [(Opcode::Acknowledge, 0)], "all three");
    assert_eq!(pair.sides[1].engine.counters().ack_held, 1);
    assert_eq!(opcodes(&mut pair), []);

    // And from the beginning again, with an answer that is there when the time is up: then both go.
    comes(&mut pair, FIRST + 3);
    answers(&mut pair);
    assert_eq!(opcodes(&mut pair), [(Opcode::SendOnly, 1)]);
    pair.now += HOLD;
    answers(&mut pair);
    assert_eq!(opcodes(&mut pair), [(Opcode::SendOnly, 2), (Opcode::Acknowledge, 1)]);
}

#[test]
fn before_who_looks_goes_to_sleep_they_go_out() {
    let (mut pair, mut comes, mut answers) = watched();
    comes(&mut pair, FIRST);
    answers(&mut pair);
    assert_eq!(opcodes(&mut pair), [(Opcode::SendOnly, FIRST)]);
    let now = pair.now;
    assert!(pair.sides[1].engine.end_holds(now));
    assert_eq!(opcodes(&mut pair), [(Opcode::Acknowledge, FIRST)]);
    assert!(!pair.sides[1].engine.end_holds(now), "once");
    pair.now += HOLD;
    pair.sides[1].engine.handle_timeout(pair.now);
    assert_eq!(opcodes(&mut pair), []);

    // The next may stay again.
    comes(&mut pair, FIRST + 1);
    answers(&mut pair);
    assert_eq!(opcodes(&mut pair), [(Opcode::SendOnly, (FIRST + 1) & 0x00FF_FFFF)]);
}

#[test]
fn what_is_not_answered_is_acknowledged_at_once() {
    let (mut pair, mut comes, mut answers) = watched();
    comes(&mut pair, FIRST);
    assert_eq!(opcodes(&mut pair), [(Opcode::Acknowledge, FIRST)]);

    pair.sides[1].engine.set_watched(false);
    comes(&mut pair, FIRST + 1);
    answers(&mut pair);
    let both = [(Opcode::SendOnly, FIRST), (Opcode::Acknowledge, FIRST + 1)];
    assert_eq!(opcodes(&mut pair), both, "nobody looks for when the time is up");
}

#[test]
fn what_a_window_waits_for_and_what_is_not_an_acknowledgement_do_not_stay_behind() {
    let (mut pair, mut comes, mut answers) = watched();
    pair.forge(1, Opcode::SendFirst, FIRST, Extension::None, &[7; 1024]);
    answers(&mut pair);
    assert_eq!(opcodes(&mut pair), [(Opcode::SendOnly, FIRST), (Opcode::Acknowledge, FIRST)]);
    pair.forge(1, Opcode::SendLast, FIRST + 1, Extension::None, &[7; 1024]);
    answers(&mut pair);
    assert_eq!(opcodes(&mut pair), [(Opcode::SendOnly, FIRST + 1), (Opcode::Acknowledge, FIRST + 1)]);

    comes(&mut pair, 0);
    answers(&mut pair);
    assert_eq!(opcodes(&mut pair), [(Opcode::SendOnly, 0)]);
    comes(&mut pair, 5);
    let both = [(Opcode::Acknowledge, 0), (Opcode::Acknowledge, 1)];
    assert_eq!(opcodes(&mut pair), both, "ACK and NAK");
}

#[test]
fn what_stays_behind_goes_when_its_time_has_come_though_nobody_looks_any_more() {
    let (mut pair, mut comes, mut answers) = watched();
    comes(&mut pair, FIRST);
    answers(&mut pair);
    assert_eq!(opcodes(&mut pair), [(Opcode::SendOnly, FIRST)]);
    pair.sides[1].engine.set_watched(false);
    pair.now += HOLD;
    assert!(pair.sides[1].engine.poll_timeout().unwrap() <= pair.now);
    pair.sides[1].engine.handle_timeout(pair.now);
    assert_eq!(opcodes(&mut pair), [(Opcode::Acknowledge, FIRST)]);
}
