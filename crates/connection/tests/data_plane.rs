//! One-sided operations on the embedded device: two ends over TLS on loopback, through the public face alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use secure_rdma_connection::{
    Connection, ConnectionOptions, DeviceOptions, Operation, Received, Registry, RemoteSlice, Server,
    SharedRegion, connect,
};
use secure_rdma_rdma::{Access, ErrorCode};
use secure_rdma_session::{ConnectConfig, ListenConfig};
use secure_rdma_soft::SoftDevices;

const ALL: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE).union(Access::REMOTE_ATOMIC);

/// Both ends of connections, and what must outlive them.
struct World {
    registry: Arc<Registry>,
    server: Server,
    config: ConnectConfig,
}

impl World {
    async fn new() -> Self {
        Self::serving(ConnectionOptions::default()).await
    }

    /// With these options of the accepting side.
    async fn serving(options: ConnectionOptions) -> Self {
        let registry = Registry::new(vec![Arc::new(SoftDevices)]);
        let tls = common::tls();
        let listen = ListenConfig::new("127.0.0.1", 0, tls.clone());
        let server = Server::listen(&registry, listen, DeviceOptions::default(), options).await.unwrap();
        let config = ConnectConfig::new("127.0.0.1", server.local_addr().port(), tls);
        Self { registry, server, config }
    }

    /// The two ends of a connection.
    async fn connect(&self) -> [Connection; 2] {
        self.connect_with(ConnectionOptions::default()).await
    }

    /// With these options of the connecting side.
    async fn connect_with(&self, options: ConnectionOptions) -> [Connection; 2] {
        let device = DeviceOptions::default();
        let client = connect(&self.registry, self.config.clone(), device, options).await.unwrap();
        [client, self.server.accept().await.unwrap()]
    }
}

/// Publishes `bytes` of the second end, and gives what the first one finds.
async fn published(ends: &[Connection; 2], bytes: usize, access: Access) -> (SharedRegion, RemoteSlice) {
    let region = SharedRegion::allocate(bytes).unwrap();
    ends[1].publish("here", &region.whole().unwrap(), access).unwrap();
    let remote = within(ends[0].remote("here")).await.unwrap();
    (region, remote.whole())
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

fn content(region: &SharedRegion, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    region.read(offset, &mut bytes).unwrap();
    bytes
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| ((i * 31 + seed * 17) % 251).to_le_bytes()[0]).collect()
}

#[tokio::test]
async fn what_is_written_can_be_read_back() {
    let world = World::new().await;
    let ends = world.connect().await;
    let (theirs, remote) = published(&ends, 10 << 20, ALL).await;
    let (ours, back) = (SharedRegion::allocate(10 << 20).unwrap(), SharedRegion::allocate(10 << 20).unwrap());
    for length in [1, 1000, 4096, 65_537, 1 << 20, (4 << 20) + 1, 10 << 20] {
        ours.write(0, &pattern(length, length)).unwrap();
        let slice = ours.slice(0, length).unwrap();
        within(ends[0].write(&slice, &remote)).await.unwrap();
        assert!(content(&theirs, 0, length) == pattern(length, length), "{length} bytes written");
        within(ends[0].read(&remote, &back.slice(0, length).unwrap())).await.unwrap();
        assert!(content(&back, 0, length) == pattern(length, length), "{length} bytes read");
    }
}

#[tokio::test]
async fn immediates_come_behind_their_bytes_and_behind_all_that_was_posted_before() {
    let world = World::new().await;
    let ends = world.connect().await;
    let (theirs, remote) = published(&ends, 5 << 20, ALL).await;
    let ours = SharedRegion::allocate(5 << 20).unwrap();
    ours.write(0, &pattern(1, 5 << 20)).unwrap();
    let local = [ours.whole().unwrap()];
    let write =
        Operation::Write { local: &local, remote: &remote, immediate: Some(0x8000_0001), fence: false };
    let nothing = Operation::Write { local: &[], remote: &remote, immediate: Some(0), fence: false };
    let ids = ends[0].post(&[write, nothing, Operation::Send { message: b"and a message" }]).unwrap();
    assert_eq!(within(ends[1].next_immediate()).await.unwrap(), Some(0x8000_0001));
    assert!(content(&theirs, 0, 5 << 20) == pattern(1, 5 << 20));
    assert_eq!(within(ends[1].next_immediate()).await.unwrap(), Some(0));
    assert_eq!(within(ends[1].next()).await.unwrap().unwrap(), b"and a message");
    within(ends[0].completed(ids.end - 1)).await.unwrap();
    assert_eq!(ends[0].done(), ids.end - 1);
    ends[0].close();
    assert_eq!(within(ends[1].next_immediate()).await.unwrap(), None, "the end of the direction");
    assert!(matches!(ends[1].receive_immediate(), Received::End));
}

