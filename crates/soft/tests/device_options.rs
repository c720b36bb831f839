//! Sockets as hosts have them: without batches, with small buffers, with 4791 taken; pollers.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod common;

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{End, PATIENCE, Terms, bring_up, bytes, local, open, read_back, remote, request};
use secure_rdma_rdma::{
    Addressing, Device, DevicePart, ErrorCode, Gid, Lid, LinkLayer, PathContext, PathMtu, QpAttr, QpState,
    SendOperation, WorkId,
};
use secure_rdma_soft::engine::Config;
use secure_rdma_soft::{SoftDevice, SoftOptions};

const LENGTH: usize = 300_000;

/// Connects two devices and moves bytes each way, by WRITE and by READ.
fn move_bytes(devices: [SoftOptions; 2], terms: &Terms) -> [Arc<SoftDevice>; 2] {
    let [one, other] = devices.map(|options| End::new(&open(options), terms));
    bring_up(&one, &other, terms);
    let (ours, theirs) = (one.region(2 * LENGTH), other.region(2 * LENGTH));
    for round in 0..4 {
        let sent = bytes(LENGTH, round);
        ours.memory().write(0, &sent).unwrap();
        let write = SendOperation::Write { remote: remote(&theirs, 8), immediate: None };
        one.send(request(1, write, &ours, 0, LENGTH));
        let read = SendOperation::Read { remote: remote(&theirs, 8) };
        one.send(request(2, read, &ours, LENGTH, LENGTH));
        assert_eq!((one.done().id, one.done().id), (WorkId(1), WorkId(2)));
        assert!(read_back(&theirs, 8, LENGTH) == sent && read_back(&ours, LENGTH, LENGTH) == sent);
    }
    [one.device, other.device]
}

fn on(address: &str) -> Terms {
    Terms { address: address.parse().unwrap(), ..Terms::default() }
}

#[test]
fn packets_go_one_by_one_where_the_kernel_cuts_no_batches() {
    let single = || SoftOptions { segmentation: false, ..SoftOptions::default() };
    for address in ["127.0.0.1", "::1"] {
        let devices = move_bytes([single(), single()], &on(address));
        for device in devices {
            let counters = device.counters();
            // An ICRC made for another IPv4 ID would be counted here.
            assert_eq!((counters.engine.dropped_icrc, counters.sockets.refused_batches), (0, 0));
            assert_eq!(counters.sockets.send_calls, counters.sockets.sent_packets);
        }
    }
}

#[test]
fn packets_come_one_by_one_where_the_kernel_puts_no_batches_together() {
    let single = || SoftOptions { merging: false, ..SoftOptions::default() };
    for options in [[single(), single()], [single(), SoftOptions::default()]] {
        let [one, other] = move_bytes(options, &on("127.0.0.1"));
        assert_eq!(one.counters().engine.dropped_icrc + other.counters().engine.dropped_icrc, 0);
        let sockets = one.counters().sockets;
        assert!(sockets.sent_packets > 2 * sockets.send_calls, "batches were sent");
    }
}

