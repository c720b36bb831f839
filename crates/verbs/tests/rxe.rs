//! The device on a real `rdma_rxe`: two devices, rxe0 and rxe1, with a wire between.
//!
//! `node tools/soft-roce/run.mjs -- TEST-BINARY --include-ignored` runs these in a guest that has them. Elsewhere they
//! are reported as ignored; asked for without a device they fail.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::capture::Capture;
use common::*;
use secure_rdma_rdma::{
    Access, Addressing, AsyncEvent, CompletionKind, DevicePart, Devices, ErrorCode, Gid, GidKind, Lid,
    LinkLayer, Memory, PathContext, PortState, QpAttr, QpState, ReceiveRequest, SendOperation, SendRequest,
    WcStatus, WorkId,
};
use secure_rdma_verbs::Verbs;

#[test]
fn where_rxe_is_required_the_device_tests_run() {
    if rxe_is_required() {
        let asked =
            std::env::args().any(|argument| argument == "--include-ignored" || argument == "--ignored");
        assert!(asked, "SECURE_RDMA_REQUIRE_RXE=1 without --include-ignored: the device tests would not run");
        drop(alone());
    }
}

#[test]
#[ignore = "needs an rxe device"]
fn devices_are_listed_with_ports_gids_and_limits() {
    let _alone = alone();
    let devices = Verbs.list().unwrap();
    let rxe0 = devices.iter().find(|device| device.name == "rxe0").unwrap();
    assert_eq!(rxe0.unusable, None);
    let port = &rxe0.ports[0];
    assert_eq!((rxe0.ports.len(), port.number, port.state), (1, 1, PortState::Active));
    assert_eq!((port.link_layer, port.lid), (LinkLayer::Ethernet, Lid(0)));
    let entry =
        port.gids.iter().find(|entry| entry.gid == Gid::from_ip("10.8.0.1".parse().unwrap())).unwrap();
    assert_eq!((entry.kind, entry.interface.is_some()), (GidKind::RoceV2, true));
    assert!(port.gids.iter().any(|entry| entry.gid == Gid::from_ip("fd08::1".parse().unwrap())));
    for entry in &port.gids {
        let file = |folder| {
            let path = format!("/sys/class/infiniband/rxe0/ports/1/{folder}/{}", entry.index);
            std::fs::read_to_string(path).unwrap().trim().to_owned()
        };
        assert_eq!(file("gids").parse::<std::net::Ipv6Addr>().unwrap().octets(), entry.gid.bytes());
        assert_eq!((file("gid_attrs/types"), entry.kind), ("RoCE v2".to_owned(), GidKind::RoceV2));
        assert_eq!(Some(file("gid_attrs/ndevs")), entry.interface);
    }
    assert!(port.addresses.contains(&"10.8.0.1".parse().unwrap()), "{:?}", port.addresses);
    assert!(
        rxe0.limits.max_work_requests >= 1024 && rxe0.limits.max_completions >= 4096,
        "{:?}",
        rxe0.limits
    );
    assert_eq!(rxe0.limits.max_shared_receives, 0, "rxe's shared receive queues lose receives");
    assert!(rxe0.limits.max_responder_resources >= 16);
    assert!(Verbs.open("rxe0").unwrap().create_receive_queue(64).unwrap().is_none());
}

#[test]
#[ignore = "needs an rxe device"]
fn a_device_is_opened_once_and_closed_with_its_last_handle() {
    let _alone = alone();
    let before = held("rxe0");
    let first = Verbs.open("rxe0").unwrap();
    let second = Verbs.open("rxe0").unwrap();
    assert_eq!(held("rxe0")[3], before[3] + 1, "one context for both handles");
    drop(first);
    let region = second.register(Arc::new(Memory::allocate(4096).unwrap()), Access::LOCAL_WRITE).unwrap();
    drop(second);
    assert_eq!(held("rxe0")[2], before[2] + 1, "the region keeps the device open");
    drop(region);
    settles("rxe0", before);
    let error = Verbs.open("rxe77").unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeviceNotFound);
    assert!(error.message().contains("rxe0"), "{error}");
}

