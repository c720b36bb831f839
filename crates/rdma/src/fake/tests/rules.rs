//! What is refused, and how it fails.

use std::time::Duration;

use super::harness::{End, devices, join, pair};
use crate::fake::{Fabric, connect, device_info, init};
use crate::{
    Access, Addressing, AsyncEvent, CompletionKind, Device, ErrorCode, Lid, LinkLayer, Memory, PathContext,
    PathMtu, Psn, QpAttr, QpState, Qpn, RKey, ReceiveRequest, RemoteSlice, SendOperation, WorkId,
};

use CompletionKind::{Receive, Send};

const SEND: SendOperation = SendOperation::Send { immediate: None };

#[test]
fn each_state_accepts_what_it_should() {
    let fabric = Fabric::new();
    let (one, other) = devices(&fabric);
    let (one, other) = (End::new(&one, 4, None), End::new(&other, 4, None));
    let receive = [ReceiveRequest::new(WorkId(0), &one.region, 0, 8)];
    let send = [one.request(0, SEND, 0, 8)];
    assert_eq!(one.queue_pair.post_receive(&receive).unwrap_err().error.code(), ErrorCode::Post);
    assert_eq!(one.queue_pair.post_send(&send).unwrap_err().error.code(), ErrorCode::Post);
    init(&*one.queue_pair).unwrap();
    assert_eq!(one.queue_pair.state(), QpState::Init);
    one.queue_pair.post_receive(&receive).unwrap();
    assert_eq!(one.queue_pair.post_send(&send).unwrap_err().error.code(), ErrorCode::Post);
    let refused = one.queue_pair.modify(&QpAttr::to(QpState::Rtr)).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Transition);
    assert!(refused.message().contains("RQ_PSN"), "{refused}");
    connect((&one.device, &*one.queue_pair), (&other.device, &*other.queue_pair)).unwrap();
    one.queue_pair.modify(&QpAttr::to(QpState::Sqd)).unwrap();
    other.receive(1, 0, 8);
    one.queue_pair.post_send(&send).unwrap();
    fabric.settle();
    assert_eq!(one.log.so_far().0, 0);
    one.queue_pair.modify(&QpAttr::to(QpState::Rts)).unwrap();
    assert_eq!(one.log.outcomes(1), [(Send, 0, 0)]);
}

#[test]
fn values_that_a_driver_would_refuse_are_refused() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 4);
    for change in [|attr: &mut QpAttr| attr.port = Some(2), |attr: &mut QpAttr| attr.pkey_index = Some(1)] {
        one.queue_pair.modify(&QpAttr::to(QpState::Reset)).unwrap();
        let mut attr = QpAttr::to(QpState::Init);
        (attr.access, attr.port, attr.pkey_index) = (Some(Access::empty()), Some(1), Some(0));
        change(&mut attr);
        let refused = one.queue_pair.modify(&attr).unwrap_err();
        assert_eq!((refused.code(), refused.errno()), (ErrorCode::Modify, Some(22)));
        assert_eq!(one.queue_pair.state(), QpState::Reset);
    }
    drop(other);
}

/// RESET to RTS by hand, towards `peer`.
fn bring_up(end: &End, peer: &End, rq_psn: u32, sq_psn: u32) {
    init(&*end.queue_pair).unwrap();
    let context = PathContext {
        tls_local: end.device.local_address(1).unwrap().gid.to_ip(),
        tls_peer: peer.device.local_address(1).unwrap().gid.to_ip(),
        allowed_peer_addresses: Vec::new(),
    };
    let way =
        |end: &End| end.device.establish(&end.device.local_address(1).unwrap(), Addressing::Verbs).unwrap();
    let route = way(end).resolve(&way(peer).local_part(), &context).unwrap();
    let mut attr = QpAttr::to(QpState::Rtr);
    route.rtr(&mut attr).unwrap();
    (attr.path_mtu, attr.dest_qpn) = (Some(PathMtu::Bytes1024), Some(peer.queue_pair.qpn()));
    (attr.rq_psn, attr.max_dest_rd_atomic, attr.min_rnr_timer) = (Psn::new(rq_psn), Some(1), Some(12));
    end.queue_pair.modify(&attr).unwrap();
    let mut attr = QpAttr::to(QpState::Rts);
    (attr.timeout, attr.retry_count, attr.rnr_retry) = (Some(14), Some(6), Some(7));
    (attr.sq_psn, attr.max_rd_atomic) = (Psn::new(sq_psn), Some(1));
    end.queue_pair.modify(&attr).unwrap();
}

