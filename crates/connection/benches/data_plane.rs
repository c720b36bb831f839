//! What one connection of the embedded device carries: both ends in this process, on loopback, through the public face.
//!
//! ```console
//! cargo bench -p secure-rdma-connection --bench data_plane
//! ```
//!
//! Both ends share one device and its one service thread, so figures of two processes are higher.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use secure_rdma_connection::{
    Connection, ConnectionOptions, DeviceOptions, Operation, Registry, Server, SharedRegion, connect,
};
use secure_rdma_rdma::Access;
use secure_rdma_session::{ConnectConfig, ListenConfig};
use secure_rdma_soft::SoftDevices;

const TIME: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let registry = Registry::new(vec![Arc::new(SoftDevices)]);
    let tls = common::tls();
    let options = || ConnectionOptions { credits: 64, ..ConnectionOptions::default() };
    let listen = ListenConfig::new("127.0.0.1", 0, tls.clone());
    let server = Server::listen(&registry, listen, DeviceOptions::default(), options()).await.unwrap();
    let config = ConnectConfig::new("127.0.0.1", server.local_addr().port(), tls);
    let client = connect(&registry, config, DeviceOptions::default(), options()).await.unwrap();
    let accepted = server.accept().await.unwrap();

    let all = Access::REMOTE_READ | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
    let theirs = SharedRegion::allocate(1 << 20).unwrap();
    accepted.publish("here", &theirs.whole().unwrap(), all).unwrap();
    let remote = client.remote("here").await.unwrap().whole();
    let ours = SharedRegion::allocate(1 << 20).unwrap();
    let mebibyte = [ours.whole().unwrap()];
    let small = [ours.slice(0, 64).unwrap()];

    let write = Operation::write(&mebibyte, &remote);
    report("WRITE 1 MiB, 8 in flight", rate(&client, &[write], 8).await, 1 << 20);
    let read = Operation::read(&remote, &mebibyte);
    report("READ 1 MiB, 8 in flight", rate(&client, &[read], 8).await, 1 << 20);
    let write = Operation::write(&small, &remote);
    report("WRITE 64 B, lists of 64", rate(&client, &[write; 64], 2).await, 64);
    let add = Operation::FetchAndAdd { remote: &remote, add: 1, fence: false };
    report("fetch-and-add, lists of 16", rate(&client, &[add; 16], 2).await, 8);

    // Messages need a reader.
    let reader = accepted.clone();
    accepted.observe(Arc::new(move || {
        while matches!(reader.receive(), secure_rdma_connection::Received::Message(_)) {}
    }));
    let send = Operation::Send { message: &[7; 64] };
    report("send 64 B, one at a time, 64 in flight", rate(&client, &[send], 64).await, 64);
    report("send 64 B, lists of 64", rate(&client, &[send; 64], 2).await, 64);
    let send = Operation::Send { message: &vec![7; 1 << 20] };
    report("send 1 MiB, 4 in flight", rate(&client, &[send], 4).await, 1 << 20);
    report("WRITE 64 B, one after the other", rate(&client, &[write], 1).await, 64);
}

/// Operations per second, with `lists` times this list in flight.
async fn rate(connection: &Connection, list: &[Operation<'_>], lists: u64) -> f64 {
    let begun = Instant::now();
    let first = connection.done();
    let in_flight = lists * list.len() as u64;
    let mut last = first;
    while begun.elapsed() < TIME {
        while last - connection.done().min(last) < in_flight {
            last = connection.post(list).unwrap().end - 1;
        }
        connection.completed(last + 1 - in_flight).await.unwrap();
        drop(connection.outcomes());
    }
    connection.completed(last).await.unwrap();
    (last - first) as f64 / begun.elapsed().as_secs_f64()
}

fn report(what: &str, rate: f64, bytes: u64) {
    println!("{what:40} {rate:>12.0} /s {:>10.1} MB/s", rate * bytes as f64 / 1e6);
}
