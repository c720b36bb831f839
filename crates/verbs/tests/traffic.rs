//! Work requests on a real `rdma_rxe`: what they do, what is refused, and what is flushed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use secure_rdma_rdma::{
    Addressing, CompletionKind, ErrorCode, QpAttr, QpState, ReceiveRequest, SendOperation, SendRequest,
    WcStatus, WorkId,
};

#[test]
#[ignore = "needs an rxe device"]
fn writes_reads_and_atomics_reach_the_peers_region() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    us.fill(0, b"written by the peer");
    let remote = them.remote(5000);
    us.post(1, SendOperation::Write { remote, immediate: None }, 0, 19);
    us.log.successes(1);
    assert_eq!(them.bytes(5000, 19), b"written by the peer");
    assert_eq!(them.log.now().0, 0, "a plain WRITE is not told");

    them.fill(9000, b"read by the peer");
    us.post(2, SendOperation::Read { remote: them.remote(9000) }, 300, 16);
    us.log.successes(1);
    assert_eq!(us.bytes(300, 16), b"read by the peer");

    them.receive(50, 0, 64);
    us.post(3, SendOperation::Write { remote, immediate: Some(0xDEAD_BEEF) }, 0, 7);
    us.log.successes(1);
    let told = them.log.successes(1)[0];
    assert_eq!((told.id, told.kind), (WorkId(50), CompletionKind::ReceiveWriteImmediate));
    assert_eq!((told.immediate, told.byte_len), (Some(0xDEAD_BEEF), 7));

    them.fill(4096, &41_u64.to_ne_bytes());
    us.post(4, SendOperation::FetchAdd { remote: them.remote(4096), add: 1 }, 512, 8);
    us.post(5, SendOperation::CompareSwap { remote: them.remote(4096), compare: 42, swap: 7 }, 520, 8);
    us.log.successes(2);
    assert_eq!(us.bytes(512, 8), 41_u64.to_ne_bytes());
    assert_eq!(us.bytes(520, 8), 42_u64.to_ne_bytes());
    assert_eq!(them.bytes(4096, 8), 7_u64.to_ne_bytes());
}

#[test]
#[ignore = "needs an rxe device"]
fn a_wrong_key_fails_the_request_and_flushes_the_rest() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    us.receive(70, 0, 64);
    us.receive(71, 0, 64);
    let mut remote = them.remote(0);
    remote.address += REGION as u64;
    let write = SendOperation::Write { remote, immediate: None };
    us.pair.post_send(&[us.request(1, write, 0, 8), us.request(2, SEND, 0, 8)]).unwrap();
    let heard = us.log.completions(4);
    assert_eq!(heard[0].status, WcStatus::REM_ACCESS_ERR);
    assert_eq!((heard[0].id, heard[0].kind), (WorkId(1), CompletionKind::Send));
    assert!(statuses(&heard[1..]).iter().all(|status| *status == WcStatus::WR_FLUSH_ERR), "{heard:?}");
    let mut rest: Vec<_> = heard[1..].iter().map(|one| (one.id.0, one.kind)).collect();
    rest.sort_by_key(|(id, _)| *id);
    let expected = [(2, CompletionKind::Send), (70, CompletionKind::Receive), (71, CompletionKind::Receive)];
    assert_eq!(rest, expected, "the kind is known though the opcode is not");
    assert_eq!(us.pair.state(), QpState::Err);
}

#[test]
#[ignore = "needs an rxe device"]
fn many_queue_pairs_receive_from_a_shared_queue() {
    let _alone = alone();
    let before = held("rxe1");
    let sizes = Sizes { shared: Some(8), ..Sizes::default() };
    let [us, them] = connected(sizes);
    for id in 0..8 {
        them.receive(id, 128 * usize::try_from(id).unwrap(), 128);
    }
    let full = ReceiveRequest::new(WorkId(9), &them.region, 0, 64);
    let error = them.shared.as_ref().unwrap().post_receive(std::slice::from_ref(&full)).unwrap_err();
    assert_eq!((error.posted, error.error.code()), (0, ErrorCode::QueueFull));
    let error = them.pair.post_receive(&[full]).unwrap_err();
    assert_eq!(error.error.code(), ErrorCode::InvalidArgument);
    us.fill(0, b"shared");
    for id in 0..5 {
        us.post(id, SEND, 0, 6);
    }
    us.log.successes(5);
    let received = them.log.successes(5);
    assert_eq!(received.iter().map(|one| one.id.0).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(them.bytes(4 * 128, 6), b"shared");
    drop((us, them));
    settles("rxe1", before);
}

/// A handler that hears nothing, because it is gone: completions stay where they are.
#[test]
#[ignore = "needs an rxe device"]
fn receives_of_a_shared_queue_survive_the_queue_pair_that_took_them() {
    let _alone = alone();
    let sizes = Sizes { shared: Some(4), ..Sizes::default() };
    let [us, them] = connected(sizes);
    for id in 0..4 {
        them.receive(id, 128 * usize::try_from(id).unwrap(), 128);
    }
    // Nobody listens any more: the completions of these three stay in the completion queue.
    let End { device, local, log, pair, region, shared } = them;
    drop(log);
    for id in 0..3 {
        us.post(id, SEND, 0, 6);
    }
    us.log.successes(3);
    let queue = shared.unwrap();
    let extra = ReceiveRequest::new(WorkId(9), &region, 0, 64);
    assert_eq!(queue.post_receive(&[extra]).unwrap_err().error.code(), ErrorCode::QueueFull);
    drop(pair);
    // A second queue pair of the same shared queue finds all four, those three at the end.
    let log = Arc::new(Log::default());
    let weak: std::sync::Weak<Log> = Arc::downgrade(&log);
    let config = secure_rdma_rdma::QueuePairConfig {
        max_send: 4,
        max_receive: 8,
        max_sge: 1,
        receive_queue: Some(Arc::clone(&queue)),
        handler: weak,
    };
    let pair = device.create_queue_pair(config).unwrap();
    let second = End { device, local, log, pair, region, shared: Some(queue) };
    let ends = [End::new(V4[0], Sizes::default()), second];
    bring_up(&ends, Addressing::Verbs);
    std::thread::sleep(Duration::from_millis(100));
    for id in 0..4 {
        ends[0].post(id, SEND, 0, 6);
    }
    ends[0].log.successes(4);
    let mut ids: Vec<_> = ends[1].log.successes(4).iter().map(|one| one.id.0).collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3]);
}

