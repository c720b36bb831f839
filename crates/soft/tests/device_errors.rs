//! How things end that cannot work.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::sync::Arc;

use common::{
    ALL, End, PATIENCE, SEND, Terms, bring_up, connected, device, init, open, region, remote, request,
};
use secure_rdma_rdma::{
    Access, AddressVector, CompletionKind, Device, ErrorCode, GlobalRoute, PathMtu, Psn, QpAttr, QpState,
    Qpn, RKey, ReceiveRequest, RemoteSlice, SendOperation, WcStatus, WorkId,
};
use secure_rdma_soft::SoftOptions;

fn write(target: RemoteSlice) -> SendOperation {
    SendOperation::Write { remote: target, immediate: None }
}

#[test]
fn a_peer_that_is_gone_ends_the_oldest_request_and_flushes_the_rest() {
    let terms = Terms { timeout: 10, retry_count: 2, ..Terms::default() };
    let (one, other) = connected(&terms);
    let ours = one.region(4096);
    one.receive(9, &ours, 0, 64);
    drop(other);
    for id in 1..=3 {
        one.send(request(id, SEND, &ours, 0, 64));
    }
    let ends: Vec<_> = (0..4).map(|_| one.told.next()).map(|end| (end.id.0, end.kind, end.status)).collect();
    let flushed = WcStatus::WR_FLUSH_ERR;
    assert_eq!(
        ends,
        [
            (1, CompletionKind::Send, WcStatus::RETRY_EXC_ERR),
            (2, CompletionKind::Send, flushed),
            (3, CompletionKind::Send, flushed),
            (9, CompletionKind::Receive, flushed),
        ]
    );
    assert_eq!(one.pair.state(), QpState::Err);
    // What is posted now is flushed at once.
    one.send(request(4, SEND, &ours, 0, 64));
    one.receive(10, &ours, 0, 64);
    let mut late: Vec<_> = (0..2).map(|_| one.told.next()).map(|end| (end.id.0, end.status)).collect();
    late.sort_unstable_by_key(|(id, _)| *id);
    assert_eq!(late, [(4, flushed), (10, flushed)]);
}

#[test]
fn refused_requests_name_the_reason() {
    let cases: [(&str, WcStatus); 4] = [
        ("no such key", WcStatus::REM_ACCESS_ERR),
        ("out of bounds", WcStatus::REM_ACCESS_ERR),
        ("no right", WcStatus::REM_ACCESS_ERR),
        ("receive too short", WcStatus::REM_INV_REQ_ERR),
    ];
    for (case, status) in cases {
        let (one, other) = connected(&Terms::default());
        let (ours, theirs) = (one.region(8192), other.region(4096));
        let readable = region(&other.device, 4096, Access::LOCAL_WRITE | Access::REMOTE_READ);
        let operation = match case {
            "no such key" => {
                write(RemoteSlice { rkey: RKey::new(!theirs.rkey().expose()), ..remote(&theirs, 0) })
            }
            "out of bounds" => write(remote(&theirs, 1)),
            "no right" => write(remote(&readable, 0)),
            _ => {
                other.receive(1, &theirs, 0, 100);
                SEND
            }
        };
        one.send(request(2, operation, &ours, 0, 4096));
        assert_eq!(one.told.next().status, status, "{case}");
        assert_eq!(one.pair.state(), QpState::Err, "{case}");
        if case == "receive too short" {
            assert_eq!(other.told.next().status, WcStatus::LOC_LEN_ERR);
        }
    }
}

#[test]
fn what_cannot_be_sent_fails_and_its_handler_hears_of_it_although_nothing_comes() {
    let (one, other) = connected(&Terms::default());
    let theirs = other.region(64);
    let unwritable = region(&one.device, 64, Access::empty());
    one.send(request(1, SendOperation::Read { remote: remote(&theirs, 0) }, &unwritable, 0, 64));
    assert_eq!(one.told.next().status, WcStatus::LOC_PROT_ERR);
}

#[test]
fn a_message_that_meets_no_receive_is_given_up_after_its_retries() {
    let terms = Terms { rnr_retry: 1, ..Terms::default() };
    let (one, other) = connected(&terms);
    let (ours, theirs) = (one.region(64), other.region(64));
    one.send(request(1, SEND, &ours, 0, 64));
    assert_eq!(one.told.next().status, WcStatus::RNR_RETRY_EXC_ERR);

    // And with patience the receive may come late.
    let (one, other) = connected(&Terms::default());
    let (ours, theirs) = (one.region(64), {
        let _ = theirs;
        other.region(64)
    });
    one.send(request(1, SEND, &ours, 0, 64));
    while one.device.counters().engine.rcvd_rnr_err == 0 {
        std::thread::yield_now();
    }
    other.receive(2, &theirs, 0, 64);
    one.done();
    other.done();
}

