//! Peers that break the rules of the exchange, and paths that do not carry: both sides know why, and nothing is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::raw::{RawClient, client_config};
use common::stub::{Path, StubHost};
use common::{World, eventually};
use rustls::pki_types::ServerName;
use secure_rdma_rdma::{Error, ErrorCode, PathContext, PathMtu, Phase, Psn, QpAttr, QpState, Qpn};
use secure_rdma_session::{
    Bringup, Frame, Host, Listener, Offer, PeerStart, Prepared, QueuePairOptions, Terms, TlsAddresses,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

type Failures = Arc<Mutex<Vec<Error>>>;

/// A listener, and the errors of its failed handshakes.
async fn listen(world: &World) -> (Listener<StubHost>, Failures) {
    let failures = Failures::default();
    let seen = Arc::clone(&failures);
    let mut config = world.listen_config();
    config.on_handshake_failed = Some(Arc::new(move |error, _| seen.lock().unwrap().push(error.clone())));
    (Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap(), failures)
}

async fn failure(failures: &Failures) -> Error {
    eventually("a handshake failed", || !failures.lock().unwrap().is_empty()).await;
    failures.lock().unwrap().remove(0)
}

#[tokio::test]
async fn frames_out_of_place_are_refused_and_the_peer_is_told() {
    let world = World::new();
    let (listener, failures) = listen(&world).await;
    // What is sent, and what the refusal says.
    let cases: Vec<(&str, Vec<&str>, &str)> = vec![
        ("READY first", vec!["ready"], "READY came when its OFFER was due"),
        ("PROVEN first", vec!["proven"], "PROVEN came when its OFFER was due"),
        ("KEEP_ALIVE first", vec!["alive"], "KEEP_ALIVE came when its OFFER was due"),
        ("CLOSE first", vec!["close"], "CLOSE came when its OFFER was due"),
        ("OFFER twice", vec!["offer", "offer"], "OFFER came when"),
        ("READY twice", vec!["offer", "ready", "ready"], "READY came when"),
        ("PROVEN before READY", vec!["offer", "proven"], "PROVEN came when its READY was due"),
        ("PROVEN twice", vec!["offer", "ready", "await ready", "proven", "proven"], "PROVEN came when"),
        ("KEEP_ALIVE for READY", vec!["offer", "alive"], "KEEP_ALIVE came when its READY was due"),
        ("CLOSE for PROVEN", vec!["offer", "ready", "await ready", "close"], "CLOSE came when"),
    ];
    // The server's own proof never ends, so that it is still in the exchange.
    world.server_host.set(|b| b.path = Path::Hangs);
    for (name, sent, reason) in cases {
        let mut client = RawClient::new(&world, listener.local_addr().port()).await;
        for frame in sent {
            match frame {
                "offer" => client.send_offer(client.offer()).await,
                "ready" => client.send(&Frame::Ready).await,
                "proven" => client.send(&Frame::Proven).await,
                "alive" => client.send(&Frame::KeepAlive).await,
                "close" => client.send(&Frame::Close).await,
                _ => while client.receive().await != Some(Frame::Ready) {},
            }
        }
        let (code, message) = client.error().await;
        assert_eq!(code, "ERR_RDMA_PROTOCOL", "{name}: {message}");
        assert!(message.contains(reason), "{name}: {message}");
        let error = failure(&failures).await;
        assert_eq!(error.code(), ErrorCode::Protocol, "{name}: {error}");
        assert!(error.phase() >= Some(Phase::Exchange), "{name}");
    }
    world.gone().await;
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_exchange() {
    let world = World::new();
    let (listener, failures) = listen(&world).await;
    for (bytes, reason) in [
        (vec![0, 0, 0, 0], "length 0"),
        (vec![0xFF; 64], "4294967295"),
        (vec![0, 0, 0, 4, 0x82, 2, 0xA0, 0], "bytes behind the value"),
    ] {
        let mut client = RawClient::new(&world, listener.local_addr().port()).await;
        client.send_bytes(&bytes).await;
        let (code, message) = client.error().await;
        assert_eq!(code, "ERR_RDMA_PROTOCOL");
        assert!(message.contains(reason), "{message}");
        assert_eq!(failure(&failures).await.code(), ErrorCode::Protocol);
    }
    world.gone().await;
}

#[tokio::test]
async fn an_offer_of_another_session_or_role_is_refused() {
    let world = World::new();
    let (listener, failures) = listen(&world).await;
    let port = listener.local_addr().port();
    let other = RawClient::new(&world, port).await;
    type Forge = Box<dyn Fn(&RawClient) -> Offer>;
    let mut cases: Vec<(&str, Forge)> = Vec::new();
    let replayed = other.offer();
    cases.push(("another session's", Box::new(move |_| replayed.clone())));
    cases.push(("the server's own role", Box::new(|c| Offer { binding: c.binding("server"), ..c.offer() })));
    cases.push(("nobody's", Box::new(|c| Offer { binding: [0; 32], ..c.offer() })));
    for (name, offer) in cases {
        let mut client = RawClient::new(&world, port).await;
        client.send_offer(offer(&client)).await;
        let (code, message) = client.error().await;
        assert_eq!(code, "ERR_RDMA_OFFER", "{name}: {message}");
        assert!(message.contains("bound to another TLS session"), "{name}: {message}");
        assert_eq!(failure(&failures).await.code(), ErrorCode::Offer);
    }
    // Reflected: the server's own offer, sent back.
    let mut client = RawClient::new(&world, port).await;
    let Some(reflected @ Frame::Offer(_)) = client.receive().await else { panic!() };
    client.send(&reflected).await;
    assert_eq!(client.error().await.0, "ERR_RDMA_OFFER");
    // The device's own judgement of its part.
    let mut client = RawClient::new(&world, port).await;
    let gid = secure_rdma_rdma::Gid::from_ip("8.8.8.8".parse().unwrap()).bytes().to_vec();
    client.send_offer(Offer { device_part: gid, ..client.offer() }).await;
    let (code, message) = client.error().await;
    assert!(code == "ERR_RDMA_OFFER" && message.contains("not the TLS peer's address"), "{message}");
    // Receive buffers that do not hold a packet of the agreed path MTU, 1024.
    for segment_size in [256, 1023] {
        let mut client = RawClient::new(&world, port).await;
        let terms = Terms { segment_size, ..client.offer().terms };
        client.send_offer(Offer { terms, ..client.offer() }).await;
        let (code, message) = client.error().await;
        assert_eq!(code, "ERR_RDMA_OFFER", "{message}");
        assert!(message.contains(&format!("segment size is {segment_size}")), "{message}");
    }
    // The positive control.
    let mut client = RawClient::new(&world, port).await;
    client.bring_up().await;
    drop((other, client));
    listener.close();
    world.gone().await;
}

#[tokio::test]
async fn replayed_tcp_bytes_fail() {
    let world = World::new();
    let listener = world.listen().await;
    let (relay, captured) = relay(listener.local_addr().port()).await;
    let client = world.connect(relay).await.unwrap();
    drop(client);
    let bytes = captured.lock().unwrap().0.clone();
    let before = world.server_host.made();
    let mut replay = TcpStream::connect(listener.local_addr()).await.unwrap();
    replay.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let _ = replay.read_to_end(&mut answer).await;
    eventually("it failed", || listener.stats().failed == 1).await;
    assert_eq!(world.server_host.made(), before, "a replayed stream makes no queue pair");
}

type Captured = Arc<Mutex<(Vec<u8>, Vec<u8>)>>;

/// A relay in front of `port` that keeps what passes: client to server, server to client.
async fn relay(port: u16) -> (u16, Captured) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let captured = Captured::default();
    let keep = Arc::clone(&captured);
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let ((mut cr, mut cw), (mut sr, mut sw)) = (client.into_split(), server.into_split());
        let up = Arc::clone(&keep);
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = cr.read(&mut bytes).await {
                up.lock().unwrap().0.extend_from_slice(&bytes[..read]);
                sw.write_all(&bytes[..read]).await.unwrap();
            }
        });
        let mut bytes = [0; 4096];
        while let Ok(read @ 1..) = sr.read(&mut bytes).await {
            keep.lock().unwrap().1.extend_from_slice(&bytes[..read]);
            let _ = cw.write_all(&bytes[..read]).await;
        }
    });
    (own, captured)
}