#[test]
#[ignore = "needs an rxe device"]
fn a_message_without_a_receive_waits_and_counts_as_rnr() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    let before = counter("rxe1", "send_rnr_err");
    us.fill(0, b"patience");
    us.post(1, SEND, 0, 8);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(us.log.now().0, 0, "not done while there is no receive");
    them.receive(2, 100, 8);
    us.log.successes(1);
    them.log.successes(1);
    assert_eq!(them.bytes(100, 8), b"patience");
    assert!(counter("rxe1", "send_rnr_err") > before, "the RNR NAK is in the counter");
    let still = counter("rxe1", "send_rnr_err");
    them.receive(3, 100, 8);
    us.post(4, SEND, 0, 8);
    us.log.successes(1);
    assert_eq!(counter("rxe1", "send_rnr_err"), still, "none where a receive is posted");
}

#[test]
#[ignore = "needs an rxe device"]
fn moving_to_err_flushes_and_later_posts_are_flushed_too() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    for id in 0..10 {
        us.receive(id, 0, 64);
    }
    move_to_error(&us);
    let heard = us.log.completions(10);
    assert!(statuses(&heard).iter().all(|status| *status == WcStatus::WR_FLUSH_ERR));
    assert_eq!(heard.iter().map(|one| one.id.0).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    us.post(20, SEND, 0, 8);
    assert_eq!(us.log.completions(1)[0].status, WcStatus::WR_FLUSH_ERR);
    drop(them);
}

#[test]
#[ignore = "needs an rxe device"]
fn no_more_is_posted_than_completions_have_room_for() {
    let _alone = alone();
    let sizes = Sizes { max_send: 16, max_receive: 8, shared: None };
    let [us, them] = connected(sizes);
    // Without receives nothing completes while RNR NAKs are answered.
    let list: Vec<SendRequest> = (0..20).map(|id| us.request(id, SEND, 0, 8)).collect();
    let error = us.pair.post_send(&list).unwrap_err();
    assert_eq!((error.posted, error.error.code()), (16, ErrorCode::QueueFull));
    let error = us.pair.post_send(&list[16..]).unwrap_err();
    assert_eq!((error.posted, error.error.code()), (0, ErrorCode::QueueFull));
    let receives: Vec<_> = (0..9).map(|id| ReceiveRequest::new(WorkId(id), &them.region, 0, 64)).collect();
    let error = them.pair.post_receive(&receives).unwrap_err();
    assert_eq!((error.posted, error.error.code()), (8, ErrorCode::QueueFull));
    us.log.successes(8);
    them.log.successes(8);
    us.pair.post_send(&list[16..]).unwrap();
    them.pair.post_receive(&receives[..8]).unwrap();
    them.log.successes(8);
    them.pair.post_receive(&receives[..4]).unwrap();
    us.log.successes(12);
    them.log.successes(4);
    assert_eq!(us.log.now().0 + them.log.now().0, 0, "no completion too many");
}

#[test]
#[ignore = "needs an rxe device"]
fn wrong_requests_are_refused_before_the_driver_sees_them() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    let refused = |request: SendRequest| {
        let error = us.pair.post_send(&[us.request(1, SEND, 0, 8), request]).unwrap_err();
        assert_eq!((error.posted, error.error.code()), (1, ErrorCode::InvalidArgument), "{}", error.error);
        them.receive(1, 0, 64);
        us.log.successes(1);
        error.error.message().to_owned()
    };
    assert!(refused(us.request(2, SEND, REGION - 7, 8)).contains("do not lie inside"));
    assert!(refused(us.request(2, SEND, usize::MAX, 8)).contains("do not lie inside"));
    let foreign =
        SendRequest { local: [them.slice(0, 8)].into_iter().collect(), ..us.request(2, SEND, 0, 8) };
    assert!(refused(foreign).contains("not registered"));
    let pieces = SendRequest { local: (0..5).map(|_| us.slice(0, 8)).collect(), ..us.request(2, SEND, 0, 8) };
    assert!(refused(pieces).contains("pieces"));
    let add = SendOperation::FetchAdd { remote: them.remote(4), add: 1 };
    assert!(refused(us.request(2, add, 0, 8)).contains("8 aligned bytes"));
    let fresh = End::new(V4[0], Sizes::default());
    let error = fresh.pair.post_send(&[fresh.request(1, SEND, 0, 8)]).unwrap_err();
    assert!(error.error.message().contains("RESET"), "{}", error.error);
    let error = fresh.pair.modify(&QpAttr::to(QpState::Rtr)).unwrap_err();
    assert_eq!((error.code(), error.errno()), (ErrorCode::Transition, None), "the driver was not asked");
}
