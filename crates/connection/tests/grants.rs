//! Regions that are published over TLS and taken back, through the public face alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use secure_rdma_connection::{
    CloseReason, Connection, ConnectionOptions, DeviceOptions, Operation, PublicationState, Registry, Server,
    SharedRegion, connect,
};
use secure_rdma_rdma::fake::{Fabric, FakeDevice};
use secure_rdma_rdma::{Access, Devices, ErrorCode};
use secure_rdma_session::{ConnectConfig, ListenConfig, TlsOptions};
use secure_rdma_soft::SoftDevices;

const READ_WRITE: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);

/// A server, and who connects to it.
struct World {
    server: Server,
    clients: Arc<Registry>,
    local: Option<std::net::IpAddr>,
    tls: TlsOptions,
}

impl World {
    async fn new(servers: Arc<Registry>, clients: Arc<Registry>, local: Option<std::net::IpAddr>) -> Self {
        let tls = common::tls();
        let listen = ListenConfig::new("127.0.0.1", 0, tls.clone());
        let (device, options) = (DeviceOptions::default(), ConnectionOptions::default());
        let server = Server::listen(&servers, listen, device, options).await.unwrap();
        Self { server, clients, local, tls }
    }

    /// Both on the embedded device.
    async fn soft() -> Self {
        let registry = Registry::new(vec![Arc::new(SoftDevices)]);
        Self::new(Arc::clone(&registry), registry, None).await
    }

    /// On an in-memory device each: the server's, the clients'.
    async fn fake() -> (Self, Fabric, [Arc<FakeDevice>; 2]) {
        let fabric = Fabric::new();
        let devices =
            [("fake0", 1), ("fake1", 2)].map(|(name, host)| fabric.device(name, [127, 0, 0, host].into()));
        let [servers, clients] = [0, 1].map(|i| {
            let family: Arc<dyn Devices> = Arc::new(fabric.host([&devices[i]]));
            Registry::new(vec![family])
        });
        (Self::new(servers, clients, Some([127, 0, 0, 2].into())).await, fabric, devices)
    }

    /// The server's end and the client's.
    async fn connect(&self) -> [Connection; 2] {
        let mut config = ConnectConfig::new("127.0.0.1", self.server.local_addr().port(), self.tls.clone());
        config.local_address = self.local;
        let (device, options) = (DeviceOptions::default(), ConnectionOptions::default());
        let client = connect(&self.clients, config, device, options).await.unwrap();
        [self.server.accept().await.unwrap(), client]
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap()
}

fn filled(length: usize, byte: u8) -> SharedRegion {
    let region = SharedRegion::allocate(length).unwrap();
    region.write(0, &vec![byte; length]).unwrap();
    region
}

/// Bytes of this process in memory.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test]
async fn one_large_region_is_published_on_64_connections_and_held_once() {
    let world = World::soft().await;
    let large = SharedRegion::allocate(256 << 20).unwrap();
    let mut all = Vec::new();
    for _ in 0..64 {
        all.push(world.connect().await);
    }
    let before = resident();
    for [server, _] in &all {
        server.publish("large", &large.whole().unwrap(), READ_WRITE).unwrap();
    }
    for (i, [_, client]) in all.iter().enumerate() {
        let remote = within(client.remote("large")).await.unwrap();
        assert_eq!(remote.len(), 256 << 20);
        let own = filled(1000, u8::try_from(i).unwrap());
        let there = remote.slice((i as u64) << 22, 1000).unwrap();
        within(client.write(&own.whole().unwrap(), &there)).await.unwrap();
    }
    for i in 0..64 {
        let mut bytes = [0xFF; 1000];
        large.read(i << 22, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| usize::from(*byte) == i), "client {i}");
    }
    // 64 times 256 MiB would be 16 GiB; nothing touches more than a page for each.
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more in memory");
}

#[tokio::test]
async fn unpublish_during_64_writes_settles_them_and_the_connection_lives() {
    let world = World::soft().await;
    let [server, client] = world.connect().await;
    let inbox = SharedRegion::allocate(1 << 20).unwrap();
    let own = [filled(1 << 20, 7).whole().unwrap()];
    for round in 0..10 {
        let publication = server.publish("inbox", &inbox.whole().unwrap(), READ_WRITE).unwrap();
        let remote = within(client.remote("inbox")).await.unwrap().whole();
        let ids = client.post(&vec![Operation::write(&own, &remote); 64]).unwrap();
        if round % 2 == 1 {
            // Not always while nothing has arrived.
            within(client.completed(ids.start)).await.unwrap();
        }
        assert_eq!(server.unpublish("inbox").unwrap(), publication);
        let mut revoked = 0;
        for id in ids {
            match within(client.completed(id)).await {
                Ok(_) => assert_eq!(revoked, 0, "in order"),
                Err(error) => {
                    assert_eq!(error.code(), ErrorCode::RegionRevoked);
                    revoked += 1;
                }
            }
        }
        within(server.wait_unpublished(publication)).await;
        assert_eq!(server.publication(publication), PublicationState::Ended);
        // Nothing of the peer changes the memory any more.
        inbox.write(0, &vec![0; 1 << 20]).unwrap();
        let late = within(client.write(&own[0], &remote)).await.unwrap_err();
        assert_eq!(late.code(), ErrorCode::RegionRevoked);
        within(client.send_acknowledged(b"alive")).await.unwrap();
        assert_eq!(within(server.next()).await.unwrap().unwrap(), b"alive");
        let mut bytes = vec![1; 1 << 20];
        inbox.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0));
    }
    client.close();
    assert_eq!(within(server.wait_closed()).await.reason, CloseReason::PeerClosed);
    assert_eq!(within(client.wait_closed()).await.reason, CloseReason::Closed);
}

