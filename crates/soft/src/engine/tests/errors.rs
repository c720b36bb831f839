//! Refusals, and how a queue pair ends.

use std::time::Duration;

use secure_rdma_rdma::{
    Access, AsyncEvent, CompletionKind, ErrorCode, QpAttr, QpState, RKey, RemoteSlice, SendOperation,
};
use secure_rdma_roce::{Aeth, AtomicEth, Credits, Extension, NakCode, Opcode, PacketKey, Reth, Syndrome};

use super::pair::{ALL, Fate, Options, Pair, bytes_of, pattern, remote};

const SEND: SendOperation = SendOperation::Send { immediate: None };

#[test]
fn each_refusal_has_its_status_and_ends_both_queue_pairs() {
    type Make = fn(&mut Pair) -> SendOperation;
    let cases: [(Make, Access, usize, u32, NakCode); 9] = [
        (
            |_| SendOperation::Write {
                remote: RemoteSlice { address: 1, rkey: RKey::new(7) },
                immediate: None,
            },
            ALL,
            8,
            10,
            NakCode::RemoteAccessError,
        ),
        (
            |_| SendOperation::Read { remote: RemoteSlice { address: 1, rkey: RKey::new(7) } },
            ALL,
            8,
            10,
            NakCode::RemoteAccessError,
        ),
        (
            |pair| {
                let far = pair.sides[1].region(4096, ALL);
                SendOperation::Write { remote: remote(&far, 1), immediate: None }
            },
            ALL,
            4096,
            10,
            NakCode::RemoteAccessError,
        ),
        (
            |pair| {
                let far = pair.sides[1].region(4096, ALL);
                SendOperation::Read { remote: remote(&far, 4095) }
            },
            ALL,
            2,
            10,
            NakCode::RemoteAccessError,
        ),
        (
            |pair| {
                let far = pair.sides[1].region(4096, Access::LOCAL_WRITE | Access::REMOTE_READ);
                SendOperation::Write { remote: remote(&far, 0), immediate: None }
            },
            ALL,
            8,
            10,
            NakCode::RemoteAccessError,
        ),
        (
            |pair| {
                let far = pair.sides[1].region(4096, Access::LOCAL_WRITE | Access::REMOTE_WRITE);
                SendOperation::FetchAdd { remote: remote(&far, 0), add: 1 }
            },
            ALL,
            8,
            10,
            NakCode::RemoteAccessError,
        ),
        (
            |pair| {
                let far = pair.sides[1].region(4096, ALL);
                SendOperation::Write { remote: remote(&far, 0), immediate: None }
            },
            Access::REMOTE_READ,
            8,
            9,
            NakCode::InvalidRequest,
        ),
        (
            |pair| {
                let far = pair.sides[1].region(4096, ALL);
                SendOperation::Read { remote: remote(&far, 0) }
            },
            Access::REMOTE_WRITE,
            8,
            9,
            NakCode::InvalidRequest,
        ),
        (
            |pair| {
                let far = pair.sides[1].region(4096, ALL);
                SendOperation::FetchAdd { remote: remote(&far, 0), add: 1 }
            },
            Access::REMOTE_READ,
            8,
            9,
            NakCode::InvalidRequest,
        ),
    ];
    for (index, (make, access, length, status, code)) in cases.into_iter().enumerate() {
        let mut pair = Pair::with(Options { access, ..Options::default() });
        let local = pair.sides[0].region(4096, ALL);
        let inbox = pair.sides[1].region(4096, ALL);
        for n in 0..2 {
            pair.receive(1, &inbox, n, 8);
        }
        pair.send(0, SEND, &[(&local, 0, 8)]);
        let operation = make(&mut pair);
        pair.send(0, operation, &[(&local, 0, length)]);
        pair.send(0, SEND, &[(&local, 0, 8)]);
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, status), (3, 5)], "case {index}");
        assert_eq!(pair.sides[1].statuses(), [(1, 0), (2, 5)], "case {index}");
        assert_eq!((pair.state(0), pair.state(1)), (QpState::Err, QpState::Err));
        let qpn = pair.sides[1].qpn;
        assert_eq!(pair.sides[1].engine.poll_event(), Some((qpn, AsyncEvent::QueuePairFatal)));
        let counters = pair.sides[1].engine.counters();
        let sent = (counters.sent_invalid_request, counters.sent_access_err);
        assert_eq!(sent, if code == NakCode::InvalidRequest { (1, 0) } else { (0, 1) }, "case {index}");
        // In ERR posts are taken, and flushed at once.
        pair.send(0, SEND, &[(&local, 0, 8)]);
        pair.receive(1, &inbox, 0, 8);
        pair.run();
        assert_eq!(pair.sides[0].statuses().last(), Some(&(4, 5)));
        assert_eq!(pair.sides[1].statuses().last(), Some(&(3, 5)));
    }
}