#[tokio::test]
async fn counters_that_many_peers_add_to_lose_nothing() {
    let world = World::new().await;
    let region = SharedRegion::allocate(4096).unwrap();
    let mut ends = Vec::new();
    for _ in 0..4 {
        let pair = world.connect().await;
        pair[1].publish("counter", &region.slice(64, 8).unwrap(), Access::REMOTE_ATOMIC).unwrap();
        ends.push(pair);
    }
    let mut last = Vec::new();
    let mut before = Vec::new();
    for [client, _] in &ends {
        let remote = within(client.remote("counter")).await.unwrap().whole();
        let add = Operation::FetchAndAdd { remote: &remote, add: 1, fence: false };
        last.push(client.post(&vec![add; 500]).unwrap().end - 1);
    }
    for ([client, _], last) in ends.iter().zip(last) {
        within(client.completed(last)).await.unwrap();
        before.extend(client.outcomes().1.into_iter().map(|(_, value)| value.unwrap()));
    }
    before.sort_unstable();
    // `completed` has taken one outcome of each connection.
    before.dedup();
    assert_eq!(before.len(), 4 * 499, "no value was given twice");
    assert_eq!(region.memory().fetch_add(64, 0).unwrap(), 2000);
}

#[tokio::test]
async fn a_lock_by_compare_and_swap_is_held_by_one() {
    let world = World::new().await;
    let ends = world.connect().await;
    let (region, remote) = published(&ends, 64, Access::REMOTE_ATOMIC).await;
    assert_eq!(within(ends[0].compare_and_swap(&remote, 0, 7)).await.unwrap(), 0);
    assert_eq!(within(ends[0].compare_and_swap(&remote, 0, 8)).await.unwrap(), 7);
    assert_eq!(region.memory().fetch_add(0, 0).unwrap(), 7);
}

#[tokio::test]
async fn gather_lists_and_fences_work_with_many_in_flight() {
    let world = World::new().await;
    let ends = world.connect().await;
    let (theirs, remote) = published(&ends, 1 << 20, ALL).await;
    let ours = SharedRegion::allocate(1 << 20).unwrap();
    ours.write(0, &pattern(3, 1 << 20)).unwrap();
    let slices: Vec<_> = (0..100).map(|i| ours.slice(i * 1000, i * 13).unwrap()).collect();
    let expected: Vec<u8> =
        slices.iter().flat_map(|slice| content(&ours, slice.offset(), slice.len())).collect();
    let landing = SharedRegion::allocate(1 << 20).unwrap();
    let back = [landing.slice(0, expected.len()).unwrap()];
    let write = Operation::write(&slices, &remote);
    let read = Operation::Read { remote: &remote, local: &back, fence: false };
    // What is read is written on only when it has come: without the fence these bytes would be those of before.
    let onward_to = remote.slice(512 << 10, expected.len() as u64).unwrap();
    let onward = Operation::Write { local: &back, remote: &onward_to, immediate: None, fence: true };
    let list: Vec<_> = (0..50).flat_map(|_| [write, read, onward]).collect();
    let ids = ends[0].post(&list).unwrap();
    within(ends[0].completed(ids.end - 1)).await.unwrap();
    assert!(content(&theirs, 0, expected.len()) == expected);
    assert!(content(&theirs, 512 << 10, expected.len()) == expected, "the fence held");
}

#[tokio::test]
async fn every_refusal_leaves_the_connection_as_it_was() {
    let world = World::new().await;
    let ends = world.connect().await;
    let others = world.connect().await;
    let (_region, remote) = published(&ends, 100, Access::REMOTE_READ).await;
    let ours = SharedRegion::allocate(101).unwrap();
    let [whole, small] = [[ours.whole().unwrap()], [ours.slice(0, 8).unwrap()]];
    let code = |connection: &Connection, operation: Operation<'_>| {
        connection.post(&[operation]).map(drop).unwrap_err().code()
    };
    assert_eq!(code(&ends[0], Operation::read(&remote, &whole)), ErrorCode::RegionBounds);
    assert_eq!(code(&ends[0], Operation::write(&small, &remote)), ErrorCode::RegionAccess);
    let add = Operation::FetchAndAdd { remote: &remote, add: 1, fence: false };
    assert_eq!(code(&ends[0], add), ErrorCode::RegionAccess);
    assert_eq!(code(&others[0], Operation::read(&remote, &small)), ErrorCode::InvalidArgument);
    ours.close();
    assert_eq!(code(&ends[0], Operation::read(&remote, &small)), ErrorCode::RegionClosed);
    for connection in ends.iter().chain(&others) {
        assert!(connection.closed().is_none());
    }
    ends[1].unpublish("here").unwrap();
    let ours = SharedRegion::allocate(101).unwrap();
    let small = ours.slice(0, 8).unwrap();
    let revoked = within(async {
        loop {
            match ends[0].read(&remote, &small).await {
                Ok(()) => tokio::task::yield_now().await,
                Err(error) => break error,
            }
        }
    });
    assert_eq!(revoked.await.code(), ErrorCode::RegionRevoked);
    ends[0].send(b"alive").unwrap();
    assert_eq!(within(ends[1].next()).await.unwrap().unwrap(), b"alive");
}

