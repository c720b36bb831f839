//! A wire that loses, repeats, reorders and corrupts.

use std::time::Duration;

use secure_rdma_rdma::{Entropy, PathMtu, SendOperation};
use secure_rdma_roce::{Extension, Headers, Opcode};

use crate::engine::Config;

use super::pair::{ALL, Fate, Options, Pair, Sent, bytes_of, pattern, remote, seeded};

pub(super) fn random(entropy: &dyn Entropy, below: u32) -> u32 {
    let mut bytes = [0; 4];
    entropy.fill(&mut bytes).unwrap();
    u32::from_le_bytes(bytes) % below
}

/// Of a hundred packets so many have each fate.
fn faults(seed: u64, lost: u32, twice: u32, late: u32, flipped: u32) -> impl FnMut(&Sent) -> Fate {
    let entropy = seeded(seed);
    move |_| {
        let draw = random(entropy.as_ref(), 100);
        let fates = [
            (lost, Fate::Drop),
            (twice, Fate::Twice),
            (late, Fate::Late(Duration::from_micros(u64::from(random(entropy.as_ref(), 5000))))),
            (flipped, Fate::Flip(random(entropy.as_ref(), 100_000) as usize)),
        ];
        let mut sum = 0;
        for (share, fate) in fates {
            sum += share;
            if draw < sum {
                return fate;
            }
        }
        Fate::Pass
    }
}

/// Every operation, many times, over such a wire: everything arrives once, in order, byte-exact.
fn everything_arrives(options: &Options, filter: impl FnMut(&Sent) -> Fate + 'static, seed: u64) -> Pair {
    const MESSAGES: usize = 60;
    let entropy = seeded(seed);
    let mut pair = Pair::with(options);
    let local = pair.sides[0].region(1 << 16, ALL);
    let far = pair.sides[1].region(1 << 16, ALL);
    let counter = pair.sides[1].region(8, ALL);
    let results = pair.sides[0].region(8 * MESSAGES, ALL);
    let inbox = pair.sides[1].region(MESSAGES << 13, ALL);
    let back = pair.sides[0].region(1 << 16, ALL);
    local.memory().write(0, &pattern(1 << 16)).unwrap();
    far.memory().write(0, &pattern(1 << 16)).unwrap();
    pair.filter = Box::new(filter);
    let (mut sent, mut added, mut expected) = (Vec::new(), 0, Vec::new());
    for index in 0..MESSAGES {
        let length = random(entropy.as_ref(), 8000) as usize;
        let offset = random(entropy.as_ref(), 1 << 15) as usize;
        match random(entropy.as_ref(), 5) {
            0 => {
                sent.push((pair.receive(1, &inbox, index << 13, 8000), offset, length, index << 13));
                pair.send(
                    0,
                    SendOperation::Send { immediate: Some(length as u32) },
                    &[(&local, offset, length)],
                );
            }
            1 => {
                let remote = remote(&far, offset);
                pair.send(0, SendOperation::Write { remote, immediate: None }, &[(&local, offset, length)]);
            }
            2 => {
                pair.send(
                    0,
                    SendOperation::Read { remote: remote(&far, offset) },
                    &[(&back, offset, length)],
                );
                expected.push((offset, length));
            }
            3 => {
                let operation = SendOperation::FetchAdd { remote: remote(&counter, 0), add: 1 };
                pair.send(0, operation, &[(&results, added * 8, 8)]);
                added += 1;
            }
            _ => {
                let bytes = length.min(100);
                pair.send(
                    1,
                    SendOperation::Write { remote: remote(&back, 0), immediate: None },
                    &[(&far, 0, 0)],
                );
                let remote = remote(&far, offset);
                pair.send(0, SendOperation::Write { remote, immediate: None }, &[(&local, offset, bytes)]);
            }
        }
        if index % 10 == 9 {
            pair.exchange();
        }
    }
    pair.run();
    for side in &pair.sides {
        assert!(side.completions.iter().all(|done| done.status.is_success()), "{:?}", side.statuses());
    }
    let ids: Vec<_> = pair.sides[0].statuses().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, (1..=MESSAGES as u64).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(bytes_of(&far), pattern(1 << 16), "a write of what is there changes nothing");
    let all = bytes_of(&back);
    for (offset, length) in expected {
        assert_eq!(all[offset..offset + length], pattern(1 << 16)[offset..offset + length]);
    }
    assert_eq!(bytes_of(&counter), (added as u64).to_ne_bytes(), "each atomic once");
    let results = bytes_of(&results);
    for index in 0..added {
        assert_eq!(results[index * 8..index * 8 + 8], (index as u64).to_ne_bytes());
    }
    let inbox = bytes_of(&inbox);
    let received: Vec<_> = pair.sides[1].completions.iter().filter(|done| done.immediate.is_some()).collect();
    assert_eq!(received.len(), sent.len());
    for (done, (id, offset, length, at)) in received.iter().zip(sent) {
        assert_eq!((done.id.0, done.byte_len as usize, done.immediate), (id, length, Some(length as u32)));
        assert_eq!(inbox[at..at + length], pattern(1 << 16)[offset..offset + length]);
    }
    pair
}