#[test]
fn psns_that_do_not_match_lose_everything() {
    for (sends, expects, arrives) in
        [(5, 5, true), (5, 6, false), (6, 5, false), (0, 0, true), (0x00FF_FFFE, 0x00FF_FFFE, true)]
    {
        let fabric = Fabric::new();
        fabric.set_retry_budget(Duration::from_millis(10));
        let (one, other) = devices(&fabric);
        let (one, other) = (End::new(&one, 4, None), End::new(&other, 4, None));
        bring_up(&one, &other, 77, sends);
        bring_up(&other, &one, expects, 77);
        // Four packets and one: the last PSNs are beyond 2^24 in one case.
        other.receive(0, 0, 4096);
        other.receive(1, 0, 4096);
        one.send(0, 0, 3073);
        one.send(1, 0, 0);
        let expected = if arrives { [(Send, 0, 0), (Send, 1, 0)] } else { [(Send, 0, 12), (Send, 1, 5)] };
        assert_eq!(one.log.outcomes(2), expected, "{sends} towards {expects}");
        fabric.settle();
        assert_eq!(other.log.so_far().0, if arrives { 2 } else { 0 });
        // The other direction has its own PSNs, and works if the queue pair still does.
        if arrives {
            one.receive(9, 0, 8);
            other.send(9, 0, 8);
            assert_eq!(one.log.outcomes(3)[2], (Receive, 9, 0));
        }
    }
}

#[test]
fn requests_before_rtr_are_lost_and_then_arrive() {
    let fabric = Fabric::new();
    fabric.set_retry_budget(Duration::from_secs(5));
    let (one, other) = devices(&fabric);
    let (one, other) = (End::new(&one, 4, None), End::new(&other, 4, None));
    init(&*other.queue_pair).unwrap();
    other.receive(0, 0, 8);
    other.queue_pair.modify(&QpAttr::to(QpState::Reset)).unwrap();
    bring_up(&one, &other, 77, 5);
    one.send(0, 0, 8);
    fabric.settle();
    assert_eq!((fabric.counters().lost, one.log.so_far().0), (1, 0));
    bring_up(&other, &one, 5, 77);
    other.receive(1, 0, 8);
    assert_eq!(one.log.outcomes(1), [(Send, 0, 0)]);
    // The receive from before RESET is forgotten.
    assert_eq!(other.log.outcomes(1), [(Receive, 1, 0)]);
}

#[test]
fn a_missing_receive_is_waited_for_and_counted() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 4);
    one.send(0, 0, 8);
    while fabric.counters().rnr_naks < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    other.receive(0, 0, 8);
    assert_eq!(one.log.outcomes(1), [(Send, 0, 0)]);
}

#[test]
fn rnr_ends_after_its_repetitions() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 4);
    for end in [&one, &other] {
        end.queue_pair.modify(&QpAttr::to(QpState::Sqd)).unwrap();
    }
    let mut attr = QpAttr::to(QpState::Sqd);
    attr.rnr_retry = Some(2);
    one.queue_pair.modify(&attr).unwrap();
    one.queue_pair.modify(&QpAttr::to(QpState::Rts)).unwrap();
    one.send(0, 0, 8);
    one.send(1, 0, 8);
    assert_eq!(one.log.outcomes(2), [(Send, 0, 13), (Send, 1, 5)]);
    assert_eq!(fabric.counters().rnr_naks, 3);
}

#[test]
fn a_message_longer_than_its_receive_fails_on_both_sides() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 4);
    other.receive(0, 0, 7);
    other.receive(1, 0, 70);
    one.send(0, 0, 8);
    assert_eq!(one.log.outcomes(1), [(Send, 0, 9)]);
    assert_eq!(other.log.outcomes(2), [(Receive, 0, 1), (Receive, 1, 5)]);
}

