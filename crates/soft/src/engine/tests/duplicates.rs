//! Requests that come twice, since their answers were lost: each is answered again, and nothing is executed again.

use secure_rdma_rdma::{RemoteSlice, SendOperation};
use secure_rdma_roce::Opcode;

use super::loss::random;
use super::pair::{ALL, Fate, Options, Pair, bytes_of, pattern, remote, seeded};

/// One request of a kind, whose answer is what gets lost.
struct Case {
    what: &'static str,
    make: fn(RemoteSlice) -> SendOperation,
    /// The request's last packet, of a message that one packet holds and of one that takes three.
    opcodes: [Opcode; 2],
    /// Whether it takes a receive.
    receives: bool,
    /// Whether what was there comes back, not the requester's bytes go there.
    fetches: bool,
}

const CASES: [Case; 7] = [
    Case {
        what: "SEND",
        make: |_| SendOperation::Send { immediate: None },
        opcodes: [Opcode::SendOnly, Opcode::SendLast],
        receives: true,
        fetches: false,
    },
    Case {
        what: "SEND with immediate",
        make: |_| SendOperation::Send { immediate: Some(0xA1B2_C3D4) },
        opcodes: [Opcode::SendOnlyWithImmediate, Opcode::SendLastWithImmediate],
        receives: true,
        fetches: false,
    },
    Case {
        what: "WRITE",
        make: |remote| SendOperation::Write { remote, immediate: None },
        opcodes: [Opcode::WriteOnly, Opcode::WriteLast],
        receives: false,
        fetches: false,
    },
    Case {
        what: "WRITE with immediate",
        make: |remote| SendOperation::Write { remote, immediate: Some(0xA1B2_C3D4) },
        opcodes: [Opcode::WriteOnlyWithImmediate, Opcode::WriteLastWithImmediate],
        receives: true,
        fetches: false,
    },
    Case {
        what: "READ",
        make: |remote| SendOperation::Read { remote },
        opcodes: [Opcode::ReadRequest; 2],
        receives: false,
        fetches: true,
    },
    Case {
        what: "CMP_SWAP",
        make: |remote| SendOperation::CompareSwap { remote, compare: FOUND, swap: 77 },
        opcodes: [Opcode::CompareSwap; 2],
        receives: false,
        fetches: true,
    },
    Case {
        what: "FETCH_ADD",
        make: |remote| SendOperation::FetchAdd { remote, add: 9 },
        opcodes: [Opcode::FetchAdd; 2],
        receives: false,
        fetches: true,
    },
];

/// What an atomic finds: the first eight bytes of `pattern`.
const FOUND: u64 = u64::from_ne_bytes([3, 10, 17, 24, 31, 38, 45, 52]);

#[test]
fn a_duplicate_of_each_opcode_is_answered_and_not_executed() {
    for case in &CASES {
        let is_atomic = matches!(case.opcodes[0], Opcode::CompareSwap | Opcode::FetchAdd);
        for (length, opcode) in [if is_atomic { 8 } else { 100 }, 2500].into_iter().zip(case.opcodes) {
            if is_atomic && length != 8 {
                continue;
            }
            one_answer_lost(case, length, opcode);
        }
    }
}