#[tokio::test]
async fn no_offer_is_in_clear_on_tcp() {
    let mut world = World::new();
    // A part that would be seen: 16 bytes of a GID, and terms of 8 bytes.
    world.options.expose_secrets = true;
    world.options.allowed_peer_addresses = vec!["127.0.0.1".parse().unwrap()];
    let listener = world.listen().await;
    let (relay, captured) = relay(listener.local_addr().port()).await;
    let client = world.connect(relay).await.unwrap();
    let server = listener.accept().await.unwrap();
    let gid = client.report.peer_gid.bytes();
    let (up, down) = captured.lock().unwrap().clone();
    assert!(up.len() > 1000 && down.len() > 1000, "the capture saw both directions");
    let found =
        |needle: &[u8]| [&up, &down].iter().any(|stream| stream.windows(needle.len()).any(|w| w == needle));
    // The positive control: what is in clear is found.
    assert!(found(b"secure-rdma/1") && found(b"localhost"), "ALPN and name stand in the ClientHello");
    let frame = |report: &secure_rdma_session::Report| {
        // Key 3, QPN; key 4, PSN: as they stand in the offer's CBOR.
        let psn = report.secrets.unwrap().own_psn.expose();
        let mut bytes = vec![0x04, 0x1A];
        bytes.extend_from_slice(&psn.to_be_bytes());
        bytes
    };
    for needle in [gid.to_vec(), frame(&client.report), frame(&server.report)] {
        assert!(!found(&needle), "an offer's part is in clear");
    }
}