#[test]
fn keys_ranges_and_rights_are_checked_by_the_responder() {
    type Make = fn(&End) -> SendOperation;
    let write = |remote| SendOperation::Write { remote, immediate: None };
    let cases: [(&str, Make, u32); 6] = [
        (
            "another key",
            |to| SendOperation::Read {
                remote: RemoteSlice { rkey: RKey::new(!to.region.rkey().expose()), ..to.remote(0) },
            },
            10,
        ),
        ("past the end", |to| SendOperation::Read { remote: to.remote((64 << 10) - 7) }, 10),
        (
            "before the start",
            |to| SendOperation::Read {
                remote: RemoteSlice { address: to.region.address() - 1, ..to.remote(0) },
            },
            10,
        ),
        (
            "an address that wraps",
            |to| SendOperation::Read { remote: RemoteSlice { address: u64::MAX - 3, ..to.remote(0) } },
            10,
        ),
        ("misaligned", |to| SendOperation::FetchAdd { remote: to.remote(4), add: 1 }, 9),
        (
            "misaligned and outside",
            |to| SendOperation::FetchAdd { remote: to.remote((64 << 10) - 4), add: 1 },
            10,
        ),
    ];
    for (what, make, status) in cases {
        let fabric = Fabric::new();
        let (one, other) = pair(&fabric, 4);
        one.post(0, make(&other), 0, 8);
        assert_eq!(one.log.outcomes(1), [(Send, 0, status)], "{what}");
        other.log.event(AsyncEvent::QueuePairFatal);
        assert_eq!(other.queue_pair.state(), QpState::Err);
    }

    // A region that grants no writing.
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 4);
    let memory = std::sync::Arc::new(Memory::allocate(64).unwrap());
    let region = other.device.register(memory, Access::REMOTE_READ).unwrap();
    one.post(0, write(RemoteSlice { address: region.address(), rkey: region.rkey() }), 0, 8);
    assert_eq!(one.log.outcomes(1), [(Send, 0, 10)]);
}

#[test]
fn a_right_that_the_queue_pair_does_not_grant_is_an_invalid_request() {
    let fabric = Fabric::new();
    let (one, other) = devices(&fabric);
    let (one, other) = (End::new(&one, 4, None), End::new(&other, 4, None));
    let mut attr = QpAttr::to(QpState::Init);
    (attr.access, attr.port, attr.pkey_index) = (Some(Access::REMOTE_WRITE), Some(1), Some(0));
    other.queue_pair.modify(&attr).unwrap();
    join(&one, &other);
    one.post(0, SendOperation::Write { remote: other.remote(0), immediate: None }, 0, 8);
    one.post(1, SendOperation::Read { remote: other.remote(0) }, 0, 8);
    assert_eq!(one.log.outcomes(2), [(Send, 0, 0), (Send, 1, 9)]);
}

#[test]
fn queues_are_full_when_they_are_and_no_sooner() {
    let fabric = Fabric::new();
    let (one, _other) = pair(&fabric, 4);
    fabric.pause();
    let requests: Vec<_> = (0..6).map(|id| one.request(id, SEND, 0, 8)).collect();
    let refused = one.queue_pair.post_send(&requests).unwrap_err();
    assert_eq!((refused.posted, refused.error.code()), (4, ErrorCode::QueueFull));
    let receives: Vec<_> = (0..5).map(|id| ReceiveRequest::new(WorkId(id), &one.region, 0, 8)).collect();
    let refused = one.queue_pair.post_receive(&receives).unwrap_err();
    assert_eq!((refused.posted, refused.error.code()), (4, ErrorCode::QueueFull));
}

#[test]
fn slices_outside_and_foreign_regions_are_refused_when_posted() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 4);
    for (offset, length) in [(0, (64 << 10) + 1), (64 << 10, 1), (usize::MAX, 2), (2, usize::MAX)] {
        let refused = one.queue_pair.post_send(&[one.request(0, SEND, offset, length)]).unwrap_err();
        assert_eq!(refused.error.code(), ErrorCode::InvalidArgument);
    }
    one.queue_pair.post_send(&[one.request(0, SEND, 64 << 10, 0)]).unwrap();
    let foreign = other.request(1, SEND, 0, 8);
    assert_eq!(one.queue_pair.post_send(&[foreign]).unwrap_err().error.code(), ErrorCode::InvalidArgument);
    let mut three = one.request(2, SEND, 0, 1);
    three.local.extend(three.local.clone());
    three.local.extend(three.local.clone());
    assert_eq!(one.queue_pair.post_send(&[three]).unwrap_err().error.code(), ErrorCode::InvalidArgument);
}

