//! Bring-ups that fail on one side: by name there, told to the other side, and without secrets.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use secure_rdma_rdma::{ErrorCode, PathContext, PathMtu, Phase, Psn, QpAttr, QpState, Qpn};
use secure_rdma_session::{
    Bringup, Host, Listener, PeerStart, Prepared, QueuePairOptions, Terms, TlsAddresses,
};

use super::common::World;
use super::common::raw::RawClient;
use super::common::stub::{Behaviour, Path, StubHost};
use super::{Failures, failure, listen};

#[tokio::test]
async fn a_path_that_fails_is_named_on_both_sides() {
    for (client_path, server_path) in [
        (Path::Fails, Path::Hangs),
        (Path::Hangs, Path::Fails),
        (Path::Works, Path::Fails),
        (Path::Hangs, Path::Hangs),
    ] {
        let mut world = World::new();
        world.options.handshake_timeout = Duration::from_millis(700);
        world.client_host.set(|b| b.path = client_path);
        world.server_host.set(|b| b.path = server_path);
        let (listener, failures) = listen(&world).await;
        let client = world.connect(listener.local_addr().port()).await.unwrap_err();
        for error in [client, failure(&failures).await] {
            assert_eq!(error.code(), ErrorCode::Path, "{error}");
            assert!(error.phase() >= Some(Phase::Rts), "{error}");
            for part in ["between 127.0.0.1 (stub0) and 127.0.0.1", "UDP port 4791", "path MTU 4096"] {
                assert!(error.message().contains(part), "{error}");
            }
        }
        world.gone().await;
    }
}

#[tokio::test]
async fn a_violation_in_rtr_ends_the_bring_up_at_once_and_by_its_own_name() {
    let world = World::new();
    let (listener, failures) = listen(&world).await;
    world.server_host.set(|b| b.violated_in_rtr = true);
    let mut client = RawClient::new(&world, listener.local_addr().port()).await;
    client.send_offer(client.offer()).await;
    // It never says READY: without looking at what came, the server would wait for it until the deadline.
    let (code, message) = client.error().await;
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("ERR_RDMA_PEER_VIOLATION", "it sent what it had no credit for")
    );
    let error = failure(&failures).await;
    assert_eq!((error.code(), error.phase()), (ErrorCode::PeerViolation, Some(Phase::Rtr)), "{error}");
    drop(client);
    world.gone().await;
}

#[tokio::test]
async fn a_queue_pair_that_a_violation_has_moved_to_err_says_so_instead_of_its_transition() {
    let host = StubHost::with(|b| b.violated_in_rtr = true);
    let address = "127.0.0.1:1".parse().unwrap();
    let prepared = host.prepare(TlsAddresses { local: address, peer: address }).unwrap();
    let Prepared { device, local, addressing, queue_pair, upper } = prepared;
    let establish = device.establish(&local, addressing).unwrap();
    let context =
        PathContext { tls_local: address.ip(), tls_peer: address.ip(), allowed_peer_addresses: vec![] };
    let route = establish.resolve(&local.gid.bytes(), &context).unwrap();
    let init = Bringup::init(Arc::clone(&queue_pair), upper, &local, QueuePairOptions::default()).unwrap();
    let peer = PeerStart {
        qpn: Qpn::new(0x4711).unwrap(),
        psn: Psn::new(1).unwrap(),
        path_mtu: PathMtu::Bytes1024,
        responder_resources: 1,
        terms: Terms { max_message_size: 1, segment_size: 4096, credits: 4 },
    };
    let rtr = init.rtr(route, &peer).unwrap();
    queue_pair.modify(&QpAttr::to(QpState::Err)).unwrap();
    let error = rtr.rts(Psn::new(2).unwrap(), 1).err().unwrap();
    assert_eq!((error.code(), error.phase()), (ErrorCode::PeerViolation, Some(Phase::Rts)), "{error}");
}