#[tokio::test]
async fn whoever_does_not_speak_our_protocol_is_refused_by_name() {
    let world = World::new();
    let (listener, failures) = listen(&world).await;
    let port = listener.local_addr().port();
    for (alpn, alert) in [
        (&[][..], "AccessDenied"),
        (&[&b"h2"[..]], "NoApplicationProtocol"),
        (&[&b"secure-rdma/2"[..]], "NoApplicationProtocol"),
        (&[&b"secure-rdma/1 "[..]], "NoApplicationProtocol"),
    ] {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client_config(&world, alpn)));
        let error = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap_err();
        assert!(error.to_string().contains(alert), "{alpn:?}: {error}");
        let error = failure(&failures).await;
        assert_eq!(error.code(), ErrorCode::TlsAlpn, "{alpn:?}: {error}");
        assert_eq!(error.phase(), Some(Phase::Tls));
    }
    assert_eq!(world.server_host.made(), 0);
}

/// A ClientHello of TLS 1.2: no supported_versions.
fn hello_of_tls12() -> Vec<u8> {
    let extensions: &[&[u8]] = &[
        &[0, 10, 0, 4, 0, 2, 0, 23],      // supported_groups: secp256r1
        &[0, 11, 0, 2, 1, 0],             // ec_point_formats
        &[0, 13, 0, 6, 0, 4, 4, 3, 8, 4], // signature_algorithms
        &[0, 23, 0, 0],                   // extended_master_secret
        &[0xFF, 1, 0, 1, 0],              // renegotiation_info
    ];
    let extensions = extensions.concat();
    let mut hello = vec![3, 3];
    hello.extend_from_slice(&[7; 32]);
    hello.extend_from_slice(&[0, 0, 4, 0xC0, 0x2B, 0xC0, 0x2F, 1, 0]);
    hello.extend_from_slice(&u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend_from_slice(&extensions);
    let length = u32::try_from(hello.len()).unwrap().to_be_bytes();
    let handshake = [&[1], &length[1..], &hello].concat();
    [&[0x16, 3, 1], &u16::try_from(handshake.len()).unwrap().to_be_bytes()[..], &handshake].concat()
}

#[tokio::test]
async fn tls12_and_garbage_are_refused() {
    let world = World::new();
    let (listener, failures) = listen(&world).await;
    type Case = (&'static str, Vec<u8>, ErrorCode, Option<[u8; 2]>);
    let cases: Vec<Case> = vec![
        ("TLS 1.2", hello_of_tls12(), ErrorCode::TlsVersion, Some([2, 70])),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), ErrorCode::Tls, None),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(), ErrorCode::Tls, None),
        ("zeroes", vec![0; 512], ErrorCode::Tls, None),
        ("nothing", Vec::new(), ErrorCode::HandshakeClosed, None),
        ("half a hello", hello_of_tls12()[..40].to_vec(), ErrorCode::HandshakeClosed, None),
    ];
    for (name, bytes, code, alert) in cases {
        let mut tcp = TcpStream::connect(listener.local_addr()).await.unwrap();
        tcp.write_all(&bytes).await.unwrap();
        if code == ErrorCode::HandshakeClosed {
            tcp.shutdown().await.unwrap();
        }
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
        if let Some(alert) = alert {
            assert_eq!(answer.get(5..7), Some(&alert[..]), "{name}: {answer:?}");
        }
        let error = failure(&failures).await;
        assert_eq!(error.code(), code, "{name}: {error}");
    }
    assert_eq!(world.server_host.made(), 0);
}