#[tokio::test]
async fn close_waits_for_operations_and_says_whether_all_were_carried_out() {
    let world = World::new().await;
    let ends = world.connect().await;
    let (theirs, remote) = published(&ends, 1 << 20, ALL).await;
    let ours = SharedRegion::allocate(1 << 20).unwrap();
    ours.write(0, &pattern(9, 1 << 20)).unwrap();
    let local = [ours.whole().unwrap()];
    let ids = ends[0].post(&[Operation::write(&local, &remote); 300]).unwrap();
    ends[0].close();
    assert_eq!(ends[0].post(&[]).unwrap_err().code(), ErrorCode::Ended);
    let closed = within(ends[0].wait_closed()).await;
    assert!(closed.error.is_none() && closed.delivered, "{closed:?}");
    assert!(ends[0].done() >= ids.end - 1);
    assert!(content(&theirs, 0, 1 << 20) == pattern(9, 1 << 20));
}

/// §F.4 #34: the registration ends while WRITEs and READs use it. In debug builds a late access is a SIGSEGV: addresses
/// are not used again.
#[tokio::test]
async fn regions_may_be_closed_while_they_are_written_and_read() {
    let world = World::new().await;
    let ends = world.connect().await;
    let (theirs, remote) = published(&ends, 256 << 10, ALL).await;
    for round in 0..200 {
        let length = 1 + (round * 7919) % (256 << 10);
        let (ours, landing) =
            (SharedRegion::allocate(length).unwrap(), SharedRegion::allocate(length).unwrap());
        ours.write(0, &pattern(round, length)).unwrap();
        let (memory, landed) = (Arc::downgrade(ours.memory()), Arc::clone(landing.memory()));
        let (from, to) = ([ours.whole().unwrap()], [landing.whole().unwrap()]);
        let ids = ends[0].post(&[Operation::write(&from, &remote), Operation::read(&remote, &to)]).unwrap();
        if round % 2 == 0 {
            ours.close();
            landing.close();
        }
        drop((ours, landing, from, to));
        within(ends[0].completed(ids.end - 1)).await.unwrap();
        assert!(content(&theirs, 0, length) == pattern(round, length), "round {round}");
        let mut bytes = vec![0; length];
        landed.read(0, &mut bytes).unwrap();
        assert!(bytes == pattern(round, length), "round {round}");
        within(async {
            while memory.strong_count() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn what_is_taken_back_is_done_for_whoever_waits_for_it() {
    let world = World::serving(ConnectionOptions { receive_buffer_size: 640, ..Default::default() }).await;
    // A probe that completes would wake whoever waits, too.
    let ends = world.connect_with(ConnectionOptions { path_probe: None, ..Default::default() }).await;
    let (_theirs, remote) = published(&ends, 64, ALL).await;
    // More WRITEs with immediate than a peer that reads none takes.
    let write = Operation::Write { local: &[], remote: &remote, immediate: Some(1), fence: false };
    let last = ends[0].post(&[write; 100]).unwrap().end - 1;
    within(async {
        while ends[0].stats().credits_available > 1 || ends[0].stats().work_in_flight > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // A task of its own, which nobody polls without a reason.
    let waiting = {
        let connection = ends[0].clone();
        tokio::spawn(async move { connection.completed(last).await })
    };
    tokio::task::yield_now().await;
    for id in (ends[0].done() + 1..=last).rev() {
        assert!(ends[0].withdraw(id));
    }
    let waited = within(waiting).await.unwrap();
    assert_eq!(waited.unwrap(), 0);
}

#[tokio::test]
async fn a_dropped_future_takes_its_operation_back_or_lets_it_run() {
    let world = World::new().await;
    let ends = world.connect().await;
    let (region, remote) = published(&ends, 64, ALL).await;
    for _ in 0..100 {
        let mut add = std::pin::pin!(ends[0].fetch_and_add(&remote, 1));
        // Posted by the first poll, and dropped at once.
        let _ = std::future::poll_fn(|cx| std::task::Poll::Ready(add.as_mut().poll(cx))).await;
    }
    let last = within(ends[0].fetch_and_add(&remote, 0)).await.unwrap();
    assert_eq!(region.memory().fetch_add(0, 0).unwrap(), last);
    assert_eq!(ends[0].stats().operations_pending, 0, "nobody's outcomes are kept");
}
