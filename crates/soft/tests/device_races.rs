//! Regions that are dropped by one thread while the engine, in another, writes to them and reads from them for a peer
//! (reliability §F.4 #34). In a debug build the addresses of memory that was let go of stay inaccessible for good
//! (`rdma/src/memory.rs`): an access that comes too late is a SIGSEGV.
//!
//! `RACES` tells how many; a soak does 100,000.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod common;

use std::sync::{Arc, mpsc};
use std::time::Instant;

use common::{ALL, End, PATIENCE, Terms, bring_up, device, remote, request};
use secure_rdma_rdma::{Device, Memory, Region, SendOperation, WcStatus};

const LENGTH: usize = 64 * 1024;
const OPERATIONS: u64 = 4;

fn races() -> u32 {
    std::env::var("RACES").ok().and_then(|text| text.parse().ok()).unwrap_or(2000)
}

#[test]
fn a_region_may_go_whenever_a_peer_writes_to_it_or_reads_from_it() {
    let (one, other) = (device(), device());
    let terms = Terms::default();
    let connect = || {
        let ends = (End::new(&one, &terms), End::new(&other, &terms));
        bring_up(&ends.0, &ends.1, &terms);
        ends
    };
    let ours = common::region(&one, LENGTH, ALL);
    let (give, take) = mpsc::channel::<(Arc<Region>, u32)>();
    let dropper = std::thread::spawn(move || {
        while let Ok((region, wait)) = take.recv() {
            for _ in 0..wait {
                std::hint::spin_loop();
            }
            drop(region);
        }
    });

    let (mut whole, mut refused) = (0, 0);
    let mut ends = connect();
    for race in 0..races() {
        let memory = Arc::new(Memory::allocate(LENGTH).unwrap());
        let watched = Arc::downgrade(&memory);
        let theirs = other.register(memory, ALL).unwrap();
        let remote = remote(&theirs, 0);
        // From before the first packet to after the last.
        give.send((theirs, race.wrapping_mul(7919) % 40_000)).unwrap();
        for id in 0..OPERATIONS {
            let operation = if (id + u64::from(race)) % 2 == 0 {
                SendOperation::Write { remote, immediate: None }
            } else {
                SendOperation::Read { remote }
            };
            ends.0.send(request(id, operation, &ours, 0, LENGTH));
        }
        let statuses: Vec<_> = (0..OPERATIONS).map(|_| ends.0.told.next().status).collect();
        let done = statuses.iter().take_while(|status| status.is_success()).count();
        match statuses.get(done..) {
            Some([first, rest @ ..]) => {
                let told =
                    || format!("race {race}: {statuses:?}\n{:?}\n{:?}", one.counters(), other.counters());
                assert_eq!(*first, WcStatus::REM_ACCESS_ERR, "{}", told());
                assert!(rest.iter().all(|status| *status == WcStatus::WR_FLUSH_ERR), "{statuses:?}");
                refused += 1;
                ends = connect();
            }
            _ => whole += 1,
        }
        let end = Instant::now() + PATIENCE;
        while watched.strong_count() > 0 {
            assert!(Instant::now() < end, "race {race}: something keeps the memory");
            std::thread::yield_now();
        }
    }
    drop(give);
    dropper.join().unwrap();
    println!("{whole} races were won by the peer, {refused} by who dropped");
    assert!(whole > 0 && refused > 0, "the control: {whole} against {refused}");
}