fn one_answer_lost(case: &Case, length: usize, opcode: Opcode) {
    let what = format!("{} of {length} B", case.what);
    let mut pair = Pair::new();
    let local = pair.sides[0].region(4096, ALL);
    let far = pair.sides[1].region(4096, ALL);
    let inbox = pair.sides[1].region(8192, ALL);
    let (source, target) = match (case.fetches, case.receives) {
        (true, _) => (&far, &local),
        (false, true)
            if matches!(opcode, Opcode::WriteOnlyWithImmediate | Opcode::WriteLastWithImmediate) =>
        {
            (&local, &far)
        }
        (false, true) => (&local, &inbox),
        (false, false) => (&local, &far),
    };
    source.memory().write(0, &pattern(length)).unwrap();
    // Two receives, so that what is executed twice has somewhere to go.
    pair.receive(1, &inbox, 0, 4096);
    pair.receive(1, &inbox, 4096, 4096);
    // Of one packet: nothing is answered until the requester's timer, and then the request comes again. Of three: each
    // comes twice at once, since a duplicate of the first alone would be answered for all.
    let start = pair.now;
    let single = length <= 1024;
    pair.filter = Box::new(move |sent| match sent.from {
        0 if !single => Fate::Twice,
        1 if single && sent.at == start => Fate::Drop,
        _ => Fate::Pass,
    });
    let id = pair.send(0, (case.make)(remote(&far, 0)), &[(&local, 0, length)]);
    pair.run();

    let copies = pair.opcodes(0).iter().filter(|sent| **sent == opcode).count();
    assert_eq!(copies, if single { 2 } else { 1 }, "{what}: it is sent again where its answer was lost");
    assert_eq!(pair.sides[0].statuses(), [(id, 0)], "{what}");
    assert_eq!(bytes_of(target)[..length], pattern(length), "{what}");
    assert_eq!(bytes_of(&inbox)[4096..], vec![0; 4096], "{what}: the second receive is untouched");
    let received: Vec<_> = pair.sides[1].completions.iter().map(|done| done.byte_len as usize).collect();
    assert_eq!(received, if case.receives { vec![length] } else { vec![] }, "{what}: one receive each");
    let found = bytes_of(&far)[..8].to_vec();
    match opcode {
        Opcode::CompareSwap => assert_eq!(found, 77_u64.to_ne_bytes(), "{what}"),
        Opcode::FetchAdd => assert_eq!(found, (FOUND + 9).to_ne_bytes(), "{what}: added once"),
        _ => {}
    }
    let counters = pair.sides[1].engine.counters();
    let replayed = (counters.replayed_acks > 0, counters.replayed_reads, counters.replayed_atomics);
    let expected = match opcode {
        Opcode::ReadRequest => (false, 1, 0),
        Opcode::CompareSwap | Opcode::FetchAdd => (false, 0, 1),
        _ => (true, 0, 0),
    };
    assert_eq!(replayed, expected, "{what}");
}

/// A CMP_SWAP that is executed twice finds its own result, and one that is not finds what was there: each counts up by one.
#[test]
fn a_compare_and_swap_is_executed_once_though_half_of_its_answers_are_lost() {
    let mut replayed = 0;
    for seed in 0..20 {
        let mut pair = Pair::with(Options { timeout: 18, ..Options::default() });
        let local = pair.sides[0].region(160, ALL);
        let far = pair.sides[1].region(8, ALL);
        let entropy = seeded(seed);
        pair.filter = Box::new(move |sent| match sent.from {
            1 if random(entropy.as_ref(), 2) == 0 => Fate::Drop,
            _ => Fate::Pass,
        });
        for index in 0..20_u64 {
            let operation =
                SendOperation::CompareSwap { remote: remote(&far, 0), compare: index, swap: index + 1 };
            pair.send(0, operation, &[(&local, index as usize * 8, 8)]);
        }
        pair.run();
        assert_eq!(bytes_of(&far), 20_u64.to_ne_bytes());
        let expected: Vec<u8> = (0..20_u64).flat_map(u64::to_ne_bytes).collect();
        assert_eq!(bytes_of(&local), expected, "what each found");
        replayed += pair.sides[1].engine.counters().replayed_atomics;
    }
    assert!(replayed > 100, "positive control: {replayed} answers were given again");
}

/// The peer owes an answer to the last packet alone. Where that packet or the answer is lost, nothing but the timer helps.
#[test]
fn the_timer_recovers_where_a_peer_answers_the_last_packet_alone() {
    for lost in [Opcode::WriteLast, Opcode::Acknowledge] {
        let mut pair = Pair::new();
        let local = pair.sides[0].region(4096, ALL);
        let far = pair.sides[1].region(4096, ALL);
        local.memory().write(0, &pattern(2500)).unwrap();
        let mut seen = false;
        pair.filter = Box::new(move |sent| {
            let first = sent.opcode == lost && !seen;
            seen |= first;
            if first { Fate::Drop } else { Fate::Pass }
        });
        let start = pair.now;
        let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
        pair.send(0, write, &[(&local, 0, 2500)]);
        pair.exchange();
        assert!(pair.sides[0].completions.is_empty(), "no answer to First and Middle completes it");
        let answers = pair.opcodes(1).len();
        assert_eq!(answers, usize::from(lost == Opcode::Acknowledge), "{lost:?}: silent but for Last");
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
        assert_eq!(bytes_of(&far)[..2500], pattern(2500));
        assert!(pair.now > start);
        assert_eq!(pair.sides[0].engine.counters().timeouts, 1, "{lost:?}");
    }
}