#[test]
fn a_send_that_does_not_fit_its_receive_says_why_on_both_sides() {
    let read_only = Access::REMOTE_READ;
    for (length, access, near, there, kind) in
        [(101, ALL, 9, 1, 0), (5000, ALL, 9, 1, 0), (10, read_only, 11, 4, 0)]
    {
        let mut pair = Pair::new();
        let local = pair.sides[0].region(8192, ALL);
        let inbox = pair.sides[1].region(8192, access);
        pair.receive(1, &inbox, 0, 100);
        pair.receive(1, &inbox, 0, 100);
        pair.send(0, SEND, &[(&local, 0, length)]);
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, near)]);
        assert_eq!(pair.sides[1].statuses(), [(1, there), (2, 5)]);
        assert_eq!(pair.sides[1].engine.poll_event(), None, "a completion says why ({kind})");
        assert_eq!(bytes_of(&inbox)[100..], vec![0; 8092], "nothing beyond the receive");
    }
    // Without bytes nothing is placed, so that the right is not asked for.
    let mut pair = Pair::new();
    let local = pair.sides[0].region(8, ALL);
    let inbox = pair.sides[1].region(8, read_only);
    pair.receive(1, &inbox, 0, 8);
    pair.send(0, SEND, &[(&local, 0, 0)]);
    pair.run();
    assert_eq!((pair.sides[0].statuses(), pair.sides[1].statuses()), (vec![(1, 0)], vec![(1, 0)]));
}

#[test]
fn local_mistakes_end_with_local_statuses_in_the_order_of_posting() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(8, ALL);
    let read_only = pair.sides[0].region(8, Access::empty());
    let far = pair.sides[1].region(8, ALL);
    let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    pair.send(0, write.clone(), &[(&local, 0, 8)]);
    pair.send(0, SendOperation::Read { remote: remote(&far, 0) }, &[(&read_only, 0, 8)]);
    pair.send(0, write, &[(&local, 0, 8)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 4), (3, 5)]);
    assert_eq!((pair.state(0), pair.state(1)), (QpState::Err, QpState::Rts));

    let mut pair = Pair::with(Options { depth: 0, ..Options::default() });
    let local = pair.sides[0].region(8, ALL);
    pair.send(0, SendOperation::Read { remote: remote(&far, 0) }, &[(&local, 0, 8)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 2)], "an initiator depth of 0");
}

#[test]
fn what_cannot_be_posted_is_refused_and_the_rest_is_posted() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(64, ALL);
    let foreign = pair.sides[1].region(64, ALL);
    let side = &mut pair.sides[0];
    let fetch_add =
        |address| SendOperation::FetchAdd { remote: RemoteSlice { address, rkey: RKey::new(1) }, add: 1 };
    let wrong = [
        side.request(SEND, &[(&local, 60, 5)]),
        side.request(SEND, &[(&local, usize::MAX, 2)]),
        side.request(SEND, &[(&foreign, 0, 8)]),
        side.request(SEND, &[(&local, 0, 1); 9]),
        side.request(fetch_add(8), &[(&local, 0, 7)]),
        side.request(fetch_add(8), &[(&local, 0, 4), (&local, 4, 4)]),
        side.request(fetch_add(4), &[(&local, 0, 8)]),
    ];
    for request in wrong {
        let good = side.request(SEND, &[(&local, 0, 0)]);
        let error = side.engine.post_send(pair.now, side.qpn, &[good, request]).unwrap_err();
        assert_eq!((error.posted, error.error.code()), (1, ErrorCode::InvalidArgument));
    }
    let many: Vec<_> = (0..300).map(|_| side.request(SEND, &[(&local, 0, 0)])).collect();
    let error = side.engine.post_send(pair.now, side.qpn, &many).unwrap_err();
    assert_eq!((error.posted, error.error.code()), (256 - 7, ErrorCode::QueueFull));
}

#[test]
fn no_completion_is_lost_since_its_room_is_kept_until_it_is_polled() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(8, ALL);
    let side = &mut pair.sides[0];
    side.engine.modify(pair.now, side.qpn, &QpAttr::to(QpState::Err), None).unwrap();
    let many: Vec<_> = (0..300).map(|_| side.request(SEND, &[(&local, 0, 0)])).collect();
    let error = side.engine.post_send(pair.now, side.qpn, &many).unwrap_err();
    assert_eq!((error.posted, error.error.code()), (256, ErrorCode::QueueFull));
    pair.run();
    assert_eq!(pair.sides[0].completions.len(), 256);
    let side = &mut pair.sides[0];
    assert!(side.engine.post_send(pair.now, side.qpn, &many[..10]).is_ok());
}

