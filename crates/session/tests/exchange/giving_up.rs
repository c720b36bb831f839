//! The deadline, and giving up at any moment: nothing is left of what was begun.

use std::sync::Arc;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{ErrorCode, Phase, QpState};
use secure_rdma_session::Listener;
use tokio::net::TcpListener;

use super::common::stub::{Behaviour, Path, StubHost};
use super::common::{World, eventually};
use super::{failure, listen};

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
        ((|b| b.prepare_takes = Duration::from_millis(800)) as fn(&mut Behaviour), Phase::Device),
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
    let slow = |b: &mut Behaviour| {
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