#[test]
fn moving_to_err_flushes_in_order_and_resetting_forgets() {
    let (one, _other) = connected(&Terms { rnr_retry: 7, ..Terms::default() });
    let ours = one.region(4096);
    for id in 1..=3 {
        one.send(request(id, SEND, &ours, 0, 16));
        one.receive(10 + id, &ours, 0, 64);
    }
    one.pair.modify(&QpAttr::to(QpState::Err)).unwrap();
    let ids: Vec<_> = (0..6).map(|_| one.told.next()).map(|end| (end.id.0, end.status)).collect();
    assert_eq!(ids, [1, 2, 3, 11, 12, 13].map(|id| (id, WcStatus::WR_FLUSH_ERR)));
    one.pair.modify(&QpAttr::to(QpState::Reset)).unwrap();
    assert_eq!(one.pair.state(), QpState::Reset);
    init(one.pair.as_ref());
    one.receive(20, &ours, 0, 64);
    one.pair.modify(&QpAttr::to(QpState::Reset)).unwrap();
    init(one.pair.as_ref());
    assert_eq!(one.told.try_next().map(|end| end.id), None, "RESET forgets without completions");
}

#[test]
fn wrong_calls_are_answered_by_name() {
    let terms = Terms { depth: 2, ..Terms::default() };
    let device = device();
    let end = End::new(&device, &terms);
    let ours = end.region(4096);
    let refused = end.pair.post_send(&[request(1, SEND, &ours, 0, 1)]).unwrap_err();
    assert_eq!((refused.posted, refused.error.code()), (0, ErrorCode::Post));

    let refused = end.pair.modify(&QpAttr::to(QpState::Rts)).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Transition);
    assert!(refused.message().starts_with("INIT→RTS"), "{refused}");
    let refused = end.pair.modify(&QpAttr { port: Some(2), ..QpAttr::to(QpState::Init) }).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Modify);

    let receives: Vec<_> = (0..3).map(|id| ReceiveRequest::new(WorkId(id), &ours, 0, 64)).collect();
    let refused = end.pair.post_receive(&receives).unwrap_err();
    assert_eq!((refused.posted, refused.error.code()), (2, ErrorCode::QueueFull));

    let foreign = region(&common::device(), 4096, ALL);
    let other = End::new(&device, &terms);
    bring_up(&end, &other, &terms);
    let refused = end.pair.post_send(&[request(1, SEND, &foreign, 0, 1)]).unwrap_err();
    assert_eq!(refused.error.code(), ErrorCode::InvalidArgument);
    let refused = end.pair.post_send(&[request(1, SEND, &ours, 4000, 97)]).unwrap_err();
    assert_eq!(refused.error.code(), ErrorCode::InvalidArgument);

    assert_eq!(device.create_receive_queue(0).err().map(|error| error.code()), Some(ErrorCode::Resource));
    let foreign = common::device().create_receive_queue(4).unwrap().unwrap();
    let config = secure_rdma_rdma::QueuePairConfig {
        receive_queue: Some(foreign),
        ..common::config(&terms, &end.told)
    };
    assert_eq!(
        device.create_queue_pair(config).err().map(|error| error.code()),
        Some(ErrorCode::InvalidArgument)
    );
}

#[test]
fn an_address_vector_made_by_hand_leads_to_port_4791() {
    let device = open(SoftOptions::default());
    let end = End::new(&device, &Terms::default());
    let local = common::local(&device, [127, 0, 0, 1].into());
    let attr = |global| QpAttr {
        address: Some(AddressVector { port: 1, global, ..AddressVector::default() }),
        path_mtu: Some(PathMtu::Bytes1024),
        dest_qpn: Qpn::new(0x123),
        rq_psn: Psn::new(1),
        max_dest_rd_atomic: Some(1),
        min_rnr_timer: Some(1),
        ..QpAttr::to(QpState::Rtr)
    };
    let route = |hop_limit, source_gid_index| GlobalRoute {
        destination: local.gid,
        source_gid_index,
        flow_label: 0,
        hop_limit,
        traffic_class: 0,
    };
    for wrong in [None, Some(route(0, local.gid_index)), Some(route(64, 255))] {
        assert_eq!(end.pair.modify(&attr(wrong)).unwrap_err().code(), ErrorCode::Modify);
        assert_eq!(end.pair.state(), QpState::Init);
    }
    end.pair.modify(&attr(Some(route(64, local.gid_index)))).unwrap();
    assert_eq!(end.pair.state(), QpState::Rtr);
}

#[test]
fn a_panic_in_a_handler_ends_nothing_else() {
    struct Panics;
    impl secure_rdma_rdma::QueuePairHandler for Panics {
        fn completed(&self, _batch: &[secure_rdma_rdma::Completion]) {
            panic!("the test wants this");
        }
        fn happened(&self, _event: secure_rdma_rdma::AsyncEvent) {}
    }
    let terms = Terms::default();
    let (one, other) = connected(&terms);
    let handler: Arc<dyn secure_rdma_rdma::QueuePairHandler> = Arc::new(Panics);
    let config = secure_rdma_rdma::QueuePairConfig {
        handler: Arc::downgrade(&handler),
        ..common::config(&terms, &one.told)
    };
    let panics = one.device.create_queue_pair(config).unwrap();
    init(panics.as_ref());
    let ours = one.region(64);
    panics.post_receive(&[ReceiveRequest::new(WorkId(1), &ours, 0, 64)]).unwrap();
    panics.modify(&QpAttr::to(QpState::Err)).unwrap();
    let theirs = other.region(64);
    other.receive(2, &theirs, 0, 64);
    one.send(request(3, SEND, &ours, 0, 64));
    one.done();
    other.done();
    assert!(!one.device.is_gone());
    assert!(PATIENCE.as_secs() > 0);
}
