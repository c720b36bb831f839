//! Many at once, and many of bad will.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{World, eventually};
use secure_rdma_rdma::ErrorCode;
use secure_rdma_session::Listener;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn sixty_four_connect_at_the_same_time() {
    let world = Arc::new(World::new());
    let listener = world.listen().await;
    let port = listener.local_addr().port();
    let clients: Vec<_> = (0..64)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.connect(port).await.unwrap() })
        })
        .collect();
    let mut servers = Vec::new();
    for _ in 0..64 {
        servers.push(listener.accept().await.unwrap());
    }
    let mut qpns = std::collections::HashSet::new();
    for client in clients {
        let client = client.await.unwrap();
        assert!(qpns.insert(client.report.peer_qpn), "each its own");
        client.control.close().await.unwrap();
    }
    let stats = listener.stats();
    assert_eq!((stats.established, stats.failed, stats.pending), (64, 0, 0));
    drop(servers);
    world.gone().await;
}

/// 500 connections that say nothing and 500 that say one byte each 20 ms, which come back when they are dropped.
fn crowd(port: u16, stop: &Arc<AtomicBool>, came: &Arc<AtomicU32>) {
    for number in 0..1000 {
        let (stop, came) = (Arc::clone(stop), Arc::clone(came));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let Ok(mut tcp) = TcpStream::connect(("127.0.0.1", port)).await else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                came.fetch_add(1, Ordering::Relaxed);
                if number % 2 == 0 {
                    let _ = tcp.read(&mut [0; 1]).await;
                } else {
                    // The beginning of a ClientHello that would be 16 KiB long.
                    for byte in
                        [0x16, 3, 1, 0x40, 0, 1, 0, 0x3F, 0xFC].into_iter().chain(std::iter::repeat(7))
                    {
                        if tcp.write_all(&[byte]).await.is_err() || stop.load(Ordering::Relaxed) {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        });
    }
}

#[test]
fn a_thousand_silent_and_dripping_clients_keep_no_honest_one_out() {
    // The crowd is another process in earnest: here it has a thread of its own.
    let (stop, came) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let world = World::new();
    let own = runtime();
    own.block_on(async {
        let listener = world.listen().await;
        let port = listener.local_addr().port();
        let (crowd_stop, crowd_came) = (Arc::clone(&stop), Arc::clone(&came));
        let crowding = std::thread::spawn(move || {
            runtime().block_on(async move {
                crowd(port, &crowd_stop, &crowd_came);
                while !crowd_stop.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        eventually("they are all there", || came.load(Ordering::Relaxed) >= 1000).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..10 {
            let begun = Instant::now();
            let client = world.connect(port).await.unwrap();
            let server = listener.accept().await.unwrap();
            slowest = slowest.max(begun.elapsed());
            drop((client, server));
            assert!(listener.stats().pending <= 256);
        }
        let stats = listener.stats();
        println!(
            "slowest of 10 honest clients: {slowest:?}; {} came, {stats:?}",
            came.load(Ordering::Relaxed)
        );
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        assert!(stats.evicted > 500, "they gave way: {stats:?}");
        stop.store(true, Ordering::Relaxed);
        crowding.join().unwrap();
        listener.close();
    });
}

#[tokio::test]
async fn a_dripping_client_is_closed_at_the_deadline_whatever_it_drips() {
    let mut world = World::new();
    world.options.handshake_timeout = Duration::from_millis(500);
    let failures: Arc<std::sync::Mutex<Vec<secure_rdma_rdma::Error>>> = Arc::default();
    let seen = Arc::clone(&failures);
    let mut config = world.listen_config();
    config.on_handshake_failed = Some(Arc::new(move |error, _| seen.lock().unwrap().push(error.clone())));
    let listener = Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap();
    let mut tcp = TcpStream::connect(listener.local_addr()).await.unwrap();
    let begun = Instant::now();
    for byte in [0x16, 3, 1, 0x40, 0, 1, 0, 0x3F, 0xFC].into_iter().chain(std::iter::repeat(7)) {
        if tcp.write_all(&[byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(450) && took < Duration::from_millis(1500), "{took:?}");
    let failures = failures.lock().unwrap();
    assert_eq!(failures.len(), 1);
    assert_eq!(failures[0].code(), ErrorCode::HandshakeTimeout);
    assert_eq!(listener.stats().pending, 0);
}

#[tokio::test]
async fn the_longest_stalled_handshake_gives_way_by_name() {
    let world = World::new();
    let failures: Arc<std::sync::Mutex<Vec<(secure_rdma_rdma::Error, u16)>>> = Arc::default();
    let seen = Arc::clone(&failures);
    let mut config = world.listen_config();
    config.max_pending_handshakes = 2;
    config.on_handshake_failed =
        Some(Arc::new(move |error, address| seen.lock().unwrap().push((error.clone(), address.port()))));
    let listener = Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap();
    let mut stalled = Vec::new();
    for _ in 0..3 {
        stalled.push(TcpStream::connect(listener.local_addr()).await.unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    eventually("one gave way", || !failures.lock().unwrap().is_empty()).await;
    let (error, port) = failures.lock().unwrap()[0].clone();
    assert_eq!(error.code(), ErrorCode::HandshakeEvicted);
    assert_eq!(port, stalled[0].local_addr().unwrap().port(), "the first had stalled longest");
    assert_eq!(listener.stats().evicted, 1);
}

#[tokio::test]
async fn connections_that_nobody_accepts_are_bounded_and_destroyed_at_the_end() {
    let world = World::new();
    let mut config = world.listen_config();
    config.max_unaccepted = 2;
    let listener = Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap();
    let port = listener.local_addr().port();
    let clients = [world.connect(port).await.unwrap(), world.connect(port).await.unwrap()];
    eventually("two wait", || listener.stats().established == 2).await;
    let error = world.connect(port).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::PeerRefused);
    assert!(error.message().contains("no room"), "{error}");
    let server = listener.accept().await.unwrap();
    let third = world.connect(port).await.unwrap();
    listener.close();
    assert_eq!(listener.accept().await.unwrap_err().code(), ErrorCode::ServerClosed);
    eventually("those that nobody accepted are gone", || {
        clients[1].control.is_ended() && third.control.is_ended()
    })
    .await;
    assert!(!clients[0].control.is_ended() && !server.control.is_ended(), "what was handed out stays");
    drop((clients, server, third));
    world.gone().await;
}

#[tokio::test]
async fn handshakes_under_way_are_no_connections_that_wait_to_be_accepted() {
    let world = Arc::new(World::new());
    let mut config = world.listen_config();
    config.max_unaccepted = 1;
    let listener = Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap();
    let port = listener.local_addr().port();
    // Each is far beyond `authorize` when the next one comes, and all come up at the same time.
    world.server_host.set(|b| b.prepare_takes = Duration::from_millis(300));
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.connect(port).await.unwrap() })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    // Now they do wait, and the next one is refused until there is room.
    let error = world.connect(port).await.unwrap_err();
    assert!(error.message().contains("no room"), "{error}");
    for _ in 0..8 {
        listener.accept().await.unwrap();
    }
    world.connect(port).await.unwrap();
}

#[tokio::test]
async fn dropping_accept_loses_no_connection() {
    let world = World::new();
    let listener = world.listen().await;
    for _ in 0..5 {
        assert!(tokio::time::timeout(Duration::from_millis(1), listener.accept()).await.is_err());
    }
    let _client = world.connect(listener.local_addr().port()).await.unwrap();
    listener.accept().await.unwrap();
}
