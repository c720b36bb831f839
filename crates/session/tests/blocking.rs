//! Calls that block: those of handshakes that are over, and those that take long, hold up nobody.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::time::{Duration, Instant};

use common::raw::RawClient;
use common::{World, eventually};
use secure_rdma_session::{Frame, Runtime};

/// More than the pool has threads.
const CROWD: usize = 48;

/// Paths that are looked for at once.
const PATHS: usize = 16;

/// How long a look-up takes that nobody answers.
const LONG: Duration = Duration::from_secs(4);

#[test]
fn paths_that_nobody_answers_hold_up_nobody_and_leave_nothing_behind() {
    let runtime = Runtime::start().unwrap();
    runtime.block_on(async {
        let mut world = World::new();
        world.options.handshake_timeout = Duration::from_secs(20);
        world.server_host.set(|b| b.resolve_takes = LONG);
        let listener = world.listen().await;
        let port = listener.local_addr().port();
        let mut crowd = Vec::new();
        let mut begun = None;
        for _ in 0..CROWD {
            let mut client = RawClient::new(&world, port).await;
            client.send_offer(client.offer()).await;
            begun.get_or_insert_with(Instant::now);
            crowd.push(client);
        }
        eventually("all have a queue pair", || world.server_host.live() == CROWD).await;

        // The newcomer's queue pair does not wait for a path to be found.
        let mut newcomer = RawClient::new(&world, port).await;
        assert!(matches!(newcomer.receive().await, Some(Frame::Offer(_))));

        // Those whose turn has not come are gone with their handshakes.
        drop((crowd, newcomer));
        eventually("queued calls let go", || world.server_host.live() <= PATHS).await;
        let took = begun.unwrap().elapsed();
        assert!(took < LONG, "while the first look-ups were still under way: {took:?}");
        assert_eq!(world.server_host.live(), PATHS, "the positive control");
    });
}