#[test]
fn everything_arrives_whatever_the_wire_does() {
    let faults_of = [
        (0, 0, 0, 0),
        (5, 0, 0, 0),
        (20, 0, 0, 0),
        (0, 50, 0, 0),
        (0, 0, 30, 0),
        (0, 0, 0, 10),
        (5, 10, 10, 3),
    ];
    let mut recovered = 0;
    for (kind, (lost, twice, late, flipped)) in faults_of.into_iter().enumerate() {
        for seed in 0..12 {
            let mtu = [PathMtu::Bytes256, PathMtu::Bytes1024, PathMtu::Bytes4096][seed as usize % 3];
            let mut options =
                Options { mtu, timeout: 18, sequential_ids: seed % 2 == 0, ..Options::default() };
            options.v6 = seed % 5 == 4;
            if seed % 7 == 3 {
                options.receive_buffer = Some(20_000);
                options.config.receive_buffer = Some(20_000);
            }
            options.depth = if seed % 4 == 1 { 1 } else { 4 };
            let pair = everything_arrives(&options, faults(seed + 100, lost, twice, late, flipped), seed);
            let counters = pair.sides[0].engine.counters();
            recovered += counters.retransmitted_pkts;
            if kind == 0 {
                assert_eq!(counters.retransmitted_pkts, 0, "nothing was lost");
            }
        }
    }
    assert!(recovered > 500, "positive control: {recovered} were sent again");
}

/// Drops the `nth` packet with one of these opcodes, once.
fn lose(opcodes: &'static [Opcode], nth: usize) -> impl FnMut(&Sent) -> Fate {
    let mut seen = 0;
    move |sent| {
        if opcodes.contains(&sent.opcode) {
            seen += 1;
            if seen == nth + 1 {
                return Fate::Drop;
            }
        }
        Fate::Pass
    }
}

#[test]
fn a_lost_read_response_is_asked_for_again_from_the_hole() {
    use Opcode::{ReadResponseFirst as First, ReadResponseLast as Last, ReadResponseMiddle as Middle};
    for (opcodes, nth, asked_again) in [
        (&[First][..], 0, 0),
        (&[Middle], 0, 1),
        (&[Middle], 5, 6),
        (&[Last], 0, 9),
        (&[Opcode::ReadResponseOnly], 0, 0),
    ] {
        let mut pair = Pair::new();
        let local = pair.sides[0].region(10 * 1024, ALL);
        let far = pair.sides[1].region(10 * 1024, ALL);
        far.memory().write(0, &pattern(10 * 1024)).unwrap();
        pair.filter = Box::new(lose(opcodes, nth));
        let length = if opcodes == [Opcode::ReadResponseOnly] { 500 } else { 10 * 1024 };
        pair.send(0, SendOperation::Read { remote: remote(&far, 0) }, &[(&local, 0, length)]);
        pair.run();
        assert_eq!(bytes_of(&local)[..length], pattern(10 * 1024)[..length]);
        assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
        let requests: Vec<_> = pair.log.iter().filter(|sent| sent.opcode == Opcode::ReadRequest).collect();
        assert_eq!(requests.len(), 2);
        let skipped = requests[1].psn.wrapping_sub(requests[0].psn) & 0xFF_FFFF;
        assert_eq!(skipped, asked_again, "{opcodes:?}");
        assert_eq!(pair.sides[1].engine.counters().replayed_reads, 1);
    }
}

