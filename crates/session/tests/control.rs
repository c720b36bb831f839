//! The control channel of a connection that is up: who is alive, who closes, and of what it dies.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::time::{Duration, Instant};

use common::raw::RawClient;
use common::stub::StubUpper;
use common::{World, eventually};
use secure_rdma_rdma::{Error, ErrorCode, Phase};
use secure_rdma_session::{Established, Frame, KeepAlive, MAX_TOLD, Told};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const QUICK: KeepAlive = KeepAlive { interval: Duration::from_millis(100), misses: 3 };

fn quick() -> World {
    let mut world = World::new();
    world.options.keep_alive = QUICK;
    world.options.close_timeout = Duration::from_millis(300);
    world
}

/// A server's connection to a client that is not ours.
async fn with_raw(world: &World) -> (RawClient, Established<StubUpper>) {
    let listener = world.listen().await;
    let mut client = RawClient::new(world, listener.local_addr().port()).await;
    client.bring_up().await;
    (client, listener.accept().await.unwrap())
}

async fn lost(side: &Established<StubUpper>) -> Error {
    eventually("it is lost", || !side.upper.record().lost.is_empty()).await;
    eventually("the channel has ended", || side.control.is_ended()).await;
    let lost = side.upper.record().lost;
    assert_eq!(lost.len(), 1, "told once");
    lost[0].clone()
}

#[tokio::test]
async fn both_sides_live_as_long_as_both_talk() {
    let world = quick();
    let (client, server) = world.pair().await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for side in [&client, &server] {
        assert!(!side.control.is_ended());
        let ticks = side.upper.record().ticks;
        assert!((2..=5).contains(&ticks), "four ticks a second: {ticks} in 1.1 s");
    }
}

#[tokio::test]
async fn silence_is_death_in_its_time() {
    let world = quick();
    let (client, server) = with_raw(&world).await;
    let begun = Instant::now();
    let error = lost(&server).await;
    let took = begun.elapsed();
    assert_eq!((error.code(), error.phase()), (ErrorCode::PeerLost, Some(Phase::Connected)));
    assert!(error.message().contains("silent"), "{error}");
    assert!(took >= Duration::from_millis(330) && took < Duration::from_millis(1000), "{took:?}");
    assert_eq!(server.control.ended().await.unwrap_err().code(), ErrorCode::PeerLost);
    drop((client, server));
    world.gone().await;
}

#[tokio::test]
async fn the_peer_is_judged_by_the_interval_that_it_states() {
    // Ours is short, and the peer says that its is twenty times as long: by ours it would be dead after 350 ms.
    let world = quick();
    let listener = world.listen().await;
    let mut client = RawClient::new(&world, listener.local_addr().port()).await;
    client.keep_alive_interval = Some(20 * QUICK.interval);
    client.bring_up().await;
    let server = listener.accept().await.unwrap();
    assert_eq!(server.report.peer_keep_alive_interval, 20 * QUICK.interval);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!server.control.is_ended(), "{:?}", server.upper.record().lost);

    // Ours is long, the peer's is short, and its silence is noticed after its own.
    let mut patient = quick();
    patient.options.keep_alive.interval = Duration::from_secs(60);
    let listener = patient.listen().await;
    let mut client = RawClient::new(&patient, listener.local_addr().port()).await;
    client.keep_alive_interval = Some(QUICK.interval);
    client.bring_up().await;
    assert_eq!(lost(&listener.accept().await.unwrap()).await.code(), ErrorCode::PeerLost);
}

#[tokio::test]
async fn sides_with_different_intervals_live_together() {
    let mut world = quick();
    let listener = world.listen().await;
    world.options.keep_alive.interval = 15 * QUICK.interval;
    let client = world.connect(listener.local_addr().port()).await.unwrap();
    let server = listener.accept().await.unwrap();
    assert_eq!(client.report.peer_keep_alive_interval, QUICK.interval);
    assert_eq!(server.report.peer_keep_alive_interval, 15 * QUICK.interval);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!client.control.is_ended() && !server.control.is_ended());
}

#[tokio::test]
async fn a_peer_that_states_no_interval_has_the_default() {
    let world = quick();
    let listener = world.listen().await;
    let mut client = RawClient::new(&world, listener.local_addr().port()).await;
    client.keep_alive_interval = None;
    client.bring_up().await;
    let server = listener.accept().await.unwrap();
    assert_eq!(server.report.peer_keep_alive_interval, KeepAlive::default().interval);
}

