//! What is dropped in silence, and what is taken though it looks odd.

use secure_rdma_rdma::{QpAttr, QpState, SendOperation};
use secure_rdma_roce::{Bth, Extension, Opcode, PacketPsn};

use super::pair::{ALL, Options, Pair, bytes_of};
use crate::engine::{Arrival, Counters};

/// A legal SEND Only for side 0.
fn send(pair: &Pair) -> Vec<u8> {
    let bth = Bth {
        ack_request: true,
        ..Bth::new(Opcode::SendOnly, pair.sides[0].qpn.get(), PacketPsn::new(0xFF_FFFE))
    };
    pair.packet(0, bth, Extension::None, b"hello, world!")
}

/// Has side 0 receive `bytes`, and gives how its counters have changed.
fn receive(pair: &mut Pair, arrival: &Arrival, bytes: &[u8]) -> Vec<(&'static str, u64)> {
    let before = *pair.sides[0].engine.counters();
    let now = pair.now;
    pair.sides[0].engine.handle_packet(now, arrival, bytes);
    pair.collect();
    let after: &Counters = pair.sides[0].engine.counters();
    let changed = before.iter().zip(after.iter()).filter(|(before, after)| before.1 != after.1);
    changed.map(|(before, after)| (after.0, after.1 - before.1)).collect()
}

#[test]
fn each_reason_drops_in_silence_and_has_its_counter() {
    type Change = fn(&mut Arrival, &mut Vec<u8>);
    let cases: [(&str, bool, Change); 15] = [
        ("dropped_length", false, |_, bytes| bytes.truncate(11)),
        ("dropped_length", false, |_, bytes| bytes.truncate(15)),
        ("dropped_length", false, |_, bytes| bytes.clear()),
        ("dropped_version", true, |_, bytes| bytes[1] |= 1),
        ("dropped_opcode", true, |_, bytes| bytes[0] = 0x18),
        ("dropped_opcode", true, |_, bytes| bytes[0] = 0xFF),
        ("dropped_transport", true, |_, bytes| bytes[0] = 0x64),
        ("dropped_qpn", true, |_, bytes| bytes[7] ^= 1),
        ("dropped_qpn", true, |_, bytes| bytes[5..8].fill(0)),
        ("dropped_address", false, |arrival, _| arrival.source.set_ip("10.0.0.9".parse().unwrap())),
        ("dropped_address", false, |arrival, _| arrival.destination = "10.0.0.9".parse().unwrap()),
        ("dropped_source_port", false, |arrival, _| arrival.source.set_port(0xC003)),
        ("dropped_pkey", true, |_, bytes| bytes[2] = 0x7E),
        ("dropped_icrc", false, |_, bytes| *bytes.last_mut().unwrap() ^= 1),
        ("dropped_icrc", false, |_, bytes| bytes[14] ^= 0x10),
    ];
    for (counter, sealed, change) in cases {
        let mut pair = Pair::new();
        let inbox = pair.sides[0].region(64, ALL);
        pair.receive(0, &inbox, 0, 64);
        let (mut arrival, mut bytes) = (pair.arrival(0), send(&pair));
        change(&mut arrival, &mut bytes);
        if sealed {
            pair.seal(0, &mut bytes);
        }
        assert_eq!(receive(&mut pair, &arrival, &bytes), [(counter, 1)]);
        assert!(pair.take(0).is_empty(), "{counter}: nothing is answered");
        assert!(pair.sides[0].completions.is_empty());
        // Positive control: what was not changed is taken.
        let (arrival, bytes) = (pair.arrival(0), send(&pair));
        receive(&mut pair, &arrival, &bytes);
        assert_eq!(pair.sides[0].statuses(), [(1, 0)], "{counter}");
    }
}

#[test]
fn odd_but_legal_packets_are_taken() {
    type Change = fn(&mut Vec<u8>);
    let changes: [Change; 6] = [
        |bytes| bytes[1] ^= 0x40, // M
        |bytes| bytes[4] = 0xFF,  // FECN, BECN, reserved
        |bytes| bytes[8] |= 0x7F, // reserved, inside the ICRC
        |bytes| bytes[2] = 0x7F,  // a limited member's P_Key
        |bytes| bytes[1] |= 0x80, // solicited
        |_| {},
    ];
    for change in changes {
        for mut pair in [Pair::new(), Pair::with(Options { v6: true, ..Options::default() })] {
            let inbox = pair.sides[0].region(64, ALL);
            pair.receive(0, &inbox, 0, 64);
            let (arrival, mut bytes) = (pair.arrival(0), send(&pair));
            change(&mut bytes);
            pair.seal(0, &mut bytes);
            receive(&mut pair, &arrival, &bytes);
            assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
            assert_eq!(&bytes_of(&inbox)[..13], b"hello, world!");
        }
    }
}