#[test]
fn one_nak_reports_a_gap() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(10 * 1024, ALL);
    let far = pair.sides[1].region(10 * 1024, ALL);
    pair.filter = Box::new(lose(&[Opcode::WriteMiddle], 2));
    let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    pair.send(0, write, &[(&local, 0, 10 * 1024)]);
    let start = pair.now;
    pair.run();
    let counters = pair.sides[1].engine.counters();
    assert_eq!((counters.sent_seq_err, counters.dropped_out_of_seq), (1, 5));
    let counters = pair.sides[0].engine.counters();
    assert_eq!((counters.rcvd_seq_err, counters.retransmitted_pkts), (1, 7));
    assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
    assert!(pair.log.iter().all(|sent| sent.at == start), "no timer was needed");
}

#[test]
fn an_acknowledgement_that_overtakes_a_read_response_is_an_implied_nak() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(4096, ALL);
    let far = pair.sides[1].region(4096, ALL);
    far.memory().write(0, &pattern(4096)).unwrap();
    pair.filter = Box::new(lose(&[Opcode::ReadResponseOnly], 0));
    pair.send(0, SendOperation::Read { remote: remote(&far, 0) }, &[(&local, 0, 500)]);
    let write = SendOperation::Write { remote: remote(&far, 2048), immediate: None };
    pair.send(0, write, &[(&local, 2048, 500)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 0)]);
    assert_eq!(bytes_of(&local)[..500], pattern(500)[..]);
    let counters = pair.sides[0].engine.counters();
    assert_eq!((counters.implied_nak, counters.timeouts), (1, 0));
}

#[test]
fn an_atomic_is_executed_once_though_its_answers_are_lost() {
    for seed in 0..20 {
        let mut pair = Pair::with(Options { timeout: 18, ..Options::default() });
        let local = pair.sides[0].region(80, ALL);
        let far = pair.sides[1].region(8, ALL);
        let entropy = seeded(seed);
        pair.filter = Box::new(move |sent| match sent.from {
            1 if random(entropy.as_ref(), 2) == 0 => Fate::Drop,
            _ => Fate::Pass,
        });
        for index in 0..10 {
            let operation = SendOperation::FetchAdd { remote: remote(&far, 0), add: 1 };
            pair.send(0, operation, &[(&local, index * 8, 8)]);
        }
        pair.run();
        assert_eq!(bytes_of(&far), 10_u64.to_ne_bytes());
        let expected: Vec<u8> = (0..10_u64).flat_map(u64::to_ne_bytes).collect();
        assert_eq!(bytes_of(&local), expected);
        let counters = pair.sides[1].engine.counters();
        assert_eq!(counters.responded_atomics, 10);
    }
}