#[tokio::test]
async fn a_peer_that_wants_never_to_be_found_dead_is_refused() {
    let world = quick();
    let listener = world.listen().await;
    let mut client = RawClient::new(&world, listener.local_addr().port()).await;
    client.keep_alive_interval = Some(Duration::from_millis(60_001));
    client.send_offer(client.offer()).await;
    let (code, message) = client.error().await;
    assert_eq!(code, "ERR_RDMA_OFFER");
    assert!(message.contains("keep-alive interval is 60001"), "{message}");
    // We do not ask for it either.
    let mut world = quick();
    world.options.keep_alive.interval = Duration::from_millis(60_001);
    let error = world.connect(listener.local_addr().port()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn an_end_without_a_close_is_death_at_once() {
    for orderly_tls in [true, false] {
        let mut world = quick();
        world.options.keep_alive = KeepAlive::default();
        let (mut client, server) = with_raw(&world).await;
        if orderly_tls {
            client.stream.shutdown().await.unwrap();
        }
        drop(client);
        let begun = Instant::now();
        assert_eq!(lost(&server).await.code(), ErrorCode::PeerLost);
        assert!(begun.elapsed() < Duration::from_millis(500));
    }
}

#[tokio::test]
async fn a_close_is_answered_and_ends_both() {
    let world = quick();
    let (client, server) = world.pair().await;
    client.control.close().await.unwrap();
    client.control.close().await.unwrap();
    server.control.ended().await.unwrap();
    server.control.close().await.unwrap();
    for (side, closed) in [(&client, 1), (&server, 1)] {
        let record = side.upper.record();
        assert_eq!((record.peer_closed, record.lost.len()), (closed, 0));
    }
    drop((client, server));
    // Both at once.
    let (client, server) = world.pair().await;
    let (one, other) = tokio::join!(client.control.close(), server.control.close());
    assert!(one.is_ok() && other.is_ok(), "{one:?} {other:?}");
    drop((client, server));
    world.gone().await;
}

#[tokio::test]
async fn a_peer_that_never_closes_does_not_hold_us() {
    let world = quick();
    let (client, server) = with_raw(&world).await;
    let begun = Instant::now();
    let error = server.control.close().await.unwrap_err();
    assert_eq!((error.code(), error.phase()), (ErrorCode::CloseTimeout, Some(Phase::Closing)));
    assert!(begun.elapsed() < Duration::from_millis(900));
    assert_eq!(lost(&server).await.code(), ErrorCode::CloseTimeout);
    // Destroying ends the wait.
    let mut slow = quick();
    slow.options.close_timeout = Duration::from_secs(60);
    let (other, server) = with_raw(&slow).await;
    let destroy = async { server.control.destroy(None) };
    let (closed, ()) = tokio::join!(server.control.close(), destroy);
    assert_eq!(closed.unwrap_err().code(), ErrorCode::Destroyed);
    drop((client, other));
}

#[tokio::test]
async fn destroying_and_dropping_tell_the_peer_why() {
    let world = quick();
    let (mut client, server) = with_raw(&world).await;
    server.control.destroy(Some(Error::new(ErrorCode::PeerViolation, "it ignored its credits")));
    server.control.destroy(None);
    assert_eq!(
        client.error().await,
        ("ERR_RDMA_PEER_VIOLATION".to_owned(), "it ignored its credits".to_owned())
    );
    assert_eq!(server.control.ended().await.unwrap_err().code(), ErrorCode::PeerViolation);
    assert!(server.upper.record().lost.is_empty(), "it was our own will");
    drop((client, server));

    let (mut client, server) = with_raw(&world).await;
    drop(server);
    assert_eq!(client.error().await.0, "ERR_RDMA_DESTROYED");
    world.gone().await;

    let (client, server) = world.pair().await;
    client.control.destroy(Some(Error::new(ErrorCode::Work, "a write failed")));
    let error = lost(&server).await;
    assert_eq!(error.code(), ErrorCode::PeerLost);
    assert!(error.message().contains("a write failed (ERR_RDMA_WORK)"), "{error}");
}

#[tokio::test]
async fn an_upper_layer_that_gives_up_ends_the_connection() {
    let world = quick();
    world.server_host.set(|b| b.tick_fails = true);
    let (client, server) = world.pair().await;
    assert_eq!(lost(&server).await.code(), ErrorCode::Work);
    let error = lost(&client).await;
    assert!(error.message().contains("ERR_RDMA_WORK"), "{error}");
}

#[tokio::test]
async fn a_second_exchange_and_broken_frames_are_refused_when_up() {
    let world = quick();
    for sent in ["offer", "ready", "proven", "garbage", "half"] {
        let (mut client, server) = with_raw(&world).await;
        match sent {
            "offer" => client.send_offer(client.offer()).await,
            "ready" => client.send(&Frame::Ready).await,
            "proven" => client.send(&Frame::Proven).await,
            "garbage" => client.send_bytes(&[0xFF; 100]).await,
            _ => {
                client.send_bytes(&[0, 0]).await;
                client.stream.shutdown().await.unwrap();
            }
        }
        let error = lost(&server).await;
        assert_eq!(error.code(), ErrorCode::Protocol, "{sent}: {error}");
        if sent != "half" {
            assert_eq!(client.error().await.0, "ERR_RDMA_PROTOCOL", "{sent}");
        }
    }
    world.gone().await;
}

#[tokio::test]
async fn a_peer_that_sends_without_pause_does_not_stop_the_clock() {
    let world = quick();
    let (mut client, server) = with_raw(&world).await;
    let flood: Vec<u8> = Frame::KeepAlive.encode().repeat(400);
    let flooding = async {
        loop {
            client.send_bytes(&flood).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(1200), flooding).await;
    assert!(!server.control.is_ended());
    assert!(server.upper.record().ticks >= 2, "{}", server.upper.record().ticks);
    server.control.destroy(None);
    server.control.ended().await.unwrap_err();
}

/// A relay that can be stopped: then nothing passes, and nothing is closed.
async fn stoppable_relay(port: u16) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let ((cr, cw), (sr, sw)) = (client.into_split(), server.into_split());
        for (mut from, mut to) in [(cr, sw), (sr, cw)] {
            let mut stopped = stopped.clone();
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = from.read(&mut bytes).await {
                    let _ = stopped.wait_for(|stopped| !stopped).await;
                    if to.write_all(&bytes[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (own, stop)
}

#[tokio::test]
async fn a_stall_is_survived_and_a_half_open_tcp_is_not() {
    let world = quick();
    let listener = world.listen().await;
    let (relay, stop) = stoppable_relay(listener.local_addr().port()).await;
    let client = world.connect(relay).await.unwrap();
    let server = listener.accept().await.unwrap();
    // Two of three misses.
    stop.send_replace(true);
    tokio::time::sleep(Duration::from_millis(200)).await;
    stop.send_replace(false);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!client.control.is_ended() && !server.control.is_ended(), "a stall of two intervals is survived");
    stop.send_replace(true);
    assert_eq!(lost(&client).await.code(), ErrorCode::PeerLost);
    assert_eq!(lost(&server).await.code(), ErrorCode::PeerLost);
}

#[test]
fn our_own_stop_kills_nobody() {
    // Each side on a runtime of its own; one of them is blocked for longer than the peer may be silent, as SIGSTOP does.
    // The other side has patience, so that what is tested is the judgement of the one that was stopped.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut world = quick();
    let (server_runtime, client_runtime) = (runtime(), runtime());
    let mut patient = world.listen_config();
    patient.options.keep_alive = KeepAlive { misses: 100, ..QUICK };
    let host = std::sync::Arc::clone(&world.server_host);
    let listener = server_runtime.block_on(secure_rdma_session::Listener::bind(patient, host)).unwrap();
    let port = listener.local_addr().port();
    let (done, finished) = std::sync::mpsc::channel::<()>();
    let serving = std::thread::spawn(move || {
        server_runtime.block_on(async move {
            let server = listener.accept().await.unwrap();
            while finished.try_recv().is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert!(!server.control.is_ended());
        });
    });
    world.options.keep_alive = QUICK;
    client_runtime.block_on(async {
        let client = world.connect(port).await.unwrap();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(800));
            tokio::time::sleep(Duration::from_millis(150)).await;
            assert!(!client.control.is_ended(), "{:?}", client.upper.record().lost);
        }
    });
    done.send(()).unwrap();
    serving.join().unwrap();
}

#[tokio::test]
async fn what_is_told_arrives_whole_and_in_order_and_before_a_close() {
    let world = quick();
    let (client, server) = world.pair().await;
    let message = |i: u16| vec![i.to_le_bytes()[0]; 1 + usize::from(i) % MAX_TOLD];
    let mut told = 0_u16;
    while told < 3000 {
        match client.control.tell(&message(told)) {
            Ok(()) => told += 1,
            Err(error) => {
                assert_eq!(error.code(), ErrorCode::SendBufferFull);
                // Told once that there is room: it may have been told already.
                eventually("room again", || client.upper.record().may_tell > 0).await;
            }
        }
        tokio::task::yield_now().await;
    }
    server.control.tell(b"and back").unwrap();
    client.control.close().await.unwrap();
    assert_eq!(server.upper.record().told, (0..3000).map(message).collect::<Vec<_>>());
    assert_eq!(client.upper.record().told, [b"and back".to_vec()]);
    assert_eq!(client.control.tell(b"late").unwrap_err().code(), ErrorCode::Closed);
    server.control.ended().await.unwrap();
    assert_eq!(server.control.tell(b"late").unwrap_err().code(), ErrorCode::Closed);
}

#[tokio::test]
async fn messages_of_a_wrong_length_are_not_told() {
    let world = quick();
    let (client, server) = world.pair().await;
    for length in [0, MAX_TOLD + 1] {
        let error = client.control.tell(&vec![1; length]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
    }
    client.control.tell(&vec![1; MAX_TOLD]).unwrap();
    eventually("it arrives", || server.upper.record().told.len() == 1).await;
}

#[tokio::test]
async fn a_peer_that_does_not_read_what_it_is_told_is_refused_and_told_again_later() {
    let mut world = quick();
    world.options.keep_alive = KeepAlive { interval: Duration::from_secs(60), misses: 3 };
    let (mut client, server) = with_raw(&world).await;
    // TCP takes some megabytes at the most; then it stands.
    let mut told = 0_u32;
    let refused = loop {
        match server.control.tell(&[7; MAX_TOLD]) {
            Ok(()) => told += 1,
            Err(error) => {
                let before = told;
                tokio::time::sleep(Duration::from_millis(100)).await;
                if server.upper.record().may_tell == 0 && before == told {
                    break error;
                }
            }
        }
        assert!(told < 100_000, "it is bounded");
        if told.is_multiple_of(16) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert_eq!(refused.code(), ErrorCode::SendBufferFull);
    for _ in 0..told {
        assert!(matches!(client.receive().await, Some(Frame::Tell(_) | Frame::KeepAlive)));
    }
    eventually("room again", || server.upper.record().may_tell > 0).await;
}

#[tokio::test]
async fn an_upper_layer_that_refuses_what_it_is_told_ends_the_connection() {
    let world = quick();
    let (mut client, server) = with_raw(&world).await;
    client.send(&Frame::Tell(Told(b"fine".to_vec()))).await;
    client.send(&Frame::Tell(Told(b"nonsense".to_vec()))).await;
    assert_eq!(lost(&server).await.code(), ErrorCode::PeerViolation);
    assert_eq!(client.error().await.0, "ERR_RDMA_PEER_VIOLATION");
    assert_eq!(server.upper.record().told.len(), 2);
}

#[tokio::test]
async fn telling_before_the_connection_is_up_is_refused() {
    let world = quick();
    let listener = world.listen().await;
    for after_offer in [false, true] {
        let mut client = RawClient::new(&world, listener.local_addr().port()).await;
        if after_offer {
            client.send_offer(client.offer()).await;
        }
        client.send(&Frame::Tell(Told(b"too early".to_vec()))).await;
        assert_eq!(client.error().await.0, "ERR_RDMA_PROTOCOL");
    }
    world.gone().await;
}

#[tokio::test]
async fn a_peer_that_reads_nothing_cannot_hold_us() {
    let world = quick();
    let (mut client, server) = with_raw(&world).await;
    // It talks but never reads: our keep-alives pile up in its TCP window, and nowhere else.
    for _ in 0..10 {
        client.send(&Frame::KeepAlive).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!server.control.is_ended());
    server.control.destroy(None);
    server.control.ended().await.unwrap_err();
}
