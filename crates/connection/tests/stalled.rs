//! Whole connections, over TLS, on a device that gives no completion any more: nothing waits for it for ever. And on one that
//! hears no acknowledgement.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use secure_rdma_connection::{
    CloseReason, Connection, ConnectionOptions, DeviceOptions, Registry, Server, connect,
};
use secure_rdma_rdma::ErrorCode;
use secure_rdma_rdma::fake::{Fabric, FakeDevice};
use secure_rdma_session::{ConnectConfig, ListenConfig};

/// Two connected ends, each on a device of its own.
struct Ends {
    fabric: Fabric,
    devices: [Arc<FakeDevice>; 2],
    connections: [Connection; 2],
    _server: Server,
}

async fn connected() -> Ends {
    let fabric = Fabric::new();
    let devices =
        [("fake0", 1), ("fake1", 2)].map(|(name, host)| fabric.device(name, [127, 0, 0, host].into()));
    let registries = [0, 1].map(|i| Registry::new(vec![Arc::new(fabric.host([&devices[i]]))]));
    let tls = common::tls();
    let listen = ListenConfig::new("127.0.0.1", 0, tls.clone());
    let (device, options) = (DeviceOptions::default, ConnectionOptions::default);
    let server = Server::listen(&registries[0], listen, device(), options()).await.unwrap();
    let mut config = ConnectConfig::new("127.0.0.1", server.local_addr().port(), tls);
    config.local_address = Some([127, 0, 0, 2].into());
    let client = connect(&registries[1], config, device(), options()).await.unwrap();
    let accepted = server.accept().await.unwrap();
    Ends { fabric, devices, connections: [accepted, client], _server: server }
}

/// Waits until there are so many queue pairs, for as long as a test may take.
async fn queue_pairs(fabric: &Fabric, count: usize) {
    for _ in 0..4000 {
        if fabric.counters().queue_pairs == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("there are {:?}", fabric.counters());
}

#[tokio::test]
async fn a_close_of_the_peer_ends_although_the_device_flushes_nothing() {
    let Ends { fabric, devices, connections: [accepted, client], _server } = connected().await;
    devices[0].stall();
    client.close();
    let ended = client.wait_closed().await;
    assert_eq!((ended.reason, ended.error.map(|error| error.code())), (CloseReason::Closed, None));
    // The peer's END is in no completion queue, and never will be.
    let ended = tokio::time::timeout(Duration::from_secs(30), accepted.wait_closed()).await.unwrap();
    assert_eq!(ended.reason, CloseReason::Error);
    let error = ended.error.unwrap();
    assert_eq!(error.code(), ErrorCode::DeviceLost);
    assert!(error.message().contains("has not given back what was posted"), "{error}");
    queue_pairs(&fabric, 0).await;
}

#[tokio::test]
async fn a_destroyed_connection_lets_go_of_a_device_that_flushes_nothing() {
    let Ends { fabric, devices, connections: [accepted, client], _server } = connected().await;
    devices[1].stall();
    client.send(&[7; 10_000]).unwrap();
    client.destroy(None);
    assert_eq!(client.wait_closed().await.reason, CloseReason::Destroyed);
    // The peer's goes at once, as always; this one when its time is over.
    queue_pairs(&fabric, 1).await;
    queue_pairs(&fabric, 0).await;
    drop((accepted, client));
}

#[tokio::test]
async fn a_message_that_the_peer_has_read_is_delivered_although_its_acknowledgement_is_lost() {
    let Ends { fabric, devices, connections: [accepted, client], _server } = connected().await;
    devices[1].lose_acknowledgements();
    let sent = client.send_acknowledged(&[7; 10_000]);
    let closed = async {
        assert_eq!(accepted.next().await.unwrap().unwrap(), [7; 10_000]);
        accepted.close();
        accepted.wait_closed().await
    };
    let (sent, ended) = tokio::join!(sent, closed);
    sent.unwrap();
    assert_eq!(ended.reason, CloseReason::Closed);
    let ended = client.wait_closed().await;
    assert_eq!((ended.reason, ended.delivered), (CloseReason::PeerClosed, true));
    queue_pairs(&fabric, 0).await;
}
