//! Below the exchange: what passes on TCP, and who is there that does not speak our protocol.

use std::sync::{Arc, Mutex};

use rustls::pki_types::ServerName;
use secure_rdma_rdma::{ErrorCode, Phase};
use secure_rdma_session::Listener;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use super::common::raw::client_config;
use super::common::{World, eventually};
use super::{failure, listen};

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