#[test]
fn a_device_without_shared_receive_queues_says_so() {
    let fabric = Fabric::new();
    let mut info = device_info("old0", [10, 0, 0, 3].into());
    info.limits.max_shared_receives = 0;
    assert!(fabric.add(info).create_receive_queue(16).unwrap().is_none());
}

#[test]
fn receives_beyond_max_receive_overrun_the_completion_queue() {
    let fabric = Fabric::new();
    let (device, peer) = devices(&fabric);
    let shared = device.create_receive_queue(100).unwrap().unwrap();
    let (end, peer) = (End::new(&device, 1, Some(shared.clone())), End::new(&peer, 100, None));
    join(&end, &peer);
    let receives: Vec<_> = (0..100).map(|id| ReceiveRequest::new(WorkId(id), &end.region, 0, 8)).collect();
    shared.post_receive(&receives).unwrap();
    fabric.pause();
    (0..100).for_each(|id| peer.send(id, 0, 8));
    fabric.set_retry_budget(Duration::ZERO);
    fabric.resume();
    end.log.event(AsyncEvent::CompletionQueueError);
    assert_eq!(end.queue_pair.state(), QpState::Err);
    assert!(fabric.counters().overruns > 0);
}

#[test]
fn the_device_part_is_judged() {
    let fabric = Fabric::new();
    let (one, other) = devices(&fabric);
    let part = other.establish(&other.local_address(1).unwrap(), Addressing::Hybrid).unwrap().local_part();
    let resolve = |part: &[u8], peer: &str, allowed: &[&str]| {
        let context = PathContext {
            tls_local: "10.0.0.1".parse().unwrap(),
            tls_peer: peer.parse().unwrap(),
            allowed_peer_addresses: allowed.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let establish = one.establish(&one.local_address(1).unwrap(), Addressing::Hybrid).unwrap();
        establish.resolve(part, &context).map(drop).map_err(|error| error.code())
    };
    assert_eq!(resolve(&part, "10.0.0.2", &[]), Ok(()));
    assert_eq!(resolve(&part, "::ffff:10.0.0.2", &[]), Ok(()));
    assert_eq!(resolve(&part, "10.0.0.9", &["10.0.0.2"]), Ok(()));
    assert_eq!(resolve(&part, "10.0.0.9", &[]), Err(ErrorCode::Offer));
    assert_eq!(resolve(&part[1..], "10.0.0.2", &[]), Err(ErrorCode::Offer));
    assert_eq!(resolve(&[], "10.0.0.2", &[]), Err(ErrorCode::Offer));
    other.inject(AsyncEvent::PortDown);
    assert_eq!(resolve(&part, "10.0.0.2", &[]), Err(ErrorCode::Unreachable));

    let mut elsewhere = one.local_address(1).unwrap();
    elsewhere.gid_index = 0;
    assert_eq!(
        one.establish(&elsewhere, Addressing::Verbs).map(drop).unwrap_err().code(),
        ErrorCode::DeviceLost
    );
}

#[test]
fn infiniband_goes_by_lid() {
    let fabric = Fabric::new();
    let devices: Vec<_> = [1_u8, 2]
        .into_iter()
        .map(|number| {
            let mut info = device_info(&format!("ib{number}"), [10, 0, 1, number].into());
            info.ports[0].link_layer = LinkLayer::Infiniband;
            info.ports[0].lid = Lid(u16::from(number));
            fabric.add(info)
        })
        .collect();
    let (one, other) = (End::new(&devices[0], 4, None), End::new(&devices[1], 4, None));
    join(&one, &other);
    other.receive(0, 0, 8);
    one.send(0, 0, 8);
    assert_eq!(one.log.outcomes(1), [(Send, 0, 0)]);
    assert_ne!(one.queue_pair.qpn(), Qpn::new(2).unwrap());
}