#[tokio::test]
async fn what_fails_on_one_side_is_told_to_the_other_but_not_its_secrets() {
    type Change = fn(&mut Behaviour);
    let cases: Vec<(&str, Change, ErrorCode, Phase, &str)> = vec![
        (
            "no device",
            |b| b.prepare_fails = Some(ErrorCode::NoMatchingDevice),
            ErrorCode::NoMatchingDevice,
            Phase::Device,
            "no RDMA device",
        ),
        (
            "no room",
            |b| b.prepare_fails = Some(ErrorCode::Memlock),
            ErrorCode::Memlock,
            Phase::Device,
            "no room",
        ),
        (
            "odd",
            |b| b.prepare_fails = Some(ErrorCode::DeviceOpen),
            ErrorCode::DeviceOpen,
            Phase::Device,
            "own log",
        ),
        (
            "unreachable",
            |b| b.resolve_fails = Some(ErrorCode::Unreachable),
            ErrorCode::Unreachable,
            Phase::Rtr,
            "no RDMA path",
        ),
        (
            "narrow path",
            |b| b.route_mtu = Some(PathMtu::Bytes512),
            ErrorCode::Path,
            Phase::Rtr,
            "only 512 bytes",
        ),
        ("no depth", |b| b.limits = (0, 16), ErrorCode::InvalidArgument, Phase::Device, "own log"),
    ];
    for (name, change, code, phase, told) in cases {
        let world = World::new();
        world.server_host.set(change);
        let (listener, failures) = listen(&world).await;
        let client = world.connect(listener.local_addr().port()).await.unwrap_err();
        let server = failure(&failures).await;
        assert_eq!((server.code(), server.phase()), (code, Some(phase)), "{name}: {server}");
        let expected = if code == ErrorCode::Path { ErrorCode::Path } else { ErrorCode::PeerRefused };
        assert_eq!(client.code(), expected, "{name}: {client}");
        assert!(client.message().contains(told), "{name}: {client}");
        assert!(!client.message().contains("secret detail"), "{name}: {client}");
        world.gone().await;
        // And the other way round.
        let world = World::new();
        world.client_host.set(change);
        let (listener, failures) = listen(&world).await;
        let client = world.connect(listener.local_addr().port()).await.unwrap_err();
        assert_eq!((client.code(), client.phase()), (code, Some(phase)), "{name}: {client}");
        let server = failure(&failures).await;
        assert_eq!(server.code(), expected, "{name}: {server}");
        world.gone().await;
    }
}

#[tokio::test]
async fn authorize_decides_before_any_queue_pair_exists() {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    for refusing in ["server", "client"] {
        let world = World::new();
        let mut listen_config = world.listen_config();
        let mut connect_config = world.connect_config(1);
        let options =
            if refusing == "server" { &mut listen_config.options } else { &mut connect_config.options };
        let (seen, host) = (
            Arc::clone(&seen),
            Arc::clone(if refusing == "server" { &world.server_host } else { &world.client_host }),
        );
        options.authorize = Some(Arc::new(move |peer| {
            seen.lock().unwrap().push(peer.names.as_ref().unwrap().common_name.clone().unwrap());
            assert_eq!(host.made(), 0);
            Box::pin(async { Err("not on the list of 7".to_owned()) })
        }));
        let failures = Failures::default();
        let keep = Arc::clone(&failures);
        listen_config.on_handshake_failed =
            Some(Arc::new(move |error, _| keep.lock().unwrap().push(error.clone())));
        let listener = Listener::bind(listen_config, Arc::clone(&world.server_host)).await.unwrap();
        connect_config.port = listener.local_addr().port();
        let client =
            secure_rdma_session::connect(connect_config, Arc::clone(&world.client_host)).await.unwrap_err();
        let server = failure(&failures).await;
        let (ours, theirs) = if refusing == "server" { (server, client) } else { (client, server) };
        assert_eq!((ours.code(), ours.phase()), (ErrorCode::Unauthorized, Some(Phase::Authorize)), "{ours}");
        assert!(ours.message().contains("not on the list of 7"));
        assert_eq!(theirs.code(), ErrorCode::PeerRefused, "{theirs}");
        assert!(
            theirs.message().contains("authorize") && !theirs.message().contains("list of 7"),
            "{theirs}"
        );
        let refuser = if refusing == "server" { &world.server_host } else { &world.client_host };
        assert_eq!(refuser.made(), 0);
        world.gone().await;
    }
    assert_eq!(*seen.lock().unwrap(), ["client.test", "localhost"]);
}