/// Messages of several sizes both ways, in lists, and byte for byte.
fn exchange(ends: &[End; 2]) {
    let sizes = [0_usize, 1, 7, 64, 1024, 1025, 4096, 65_536];
    for (us, them) in [(0, 1), (1, 0)] {
        let (from, to) = (&ends[us], &ends[them]);
        let mut offset = 0;
        let mut receives = Vec::new();
        let mut sends = Vec::new();
        for (number, size) in sizes.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 7 + number + us).to_le_bytes()[0]).collect();
            from.fill(offset, &bytes);
            let id = WorkId(100 + number as u64);
            receives.push(ReceiveRequest::new(id, &to.region, REGION / 2 + offset, 65_536));
            let immediate = (number % 2 == 1).then_some(0x0102_0300 + u32::try_from(number).unwrap());
            sends.push(from.request(number as u64, SendOperation::Send { immediate }, offset, size));
            offset += size;
        }
        to.pair.post_receive(&receives).unwrap();
        from.pair.post_send(&sends).unwrap();
        let sent = from.log.successes(sizes.len());
        let received = to.log.successes(sizes.len());
        let mut offset = 0;
        for (number, size) in sizes.into_iter().enumerate() {
            assert_eq!((sent[number].id, sent[number].kind), (WorkId(number as u64), CompletionKind::Send));
            let got = &received[number];
            assert_eq!((got.id, got.kind), (WorkId(100 + number as u64), CompletionKind::Receive));
            assert_eq!(got.byte_len as usize, size);
            let immediate = (number % 2 == 1).then_some(0x0102_0300 + u32::try_from(number).unwrap());
            assert_eq!(got.immediate, immediate, "host order on both sides");
            assert_eq!(to.bytes(REGION / 2 + offset, size), from.bytes(offset, size));
            offset += size;
        }
    }
}

#[test]
#[ignore = "needs an rxe device"]
fn messages_pass_both_ways_over_every_way_of_addressing() {
    let _alone = alone();
    for addresses in [V4, V6] {
        for addressing in [Addressing::Verbs, Addressing::Hybrid] {
            let ends = connected_over(addresses, addressing, Sizes::default());
            exchange(&ends);
            let route = ends[0].route(&ends[1], addressing);
            assert_eq!(route.description(), addressing.to_string());
            assert_eq!(route.peer_gid(), Gid::from_ip(addresses[1].parse().unwrap()));
            assert_eq!(
                route.path_mtu().is_some(),
                addressing == Addressing::Hybrid,
                "the path record has an MTU"
            );
        }
    }
}

#[test]
#[ignore = "needs an rxe device"]
fn without_a_connection_manager_hybrid_falls_to_verbs_and_says_so() {
    let _alone = alone();
    run("mv /dev/infiniband/rdma_cm /dev/infiniband/rdma_cm.away");
    let outcome = std::panic::catch_unwind(|| {
        let ends = connected_over(V4, Addressing::Hybrid, Sizes::default());
        exchange(&ends);
        ends[0].route(&ends[1], Addressing::Hybrid).description()
    });
    run("mv /dev/infiniband/rdma_cm.away /dev/infiniband/rdma_cm");
    let description = outcome.unwrap();
    assert!(description.starts_with("verbs, not hybrid") && description.contains("rdma_cm"), "{description}");
}

#[test]
#[ignore = "needs an rxe device"]
fn the_first_packets_carry_the_psns_and_no_cm_packet_is_sent() {
    let _alone = alone();
    for addressing in [Addressing::Hybrid, Addressing::Verbs] {
        let capture = Capture::on("v0");
        let ends = connected_over(V4, addressing, Sizes::default());
        assert!(run("rdma resource show cm_id").trim().is_empty(), "no id outlives the resolution");
        exchange(&ends);
        let packets = capture.packets(Duration::from_millis(300));
        assert!(packets.len() > 100, "positive control: {} packets heard", packets.len());
        for (us, them) in [(0, 1), (1, 0)] {
            let to = ends[them].pair.qpn().get();
            let first = packets.iter().find(|packet| packet.dest_qpn == to && packet.opcode < 0x0C).unwrap();
            assert_eq!(first.psn, PSNS[us]);
        }
        let qpns = ends.each_ref().map(|end| end.pair.qpn().get());
        let others: Vec<_> = packets.iter().filter(|packet| !qpns.contains(&packet.dest_qpn)).collect();
        assert!(others.is_empty(), "packets to other queue pairs: {others:?}");
    }
}

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

#[test]
#[ignore = "needs an rxe device"]
fn an_address_that_does_not_resolve_is_named() {
    let _alone = alone();
    run("ip link add nowhere type veth peer name nowhere1; ip addr add 10.77.0.1/24 dev nowhere; \
         ip link set nowhere up; ip link set nowhere1 up; rdma link add rxe7 type rxe netdev nowhere; sleep 0.3");
    let us = End::new("10.77.0.1", Sizes::default());
    us.init();
    let peer: std::net::IpAddr = "10.77.0.99".parse().unwrap();
    let part = DevicePart::new(LinkLayer::Ethernet, Gid::from_ip(peer), Lid(0)).encode();
    let context = PathContext { tls_local: peer, tls_peer: peer, allowed_peer_addresses: Vec::new() };
    let establish = |addressing| us.device.establish(&us.local, addressing).unwrap();

    let start = Instant::now();
    let error = establish(Addressing::Hybrid).resolve(&part, &context).err().unwrap();
    assert_eq!(error.code(), ErrorCode::Unreachable, "{error}");
    assert!(error.message().contains("10.77.0.99"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(6));

    let route = establish(Addressing::Verbs).resolve(&part, &context).unwrap();
    let mut attr = us.rtr(&us, 0);
    route.rtr(&mut attr).unwrap();
    let error = us.pair.modify(&attr).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unreachable, "{error:?}");
    assert!(error.message().contains("10.77.0.99"), "{error}");
    assert!(matches!(error.errno(), Some(libc::ETIMEDOUT | libc::EHOSTUNREACH)), "{error:?}");
    assert_eq!((error.syscall(), us.pair.state()), (Some("ibv_modify_qp"), QpState::Init));
    drop(us);
    run("rdma link del rxe7; ip link del nowhere");
}