#[tokio::test]
async fn more_grants_than_the_control_channel_takes_at_once_all_arrive() {
    let world = World::soft().await;
    let [server, client] = world.connect().await;
    let region = SharedRegion::allocate(4096).unwrap();
    // 1024 of them are four times what the channel holds.
    let name = |i: usize| format!("{i:0>255}");
    let mut publications = Vec::new();
    for i in 0..1024 {
        let slice = region.slice(i, i + 1).unwrap();
        publications.push(server.publish(&name(i), &slice, READ_WRITE).unwrap());
    }
    let refused = server.publish("one more", &region.whole().unwrap(), READ_WRITE).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::RegionLimit);
    for i in (0..1024).rev() {
        assert_eq!(within(client.remote(&name(i))).await.unwrap().len(), i as u64 + 1);
    }
    for (i, publication) in publications.into_iter().enumerate() {
        within(server.wait_announced(publication)).await.unwrap();
        assert_eq!(server.unpublish(&name(i)).unwrap(), publication);
        if i % 100 == 0 {
            within(server.wait_unpublished(publication)).await;
        }
    }
    let last = server.publish("the last", &region.whole().unwrap(), READ_WRITE);
    // All have been unpublished or are about to be; room there is when the first are.
    let last = last.unwrap();
    within(client.remote("the last")).await.unwrap();
    server.unpublish("the last").unwrap();
    within(server.wait_unpublished(last)).await;
    assert!(client.find_remote(&name(1023)).unwrap().is_none());
}

#[tokio::test]
async fn both_sides_publish_and_take_back_again_and_again() {
    let world = World::soft().await;
    let ends = world.connect().await;
    let regions = [filled(64, 1), filled(64, 2)];
    for _ in 0..200 {
        let publications = [0, 1]
            .map(|i| ends[i].publish("mine", &regions[i].whole().unwrap(), Access::REMOTE_READ).unwrap());
        for i in 0..2 {
            let theirs = within(ends[1 - i].remote("mine")).await.unwrap();
            let copy = SharedRegion::allocate(64).unwrap();
            within(ends[1 - i].read(&theirs.whole(), &copy.whole().unwrap())).await.unwrap();
            let mut bytes = [0; 64];
            copy.read(0, &mut bytes).unwrap();
            assert_eq!(usize::from(bytes[63]), i + 1);
        }
        for end in &ends {
            end.unpublish("mine").unwrap();
        }
        for (end, publication) in ends.iter().zip(publications) {
            within(end.wait_unpublished(publication)).await;
        }
    }
}

#[tokio::test]
async fn waiting_for_what_is_not_published_ends_when_it_is_given_up_or_the_connection_ends() {
    let world = World::soft().await;
    let [server, client] = world.connect().await;
    let given_up = tokio::time::timeout(Duration::from_millis(20), client.remote("later")).await;
    assert!(given_up.is_err());
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.remote("later").await }
    });
    let never = tokio::spawn({
        let client = client.clone();
        async move { client.remote("never").await }
    });
    let region = SharedRegion::allocate(64).unwrap();
    server.publish("later", &region.whole().unwrap(), READ_WRITE).unwrap();
    assert_eq!(within(waiting).await.unwrap().unwrap().name(), "later");
    server.close();
    let error = within(never).await.unwrap().unwrap_err();
    assert_eq!(error.code(), ErrorCode::Closed);
    assert_eq!(client.remote("").await.unwrap_err().code(), ErrorCode::RegionName);
}

#[tokio::test]
async fn a_peer_that_does_not_let_go_loses_its_own_connection_within_seconds() {
    let (world, fabric, devices) = World::fake().await;
    let [server, stuck] = world.connect().await;
    let [other_server, other] = world.connect().await;
    let inbox = SharedRegion::allocate(4096).unwrap();
    let publication = server.publish("inbox", &inbox.whole().unwrap(), READ_WRITE).unwrap();
    other_server.publish("inbox", &inbox.whole().unwrap(), READ_WRITE).unwrap();
    let remote = within(stuck.remote("inbox")).await.unwrap();
    let of_other = within(other.remote("inbox")).await.unwrap();
    let own = filled(64, 7).whole().unwrap();
    // What it writes is never done, so that it never lets go.
    fabric.pause();
    stuck.post(&[Operation::write(std::slice::from_ref(&own), &remote.slice(0, 64).unwrap())]).unwrap();
    server.unpublish("inbox").unwrap();
    let began = std::time::Instant::now();
    let closed = within(server.wait_closed()).await;
    assert_eq!(closed.error.unwrap().code(), ErrorCode::PeerViolation);
    // It was given its time.
    assert!(began.elapsed() >= Duration::from_millis(1900));
    fabric.resume();
    within(server.wait_unpublished(publication)).await;
    assert_eq!(within(stuck.wait_closed()).await.reason, CloseReason::Error);
    let there = of_other.slice(64, 64).unwrap();
    within(other.write(&own, &there)).await.unwrap();
    within(other.send_acknowledged(b"alive")).await.unwrap();
    drop(devices);
}
