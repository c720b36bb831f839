//! Every operation between the embedded device and the kernel's soft-RoCE, each way, set up by the exchange over TLS.
//!
//! In the guest only: rxe2 is in the first network namespace, the embedded device in the namespace `peer` at the other end
//! of its wire (tools/soft-roce/peer.sh). Both are driven from this process, whose threads are in either namespace.
//!
//! What a reliable connection has to do, and the tests of it. `engine` is crates/soft/src/engine/tests; `roce` is
//! crates/roce/tests; the others are here and in the modules below, against rxe, each way unless they say otherwise.
//!
//! | What | On the engine, or the codec | Against rxe |
//! | --- | --- | --- |
//! | Vectors of the ICRC, both ways; the solver of IPv4 IDs | roce `golden`, `icrc`, `corruption` | every test: each side takes the other's packets |
//! | PSNs wrap inside SEND, WRITE, READ | engine `duplicates` (three packets from 0xFF_FFFE), `loss` | `messages::psns_wrap_…` |
//! | READ of 0, 1, PMTU − 1, PMTU, PMTU + 1, 3 · PMTU, 128 · PMTU + 1 bytes | engine `transfer` | `messages::reads_of_…`, PMTU 1024 and 4096 |
//! | All pairs of request opcodes | engine `errors::every_pair_of_…` | no: neither device sends a wrong order |
//! | Each NAK code, statuses, both queue pairs in ERR, flush order | engine `errors::each_refusal_…`, `each_nak_code_…` | `refusals`: keys, bounds, rights of queue pair and region, a receive that is too short or may not be written. Not an unaligned atomic, which no device of ours posts |
//! | RNR: wait, resume, `rnr_retry` 0 to 7 | engine `errors::an_rnr_nak_…`, `progress_gives_…` | `waiting::a_receive_that_…`, `rnr_retry` 0, 1, 3, 6, 7 |
//! | One NAK for a gap, and the NAK lost | engine `loss::one_nak_…`, `everything_arrives_…` | `losses::a_lost_packet_…`, `a_lost_packet_and_its_lost_nak_…` |
//! | Duplicates of each opcode; an atomic once while answers are lost | engine `duplicates`, `limits::duplicates_of_…`, `loss::an_atomic_…` | `losses::a_lost_packet_…`: each answer |
//! | READ responses lost, partial retry, an ACK that overtakes one | engine `loss::a_lost_read_…`, `an_acknowledgement_that_…` | `losses::a_lost_packet_…`: First, Middle, Last, Only, alone and with a WRITE behind |
//! | ACK and NAK outside the window, reserved syndromes | engine `errors::responses_outside_…` | no: rxe sends none |
//! | No bytes, any key | engine `errors::zero_bytes_…` | `messages::messages_without_bytes_…` |
//! | A peer that answers Last alone; the timer recovers | engine `duplicates::the_timer_…` | `losses::a_lost_packet_…`: rxe answers nothing else |
//! | A silent peer: n + 1 copies, then status 12 | engine `errors::a_silent_peer_…` | `waiting::a_silent_peer_…`, n of 0, 1, 3, 6 |
//! | Odd but legal headers taken; others dropped in silence and counted | engine `admission` | `odd_wires::marked_…`, `…_with_one_percent_corrupted`: FECN, BECN, MigReq, and wrong ICRCs. The rest would need another ICRC than either sends |
//! | GSO, and none | engine `transfer::equal_packets_…`; crates/soft/tests/device_options.rs | every test, with GSO; `odd_wires::…_without_batches` |
//! | Unknown bytes in FETCH_ADD's compare field | engine `limits::duplicates_of_…` (compare 77) | `atomics`, on Linux 6.12, whose rxe leaves such bytes |
//!
//! All of it runs on the Linux of Debian 12 in `npm test`, and on Linux 6.12 in `npm run soak`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "interop/end.rs"]
mod end;
#[path = "interop/losses.rs"]
mod losses;
#[path = "interop/messages.rs"]
mod messages;
#[path = "interop/odd_wires.rs"]
mod odd_wires;
#[path = "interop/refusals.rs"]
mod refusals;
#[path = "interop/waiting.rs"]
mod waiting;
#[path = "interop/wire.rs"]
mod wire;

use std::sync::Arc;

use end::{ALL, End, REGION, bytes, connected, options};
use secure_rdma_rdma::{
    Access, CompletionKind, PathMtu, RKey, RemoteSlice, SendFlags, SendOperation, SendRequest, Slice,
    WcStatus, WorkId,
};
use wire::{Wire, alone};

const SEND: SendOperation = SendOperation::Send { immediate: None };

