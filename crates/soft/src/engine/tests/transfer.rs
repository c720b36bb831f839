//! What goes over a wire that loses nothing.

use secure_rdma_rdma::{CompletionKind, PathMtu, SendOperation};
use secure_rdma_roce::Opcode;

use super::pair::{ALL, Options, Pair, bytes_of, pattern, remote};

const LENGTHS: [usize; 9] = [0, 1, 1023, 1024, 1025, 2047, 2048, 3072, 128 * 1024 + 1];

#[test]
fn sends_of_every_length_arrive_over_the_wrap() {
    for v6 in [false, true] {
        for mtu in [PathMtu::Bytes256, PathMtu::Bytes1024, PathMtu::Bytes4096] {
            let mut pair = Pair::with(Options { v6, mtu, ..Options::default() });
            for length in LENGTHS {
                let from = pair.sides[0].region(length.max(1), ALL);
                let to = pair.sides[1].region(length.max(1) + 16, ALL);
                from.memory().write(0, &pattern(length.max(1))).unwrap();
                let receive = pair.receive(1, &to, 8, length.max(1));
                let immediate = (length % 2 == 1).then_some(0xDEAD_BEEF);
                let send = pair.send(0, SendOperation::Send { immediate }, &[(&from, 0, length)]);
                pair.run();
                let done = pair.sides[0].completions.pop().unwrap();
                assert!(done.status.is_success() && done.id.0 == send && done.kind == CompletionKind::Send);
                let done = pair.sides[1].completions.pop().unwrap();
                assert!(done.status.is_success() && done.id.0 == receive, "{length}");
                assert_eq!((done.byte_len as usize, done.immediate), (length, immediate));
                assert_eq!(done.kind, CompletionKind::Receive);
                let expected = [&[0; 8][..], &pattern(length), &vec![0; length.max(1) - length + 8]].concat();
                assert_eq!(bytes_of(&to), expected, "{length}");
            }
            assert_eq!(pair.sides[0].engine.counters().retransmitted_pkts, 0);
            assert_eq!(
                pair.sides[0].engine.counters().dropped() + pair.sides[1].engine.counters().dropped(),
                0
            );
        }
    }
}

#[test]
fn writes_and_reads_of_every_length_are_byte_exact() {
    for depth in [1, 4] {
        let mut pair = Pair::with(Options { depth, ..Options::default() });
        for length in LENGTHS {
            let local = pair.sides[0].region(length.max(1), ALL);
            let far = pair.sides[1].region(length.max(1) + 16, ALL);
            local.memory().write(0, &pattern(length.max(1))).unwrap();
            let write = SendOperation::Write { remote: remote(&far, 8), immediate: None };
            pair.send(0, write, &[(&local, 0, length)]);
            pair.run();
            let expected = [&[0; 8][..], &pattern(length), &vec![0; length.max(1) - length + 8]].concat();
            assert_eq!(bytes_of(&far), expected, "{length}");

            let back = pair.sides[0].region(length.max(1), ALL);
            pair.send(0, SendOperation::Read { remote: remote(&far, 8) }, &[(&back, 0, length)]);
            pair.run();
            assert_eq!(bytes_of(&back)[..length], pattern(length)[..], "{length}");
            let done = pair.sides[0].completions.pop().unwrap();
            assert!(done.status.is_success());
            assert_eq!(done.byte_len as usize, length);
        }
        assert!(pair.sides[1].completions.is_empty());
        assert_eq!(pair.sides[0].engine.counters().retransmitted_pkts, 0);
    }
}

#[test]
fn a_write_with_immediate_consumes_a_receive_and_tells_its_length() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(3000, ALL);
    let far = pair.sides[1].region(3000, ALL);
    for length in [0, 8, 3000] {
        let receive = pair.receive(1, &far, 0, 0);
        let write = SendOperation::Write { remote: remote(&far, 0), immediate: Some(7) };
        pair.send(0, write, &[(&local, 0, length)]);
        pair.run();
        let done = pair.sides[1].completions.pop().unwrap();
        assert!(done.status.is_success() && done.id.0 == receive);
        assert_eq!(done.kind, CompletionKind::ReceiveWriteImmediate);
        assert_eq!((done.byte_len as usize, done.immediate), (length, Some(7)));
    }
}

#[test]
fn atomics_answer_what_was_there() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(64, ALL);
    let far = pair.sides[1].region(64, ALL);
    far.memory().write(16, &5_u64.to_ne_bytes()).unwrap();
    let result = |pair: &mut Pair, operation| {
        pair.send(0, operation, &[(&local, 8, 8)]);
        pair.run();
        let done = pair.sides[0].completions.pop().unwrap();
        assert!(done.status.is_success());
        assert_eq!(done.byte_len, 8);
        u64::from_ne_bytes(bytes_of(&local)[8..16].try_into().unwrap())
    };
    let remote = remote(&far, 16);
    assert_eq!(result(&mut pair, SendOperation::FetchAdd { remote, add: 10 }), 5);
    assert_eq!(result(&mut pair, SendOperation::CompareSwap { remote, compare: 14, swap: 1 }), 15);
    assert_eq!(result(&mut pair, SendOperation::CompareSwap { remote, compare: 15, swap: 0x99 }), 15);
    assert_eq!(bytes_of(&far)[16..24], 0x99_u64.to_ne_bytes());
    assert_eq!(pair.opcodes(0), [Opcode::FetchAdd, Opcode::CompareSwap, Opcode::CompareSwap]);
}

#[test]
fn scattered_slices_hold_one_message() {
    let mut pair = Pair::new();
    let from = pair.sides[0].region(5000, ALL);
    let to = pair.sides[1].region(5000, ALL);
    from.memory().write(0, &pattern(5000)).unwrap();
    let side = &mut pair.sides[1];
    let mut receive = secure_rdma_rdma::ReceiveRequest::new(secure_rdma_rdma::WorkId(1), &to, 0, 100);
    for (offset, length) in [(100, 0), (200, 1500), (4000, 1000), (2000, 400)] {
        receive.local.push(secure_rdma_rdma::Slice::new(&to, offset, length));
    }
    side.engine.post_receive(side.qpn, &[receive]).unwrap();
    let local = [(&from, 10, 1), (&from, 11, 1023), (&from, 1034, 0), (&from, 1034, 1976)];
    pair.send(0, SendOperation::Send { immediate: None }, &local);
    pair.run();
    assert_eq!(pair.sides[1].completions[0].byte_len, 3000);
    let (sent, got) = (pattern(5000)[10..3010].to_vec(), bytes_of(&to));
    let gathered = [&got[..100], &got[200..1700], &got[4000..5000], &got[2000..2400]].concat();
    assert_eq!(gathered, sent);
    assert_eq!(got.iter().filter(|byte| **byte != 0).count(), sent.iter().filter(|byte| **byte != 0).count());
}

#[test]
fn equal_packets_go_in_batches() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(64, ALL);
    let far = pair.sides[1].region(64, ALL);
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
            pair.sides[0].request(write, &[(&local, 0, 64)])
        })
        .collect();
    let side = &mut pair.sides[0];
    side.engine.post_send(pair.now, side.qpn, &requests).unwrap();
    pair.run();
    assert_eq!(pair.sides[0].completions.len(), 100);
    assert_eq!(pair.batches[0], 64);
    assert_eq!(pair.opcodes(1).len(), 2, "one acknowledgement for each time that something came");
}