#[test]
fn a_silent_peer_is_given_up_after_all_copies() {
    const TIMEOUT: Duration = Duration::from_nanos(4096 << 14);
    for adaptive in [false, true] {
        for retry_count in 0..=7 {
            let mut options = Options { retry_count, ..Options::default() };
            options.config.adaptive_timeout = adaptive;
            let mut pair = Pair::with(options);
            let local = pair.sides[0].region(8, ALL);
            pair.filter = Box::new(|_| Fate::Drop);
            let start = pair.now;
            pair.send(0, SEND, &[(&local, 0, 8)]);
            pair.send(0, SEND, &[(&local, 0, 8)]);
            pair.run();
            assert_eq!(pair.sides[0].statuses(), [(1, 12), (2, 5)]);
            assert_eq!(
                pair.now - start,
                TIMEOUT * (u32::from(retry_count) + 1),
                "never earlier, never later"
            );
            let first = pair.log[0].psn;
            let copies = pair.log.iter().filter(|sent| sent.psn == first).count();
            if adaptive {
                assert!(copies > usize::from(retry_count), "{copies}");
            } else {
                assert_eq!(copies, usize::from(retry_count) + 1);
            }
        }
    }
}

#[test]
fn an_engine_that_was_not_run_gives_its_peer_one_more_chance() {
    for adaptive in [false, true] {
        let mut options = Options { retry_count: 2, ..Options::default() };
        options.config.adaptive_timeout = adaptive;
        let mut pair = Pair::with(options);
        let local = pair.sides[0].region(8, ALL);
        let inbox = pair.sides[1].region(8, ALL);
        pair.receive(1, &inbox, 0, 8);
        pair.filter = Box::new(|_| Fate::Drop);
        pair.send(0, SEND, &[(&local, 0, 8)]);
        pair.exchange();
        // The process was stopped for a minute.
        pair.now += Duration::from_secs(60);
        pair.filter = Box::new(|_| Fate::Pass);
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, 0)]);

        pair.filter = Box::new(|_| Fate::Drop);
        pair.send(0, SEND, &[(&local, 0, 8)]);
        pair.exchange();
        pair.now += Duration::from_secs(60);
        let stopped = pair.now;
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 12)]);
        assert_eq!(pair.now - stopped, Duration::from_nanos(4096 << 14), "and only one");
    }
}

#[test]
fn a_timeout_code_of_0_is_never() {
    let mut pair = Pair::with(Options { timeout: 0, ..Options::default() });
    let local = pair.sides[0].region(8, ALL);
    pair.filter = Box::new(|_| Fate::Drop);
    pair.send(0, SEND, &[(&local, 0, 8)]);
    pair.run();
    assert!(pair.sides[0].completions.is_empty());
    assert_eq!(pair.log.len(), 1);
}

#[test]
fn an_rnr_nak_is_waited_out_and_counted() {
    const WAIT: Duration = Duration::from_micros(640);
    for rnr_retry in 0..7 {
        let mut pair = Pair::with(Options { rnr_retry, ..Options::default() });
        let local = pair.sides[0].region(8, ALL);
        let start = pair.now;
        pair.send(0, SEND, &[(&local, 0, 8)]);
        pair.send(0, SEND, &[(&local, 0, 8)]);
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, 13), (2, 5)]);
        assert_eq!(pair.log.last().unwrap().at - start, WAIT * u32::from(rnr_retry));
        let copies = pair.log.iter().filter(|sent| sent.from == 0 && sent.psn == 0xFF_FFFE).count();
        assert_eq!(copies, usize::from(rnr_retry) + 1);
        assert_eq!(pair.state(1), QpState::Rts, "the responder goes on");
    }
    // 7 is for ever.
    let mut pair = Pair::new();
    let local = pair.sides[0].region(8, ALL);
    let inbox = pair.sides[1].region(8, ALL);
    pair.send(0, SEND, &[(&local, 0, 8)]);
    for _ in 0..1000 {
        pair.exchange();
        assert!(pair.wait(WAIT));
    }
    pair.receive(1, &inbox, 0, 8);
    pair.run();
    assert_eq!((pair.sides[0].statuses(), pair.sides[1].statuses()), (vec![(1, 0)], vec![(1, 0)]));
}