#[test]
fn the_end_of_a_burst_that_a_full_receive_buffer_has_dropped_is_asked_for_at_once() {
    const LENGTH: usize = 20 * 1024;
    let write = |options: &Options| {
        let mut pair = Pair::with(options);
        let local = pair.sides[0].region(LENGTH, ALL);
        let far = pair.sides[1].region(LENGTH, ALL);
        local.memory().write(0, &pattern(LENGTH)).unwrap();
        let mut packets = 0;
        pair.filter = Box::new(move |sent| {
            packets += u32::from(sent.from == 0);
            if sent.from == 0 && (11..=20).contains(&packets) { Fate::Drop } else { Fate::Pass }
        });
        let operation = SendOperation::Write { remote: remote(&far, 0), immediate: None };
        pair.send(0, operation, &[(&local, 0, LENGTH)]);
        pair.exchange();
        assert!(pair.sides[0].completions.is_empty(), "the last ten are missing, and nothing shows it");
        pair.sides[1].engine.note_overflow(pair.now);
        pair.exchange();
        (pair, bytes_of(&far))
    };
    let (mut pair, written) = write(&Options::default());
    assert_eq!(pair.sides[0].statuses(), [(1, 0)], "and no time has passed");
    assert_eq!(written, pattern(LENGTH));
    assert_eq!(pair.sides[0].engine.counters().retransmitted_pkts, 10);
    let acknowledged = pair.log.iter().filter(|sent| sent.opcode == Opcode::Acknowledge).count();
    assert_eq!(acknowledged, 2, "the NAK, and the ACK of all");
    pair.sides[1].engine.note_overflow(pair.now);
    pair.exchange();
    assert_eq!(pair.sides[1].engine.counters().sent_seq_err, 1, "no message is coming");

    // A peer that knows how much there is room for has lost its packets elsewhere, and sees to it by itself.
    let (pair, _) = write(&Options { receive_buffer: Some(1 << 20), ..Options::default() });
    assert!(pair.sides[0].completions.is_empty());
    assert!(!pair.sides[1].engine.has_unpaced_peers());
}

#[test]
fn an_overflow_long_after_a_request_is_not_taken_for_a_loss_of_what_follows_it() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(4096, ALL);
    let far = pair.sides[1].region(4096, ALL);
    let mut packets = 0;
    pair.filter = Box::new(move |sent| {
        packets += u32::from(sent.from == 0);
        if sent.from == 0 && packets > 1 { Fate::Drop } else { Fate::Pass }
    });
    let operation = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    pair.send(0, operation, &[(&local, 0, 4096)]);
    pair.exchange();
    pair.sides[1].engine.note_overflow(pair.now + Duration::from_millis(11));
    pair.exchange();
    assert_eq!(pair.sides[1].engine.counters().sent_seq_err, 0);
    pair.sides[1].engine.note_overflow(pair.now + Duration::from_millis(10));
    pair.exchange();
    assert_eq!(pair.sides[1].engine.counters().sent_seq_err, 1);
}

#[test]
fn a_gap_is_reported_to_a_peer_of_another_make_behind_all_that_has_come() {
    const LENGTH: usize = 200 * 1024;
    let naks = |options: &Options, packets: u32, backlog: bool| {
        let mut pair = Pair::with(options);
        let local = pair.sides[0].region(LENGTH, ALL);
        let far = pair.sides[1].region(LENGTH, ALL);
        let mut sent = 0;
        pair.filter = Box::new(move |packet| {
            sent += u32::from(packet.from == 0);
            if packet.from == 0 && sent == 2 { Fate::Drop } else { Fate::Pass }
        });
        pair.sides[1].engine.set_backlog(pair.now, backlog);
        let operation = SendOperation::Write { remote: remote(&far, 0), immediate: None };
        pair.send(0, operation, &[(&local, 0, packets as usize * 1024)]);
        pair.exchange();
        let held = pair.sides[1].engine.counters().sent_seq_err;
        pair.sides[1].engine.set_backlog(pair.now, false);
        pair.exchange();
        (held, pair.sides[1].engine.counters().sent_seq_err, pair.sides[0].statuses().len())
    };
    let config = Config { initial_window: 200, max_window: 200, ..Config::default() };
    let options = Options { config, ..Options::default() };
    assert_eq!(naks(&options, 20, false), (1, 1, 1));
    assert_eq!(naks(&options, 20, true), (0, 1, 1), "it is empty when the peer sends again");
    assert_eq!(naks(&options, 200, true), (1, 1, 1), "but if it never is");
    let soft = Options { receive_buffer: Some(1 << 20), ..options };
    assert_eq!(naks(&soft, 20, true), (1, 1, 1), "who regards the buffer has not filled it");
}

