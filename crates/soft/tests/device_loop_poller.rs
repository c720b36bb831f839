//! A thread with an event loop receives for a device, and the service thread stands in where it is busy.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::fd::AsFd;

use common::{ALL, End, Terms, bring_up, bytes, device, read_back, region, remote, request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use secure_rdma_rdma::{SendOperation, WcStatus};
use secure_rdma_soft::{LoopPoller, Turn};

const LENGTH: usize = 256 * 1024;

/// WRITEs in both directions, one after the other, with `meanwhile` called while each is under way.
fn write_both_ways(rounds: u64, ends: [&End; 2], mut meanwhile: impl FnMut(&End)) {
    for round in 0..rounds {
        for (from, to) in [(0, 1), (1, 0)] {
            let [source, target] = [ends[from], ends[to]].map(|end| end.region(LENGTH));
            let seed = u8::try_from(round % 251).unwrap();
            source.memory().write(0, &bytes(LENGTH, seed)).unwrap();
            let write = SendOperation::Write { remote: remote(&target, 0), immediate: None };
            ends[from].send(request(round, write, &source, 0, LENGTH));
            meanwhile(ends[from]);
            assert_eq!(ends[from].done().status, WcStatus::SUCCESS);
            assert_eq!(read_back(&target, 0, LENGTH), bytes(LENGTH, seed));
        }
    }
}

/// Two connected devices, and a poller of the first.
fn polled() -> ([End; 2], LoopPoller) {
    let (one, other) = (device(), device());
    let terms = Terms::default();
    let ends = [End::new(&one, &terms), End::new(&other, &terms)];
    bring_up(&ends[0], &ends[1], &terms);
    (ends, one.loop_poller())
}

/// As an event loop does: waits until the descriptor is readable, and turns. `None`: nothing for `most` milliseconds.
fn turn(poller: &LoopPoller, most: u16) -> Option<Turn> {
    let readable =
        poll(&mut [PollFd::new(poller.as_fd(), PollFlags::POLLIN)], PollTimeout::from(most)).unwrap();
    (readable > 0).then(|| poller.turn(true, false))
}

#[test]
fn an_event_loop_serves_its_device() {
    let (ends, poller) = polled();
    while poller.turn(false, false) != Turn::Rest {}
    let mut news = 0;
    write_both_ways(50, [&ends[0], &ends[1]], |from| {
        // Until the WRITE is over, and the loop has nothing more to do.
        while from.told.is_empty() {
            news += u32::from(turn(&poller, 1) == Some(Turn::News));
        }
        while poller.turn(false, false) != Turn::Rest {}
    });
    // Not each time: a machine that is busy may keep the loop's thread from its turn, and then it is stood in for.
    assert!(news > 0, "the loop's thread has told the handlers of its device itself");
}

#[test]
fn a_loop_that_is_busy_is_stood_in_for() {
    let (ends, poller) = polled();
    assert_eq!(poller.turn(false, false), Turn::Rest);
    // It never looks, whatever comes.
    write_both_ways(50, [&ends[0], &ends[1]], |_| {});
    // Nor after a silence, in which the service thread has gone to wait for packets.
    std::thread::sleep(std::time::Duration::from_millis(100));
    write_both_ways(1, [&ends[0], &ends[1]], |_| {});
    // Back in its loop, it finds its device as it should be.
    write_both_ways(5, [&ends[0], &ends[1]], |from| {
        while from.told.is_empty() {
            turn(&poller, 1);
        }
    });
    drop(poller);
    write_both_ways(5, [&ends[0], &ends[1]], |_| {});
}

#[test]
fn a_device_that_is_closed_says_so_to_the_loop() {
    let one = device();
    let ours = region(&one, 4096, ALL);
    let poller = one.loop_poller();
    assert_eq!(poller.turn(false, false), Turn::Rest);
    drop((ours, one));
    assert_eq!(poller.turn(false, false), Turn::Closed);
}