#[test]
#[ignore = "needs an rxe device"]
fn a_gid_that_is_no_longer_there_is_named() {
    let _alone = alone();
    let us = End::new(V4[0], Sizes::default());
    let mut moved = us.local.clone();
    moved.gid = Gid::from_ip("10.8.0.77".parse().unwrap());
    let error = us.device.establish(&moved, Addressing::Verbs).err().unwrap();
    assert_eq!(error.code(), ErrorCode::NoMatchingDevice);
    moved.device = "rxe1".to_owned();
    let error = us.device.establish(&moved, Addressing::Verbs).err().unwrap();
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
}

/// Not a test of its own: what [`too_little_locked_memory_is_explained`] runs in a child.
#[test]
#[ignore = "needs an rxe device"]
fn memlock_child() {
    if std::env::var_os("SECURE_RDMA_MEMLOCK_CHILD").is_none() {
        drop(alone());
        return;
    }
    let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
    // SAFETY: the limit is a valid structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }, 0);
    // SAFETY: setuid takes a number.
    assert_eq!(unsafe { libc::setuid(65_534) }, 0);
    let device = Verbs.open("rxe0").unwrap();
    let small = device.register(Arc::new(Memory::allocate(8192).unwrap()), Access::LOCAL_WRITE).unwrap();
    let error =
        device.register(Arc::new(Memory::allocate(1 << 20).unwrap()), Access::LOCAL_WRITE).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Memlock, "{error:?}");
    assert_eq!((error.syscall(), error.errno()), (Some("ibv_reg_mr"), Some(libc::ENOMEM)));
    for part in ["1024 KiB", "64 KiB", "8 KiB are in use", "ulimit -l", "LimitMEMLOCK"] {
        assert!(error.message().contains(part), "{part} is not in: {error}");
    }
    drop(small);
}

#[test]
#[ignore = "needs an rxe device"]
fn too_little_locked_memory_is_explained() {
    let _alone = alone();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "memlock_child", "--include-ignored", "--nocapture"])
        .env("SECURE_RDMA_MEMLOCK_CHILD", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
#[ignore = "needs an rxe device"]
fn counts_are_back_soon_after_queue_pairs_are_dropped() {
    let _alone = alone();
    let before = [held("rxe0"), held("rxe1")];
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        let [us, them] = connected(Sizes::default());
        for id in 0..32 {
            us.receive(id, 0, 64);
            us.post(id, SendOperation::Write { remote: them.remote(0), immediate: None }, 0, 65_536);
        }
        drop((us, them));
        longest = longest.max(settles("rxe0", before[0])).max(settles("rxe1", before[1]));
    }
    assert!(longest < Duration::from_secs(2), "{longest:?}");
}

#[test]
#[ignore = "needs an rxe device"]
fn a_region_lives_until_the_work_on_it_is_done() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    us.receive(1, 0, 64);
    let region = Arc::downgrade(&us.region);
    let End { device, log, pair, region: handle, .. } = us;
    drop(handle);
    assert!(region.upgrade().is_some(), "the posted receive holds it");
    pair.modify(&QpAttr::to(QpState::Err)).unwrap();
    log.completions(1);
    let start = Instant::now();
    while region.upgrade().is_some() {
        assert!(start.elapsed() < Duration::from_secs(5), "released when its receive was flushed");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop((device, pair, them));
}

#[test]
#[ignore = "needs an rxe device"]
fn a_port_that_goes_down_and_up_is_told() {
    let _alone = alone();
    run("ip link add updown type dummy; ip addr add 10.78.0.1/24 dev updown; ip link set updown up; \
         rdma link add rxe8 type rxe netdev updown; sleep 0.3");
    let us = End::new("10.78.0.1", Sizes::default());
    us.init();
    let other = End::new(V4[0], Sizes::default());
    other.init();
    run("ip link set updown down");
    us.log.event(AsyncEvent::PortDown);
    run("ip link set updown up");
    us.log.event(AsyncEvent::PortUp);
    assert_eq!(other.log.now().1, [], "another device's queue pair hears nothing of it");
    drop(us);
    run("rdma link del rxe8; ip link del updown");
}