#[test]
fn a_second_nak_comes_behind_an_ack_of_what_has_come_since_the_first() {
    for (receive_buffer, answers) in [
        (None, vec![Some(0x60), Some(0x1F), Some(0x60), Some(0x1F)]),
        (Some(1 << 20), vec![Some(0x60), Some(0x60), Some(0x1F)]),
    ] {
        let mut pair = Pair::with(Options { receive_buffer, ..Options::default() });
        let local = pair.sides[0].region(20 * 1024, ALL);
        let far = pair.sides[1].region(20 * 1024, ALL);
        let mut sent = 0;
        pair.filter = Box::new(move |packet| {
            sent += u32::from(packet.from == 0);
            if packet.from == 0 && (sent == 5 || sent == 30) { Fate::Drop } else { Fate::Pass }
        });
        let operation = SendOperation::Write { remote: remote(&far, 0), immediate: None };
        pair.send(0, operation, &[(&local, 0, 20 * 1024)]);
        pair.exchange();
        assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
        let told: Vec<_> = pair.log.iter().filter(|sent| sent.from == 1).map(|sent| sent.syndrome).collect();
        assert_eq!(told, answers, "{receive_buffer:?}");
    }
}

/// Of a repeated READ of no bytes rxe of Linux 6.12 answers the copy without a key, that of 6.1 the one with it. Behind it
/// another request tells as much.
#[test]
fn a_read_of_no_bytes_that_is_sent_again_goes_with_its_key_and_without() {
    let named = |reads: usize, length, followed: bool| {
        let mut pair = Pair::new();
        let back = pair.sides[0].region(64, ALL);
        let far = pair.sides[1].region(64, ALL);
        let read = SendOperation::Read { remote: remote(&far, 0) };
        let mut ids: Vec<_> = (0..reads).map(|_| pair.send(0, read.clone(), &[(&back, 0, length)])).collect();
        let send = followed.then(|| {
            pair.receive(1, &far, 0, 64);
            pair.send(0, SendOperation::Send { immediate: None }, &[(&back, 0, 8)])
        });
        let names = |headers: &Headers| match headers.extension {
            Extension::Reth(reth) if reth.rkey.expose() == far.rkey().expose() => Some(true),
            Extension::Reth(reth) if reth.rkey.expose() == 0 => Some(false),
            Extension::None => None,
            _ => panic!("{headers}"),
        };
        let mut named = Vec::new();
        for _ in 0..3 {
            named.push(pair.take(0).iter().filter_map(names).collect::<Vec<_>>());
            assert!(pair.wait(Duration::from_secs(1)));
        }
        // Its answers are lost: what is acknowledged behind it completes it, where it has no bytes.
        pair.filter = Box::new(|sent| match sent.opcode {
            Opcode::ReadResponseOnly => Fate::Drop,
            _ => Fate::Pass,
        });
        pair.run();
        // 12: IBV_WC_RETRY_EXC_ERR.
        let status = if followed { 0 } else { 12 };
        ids.extend(send);
        let expected: Vec<_> = ids.into_iter().map(|id| (id, status)).collect();
        (named, pair.sides[0].statuses() == expected)
    };
    assert_eq!(named(1, 0, false), (vec![vec![true], vec![true, false], vec![true, false]], true));
    assert_eq!(named(1, 0, true), (vec![vec![true]; 3], true));
    assert_eq!(named(3, 0, true), (vec![vec![true; 3]; 3], true));
    assert_eq!(named(1, 1, false), (vec![vec![true]; 3], true));
}
