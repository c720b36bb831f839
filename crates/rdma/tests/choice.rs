//! Which device a connection uses: tables of hosts, wishes and local addresses.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::IpAddr;

use secure_rdma_rdma::{
    DeviceInfo, DeviceKind, DeviceLimits, DeviceWish, ErrorCode, Gid, GidEntry, GidKind, Lid, LinkLayer,
    LocalAddress, PathMtu, PortInfo, PortState, Result, choose, choose_scoped,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn entry(index: u8, address: &str, kind: GidKind) -> GidEntry {
    GidEntry { index, gid: Gid::from_ip(ip(address)), kind, interface: Some("eth0".to_owned()), mtu: None }
}

fn v2(index: u8, address: &str) -> GidEntry {
    entry(index, address, GidKind::RoceV2)
}

fn v1(index: u8, address: &str) -> GidEntry {
    entry(index, address, GidKind::InfinibandOrRoceV1)
}

fn port(number: u8, link_layer: LinkLayer, gids: Vec<GidEntry>) -> PortInfo {
    let infiniband = link_layer == LinkLayer::Infiniband;
    PortInfo {
        number,
        state: PortState::Active,
        link_layer,
        lid: Lid(if infiniband { 17 } else { 0 }),
        active_mtu: PathMtu::Bytes1024,
        gids,
        addresses: Vec::new(),
    }
}

fn roce(name: &str, gids: Vec<GidEntry>) -> DeviceInfo {
    device(name, vec![port(1, LinkLayer::Ethernet, gids)])
}

/// An InfiniBand device; its GIDs are no IP addresses, its interface has `addresses`.
fn infiniband(name: &str, addresses: &[&str]) -> DeviceInfo {
    let gids = vec![v1(0, "fe80::2:c903:0:1"), v1(1, "fd00::2:c903:0:1")];
    let mut port = port(1, LinkLayer::Infiniband, gids);
    port.addresses = addresses.iter().map(|text| ip(text)).collect();
    device(name, vec![port])
}

fn device(name: &str, ports: Vec<PortInfo>) -> DeviceInfo {
    DeviceInfo {
        name: name.to_owned(),
        kind: DeviceKind::Verbs,
        unusable: None,
        ports,
        limits: DeviceLimits {
            max_work_requests: 1024,
            max_sge: 4,
            max_completions: 4096,
            max_responder_resources: 16,
            max_initiator_depth: 16,
            max_shared_receives: 1024,
            max_message: 1 << 30,
        },
    }
}

fn iwarp(name: &str) -> DeviceInfo {
    DeviceInfo { unusable: Some("it is iWARP".to_owned()), ..roce(name, vec![v2(0, "10.0.0.1")]) }
}

/// The embedded device of a host with these addresses, loopback first, whose interface is as wide as any.
fn soft(addresses: &[&str]) -> DeviceInfo {
    let all = ["127.0.0.1", "::1"].iter().chain(addresses);
    let gids = all.enumerate().map(|(index, address)| {
        let mtu = Some(if index < 2 { PathMtu::Bytes4096 } else { PathMtu::Bytes1024 });
        GidEntry { mtu, ..v2(u8::try_from(index).unwrap(), address) }
    });
    let ports = vec![port(1, LinkLayer::Ethernet, gids.collect())];
    DeviceInfo { kind: DeviceKind::Soft, ..device("soft", ports) }
}

/// These devices, and the embedded one with `addresses`.
fn and_soft(mut devices: Vec<DeviceInfo>, addresses: &[&str]) -> Vec<DeviceInfo> {
    // Where it stands in the list must not matter.
    devices.insert(0, soft(addresses));
    devices
}

/// Two RoCE devices as real hosts have them: link-local first, each address as RoCE v1 and v2.
fn host() -> Vec<DeviceInfo> {
    vec![
        roce(
            "mlx5_0",
            vec![
                v1(0, "fe80::1"),
                v2(1, "fe80::1"),
                v1(2, "10.0.0.1"),
                v2(3, "10.0.0.1"),
                v2(4, "2001:db8::1"),
                v1(5, "10.0.9.9"),
            ],
        ),
        roce("mlx5_1", vec![v2(0, "fe80::2"), v2(1, "10.0.1.1")]),
    ]
}

fn auto() -> DeviceWish {
    DeviceWish::default()
}

fn named(name: &str) -> DeviceWish {
    DeviceWish { device: Some(name.to_owned()), ..auto() }
}

/// Device, port and GID index, or the error's code.
fn told(choice: Result<LocalAddress>) -> String {
    match choice {
        Ok(local) => format!("{} {} {}", local.device, local.port, local.gid_index),
        Err(error) => error.code().as_str().to_owned(),
    }
}

fn message(choice: Result<LocalAddress>) -> String {
    choice.unwrap_err().message().to_owned()
}

#[test]
fn on_roce_the_gid_equals_the_local_address() {
    for (address, expected) in [
        ("10.0.0.1", "mlx5_0 1 3"),
        ("::ffff:10.0.0.1", "mlx5_0 1 3"),
        ("2001:db8::1", "mlx5_0 1 4"),
        ("10.0.1.1", "mlx5_1 1 1"),
        ("fe80::1", "mlx5_0 1 1"),
        ("fe80::2", "mlx5_1 1 0"),
        // RoCE v1 has it, v2 has not.
        ("10.0.9.9", "ERR_RDMA_NO_MATCHING_DEVICE"),
        ("10.0.2.1", "ERR_RDMA_NO_MATCHING_DEVICE"),
        ("2001:db8::2", "ERR_RDMA_NO_MATCHING_DEVICE"),
        ("127.0.0.1", "soft 1 0"),
        ("::1", "soft 1 1"),
        ("::ffff:127.0.0.1", "soft 1 0"),
        // An empty table entry is not the address ::.
        ("::", "ERR_RDMA_NO_MATCHING_DEVICE"),
    ] {
        // The embedded device has all those addresses, too.
        let devices = and_soft(host(), &["10.0.0.1", "10.0.9.9", "10.0.2.1", "2001:db8::2", "fe80::1"]);
        assert_eq!(told(choose(&devices, &auto(), ip(address))), expected, "{address}");
        let expected =
            expected.replace("soft 1 0", "ERR_RDMA_NO_DEVICE").replace("soft 1 1", "ERR_RDMA_NO_DEVICE");
        assert_eq!(told(choose(&host(), &auto(), ip(address))), expected, "{address}");
    }
}

#[test]
fn the_outcome_says_what_was_chosen_and_why() {
    let local = choose(&host(), &auto(), ip("10.0.0.1")).unwrap();
    assert_eq!(local.reason, "its GID is the local address of the TLS connection, 10.0.0.1");
    assert_eq!((local.gid, local.path_mtu), (Gid::from_ip(ip("10.0.0.1")), PathMtu::Bytes1024));
    assert_eq!(
        (local.interface.as_deref(), local.lid, local.kind),
        (Some("eth0"), Lid(0), DeviceKind::Verbs)
    );
}

#[test]
fn empty_entries_are_no_addresses() {
    let devices = [roce("rxe0", vec![v2(0, "::"), v2(1, "0.0.0.0")])];
    for address in ["::", "0.0.0.0", "::ffff:0.0.0.0"] {
        assert_eq!(told(choose(&devices, &auto(), ip(address))), "ERR_RDMA_NO_MATCHING_DEVICE");
    }
    let wish = DeviceWish { gid_index: Some(0), ..named("rxe0") };
    assert_eq!(told(choose(&devices, &wish, ip("10.0.0.1"))), "ERR_RDMA_NO_MATCHING_DEVICE");
}

#[test]
fn a_device_on_loopback_comes_before_the_embedded_one() {
    let devices = and_soft(vec![roce("rxe_lo", vec![v2(0, "127.0.0.1"), v2(1, "::1")])], &[]);
    assert_eq!(told(choose(&devices, &auto(), ip("127.0.0.1"))), "rxe_lo 1 0");
    assert_eq!(told(choose(&devices, &auto(), ip("::1"))), "rxe_lo 1 1");
    assert_eq!(told(choose(&devices, &auto(), ip("127.0.0.2"))), "soft 1 0");
}

#[test]
fn rdma_address_takes_the_place_of_the_local_address() {
    let at = |address: &str| DeviceWish { rdma_address: Some(ip(address)), ..auto() };
    for (address, expected) in [
        ("10.0.1.1", "mlx5_1 1 1"),
        ("::ffff:10.0.1.1", "mlx5_1 1 1"),
        ("10.7.7.7", "ERR_RDMA_NO_MATCHING_DEVICE"),
    ] {
        assert_eq!(told(choose(&host(), &at(address), ip("192.168.0.1"))), expected, "{address}");
        // Loopback of the TLS connection does not matter then.
        assert_eq!(told(choose(&host(), &at(address), ip("127.0.0.1"))), expected, "{address}");
    }
    let local = choose(&host(), &at("10.0.1.1"), ip("192.168.0.1")).unwrap();
    assert_eq!(local.reason, "its GID is the rdmaAddress, 10.0.1.1");
}

#[test]
fn wishes_narrow_what_is_looked_at() {
    let mut devices = host();
    devices.push(device(
        "two0",
        vec![
            port(1, LinkLayer::Ethernet, vec![v2(0, "10.5.0.1"), v2(3, "10.5.0.2")]),
            port(2, LinkLayer::Ethernet, vec![v2(0, "10.5.0.1")]),
        ],
    ));
    let wish = |device: &str, port, gid_index, address: &str| DeviceWish {
        device: (!device.is_empty()).then(|| device.to_owned()),
        port,
        gid_index,
        rdma_address: (!address.is_empty()).then(|| ip(address)),
    };
    let none = "ERR_RDMA_NO_MATCHING_DEVICE";
    for (wish, local, expected) in [
        (wish("mlx5_0", None, None, ""), "10.0.0.1", "mlx5_0 1 3"),
        // The device that was asked for, or none: no other one that fits.
        (wish("mlx5_0", None, None, ""), "10.0.1.1", none),
        (wish("mlx5_0", None, None, ""), "127.0.0.1", none),
        (wish("two0", None, None, ""), "10.5.0.1", "two0 1 0"),
        (wish("two0", Some(2), None, ""), "10.5.0.1", "two0 2 0"),
        (wish("", Some(2), None, ""), "10.5.0.1", "two0 2 0"),
        (wish("two0", Some(3), None, ""), "10.5.0.1", none),
        // A GID index need not be the TLS address.
        (wish("mlx5_0", Some(1), Some(4), ""), "192.168.0.1", "mlx5_0 1 4"),
        (wish("mlx5_0", None, Some(4), ""), "127.0.0.1", "mlx5_0 1 4"),
        (wish("mlx5_0", None, Some(1), ""), "192.168.0.1", "mlx5_0 1 1"),
        // But RoCE v1 never, nor an index that is not there.
        (wish("mlx5_0", None, Some(2), ""), "192.168.0.1", none),
        (wish("mlx5_0", None, Some(99), ""), "10.0.0.1", none),
        // Where the index alone is said, the address tells the device, and none is guessed.
        (wish("", None, Some(3), ""), "10.5.0.2", "two0 1 3"),
        (wish("", None, Some(3), ""), "10.0.0.1", "mlx5_0 1 3"),
        (wish("", None, Some(3), ""), "192.168.0.1", none),
        (wish("", None, Some(4), ""), "192.168.0.1", "mlx5_0 1 4"),
        (wish("two0", None, Some(0), ""), "192.168.0.1", none),
        (wish("two0", Some(1), Some(0), ""), "192.168.0.1", "two0 1 0"),
        // What is said twice must agree.
        (wish("mlx5_0", None, Some(3), "10.0.0.1"), "192.168.0.1", "mlx5_0 1 3"),
        (wish("mlx5_0", None, Some(4), "10.0.0.1"), "192.168.0.1", none),
        (wish("mlx5_1", None, None, "10.0.0.1"), "192.168.0.1", none),
    ] {
        assert_eq!(told(choose(&devices, &wish, ip(local))), expected, "{wish:?} from {local}");
    }
}

#[test]
fn an_ambiguous_index_says_what_to_say() {
    let wish = DeviceWish { gid_index: Some(1), ..auto() };
    let message = message(choose(&host(), &wish, ip("192.168.0.1")));
    assert!(message.contains("mlx5_0 port 1 and mlx5_1 port 1 fit equally"), "{message}");
    assert!(message.ends_with("Say device and devicePort"), "{message}");
}

#[test]
fn a_link_local_address_belongs_to_an_interface() {
    let mut devices = vec![roce("mlx5_0", vec![v2(0, "fe80::7")]), roce("mlx5_1", vec![v2(0, "fe80::7")])];
    devices[1].ports[0].gids[0].interface = Some("eth1".to_owned());
    let address = ip("fe80::7");
    let scoped = |scope| told(choose_scoped(&devices, &auto(), address, Some(scope)));
    assert_eq!(scoped("eth0"), "mlx5_0 1 0");
    assert_eq!(scoped("eth1"), "mlx5_1 1 0");
    assert_eq!(scoped("eth2"), "ERR_RDMA_NO_MATCHING_DEVICE");
    let message = message(choose_scoped(&devices, &auto(), address, Some("eth2")));
    assert!(message.contains("address fe80::7 on the interface eth2"), "{message}");
    assert_eq!(told(choose(&devices, &auto(), address)), "ERR_RDMA_NO_MATCHING_DEVICE");
    assert_eq!(told(choose(&devices, &named("mlx5_1"), address)), "mlx5_1 1 0");
    // Other addresses are the same on every interface, and a rdmaAddress has no scope.
    assert_eq!(told(choose_scoped(&host(), &auto(), ip("10.0.1.1"), Some("bond0"))), "mlx5_1 1 1");
    let wish = DeviceWish { rdma_address: Some(address), ..named("mlx5_1") };
    assert_eq!(told(choose_scoped(&devices, &wish, ip("10.0.0.1"), Some("eth0"))), "mlx5_1 1 0");
}

#[test]
fn a_port_that_is_down_is_never_chosen() {
    let mut devices = host();
    devices[0].ports[0].state = PortState::Down;
    assert_eq!(told(choose(&devices, &auto(), ip("10.0.0.1"))), "ERR_RDMA_NO_MATCHING_DEVICE");
    assert_eq!(told(choose(&devices, &auto(), ip("10.0.1.1"))), "mlx5_1 1 1");
    let wish = DeviceWish { port: Some(1), gid_index: Some(3), ..named("mlx5_0") };
    let message = message(choose(&devices, &wish, ip("10.0.0.1")));
    assert!(message.contains("mlx5_0 port 1 (down)"), "{message}");
}

#[test]
fn on_infiniband_the_interface_carries_the_address() {
    let devices =
        [roce("rxe0", vec![v2(0, "10.0.0.1")]), infiniband("mlx4_0", &["10.9.0.1", "::ffff:10.9.0.2"])];
    for (address, expected) in [
        ("10.9.0.1", "mlx4_0 1 0"),
        ("10.9.0.2", "mlx4_0 1 0"),
        ("::ffff:10.9.0.1", "mlx4_0 1 0"),
        ("10.0.0.1", "rxe0 1 0"),
        ("10.9.0.3", "ERR_RDMA_NO_MATCHING_DEVICE"),
        // A GID that looks like an address is none here.
        ("fe80::2:c903:0:1", "ERR_RDMA_NO_MATCHING_DEVICE"),
        ("fd00::2:c903:0:1", "ERR_RDMA_NO_MATCHING_DEVICE"),
    ] {
        assert_eq!(told(choose(&devices, &auto(), ip(address))), expected, "{address}");
    }
    let local = choose(&devices, &auto(), ip("10.9.0.1")).unwrap();
    assert_eq!((local.lid, local.link_layer), (Lid(17), LinkLayer::Infiniband));
    assert_eq!(
        local.reason,
        "its network interface carries the local address of the TLS connection, 10.9.0.1"
    );
    let wish = DeviceWish { gid_index: Some(1), ..named("mlx4_0") };
    assert_eq!(told(choose(&devices, &wish, ip("10.9.0.1"))), "mlx4_0 1 1");
    // RoCE goes by GID alone: an interface's address that is in no GID of it does not do.
    let mut roce = roce("rxe1", vec![v2(0, "10.3.0.1")]);
    roce.ports[0].addresses = vec![ip("10.3.0.2")];
    assert_eq!(told(choose(&[roce], &auto(), ip("10.3.0.2"))), "ERR_RDMA_NO_MATCHING_DEVICE");
}

#[test]
fn where_there_is_nothing_the_embedded_device_takes_it() {
    let here = ["10.0.0.1", "10.0.0.2", "fd00::1"];
    let taken = |devices: Vec<DeviceInfo>, address: &str| {
        let local = choose(&and_soft(devices, &here), &auto(), ip(address)).unwrap();
        assert_eq!((local.kind, local.gid), (DeviceKind::Soft, Gid::from_ip(ip(address))));
        (local.reason, local.path_mtu)
    };
    let none = "there is no RDMA device on this host".to_owned();
    assert_eq!(taken(vec![], "10.0.0.1"), (none.clone(), PathMtu::Bytes1024));
    assert_eq!(taken(vec![], "fd00::1"), (none, PathMtu::Bytes1024));
    let loopback = |address| (format!("the connection is on loopback ({address})"), PathMtu::Bytes4096);
    for devices in [vec![], host(), vec![iwarp("cxgb4_0")]] {
        // Every address of 127.0.0.0/8 is this host's.
        for address in ["127.0.0.1", "127.0.0.2", "127.255.255.254", "::1"] {
            assert_eq!(taken(devices.clone(), address), loopback(address));
        }
    }
    assert!(taken(vec![iwarp("cxgb4_0")], "10.0.0.1").0.contains("cxgb4_0: it is iWARP"));
    let at = |address: &str| DeviceWish { rdma_address: Some(ip(address)), ..auto() };
    let local = choose(&and_soft(vec![], &here), &at("10.0.0.2"), ip("127.0.0.1")).unwrap();
    assert_eq!((local.gid_index, local.gid), (3, Gid::from_ip(ip("10.0.0.2"))));
    // It, too, sends from addresses of this host only.
    let refusal = message(choose(&and_soft(vec![], &here), &at("10.0.0.3"), ip("127.0.0.1")));
    assert!(
        refusal.starts_with(
            "no RDMA device fits address 10.0.0.3, device soft. Candidates: soft port 1: GIDs 0="
        )
    );

    // What was asked for by name, port or index is never replaced by it.
    for wish in
        [named("mlx5_0"), DeviceWish { port: Some(1), ..auto() }, DeviceWish { gid_index: Some(1), ..auto() }]
    {
        for address in ["10.0.0.1", "127.0.0.1"] {
            assert!(choose(&and_soft(vec![], &here), &wish, ip(address)).is_err(), "{wish:?}");
        }
    }
}

#[test]
fn without_an_embedded_device_the_refusal_says_why_it_would_be_its_turn() {
    let refusal = |devices: &[DeviceInfo], address: &str| {
        let error = choose(devices, &auto(), ip(address)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::NoDevice);
        error.message().to_owned()
    };
    let starts = |devices: &[DeviceInfo], address: &str, begin: &str| {
        let refusal = refusal(devices, address);
        assert!(
            refusal.starts_with(&format!("{begin}, and there is no embedded device either. ")),
            "{refusal}"
        );
    };
    starts(&[], "10.0.0.1", "there is no RDMA device on this host");
    starts(&[], "127.0.0.1", "the connection is on loopback (127.0.0.1)");
    starts(&host(), "127.0.0.1", "the connection is on loopback (127.0.0.1)");
    assert!(refusal(&[iwarp("cxgb4_0")], "10.0.0.1").contains("cxgb4_0: it is iWARP"));
    let broken = DeviceInfo { unusable: Some("UDP sockets are forbidden".to_owned()), ..soft(&[]) };
    assert_eq!(
        refusal(&[broken], "127.0.0.1"),
        "the connection is on loopback (127.0.0.1), and soft cannot be used: UDP sockets are forbidden"
    );
}

#[test]
fn the_embedded_device_is_a_device_by_its_name() {
    let devices = and_soft(host(), &["10.0.0.1", "10.0.2.1"]);
    let wish = |port, gid_index, address: &str| DeviceWish {
        port,
        gid_index,
        rdma_address: (!address.is_empty()).then(|| ip(address)),
        ..named("soft")
    };
    let none = "ERR_RDMA_NO_MATCHING_DEVICE";
    for (wish, local, expected) in [
        // Also where another device has that address.
        (wish(None, None, ""), "10.0.0.1", "soft 1 2"),
        (wish(Some(1), None, ""), "10.0.2.1", "soft 1 3"),
        (wish(Some(2), None, ""), "10.0.2.1", none),
        (wish(None, None, "10.0.2.1"), "10.0.0.1", "soft 1 3"),
        (wish(None, Some(3), ""), "10.0.0.1", "soft 1 3"),
        (wish(None, Some(9), ""), "10.0.0.1", none),
        (wish(None, None, ""), "10.9.9.9", none),
        (wish(None, None, ""), "127.0.0.3", "soft 1 0"),
    ] {
        assert_eq!(told(choose(&devices, &wish, ip(local))), expected, "{wish:?} from {local}");
    }
    let local = choose(&devices, &named("soft"), ip("10.0.0.1")).unwrap();
    assert_eq!(local.reason, "its GID is the local address of the TLS connection, 10.0.0.1");
    let gid = |wish| choose(&devices, &wish, ip("127.0.0.3")).unwrap().gid.to_ip();
    assert_eq!(gid(wish(None, None, "")), ip("127.0.0.3"));
    assert_eq!(gid(wish(None, Some(0), "")), ip("127.0.0.1"), "an index that was asked for is itself");
}

#[test]
fn a_host_whose_devices_do_not_fit_is_told_of_the_embedded_one_and_not_given_it() {
    let devices = and_soft(host(), &["10.0.2.1"]);
    let refusal = message(choose(&devices, &auto(), ip("10.0.2.1")));
    assert!(!refusal.contains("soft port"), "it is no candidate: {refusal}");
    assert!(
        refusal.ends_with(
            "The embedded device, \"soft\", has every address of this host: it is used if device names it"
        ),
        "{refusal}"
    );
    let refusal = message(choose(&devices, &named("soft"), ip("10.9.9.9")));
    assert!(refusal.contains("Candidates: soft port 1: GIDs 0=127.0.0.1 1=::1 2=10.0.2.1. "), "{refusal}");
    assert!(!refusal.contains("mlx5_0"), "{refusal}");
}

#[test]
fn no_device_of_that_name_lists_the_names_that_there_are() {
    let error = choose(&host(), &named("mlx5_7"), ip("10.0.0.1")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeviceNotFound);
    assert_eq!(error.message(), "no RDMA device is called \"mlx5_7\"; there are: mlx5_0, mlx5_1");
    let error = choose(&[], &named("rxe0"), ip("10.0.0.1")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeviceNotFound);
    assert!(error.message().contains("there is no RDMA device on this host"), "{error}");
    let message =
        |devices: Vec<DeviceInfo>| message(choose(&and_soft(devices, &[]), &named("rxe0"), ip("10.0.0.1")));
    assert!(message(host()).ends_with("there are: mlx5_0, mlx5_1, soft"));
    assert!(message(vec![]).ends_with("(ibv_devices lists them) but the embedded one, soft"));
}

#[test]
fn iwarp_is_refused_by_name_and_never_chosen() {
    let error = choose(&[iwarp("cxgb4_0")], &named("cxgb4_0"), ip("10.0.0.1")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeviceUnsupported);
    assert_eq!(error.message(), "cxgb4_0 cannot be used: it is iWARP");
    let devices = [iwarp("cxgb4_0"), roce("rxe0", vec![v2(0, "10.0.0.2")])];
    let message = message(choose(&devices, &auto(), ip("10.0.0.1")));
    assert!(message.contains("cxgb4_0: it is iWARP"), "{message}");
    assert_eq!(told(choose(&devices, &auto(), ip("10.0.0.2"))), "rxe0 1 0");
}

#[test]
fn the_refusal_lists_every_candidate_and_the_remedies() {
    let mut devices = host();
    devices.push(infiniband("mlx4_0", &["10.9.0.1"]));
    devices.push(infiniband("mlx4_1", &[]));
    let wish = DeviceWish { port: Some(1), ..auto() };
    assert_eq!(
        message(choose(&devices, &wish, ip("192.168.0.1"))),
        "no RDMA device fits address 192.168.0.1, port 1. Candidates: \
         mlx5_0 port 1: GIDs 0=fe80::1 (RoCE v1, not used) 1=fe80::1 2=10.0.0.1 (RoCE v1, not used) 3=10.0.0.1 \
         4=2001:db8::1 5=10.0.9.9 (RoCE v1, not used); \
         mlx5_1 port 1: GIDs 0=fe80::2 1=10.0.1.1; \
         mlx4_0 port 1: interface with 10.9.0.1, GIDs 0=fe80::2:c903:0:1 1=fd00::2:c903:0:1; \
         mlx4_1 port 1: interface with no IP address, GIDs 0=fe80::2:c903:0:1 1=fd00::2:c903:0:1. \
         Connect over an address that one of them has, or say rdmaAddress, or device, devicePort and gidIndex"
    );
}