/// Where rxe2 is, and the embedded device.
const FAMILIES: [(&str, &str); 2] = [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")];

/// Who serves and who connects, over which family, and the ends in the order rxe, soft.
fn everywhere(wire: &Wire, path_mtu: PathMtu, test: impl Fn(&End, &End)) {
    for (outside, inside) in FAMILIES {
        for soft_serves in [false, true] {
            let (rxe, soft) = connected(outside, inside, soft_serves, options(path_mtu));
            assert_eq!((rxe.path_mtu, soft.path_mtu), (path_mtu, path_mtu));
            test(&rxe, &soft);
            println!("{outside} and {inside}, soft {}", if soft_serves { "serves" } else { "connects" });
        }
    }
    wire.check();
}

/// What one end asks of the other, byte by byte.
fn every_operation(one: &End, other: &End) {
    let mtu = one.path_mtu.bytes();
    for length in [0, 1, 3, mtu - 1, mtu, mtu + 1, 2 * mtu, 5 * mtu + 7, 100_000] {
        let sent = bytes(length, 3);
        one.fill(0, &sent);

        other.receive(1, 200_000, length.max(1));
        one.post(2, SendOperation::Send { immediate: Some(0xA1B2_C3D4) }, 0, length);
        let (done, received) = (one.done(), other.done());
        assert_eq!((done.id, done.kind), (WorkId(2), CompletionKind::Send));
        assert_eq!((received.id, received.kind), (WorkId(1), CompletionKind::Receive));
        assert_eq!((received.byte_len as usize, received.immediate), (length, Some(0xA1B2_C3D4)));
        assert_eq!(other.read_back(200_000, length), sent, "SEND with immediate, {length} B");

        other.receive(3, 350_000, length.max(1));
        one.post(4, SEND, 0, length);
        assert_eq!((one.done().id, other.done().immediate), (WorkId(4), None));
        assert_eq!(other.read_back(350_000, length), sent, "SEND, {length} B");

        one.post(5, SendOperation::Write { remote: other.remote(500_001), immediate: None }, 0, length);
        assert_eq!(one.done().id, WorkId(5));
        assert_eq!(other.read_back(500_001, length), sent, "WRITE, {length} B");

        other.receive(6, 0, 0);
        one.post(7, SendOperation::Write { remote: other.remote(650_003), immediate: Some(9) }, 0, length);
        let received = other.done();
        assert_eq!((received.id, received.kind), (WorkId(6), CompletionKind::ReceiveWriteImmediate));
        assert_eq!((received.byte_len as usize, received.immediate), (length, Some(9)));
        assert_eq!(one.done().id, WorkId(7));
        assert_eq!(other.read_back(650_003, length), sent, "WRITE with immediate, {length} B");

        let held = bytes(length, 77);
        other.fill(800_000, &held);
        one.post(8, SendOperation::Read { remote: other.remote(800_000) }, 900_001, length);
        assert_eq!(one.done().id, WorkId(8));
        assert_eq!(one.read_back(900_001, length), held, "READ, {length} B");
    }
    atomics(one, other);
}

fn atomics(one: &End, other: &End) {
    other.fill(800, &u64::MAX.to_ne_bytes());
    one.post(9, SendOperation::FetchAdd { remote: other.remote(800), add: 6 }, 8, 8);
    one.done();
    let number = |bytes: Vec<u8>| u64::from_ne_bytes(bytes.try_into().unwrap());
    assert_eq!((number(one.read_back(8, 8)), number(other.read_back(800, 8))), (u64::MAX, 5));
    for (compare, swap, before, after) in [(4, 1, 5, 5), (5, u64::MAX - 1, 5, u64::MAX - 1)] {
        one.post(10, SendOperation::CompareSwap { remote: other.remote(800), compare, swap }, 16, 8);
        one.done();
        assert_eq!((number(one.read_back(16, 8)), number(other.read_back(800, 8))), (before, after));
    }
}

/// Many requests at once, of all kinds that need no receive, both ways at the same time.
fn many_at_once(one: &End, other: &End) {
    const EACH: usize = 24_000;
    const COUNT: usize = 16;
    for (end, seed) in [(one, 11), (other, 12)] {
        end.fill(0, &bytes(COUNT * EACH, seed));
        end.fill(COUNT * EACH, &vec![0; COUNT * EACH]);
    }
    let post = |from: &End, to: &End| {
        let writes: Vec<_> = (0..COUNT)
            .map(|i| {
                let (here, there) = (i * EACH, (COUNT + i) * EACH);
                // Every third is asked for by the other end's bytes instead.
                let remote = to.remote(if i % 3 == 2 { here } else { there });
                let (operation, at) = match i % 3 {
                    2 => (SendOperation::Read { remote }, REGION - (i / 3 + 1) * EACH),
                    _ => (SendOperation::Write { remote, immediate: None }, here),
                };
                SendRequest {
                    id: WorkId(i as u64),
                    operation,
                    local: [Slice::new(&from.region, at, EACH)].into_iter().collect(),
                    flags: SendFlags::empty(),
                }
            })
            .collect();
        from.pair.post_send(&writes).unwrap();
    };
    post(one, other);
    post(other, one);
    for end in [one, other] {
        for i in 0..COUNT {
            assert_eq!(end.done().id, WorkId(i as u64), "in order");
        }
    }
    for (end, peer_seed) in [(one, 12), (other, 11)] {
        let peers = bytes(COUNT * EACH, peer_seed);
        for i in 0..COUNT {
            let expected = &peers[i * EACH..(i + 1) * EACH];
            let at = if i % 3 == 2 { REGION - (i / 3 + 1) * EACH } else { (COUNT + i) * EACH };
            assert!(end.read_back(at, EACH) == expected, "request {i}");
        }
    }
}

fn all_of_it(mtu: PathMtu, loss: u32) {
    let _alone = alone();
    let wire = Wire::new(loss);
    everywhere(&wire, mtu, |rxe, soft| {
        every_operation(soft, rxe);
        every_operation(rxe, soft);
        many_at_once(rxe, soft);
        soft.close();
        rxe.close();
    });
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn every_operation_each_way_at_path_mtu_4096() {
    all_of_it(PathMtu::Bytes4096, 0);
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn every_operation_each_way_at_path_mtu_1024() {
    all_of_it(PathMtu::Bytes1024, 0);
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn every_operation_each_way_at_path_mtu_4096_with_two_percent_lost() {
    all_of_it(PathMtu::Bytes4096, 2);
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn every_operation_each_way_at_path_mtu_1024_with_two_percent_lost() {
    all_of_it(PathMtu::Bytes1024, 2);
}

/// rxe invalidates a window of the embedded device, and a key that was invalidated is refused.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn send_with_invalidate_from_rxe_ends_a_window_of_soft() {
    let _alone = alone();
    let wire = Wire::new(0);
    everywhere(&wire, PathMtu::Bytes4096, |rxe, soft| {
        let window = soft.device.create_memory_window().unwrap().unwrap();
        let rkey = window.next_key();
        let bind = SendOperation::Bind {
            // It lives as long as `window`, which the request alone would not keep.
            window: Arc::clone(&window),
            rkey,
            target: Slice::new(&soft.region, 1000, 100),
            access: Access::REMOTE_WRITE,
        };
        let bind = SendRequest {
            id: WorkId(1),
            operation: bind,
            local: [].into_iter().collect(),
            flags: SendFlags::empty(),
        };
        soft.pair.post_send(&[bind]).unwrap();
        assert_eq!(soft.done().id, WorkId(1));
        rxe.fill(0, b"through the window");
        let remote = RemoteSlice { address: soft.region.address() + 1010, rkey };
        rxe.post(2, SendOperation::Write { remote, immediate: None }, 0, 18);
        rxe.done();
        assert_eq!(soft.read_back(1010, 18), b"through the window");

        soft.receive(3, 5000, 100);
        rxe.post(4, SendOperation::SendInvalidate { rkey }, 0, 18);
        rxe.done();
        let received = soft.done();
        assert_eq!((received.byte_len, received.invalidated), (18, Some(rkey)));
        assert_eq!(soft.read_back(5000, 18), b"through the window");

        rxe.fill(0, b"through the wall!!");
        rxe.post(5, SendOperation::Write { remote, immediate: None }, 0, 18);
        assert_eq!(rxe.told.next().status, WcStatus::REM_ACCESS_ERR);
        assert_eq!(soft.read_back(1010, 18), b"through the window");
        drop(window);
    });
}

/// There are no windows on verbs devices yet. rxe answers an invalidation of what cannot be invalidated with an
/// acknowledgement and an error of its own (measured), which shows that it has read our key.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn send_with_invalidate_from_soft_is_read_by_rxe() {
    let _alone = alone();
    let wire = Wire::new(0);
    everywhere(&wire, PathMtu::Bytes4096, |rxe, soft| {
        rxe.receive(1, 5000, 100);
        let rkey = RKey::new(rxe.region.rkey().expose() ^ 0x5A5A_5A5A);
        soft.post(2, SendOperation::SendInvalidate { rkey }, 0, 18);
        assert_eq!(soft.done().id, WorkId(2));
        let refused = rxe.told.next();
        assert_eq!((refused.id, refused.status.is_success()), (WorkId(1), false), "{refused:?}");
    });
}

/// What is refused is refused by either side, as the other reads it.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn what_was_not_granted_is_refused_each_way() {
    let _alone = alone();
    let wire = Wire::new(0);
    for asker_is_soft in [false, true] {
        everywhere(&wire, PathMtu::Bytes4096, |rxe, soft| {
            let (one, other) = if asker_is_soft { (soft, rxe) } else { (rxe, soft) };
            let guarded = other.read_back(0, REGION);
            let beyond = RemoteSlice {
                address: other.region.address() + REGION as u64 - 4,
                rkey: other.region.rkey(),
            };
            one.post(1, SendOperation::Write { remote: beyond, immediate: None }, 0, 8);
            assert_eq!(one.told.next().status, WcStatus::REM_ACCESS_ERR);
            assert!(other.read_back(0, REGION) == guarded);
        });
    }
    assert!(ALL.contains(Access::REMOTE_WRITE), "the region would have let it in");
}