#[tokio::test]
async fn a_client_refuses_servers_that_are_not_ours() {
    let world = World::new();
    // A listener that is no TLS at all.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = other.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = other.accept().await.unwrap();
            tcp.write_all(b"220 mail.test ESMTP\r\n").await.unwrap();
            let mut bytes = [0; 4096];
            while let Ok(1..) = tcp.read(&mut bytes).await {}
        }
    });
    let error = world.connect(port).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Tls, "{error}");
    // Nobody there.
    let free = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port() };
    let error = world.connect(free).await.unwrap_err();
    assert_eq!((error.code(), error.phase()), (ErrorCode::Tcp, Some(Phase::Connect)));
    assert_eq!(error.syscall(), Some("connect"));
    assert!(error.message().ends_with("Is the server running, and is this its port?"), "{error}");
    let mut config = world.connect_config(free);
    config.host = "no-such-host.invalid".to_owned();
    let error = secure_rdma_session::connect(config, Arc::clone(&world.client_host)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Tcp, "{error}");
    assert!(error.message().ends_with("Check the name, or give an address"), "{error}");
    assert_eq!(world.client_host.made(), 0);
    // A port that is taken, an address that is another host's.
    let listener = world.listen().await;
    for (host, port, remedy) in [
        ("127.0.0.1", listener.local_addr().port(), "choose another one"),
        ("192.0.2.1", 0, "that this host has"),
    ] {
        let mut config = world.listen_config();
        (config.host, config.port) = (host.to_owned(), port);
        let error = Listener::bind(config, Arc::clone(&world.server_host)).await.err().unwrap();
        assert_eq!((error.code(), error.syscall()), (ErrorCode::Tcp, Some("bind")), "{error}");
        assert!(error.message().ends_with(remedy), "{error}");
    }
}

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
    type Change = fn(&mut common::stub::Behaviour);
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