#[test]
fn progress_gives_all_rnr_retries_back() {
    let mut pair = Pair::with(Options { rnr_retry: 2, ..Options::default() });
    let local = pair.sides[0].region(8, ALL);
    let inbox = pair.sides[1].region(8, ALL);
    for _ in 0..5 {
        pair.send(0, SEND, &[(&local, 0, 8)]);
    }
    for _ in 0..5 {
        for _ in 0..2 {
            pair.exchange();
            assert!(pair.wait(Duration::from_millis(1)));
        }
        pair.receive(1, &inbox, 0, 8);
    }
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]);
}

#[test]
fn every_pair_of_request_opcodes_is_judged_rightly() {
    use Opcode as O;
    let requests: Vec<_> = O::ALL.into_iter().filter(|opcode| opcode.is_request()).collect();
    assert_eq!(requests.len(), 19);
    for before in &requests {
        for after in &requests {
            let unsupported = |opcode: &O| matches!(opcode, O::Flush | O::AtomicWrite);
            if unsupported(before) || unsupported(after) {
                continue;
            }
            let open = |opcode: &O| match opcode {
                O::SendFirst | O::SendMiddle => Some(true),
                O::WriteFirst | O::WriteMiddle => Some(false),
                _ => None,
            };
            let goes_on = after.is_middle() || after.is_last();
            let legal = match open(before) {
                None => !goes_on,
                Some(send) => goes_on && after.is_send() == send && after.is_write() != send,
            };
            let mut pair = Pair::new();
            let far = pair.sides[0].region(1 << 16, ALL);
            let window = far.rkey().expose();
            for _ in 0..4 {
                pair.receive(0, &far, 0, 1 << 14);
            }
            let mut psn = 0xFF_FFFE;
            // What must come before `before`.
            let begin = match before {
                O::SendMiddle | O::SendLast | O::SendLastWithImmediate | O::SendLastWithInvalidate => {
                    Some(O::SendFirst)
                }
                O::WriteMiddle | O::WriteLast | O::WriteLastWithImmediate => Some(O::WriteFirst),
                _ => None,
            };
            let chain: Vec<_> = begin.into_iter().chain([*before, *after]).collect();
            // Whole path MTUs: those of the message, and one more while its last packet is to come.
            let ends = chain.iter().position(|opcode| opcode.is_last());
            let message =
                chain.iter().filter(|opcode| opcode.is_first() || opcode.is_middle() || opcode.is_last());
            let long = 1024 * (ends.map_or(message.count() + 1, |last| last + 1) as u32);
            for opcode in chain {
                let (extension, payload) = parts(opcode, far.address(), window, long);
                pair.forge(0, opcode, psn, extension, &payload);
                psn = (psn + 1) & 0xFF_FFFF;
            }
            if before.has_invalidate() {
                continue;
            }
            let invalid = pair.take(0).iter().any(|headers| {
                matches!(
                    headers.extension,
                    Extension::Aeth(Aeth { syndrome: Syndrome::Nak(NakCode::InvalidRequest), .. })
                )
            });
            assert_eq!(invalid, !legal, "{before} then {after}");
            assert_eq!(
                pair.state(0) == QpState::Err,
                !legal || after.has_invalidate(),
                "{before} then {after}"
            );
        }
    }
}

/// The rest of a legal packet with this opcode.
fn parts(opcode: Opcode, address: u64, key: u32, long_message: u32) -> (Extension, Vec<u8>) {
    let rkey = PacketKey::new(key);
    let long = opcode.is_first() || opcode.is_middle();
    let dma_length = match opcode {
        Opcode::WriteFirst => long_message,
        Opcode::ReadRequest => 100,
        _ => 64,
    };
    let reth = Reth { virtual_address: address, rkey, dma_length };
    let immediate = secure_rdma_roce::ImmDt { value: 1 };
    let extension = if opcode.is_atomic() {
        Extension::Atomic(AtomicEth { virtual_address: address, rkey, swap_or_add: 1, compare: 0xDEAD })
    } else if opcode.has_invalidate() {
        Extension::Invalidate(secure_rdma_roce::Ieth { rkey })
    } else {
        match (opcode.has_reth(), opcode.has_immediate()) {
            (true, true) => Extension::RethImmediate(reth, immediate),
            (true, false) => Extension::Reth(reth),
            (false, true) => Extension::Immediate(immediate),
            (false, false) => Extension::None,
        }
    };
    let length = match opcode {
        Opcode::ReadRequest | Opcode::CompareSwap | Opcode::FetchAdd => 0,
        Opcode::WriteLast | Opcode::WriteLastWithImmediate => 1024,
        _ if long => 1024,
        _ => 64,
    };
    (extension, pattern(length))
}

