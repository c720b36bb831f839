//! Regions that whole connections publish on rxe: what is pinned, what a key opens, and what is left.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rcgen::{CertificateParams, Issuer, KeyPair};
use secure_rdma_connection::{
    Connection, ConnectionOptions, DeviceOptions, Operation, Registry, RemoteRegion, Server, SharedRegion,
    connect,
};
use secure_rdma_rdma::{Access, ErrorCode};
use secure_rdma_session::{ConnectConfig, ListenConfig, TlsOptions};
use secure_rdma_verbs::Verbs;
use tokio::runtime::{Builder, Runtime};

const READ_WRITE: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE);

/// The guest is slow.
const PATIENCE: Duration = Duration::from_secs(60);

fn tls() -> TlsOptions {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let params = CertificateParams::new(vec!["10.8.0.1".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    TlsOptions {
        ca: vec![ca_pem.into_bytes()],
        cert: vec![cert.pem().into_bytes()],
        key: Some(key.serialize_pem().into_bytes()),
        ..TlsOptions::default()
    }
}

/// A server on rxe0, whose clients are on rxe1.
struct World {
    server: Server,
    registry: Arc<Registry>,
    tls: TlsOptions,
}

impl World {
    async fn new() -> Self {
        let (registry, tls) = (Registry::new(vec![Arc::new(Verbs)]), tls());
        let mut listen = ListenConfig::new("10.8.0.1", 0, tls.clone());
        listen.options.handshake_timeout = PATIENCE;
        let (device, options) = (DeviceOptions::default(), ConnectionOptions::default());
        let server = Server::listen(&registry, listen, device, options).await.unwrap();
        Self { server, registry, tls }
    }

    /// The server's end and the client's.
    async fn connect(&self) -> [Connection; 2] {
        let mut config = ConnectConfig::new("10.8.0.1", self.server.local_addr().port(), self.tls.clone());
        config.local_address = Some([10, 8, 0, 2].into());
        config.options.handshake_timeout = PATIENCE;
        let (device, options) = (DeviceOptions::default(), ConnectionOptions::default());
        let client = connect(&self.registry, config, device, options).await.unwrap();
        let served = self.server.accept().await.unwrap();
        assert_eq!((&*served.local().device, &*client.local().device), ("rxe0", "rxe1"));
        [served, client]
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap()
}

/// Runs a test alone: it counts what the devices and the process hold.
fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime: Runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test());
}

/// KiB that the kernel has pinned for this process.
fn pinned() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPin")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Queue pairs (`qp`) or memory regions (`mr`) of both devices, as `rdma` tells them; its summary counts those of the
/// kernel too, which stay the same.
fn held(what: &str) -> usize {
    let output = Command::new("rdma").args(["resource", "show"]).output().unwrap();
    let summary = String::from_utf8(output.stdout).unwrap();
    let mut words = summary.split_whitespace();
    let mut count = 0;
    while let Some(word) = words.next() {
        if word == what {
            count += words.next().unwrap().parse::<usize>().unwrap();
        }
    }
    assert!(summary.contains(what), "rdma says {summary}");
    count
}

fn filled(length: usize, byte: u8) -> SharedRegion {
    let region = SharedRegion::allocate(length).unwrap();
    region.write(0, &vec![byte; length]).unwrap();
    region
}

#[test]
#[ignore = "needs an rxe device"]
fn a_region_of_256_mib_on_64_connections_is_pinned_once() {
    alone(|| async {
        let world = World::new().await;
        let mut all = Vec::new();
        for _ in 0..64 {
            all.push(world.connect().await);
        }
        let (before, regions) = (pinned(), held("mr"));
        let large = SharedRegion::allocate(256 << 20).unwrap();
        for [served, _] in &all {
            served.publish("large", &large.whole().unwrap(), READ_WRITE).unwrap();
        }
        let own = filled(64, 7);
        for (i, [_, client]) in all.iter().enumerate() {
            let remote = within(client.remote("large")).await.unwrap();
            let there = remote.slice((i as u64) << 22, 64).unwrap();
            within(client.write(&own.whole().unwrap(), &there)).await.unwrap();
        }
        let (grown, more) = (pinned() - before, held("mr") - regions);
        println!("64 connections: {grown} KiB and {more} memory regions more");
        // And the 64 bytes of the clients, on their device.
        assert_eq!((grown, more), ((256 << 10) + 4, 2));
        for [served, _] in &all {
            let publication = served.unpublish("large").unwrap();
            within(served.wait_unpublished(publication)).await;
        }
        drop((large, own));
        assert_eq!((pinned(), held("mr")), (before, regions));
    });
}

#[test]
#[ignore = "needs an rxe device"]
fn a_key_opens_its_range_to_its_connection_alone() {
    type Attack = fn(&RemoteRegion, &Connection) -> RemoteRegion;
    let attacks: [(&str, usize, usize, Attack); 4] = [
        ("A's key on B, all of a region", 1, 4096, |of, to| of.forged(to, 0, 64)),
        ("A's key on B, a part", 1, 64, |of, to| of.forged(to, 0, 64)),
        ("a byte before a part", 0, 64, |of, to| of.forged(to, -1, 64)),
        ("a byte behind a part", 0, 64, |of, to| of.forged(to, 1, 64)),
    ];
    alone(|| async {
        for (what, attacker, length, attack) in attacks {
            let world = World::new().await;
            let ends = [world.connect().await, world.connect().await];
            let inbox = SharedRegion::allocate(4096).unwrap();
            let range = inbox.slice((4096 - length) / 2, length).unwrap();
            for [served, _] in &ends {
                served.publish("inbox", &range, Access::REMOTE_WRITE).unwrap();
            }
            let of_a = within(ends[0][1].remote("inbox")).await.unwrap();
            within(ends[1][1].remote("inbox")).await.unwrap();
            let own = filled(64, 7).whole().unwrap();
            let client = &ends[attacker][1];
            let remote = attack(&of_a, client).whole();
            let error = within(client.write(&own, &remote)).await.unwrap_err();
            assert!(matches!(error.code(), ErrorCode::Work | ErrorCode::PeerLost), "{what}: {error:?}");
            within(ends[attacker][0].wait_closed()).await;
            let mut bytes = vec![1; 4096];
            inbox.read(0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{what}");
            let [served, honest] = &ends[1 - attacker];
            let theirs = within(honest.remote("inbox")).await.unwrap();
            within(honest.write(&own, &theirs.slice(0, 64).unwrap())).await.unwrap();
            within(honest.send_acknowledged(b"alive")).await.unwrap();
            assert!(served.closed().is_none(), "{what}");
        }
    });
}

#[test]
#[ignore = "needs an rxe device"]
fn unpublish_during_64_writes_settles_them_and_leaves_nothing() {
    alone(|| async {
        let (queue_pairs, regions) = (held("qp"), held("mr"));
        {
            let world = World::new().await;
            let [served, client] = world.connect().await;
            let inbox = SharedRegion::allocate(1 << 20).unwrap();
            // No more than even a guest that has little of its machine moves within the 2 s that a peer has to let go.
            let own = [filled(1 << 14, 7).whole().unwrap()];
            for round in 0..6 {
                // All of the region, and a part, which has a registration of its own here.
                let range = inbox.slice(round % 2 * 4096, (1 << 20) - round % 2 * 8192).unwrap();
                let publication = served.publish("inbox", &range, READ_WRITE).unwrap();
                let remote = within(client.remote("inbox")).await.unwrap().whole();
                let ids = client.post(&vec![Operation::write(&own, &remote); 64]).unwrap();
                if round > 2 {
                    within(client.completed(ids.start)).await.unwrap();
                }
                served.unpublish("inbox").unwrap();
                let mut revoked = 0;
                for id in ids {
                    if let Err(error) = within(client.completed(id)).await {
                        assert_eq!(error.code(), ErrorCode::RegionRevoked);
                        revoked += 1;
                    }
                }
                within(served.wait_unpublished(publication)).await;
                println!("round {round}: {revoked} of 64 were settled");
                let late = within(client.write(&own[0], &remote)).await.unwrap_err();
                assert_eq!(late.code(), ErrorCode::RegionRevoked);
                within(client.send_acknowledged(b"alive")).await.unwrap();
                assert_eq!(within(served.next()).await.unwrap().unwrap(), b"alive");
            }
            // What is published when a connection ends goes with it.
            served.publish("to the end", &inbox.whole().unwrap(), READ_WRITE).unwrap();
            within(client.remote("to the end")).await.unwrap();
            client.close();
            within(served.wait_closed()).await;
        }
        for _ in 0..1000 {
            // Those of an earlier test may still have been going when these were counted.
            if held("qp") <= queue_pairs && held("mr") <= regions {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} queue pairs, {} regions are left", held("qp"), held("mr"));
    });
}
