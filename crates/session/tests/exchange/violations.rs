//! Frames and offers that break the rules: refused by name, and the peer is told.

use secure_rdma_rdma::{ErrorCode, Phase};
use secure_rdma_session::{Frame, Offer, Terms};

use super::common::World;
use super::common::raw::RawClient;
use super::common::stub::Path;
use super::{failure, listen};

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