#[tokio::test]
async fn one_deadline_covers_every_phase() {
    let world = World {
        options: secure_rdma_session::SessionOptions {
            handshake_timeout: Duration::from_millis(300),
            ..Default::default()
        },
        ..World::new()
    };
    // A server that takes TCP and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let begun = Instant::now();
    let error = world.connect(silent.local_addr().unwrap().port()).await.unwrap_err();
    assert_eq!((error.code(), error.phase()), (ErrorCode::HandshakeTimeout, Some(Phase::Tls)));
    assert!(begun.elapsed() < Duration::from_secs(2));
    // Slow authorize, device and resolution.
    for (change, phase) in [
        (
            (|b| b.prepare_takes = Duration::from_millis(800)) as fn(&mut common::stub::Behaviour),
            Phase::Device,
        ),
        (|b| b.resolve_takes = Duration::from_millis(800), Phase::Rtr),
    ] {
        let host = StubHost::with(change);
        let world = World { client_host: host, options: world.options.clone(), ..World::new() };
        let (listener, failures) = listen(&world).await;
        let error = world.connect(listener.local_addr().port()).await.unwrap_err();
        assert_eq!((error.code(), error.phase()), (ErrorCode::HandshakeTimeout, Some(phase)), "{error}");
        let server = failure(&failures).await;
        assert!(matches!(server.code(), ErrorCode::PeerRefused | ErrorCode::HandshakeTimeout), "{server}");
        world.gone().await;
    }
    let mut config = world.listen_config();
    config.options.authorize = Some(Arc::new(|_| Box::pin(std::future::pending())));
    let listener = Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap();
    let error = world.connect(listener.local_addr().port()).await.unwrap_err();
    assert!(matches!(error.code(), ErrorCode::PeerRefused | ErrorCode::HandshakeTimeout), "{error}");
    eventually("failed", || listener.stats().failed == 1).await;
    assert_eq!(world.server_host.made(), 0);
    world.gone().await;
}

#[tokio::test]
async fn giving_up_at_any_moment_leaves_no_queue_pair() {
    let world = World::new();
    let slow = |b: &mut common::stub::Behaviour| {
        b.prepare_takes = Duration::from_millis(5);
        b.resolve_takes = Duration::from_millis(5);
        b.path = Path::Hangs;
    };
    world.client_host.set(slow);
    world.server_host.set(slow);
    let listener = world.listen().await;
    let mut reached = std::collections::BTreeSet::new();
    for wait in 0..40_u64 {
        let attempt = world.connect(listener.local_addr().port());
        let given_up = tokio::time::timeout(Duration::from_millis(wait), attempt).await;
        assert!(given_up.is_err(), "it cannot have come up");
        reached.extend(
            world
                .client_host
                .log
                .lock()
                .unwrap()
                .drain(..)
                .filter_map(|(_, attr)| attr.state.map(|s| s as u8)),
        );
        world.gone().await;
    }
    assert!(reached.contains(&(QpState::Rts as u8)), "every phase was reached: {reached:?}");
    eventually("no handshake is left", || listener.stats().pending == 0).await;
}

#[tokio::test]
async fn a_server_that_stops_in_any_phase_ends_the_client() {
    let world = World::new();
    world.server_host.set(|b| {
        b.prepare_takes = Duration::from_millis(5);
        b.resolve_takes = Duration::from_millis(5);
        b.path = Path::Hangs;
    });
    for wait in (0..30_u64).step_by(3) {
        let listener = world.listen().await;
        let port = listener.local_addr().port();
        let stop = async {
            tokio::time::sleep(Duration::from_millis(wait)).await;
            listener.close();
        };
        let (result, ()) = tokio::join!(world.connect(port), stop);
        let error = result.unwrap_err();
        assert!(
            matches!(error.code(), ErrorCode::HandshakeClosed | ErrorCode::Tcp | ErrorCode::PeerRefused),
            "{wait} ms: {error:?}"
        );
        listener.closed().await;
        world.gone().await;
        assert!(std::net::TcpListener::bind(("127.0.0.1", port)).is_ok(), "the port is free");
    }
}