#[test]
fn nothing_is_lost_to_a_full_buffer_at_debians_limit() {
    // No copies are sent just because the receiver stands still: those would come on top.
    let engine = || Config { adaptive_timeout: false, ..Config::default() };
    let small = || SoftOptions { receive_buffer: 212_992, engine: engine(), ..SoftOptions::default() };
    for path_mtu in [PathMtu::Bytes256, PathMtu::Bytes1024, PathMtu::Bytes4096] {
        for batches in [true, false] {
            let options = || SoftOptions { segmentation: batches, merging: batches, ..small() };
            let terms = Terms { path_mtu, timeout: 19, ..on("127.0.0.1") };
            let (device, sink) = (open(options()), open(options()));
            let ends: Vec<_> = (0..8)
                .map(|_| {
                    let ends = (End::new(&device, &terms), End::new(&sink, &terms));
                    bring_up(&ends.0, &ends.1, &terms);
                    ends
                })
                .collect();
            // While the receiver stands still, what may be in flight to it all lies in its buffer.
            let poller = sink.poller();
            let regions: Vec<_> =
                ends.iter().map(|(one, other)| (one.region(LENGTH), other.region(LENGTH))).collect();
            for ((one, _), (ours, theirs)) in ends.iter().zip(&regions) {
                let write = SendOperation::Write { remote: remote(theirs, 0), immediate: None };
                (0..4).for_each(|id| one.send(request(id, write.clone(), ours, 0, LENGTH)));
            }
            drop(poller);
            for (one, _) in &ends {
                for _ in 0..4 {
                    one.done();
                }
            }
            assert_eq!(sink.counters().sockets.receive_drops, 0, "{path_mtu}, batches {batches}");
            assert_eq!(device.counters().sockets.receive_drops, 0, "{path_mtu}, batches {batches}");
        }
    }
}

#[test]
fn a_device_opens_on_another_port_where_4791_is_taken() {
    // Whether we get it or somebody has it, it is taken then.
    let _holder = UdpSocket::bind("0.0.0.0:4791");
    let device = SoftDevice::open(&SoftOptions::default()).unwrap();
    assert!(device.port() != 4791 && device.port() != 0);
    let refused = SoftDevice::open(&SoftOptions { port: Some(4791), ..SoftOptions::default() }).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::DeviceOpen);
    assert!(refused.message().contains("4791"), "{refused}");
}

fn context(address: IpAddr) -> PathContext {
    PathContext { tls_local: address, tls_peer: address, allowed_peer_addresses: Vec::new() }
}

#[test]
fn the_offer_says_what_a_peer_must_know() {
    let device = open(SoftOptions { receive_buffer: 212_992, ..SoftOptions::default() });
    for address in ["127.0.0.1", "127.0.0.77", "::1"] {
        let address: IpAddr = address.parse().unwrap();
        let mut own = local(&device, if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { address });
        own.gid = Gid::from_ip(address);
        let establish = device.establish(&own, Addressing::default()).unwrap();
        let part = DevicePart::decode(&establish.local_part()).unwrap();
        assert_eq!((part.gid, part.receive_buffer), (own.gid, Some(425_984)));
        assert!(part.udp_port.is_some_and(|port| port != 4791));
        assert!(part.udp_source_port.is_some_and(|port| port >= 0xC000));
        let route = establish.resolve(&part.encode(), &context(address)).unwrap();
        assert_eq!((route.udp_port(), route.path_mtu()), (part.udp_port, Some(PathMtu::Bytes4096)));
        let mut attr = QpAttr::to(QpState::Rtr);
        route.rtr(&mut attr).unwrap();
        let udp = attr.address.unwrap().udp.unwrap();
        assert_eq!((udp.source, udp.destination.ip()), (address, address));
    }
    let mut elsewhere = local(&device, Ipv4Addr::LOCALHOST.into());
    elsewhere.gid = Gid::from_ip("192.0.2.77".parse().unwrap());
    let refused = device.establish(&elsewhere, Addressing::default()).err().unwrap();
    assert_eq!(refused.code(), ErrorCode::NoMatchingDevice);
}