#[test]
fn padding_may_hold_anything() {
    let mut pair = Pair::new();
    let inbox = pair.sides[0].region(64, ALL);
    pair.receive(0, &inbox, 0, 64);
    let arrival = pair.arrival(0);
    let mut bytes = send(&pair);
    let length = bytes.len();
    bytes[length - 7..length - 4].fill(0xAA);
    // `seal` would write zeros: the ICRC for what stands there.
    let context = secure_rdma_roce::IcrcContext::new(
        secure_rdma_roce::Endpoints::V4 { source: [10, 0, 0, 2].into(), destination: [10, 0, 0, 1].into() },
        arrival.source.port(),
        arrival.destination_port,
    );
    let icrc = context.icrc(0, true, &bytes[..length - 4]);
    bytes[length - 4..].copy_from_slice(&icrc.to_le_bytes());
    receive(&mut pair, &arrival, &bytes);
    assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
    assert_eq!(bytes_of(&inbox), [&b"hello, world!"[..], &[0; 51]].concat());
}

#[test]
fn a_soft_peer_must_number_its_packets_and_any_other_may_not() {
    for (sequential_ids, id, taken) in
        [(true, 0, true), (true, 127, true), (true, 128, false), (true, 54_321, false), (false, 54_321, true)]
    {
        let mut pair = Pair::with(Options { sequential_ids, ..Options::default() });
        let inbox = pair.sides[0].region(64, ALL);
        pair.receive(0, &inbox, 0, 64);
        let arrival = pair.arrival(0);
        let mut bytes = send(&pair);
        let context = secure_rdma_roce::IcrcContext::new(
            secure_rdma_roce::Endpoints::V4 {
                source: [10, 0, 0, 2].into(),
                destination: [10, 0, 0, 1].into(),
            },
            arrival.source.port(),
            arrival.destination_port,
        );
        context.finish(id, &mut bytes).unwrap();
        let changed = receive(&mut pair, &arrival, &bytes);
        assert_eq!(pair.sides[0].completions.len(), usize::from(taken), "{id}");
        assert_eq!(changed.contains(&("dropped_icrc", 1)), !taken);
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    let mut pair = Pair::new();
    let local = pair.sides[1].region(1024, ALL);
    let inbox = pair.sides[0].region(1024, ALL);
    let guard = pair.sides[0].region(1024, ALL);
    let bytes = send(&pair);
    let arrival = pair.arrival(0);
    for bit in 0..bytes.len() * 8 {
        // Byte 4 is outside the ICRC.
        if bit / 8 == 4 {
            continue;
        }
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        receive(&mut pair, &arrival, &flipped);
    }
    assert!(pair.sides[0].completions.is_empty() && pair.take(0).is_empty());
    assert_eq!(pair.state(0), QpState::Rts);
    pair.receive(0, &inbox, 0, 64);
    pair.send(1, SendOperation::Send { immediate: None }, &[(&local, 0, 64)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0)], "the connection has not noticed anything");
    assert_eq!(bytes_of(&guard), [0; 1024]);
}

#[test]
fn states_that_take_no_packets_drop_them() {
    for (state, requests, responses) in [
        (QpState::Reset, false, false),
        (QpState::Init, false, false),
        (QpState::Rtr, true, false),
        (QpState::Rts, true, true),
        (QpState::Sqd, true, true),
        (QpState::Err, false, false),
    ] {
        let mut pair = Pair::new();
        let inbox = pair.sides[0].region(64, ALL);
        pair.move_to_state(0, state);
        if state != QpState::Reset && state != QpState::Err {
            pair.receive(0, &inbox, 0, 64);
        }
        let arrival = pair.arrival(0);
        let bytes = send(&pair);
        let dropped = receive(&mut pair, &arrival, &bytes) == [("dropped_state", 1)];
        assert_eq!(dropped, !requests, "{state}");
        let bth = Bth::new(Opcode::Acknowledge, pair.sides[0].qpn.get(), PacketPsn::new(0));
        let aeth = secure_rdma_roce::Aeth { syndrome: secure_rdma_roce::Syndrome::from_byte(0x1F), msn: 0 };
        let bytes = pair.packet(0, bth, Extension::Aeth(aeth), &[]);
        let dropped = receive(&mut pair, &arrival, &bytes) == [("dropped_state", 1)];
        assert_eq!(dropped, !responses, "{state}");
    }
}

#[test]
fn transitions_are_judged_by_name_and_by_value() {
    let mut pair = Pair::new();
    let side = &mut pair.sides[0];
    let error = side.engine.modify(pair.now, side.qpn, &QpAttr::to(QpState::Rtr), None).unwrap_err();
    assert_eq!(error.message(), "RTS→RTR is no transition of a reliable connection");
    let attr = QpAttr { min_rnr_timer: Some(32), ..QpAttr::to(QpState::Rts) };
    assert!(side.engine.modify(pair.now, side.qpn, &attr, None).is_err());
    assert_eq!(side.engine.state(side.qpn), Some(QpState::Rts));
}