#[test]
fn zero_bytes_need_no_key() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(8, ALL);
    let inbox = pair.sides[1].region(8, ALL);
    let garbage = RemoteSlice { address: u64::MAX, rkey: RKey::new(0) };
    pair.receive(1, &inbox, 0, 0);
    pair.send(0, SendOperation::Write { remote: garbage, immediate: None }, &[(&local, 0, 0)]);
    pair.send(0, SendOperation::Write { remote: garbage, immediate: Some(1) }, &[]);
    pair.send(0, SendOperation::Read { remote: garbage }, &[(&local, 0, 0)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 0), (3, 0)]);
    assert_eq!(pair.sides[1].completions[0].kind, CompletionKind::ReceiveWriteImmediate);
}

#[test]
fn responses_outside_the_window_are_ignored() {
    let ack = |code| Extension::Aeth(Aeth { syndrome: Syndrome::from_byte(code), msn: 1 });
    let mut pair = Pair::new();
    let local = pair.sides[0].region(8, ALL);
    pair.filter = Box::new(|_| Fate::Drop);
    for _ in 0..3 {
        pair.send(0, SEND, &[(&local, 0, 8)]);
    }
    pair.exchange();
    // Outstanding: FFFFFE, FFFFFF, 0.
    for psn in [0xFF_FFFD, 0x80_0000, 1, 2, 100_000, 0x7F_FFFE] {
        for code in [0x1F, 0x2C, 0x60, 0x61, 0x62, 0x63, 0x7F] {
            pair.forge(0, Opcode::Acknowledge, psn, ack(code), &[]);
        }
        pair.forge(0, Opcode::ReadResponseOnly, psn, ack(0x1F), &[0; 8]);
    }
    for code in (0x40..0x60).chain(0x80..=0xFF) {
        pair.forge(0, Opcode::Acknowledge, 0xFF_FFFF, ack(code), &[]);
    }
    // The kind must fit, too.
    pair.forge(0, Opcode::ReadResponseOnly, 0xFF_FFFE, ack(0x1F), &[0; 8]);
    assert!(pair.sides[0].completions.is_empty());
    assert_eq!(pair.state(0), QpState::Rts);
    assert!(pair.take(0).is_empty(), "nor is anything sent again");
    let counters = pair.sides[0].engine.counters();
    assert_eq!(
        (counters.dropped_response_psn, counters.dropped_syndrome, counters.dropped_response_kind),
        (48, 160, 1)
    );
    // Positive control.
    let code = Syndrome::Ack(Credits::UNLIMITED).to_byte();
    pair.forge(0, Opcode::Acknowledge, 0xFF_FFFF, ack(code), &[]);
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 0)]);
}

#[test]
fn each_nak_code_has_its_status() {
    for (code, status) in [(0x61, 9), (0x62, 10), (0x63, 11), (0x64, 11), (0x65, 11), (0x7F, 11)] {
        let mut pair = Pair::new();
        let local = pair.sides[0].region(8, ALL);
        pair.filter = Box::new(|_| Fate::Drop);
        for _ in 0..3 {
            pair.send(0, SEND, &[(&local, 0, 8)]);
        }
        pair.exchange();
        let extension = Extension::Aeth(Aeth { syndrome: Syndrome::from_byte(code), msn: 1 });
        pair.forge(0, Opcode::Acknowledge, 0xFF_FFFF, extension, &[]);
        assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, status), (3, 5)]);
    }
}

#[test]
fn reset_forgets_without_completions_and_the_queue_pair_can_be_used_again() {
    let mut pair = Pair::new();
    let local = pair.sides[0].region(8, ALL);
    pair.filter = Box::new(|_| Fate::Drop);
    for _ in 0..3 {
        pair.send(0, SEND, &[(&local, 0, 8)]);
    }
    pair.receive(0, &local, 0, 8);
    pair.exchange();
    for index in 0..2 {
        let side = &mut pair.sides[index];
        side.engine.modify(pair.now, side.qpn, &QpAttr::to(QpState::Reset), None).unwrap();
        pair.bring_up(index, &Options { psn: 77, ..Options::default() });
    }
    pair.filter = Box::new(|_| Fate::Pass);
    assert!(pair.sides[0].completions.is_empty());
    let inbox = pair.sides[1].region(8, ALL);
    pair.receive(1, &inbox, 0, 8);
    let id = pair.send(0, SEND, &[(&local, 0, 8)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(id, 0)]);
}