#[test]
fn a_verbs_peer_needs_port_4791() {
    let address: IpAddr = Ipv4Addr::LOCALHOST.into();
    let part = DevicePart::new(LinkLayer::Ethernet, Gid::from_ip(address), Lid(0)).encode();
    let resolve = |device: &SoftDevice| {
        let establish = device.establish(&local(device, address), Addressing::default()).unwrap();
        establish.resolve(&part, &context(address))
    };
    let holder = UdpSocket::bind("0.0.0.0:4791");
    let refused = resolve(&open(SoftOptions::default())).err().unwrap();
    assert_eq!(refused.code(), ErrorCode::Path);
    assert!(refused.message().contains("4791"), "{refused}");
    if holder.is_ok() {
        let named = refused.message().contains(&format!("process {}", std::process::id()));
        assert!(named || refused.message().contains("rdma_rxe"), "{refused}");
    }
    drop(holder);
    // Another test may hold it for a moment.
    let end = Instant::now() + PATIENCE;
    let device = loop {
        match SoftDevice::open(&SoftOptions { port: Some(4791), ..SoftOptions::default() }) {
            Ok(device) => break device,
            Err(error) if error.message().contains("rdma_rxe") => return,
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let route = resolve(&device).unwrap();
    let mut attr = QpAttr::to(QpState::Rtr);
    route.rtr(&mut attr).unwrap();
    let udp = attr.address.unwrap().udp.unwrap();
    assert_eq!((udp.destination.port(), udp.receive_buffer, udp.expected_source_port), (4791, None, None));
}

#[test]
fn a_peer_that_is_not_the_one_of_the_tls_connection_is_refused() {
    let device = open(SoftOptions::default());
    let address: IpAddr = Ipv4Addr::LOCALHOST.into();
    let establish = || device.establish(&local(&device, address), Addressing::default()).unwrap();
    let part = |peer: &str| {
        let gid = Gid::from_ip(peer.parse().unwrap());
        DevicePart { receive_buffer: Some(4096), ..DevicePart::new(LinkLayer::Ethernet, gid, Lid(0)) }
            .encode()
    };
    for (peer, tls_peer) in [("192.0.2.1", "127.0.0.1"), ("127.0.0.1", "192.0.2.1"), ("::1", "::1")] {
        let context = PathContext {
            tls_local: address,
            tls_peer: tls_peer.parse().unwrap(),
            allowed_peer_addresses: Vec::new(),
        };
        let refused = establish().resolve(&part(peer), &context).err().unwrap();
        assert_eq!(refused.code(), ErrorCode::Offer, "{peer} of {tls_peer}");
    }
    let infiniband = DevicePart::new(LinkLayer::Infiniband, Gid::new([7; 16]), Lid(3)).encode();
    assert_eq!(establish().resolve(&infiniband, &context(address)).err().unwrap().code(), ErrorCode::Offer);
}

#[test]
fn who_polls_is_who_is_told() {
    let terms = Terms::default();
    let [one, other] = [(); 2].map(|()| End::new(&open(SoftOptions::default()), &terms));
    bring_up(&one, &other, &terms);
    let (ours, theirs) = (one.region(4096), other.region(4096));
    let (ours_poller, theirs_poller) = (one.device.poller(), other.device.poller());
    let end = Instant::now() + PATIENCE;
    for id in 0..100 {
        other.receive(id, &theirs, 0, 64);
        one.send(request(id, common::SEND, &ours, 0, 64));
        let mut left = 2;
        while left > 0 {
            assert!(Instant::now() < end);
            left -= usize::from({
                theirs_poller.poll();
                other.told.try_next().is_some()
            });
            left -= usize::from({
                ours_poller.poll();
                one.told.try_next().is_some()
            });
        }
    }
    // Waiting instead of looking.
    other.receive(1, &theirs, 0, 64);
    one.send(request(1, common::SEND, &ours, 0, 64));
    while other.told.try_next().is_none() {
        assert!(theirs_poller.wait(Some(PATIENCE)));
    }
    assert!(!theirs_poller.wait(Some(Duration::from_millis(1))));
    while one.told.try_next().is_none() {
        assert!(ours_poller.wait(Some(PATIENCE)));
    }
    // One that looks no more is stood in for.
    other.receive(2, &theirs, 0, 64);
    one.send(request(2, common::SEND, &ours, 0, 64));
    other.done();
    one.done();
    drop((ours_poller, theirs_poller));
    other.receive(3, &theirs, 0, 64);
    one.send(request(3, common::SEND, &ours, 0, 64));
    other.done();
    one.done();
}
