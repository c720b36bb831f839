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
    Access, Addressing, AsyncEvent, DevicePart, Devices, ErrorCode, Gid, GidKind, Lid, LinkLayer, Memory,
    PathContext, PortState, QpAttr, QpState, SendOperation,
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
    // Milliseconds; an emulated guest on a busy host has taken 2 s.
    assert!(longest < Duration::from_secs(10), "{longest:?}");
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
