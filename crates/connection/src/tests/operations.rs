//! WRITEs, READs and atomics: what they carry, in which order they complete, and what is refused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use secure_rdma_rdma::{
    Access, Device as _, Error, ErrorCode, LKey, Memory, RKey, Region, Registration, Slice,
};

use super::{End, World, message};
use crate::channel::Channel;
use crate::connection::Received;
use crate::operations::Operation;
use crate::options::ConnectionOptions;
use crate::outgoing::{Body, Direction, PIECE, Transfer};
use crate::regions::SharedRegion;
use crate::remote::{RemoteRegion, RemoteSlice};
use crate::transmit::MOST_OPERATIONS;

pub(crate) const ALL: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE).union(Access::REMOTE_ATOMIC);

/// Memory of the second end, and what the first one knows of it.
pub(crate) struct Granted {
    pub(crate) memory: Arc<Memory>,
    pub(crate) remote: RemoteRegion,
    _region: Arc<Region>,
}

/// Grants `bytes` of the second device to `end`, without the messages that announce it.
pub(crate) fn grant(world: &World, end: &End, id: u32, bytes: usize, access: Access) -> Granted {
    let memory = Arc::new(Memory::allocate(bytes).unwrap());
    let region = world.devices[1].register(Arc::clone(&memory), access | Access::LOCAL_WRITE).unwrap();
    let name = format!("grant {id}");
    let range = (region.address(), bytes as u64);
    let remote = RemoteRegion::new(end.channel.myself.clone(), (id, name), access, range, region.rkey());
    Granted { memory, remote, _region: region }
}

pub(crate) fn done(end: &End) -> u64 {
    end.channel.lock().transmit.done()
}

fn outcome(end: &End, id: u64) -> Option<Result<u64, Error>> {
    end.channel.lock().transmit.outcome(id)
}

fn bytes(memory: &Memory, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read(offset, &mut bytes).unwrap();
    bytes
}

/// Posts and waits until all of it is done.
fn carry_out(end: &End, operations: &[Operation<'_>]) -> std::ops::Range<u64> {
    let ids = end.channel.post(operations).unwrap();
    end.until("the operations to be done", |end| end.lock().transmit.done() >= ids.end - 1);
    ids
}

#[test]
fn a_write_and_a_read_carry_the_bytes_of_every_border_length() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 3 * PIECE, ALL);
    let local = SharedRegion::allocate(3 * PIECE).unwrap();
    let landing = SharedRegion::allocate(3 * PIECE).unwrap();
    for length in [1, 7, 1023, 1024, 1025, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3] {
        let content = message(length, length);
        local.write(5, &content).unwrap();
        let (from, to) = (local.slice(5, length).unwrap(), landing.slice(1, length).unwrap());
        let remote = granted.remote.slice(9, length as u64).unwrap();
        carry_out(
            &a,
            &[
                Operation::write(&[from], &remote),
                Operation::Read { remote: &remote, local: &[to], fence: true },
            ],
        );
        assert!(bytes(&granted.memory, 9, length) == content, "{length} bytes written");
        assert!(bytes(landing.memory(), 1, length) == content, "{length} bytes read back");
    }
    // And nothing around them.
    assert_eq!(bytes(&granted.memory, 0, 9), [0; 9]);
    assert_eq!(bytes(&granted.memory, 9 + 2 * PIECE + 3, 9), [0; 9]);
}

#[test]
fn long_operations_are_cut_and_complete_once_with_their_last_piece() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 3 * PIECE, ALL);
    let local = SharedRegion::allocate(3 * PIECE).unwrap();
    a.channel.register(&local).unwrap();
    world.fabric.pause();
    let (from, remote) = ([local.whole().unwrap()], granted.remote.whole());
    let write =
        Operation::Write { local: &from, remote: &remote, immediate: Some(0xFFFF_FFFF), fence: false };
    let ids = a.channel.post(&[write, Operation::Send { message: b"behind it" }]).unwrap();
    assert_eq!(ids, 1..3);
    assert_eq!((a.channel.stats().work_in_flight, done(&a)), (4, 0), "three pieces and the message");
    world.fabric.resume();
    assert_eq!(b.next().unwrap().unwrap(), b"behind it");
    assert!(
        matches!(b.channel.take_immediate(), Received::Message(0xFFFF_FFFF)),
        "all 32 bits are the user's"
    );
    assert!(matches!(b.channel.take_immediate(), Received::Pending), "one immediate for one WRITE");
    a.until("both to be done", |a| a.lock().transmit.done() == 2);
}

#[test]
fn gather_lists_of_any_length_are_carried_in_order() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 4096, ALL);
    let regions = [0, 1, 2].map(|i| {
        let region = SharedRegion::allocate(1000).unwrap();
        region.write(0, &message(i, 1000)).unwrap();
        region
    });
    for count in [0_usize, 1, 2, 4, 5, 8, 9, 30] {
        let mut expected = Vec::new();
        let slices: Vec<_> = (0..count)
            .map(|i| {
                let (region, offset, length) = (&regions[i % 3], i * 7, (i * 5) % 40);
                expected.extend(bytes(region.memory(), offset, length));
                region.slice(offset, length).unwrap()
            })
            .collect();
        let remote = granted.remote.slice(100, 3000).unwrap();
        carry_out(&a, &[Operation::write(&slices, &remote)]);
        assert_eq!(bytes(&granted.memory, 100, expected.len()), expected, "{count} slices gathered");
        if expected.is_empty() {
            continue;
        }
        let landing = SharedRegion::allocate(4096).unwrap();
        let mut at = 0;
        let scattered: Vec<_> = slices
            .iter()
            .map(|slice| {
                at += slice.len() + 3;
                landing.slice(at - slice.len() - 3, slice.len()).unwrap()
            })
            .collect();
        carry_out(&a, &[Operation::read(&remote, &scattered)]);
        let landed: Vec<u8> =
            scattered.iter().flat_map(|slice| bytes(landing.memory(), slice.offset(), slice.len())).collect();
        assert_eq!(landed, expected, "{count} slices scattered");
    }
}

#[test]
fn atomics_tell_what_was_there_before() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 64, ALL);
    granted.memory.write(8, &5_u64.to_ne_bytes()).unwrap();
    let remote = granted.remote.slice(8, 8).unwrap();
    let ids = carry_out(
        &a,
        &[
            Operation::FetchAndAdd { remote: &remote, add: 10, fence: false },
            Operation::CompareAndSwap { remote: &remote, compare: 15, swap: 77, fence: false },
            Operation::CompareAndSwap { remote: &remote, compare: 15, swap: 99, fence: true },
            Operation::FetchAndAdd { remote: &remote, add: u64::MAX, fence: false },
        ],
    );
    let outcomes: Vec<_> = ids.map(|id| outcome(&a, id).unwrap().unwrap()).collect();
    assert_eq!(outcomes, [5, 15, 77, 77]);
    assert_eq!(granted.memory.fetch_add(8, 0).unwrap(), 76, "added modulo 2^64");
    assert!((1..=4).all(|id| outcome(&a, id).is_none()), "each is given once");
    assert_eq!(a.channel.stats().operations_pending, 0);
}

#[test]
fn completions_come_in_the_order_of_posting_whatever_it_is() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 4096, ALL);
    let local = SharedRegion::allocate(4096).unwrap();
    let (slice, remote) = ([local.slice(0, 100).unwrap()], granted.remote.slice(0, 100).unwrap());
    let list: Vec<_> = (0..1000)
        .map(|i| match i % 5 {
            0 => Operation::Send { message: b"message" },
            1 => Operation::write(&slice, &remote),
            2 => Operation::Read { remote: &remote, local: &slice, fence: i % 2 == 0 },
            3 => Operation::FetchAndAdd { remote: &remote, add: 1, fence: false },
            _ => Operation::Write { local: &slice, remote: &remote, immediate: Some(i), fence: false },
        })
        .collect();
    let ids = a.channel.post(&list).unwrap();
    assert_eq!(ids, 1..1001);
    for i in 0..200 {
        assert_eq!(b.next().unwrap().unwrap(), b"message");
        b.until("the immediate", |b| match b.take_immediate() {
            Received::Message(immediate) => {
                assert_eq!(immediate, 5 * i + 4);
                true
            }
            _ => false,
        });
    }
    a.until("all to be done", |a| a.lock().transmit.done() == 1000);
    let (done, outcomes) = a.channel.lock().transmit.outcomes();
    assert_eq!((done, outcomes.len()), (1000, 200));
    assert!(outcomes.iter().all(|(id, outcome)| id % 5 == 4 && outcome.is_ok()));
    assert_eq!(world.fabric.counters().rnr_naks, 0);
}

#[test]
fn one_list_is_posted_at_once() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions { credits: 128, ..Default::default() });
    let granted = grant(&world, &a, 1, 4096, ALL);
    let local = SharedRegion::allocate(64).unwrap();
    let (slice, remote) = ([local.whole().unwrap()], granted.remote.slice(0, 64).unwrap());
    // Refused as one call: nothing of it is posted, and the connection ends. Two calls would have left half.
    a.channel.register(&local).unwrap();
    let error = Error::new(ErrorCode::Post, "the test wants it");
    world.devices[0].fail_next(secure_rdma_rdma::fake::Call::PostSend, error);
    let mixed: Vec<_> = (0..64)
        .flat_map(|_| [Operation::write(&slice, &remote), Operation::Send { message: &[7; 64] }])
        .take(100)
        .collect();
    a.channel.post(&mixed).unwrap();
    a.until("the end", Channel::is_over);
    assert_eq!(done(&a), 0, "what was refused is not done");
    assert!(bytes(&granted.memory, 0, 64).iter().all(|byte| *byte == 0));
}

#[test]
fn a_write_with_immediate_waits_for_credit_and_nothing_is_rnr_naked() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions { receive_buffer_size: 640, ..Default::default() });
    let granted = grant(&world, &a, 1, 64, ALL);
    let remote = granted.remote.whole();
    let list: Vec<_> = (0..500)
        .map(|i| Operation::Write { local: &[], remote: &remote, immediate: Some(i), fence: false })
        .collect();
    a.channel.post(&list).unwrap();
    a.until("the sender to run out of credits", |a| {
        a.stats().credits_available <= 1 && a.stats().work_in_flight == 0
    });
    let held = b.channel.stats().immediates_ready;
    assert!(held <= 10 + 16, "{held} unread immediates are held");
    for i in 0..500 {
        b.until("the next immediate", |b| match b.take_immediate() {
            Received::Message(immediate) => {
                assert_eq!(immediate, i);
                true
            }
            _ => false,
        });
    }
    a.until("all to be done", |a| a.lock().transmit.done() == 500);
    assert_eq!(world.fabric.counters().rnr_naks, 0);
}

/// Without probes nothing would come by that posts it: the peer reads nothing, so that it gives no credits.
#[test]
fn what_waits_behind_something_that_is_taken_back_is_posted() {
    let world = World::new();
    let options = ConnectionOptions { receive_buffer_size: 640, path_probe: None, ..Default::default() };
    for withdraws in [true, false] {
        let [a, b] = world.pair(&options);
        let granted = grant(&world, &a, 1, 64, ALL);
        let remote = granted.remote.whole();
        let told = Operation::Write { local: &[], remote: &remote, immediate: Some(7), fence: false };
        let ids = a.channel.post(&[told; 100]).unwrap();
        a.until("the sender to run out of credits", |a| {
            a.stats().credits_available <= 1 && a.stats().work_in_flight == 0
        });
        world.fabric.settle();
        let first = done(&a) + 1;
        let add = Operation::FetchAndAdd { remote: &remote, add: 1, fence: false };
        let last = a.channel.post(&[add]).unwrap().start;
        assert_eq!((a.channel.stats().work_in_flight, last), (0, ids.end), "it waits for its turn");
        for id in first..ids.end {
            if withdraws {
                assert!(a.channel.take_back(|transmit| transmit.withdraw(id)), "{id}");
            } else {
                a.channel.take_back(|transmit| transmit.disregard(id));
            }
        }
        a.until("what waited behind them to be done", |a| a.lock().transmit.done() == last);
        assert_eq!(granted.memory.fetch_add(0, 0).unwrap(), 1);
        assert!(first > 16 && b.channel.stats().immediates_ready == first - 1);
    }
}

/// Credits ride on messages; where only operations flow they must go back alone, before the queue is empty.
#[test]
fn operations_without_end_leave_the_peer_its_credits() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 64, ALL);
    let local = SharedRegion::allocate(64).unwrap();
    let (slice, remote) = ([local.whole().unwrap()], granted.remote.whole());
    let list = vec![Operation::write(&slice, &remote); 1000];
    a.channel.register(&local).unwrap();
    world.fabric.pause();
    for i in 0..100 {
        b.channel.send(&message(i, 3000)).unwrap();
    }
    a.channel.post(&list).unwrap();
    world.fabric.resume();
    let read = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !read.load(Ordering::Relaxed) {
                match a.channel.post(&list) {
                    Ok(_) => {}
                    Err(error) => assert_eq!(error.code(), ErrorCode::OperationLimit),
                }
                std::thread::yield_now();
            }
        });
        for i in 0..100 {
            assert_eq!(a.next().unwrap().unwrap(), message(i, 3000));
        }
        read.store(true, Ordering::Relaxed);
    });
}

fn refused(end: &End, operation: Operation<'_>) -> ErrorCode {
    // Refused with it is the list around it.
    let before = end.channel.stats();
    let error = end.channel.post(&[Operation::Send { message: b"x" }, operation]).unwrap_err();
    assert_eq!(end.channel.stats(), before, "nothing of the list was posted: {error}");
    error.code()
}

fn atomic(remote: &RemoteSlice) -> Operation<'_> {
    Operation::FetchAndAdd { remote, add: 1, fence: false }
}

fn swap(remote: &RemoteSlice) -> Operation<'_> {
    Operation::CompareAndSwap { remote, compare: 1, swap: 2, fence: false }
}

#[test]
fn bounds_rights_alignment_and_what_is_closed_are_checked_before_anything_is_posted() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    let local = SharedRegion::allocate(100).unwrap();
    let (whole, all) = ([local.whole().unwrap()], grant(&world, &a, 1, 99, ALL));
    let (remote, read_only) = (all.remote.whole(), grant(&world, &a, 2, 200, Access::REMOTE_READ));
    let write_only = grant(&world, &a, 3, 200, Access::REMOTE_WRITE);

    assert_eq!(refused(&a, Operation::write(&whole, &remote)), ErrorCode::RegionBounds);
    assert_eq!(refused(&a, Operation::read(&remote, &whole)), ErrorCode::RegionBounds);
    let thrice =
        [whole[0].slice(0, 33).unwrap(), whole[0].slice(0, 33).unwrap(), whole[0].slice(0, 34).unwrap()];
    assert_eq!(refused(&a, Operation::write(&thrice, &remote)), ErrorCode::RegionBounds);
    assert_eq!(refused(&a, atomic(&remote.slice(0, 7).unwrap())), ErrorCode::RegionBounds);
    assert_eq!(refused(&a, swap(&remote.slice(96, 3).unwrap())), ErrorCode::RegionBounds);
    assert_eq!(local.slice(0, 101).unwrap_err().code(), ErrorCode::RegionBounds);
    assert_eq!(all.remote.slice(u64::MAX, 2).unwrap_err().code(), ErrorCode::RegionBounds);

    assert_eq!(refused(&a, Operation::write(&whole, &read_only.remote.whole())), ErrorCode::RegionAccess);
    assert_eq!(refused(&a, atomic(&read_only.remote.whole())), ErrorCode::RegionAccess);
    assert_eq!(refused(&a, Operation::read(&write_only.remote.whole(), &whole)), ErrorCode::RegionAccess);
    assert_eq!(refused(&a, swap(&write_only.remote.whole())), ErrorCode::RegionAccess);

    for offset in 1..8 {
        assert_eq!(refused(&a, atomic(&remote.slice(offset, 8).unwrap())), ErrorCode::RegionAlignment);
        assert_eq!(refused(&a, swap(&remote.slice(offset, 9).unwrap())), ErrorCode::RegionAlignment);
    }
    assert_eq!(refused(&a, Operation::read(&remote, &[])), ErrorCode::InvalidArgument);
    assert_eq!(
        refused(&a, Operation::read(&remote, &[local.slice(5, 0).unwrap()])),
        ErrorCode::InvalidArgument
    );

    // A grant of another connection.
    let others = b.channel.post(&[Operation::write(&[], &remote)]);
    assert_eq!(others.unwrap_err().code(), ErrorCode::InvalidArgument);

    write_only.remote.revoke();
    assert_eq!(refused(&a, Operation::write(&whole, &write_only.remote.whole())), ErrorCode::RegionRevoked);
    local.close();
    let small = read_only.remote.whole();
    assert_eq!(refused(&a, Operation::read(&small, &whole)), ErrorCode::RegionClosed);

    a.channel.end().unwrap();
    assert_eq!(a.channel.post(&[swap(&remote)]).unwrap_err().code(), ErrorCode::Ended);
    a.channel.destroy(None);
    assert_eq!(a.channel.post(&[swap(&remote)]).unwrap_err().code(), ErrorCode::Destroyed);
}

/// §F.4 #32, this side's half of it: every range around both ends of a granted region. The peer's half, where a range is not
/// checked here, is soft/tests/grants.rs.
#[test]
fn every_range_around_a_grant_is_judged_rightly() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 64, ALL);
    let local = SharedRegion::allocate(128).unwrap();
    local.write(0, &[0xEE; 128]).unwrap();
    for start in 0..=80 {
        for length in 0..=96 {
            let slice = granted.remote.slice(start, length);
            if start + length > 64 {
                assert_eq!(slice.unwrap_err().code(), ErrorCode::RegionBounds, "{length} at {start}");
                continue;
            }
            let (start, length) = (usize::try_from(start).unwrap(), usize::try_from(length).unwrap());
            granted.memory.write(0, &[0; 64]).unwrap();
            let from = [local.slice(0, length).unwrap()];
            let longer = [local.slice(0, length + 1).unwrap()];
            let remote = slice.unwrap();
            let error = a.channel.post(&[Operation::write(&longer, &remote)]).unwrap_err();
            assert_eq!(error.code(), ErrorCode::RegionBounds);
            a.channel.post(&[Operation::write(&from, &remote)]).unwrap();
            world.fabric.settle();
            let mut expected = [0; 64];
            expected[start..start + length].fill(0xEE);
            assert_eq!(bytes(&granted.memory, 0, 64), expected, "{length} at {start}");
        }
    }
    for (start, length) in
        [(u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX), (1 << 63, 1 << 63), (0, 1 << 31)]
    {
        assert_eq!(granted.remote.slice(start, length).unwrap_err().code(), ErrorCode::RegionBounds);
    }
}

/// §F.4 #37: whatever is posted, the device's queues hold it, a probe and the drain marker.
#[test]
fn the_send_queue_never_overruns() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions { path_probe: None, ..Default::default() });
    let granted = grant(&world, &a, 1, 64, ALL);
    let remote = granted.remote.whole();
    world.fabric.pause();
    for _ in 0..50 {
        let list = [Operation::write(&[], &remote), Operation::Send { message: &[1; 64] }];
        a.channel.post(&list.repeat(50)).unwrap();
    }
    assert!(a.channel.stats().work_in_flight <= 126, "{}", a.channel.stats().work_in_flight);
    a.channel.with(|state, _| {
        let queue_pair = state.queue_pair.clone().unwrap();
        state.transmit.posting_mut().probe(queue_pair.as_ref()).unwrap();
    });
    // Were there no room for the marker, the queue pair would be let go of at once. Under the lock, since the flush waits
    // for that.
    a.channel.with(|state, after| {
        a.channel.fail(state, after, Error::new(ErrorCode::Work, "by the test"));
        assert!(state.drains.is_some());
    });
    world.fabric.resume();
    a.until("all to be flushed", |a| a.lock().drains.is_none());
    let counters = world.fabric.counters();
    assert_eq!((counters.overruns, a.channel.stats().work_in_flight), (0, 0));
}

/// §F.4 #39.
#[test]
fn operations_that_nobody_awaits_are_bounded() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 64, ALL);
    let remote = granted.remote.whole();
    world.fabric.pause();
    let mut accepted = 0_usize;
    let refused = (0..1_000_000).find_map(|_| {
        let posted = a.channel.post(&[Operation::write(&[], &remote)]);
        accepted += usize::from(posted.is_ok());
        posted.err()
    });
    assert_eq!(refused.unwrap().code(), ErrorCode::OperationLimit);
    assert!(accepted <= MOST_OPERATIONS + 126, "{accepted} were accepted");
    // As one list: all or nothing.
    let list = vec![Operation::write(&[], &remote); MOST_OPERATIONS + 1];
    assert_eq!(a.channel.post(&list).unwrap_err().code(), ErrorCode::OperationLimit);
    world.fabric.resume();
    a.until("all to be done", |a| a.lock().transmit.done() == accepted as u64);
    // Outcomes that nobody takes count as well.
    let atomics = vec![Operation::FetchAndAdd { remote: &remote, add: 1, fence: false }; MOST_OPERATIONS];
    let ids = carry_out(&a, &atomics);
    assert_eq!(a.channel.post(&atomics[..1]).unwrap_err().code(), ErrorCode::OperationLimit);
    assert!(outcome(&a, ids.start).is_some());
    a.channel.post(&atomics[..1]).unwrap();
}

#[test]
fn an_operation_is_taken_back_only_before_it_begins() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 2 * PIECE, ALL);
    let local = SharedRegion::allocate(2 * PIECE).unwrap();
    a.channel.register(&local).unwrap();
    world.fabric.pause();
    let remote = granted.remote.whole();
    let add = Operation::FetchAndAdd { remote: &remote, add: 1, fence: false };
    let ids = a.channel.post(&[add; 150]).unwrap();
    let withdraw = |id| a.channel.lock().transmit.withdraw(id);
    assert!(!withdraw(ids.start), "it is on the queue pair");
    assert!(withdraw(100) && withdraw(150) && !withdraw(100));
    // And one whose outcome nobody wants, posted or not.
    a.channel.lock().transmit.disregard(1);
    a.channel.lock().transmit.disregard(99);
    world.fabric.resume();
    a.until("all to be done", |a| a.lock().transmit.done() == 150);
    assert_eq!(granted.memory.fetch_add(0, 0).unwrap(), 147, "three were never carried out");
    assert!([1, 99, 100, 150].iter().all(|id| outcome(&a, *id).is_none()));
    assert_eq!(a.channel.lock().transmit.outcomes().1.len(), 146);
}

#[test]
fn the_end_tells_which_operations_were_carried_out() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 64, ALL);
    let local = SharedRegion::allocate(64).unwrap();
    let (slice, remote) = ([local.whole().unwrap()], granted.remote.whole());
    carry_out(&a, &vec![Operation::write(&slice, &remote); 10]);
    world.fabric.blackhole(true);
    a.channel.post(&vec![Operation::write(&slice, &remote); 300]).unwrap();
    a.until("the end", Channel::is_over);
    world.fabric.settle();
    assert_eq!(done(&a), 10, "neither what was posted nor what waited is done");
    drop(granted);
}

/// §F.4 #33, #35: the peer's device is the judge where our own checks are gone round. One wrong key, one connection.
#[test]
fn a_wrong_key_or_a_right_that_was_not_granted_ends_the_connection_and_touches_nothing() {
    for wrong in ["key", "rights", "bounds"] {
        let world = World::new();
        let [a, _b] = world.pair(&ConnectionOptions::default());
        let other = world.pair(&ConnectionOptions::default());
        let granted = grant(&world, &a, 1, 64, Access::REMOTE_READ);
        let mut key = granted._region.rkey();
        let (mut access, mut length) = (Access::REMOTE_READ, 64_usize);
        match wrong {
            "key" => key = secure_rdma_rdma::RKey::new(key.expose() ^ 1),
            "rights" => access = ALL,
            _ => length = 128,
        }
        let range = (granted._region.address(), length as u64);
        let forged =
            RemoteRegion::new(a.channel.myself.clone(), (1, "forged".to_owned()), access | ALL, range, key);
        let local = SharedRegion::allocate(128).unwrap();
        let slice = [local.slice(0, length).unwrap()];
        let remote = forged.whole();
        let operation = match wrong {
            "rights" => Operation::write(&slice, &remote),
            _ => Operation::read(&remote, &slice),
        };
        a.channel.post(&[operation]).unwrap();
        a.until("the end", Channel::is_over);
        let crate::channel::Life::Over(closed) = a.channel.lock().life.clone() else { unreachable!() };
        assert_eq!(closed.error.unwrap().wc_status(), Some(10), "{wrong}");
        assert_eq!(bytes(&granted.memory, 0, 64), [0; 64]);
        other[0].channel.send(b"the other connection lives").unwrap();
        assert_eq!(other[1].next().unwrap().unwrap(), b"the other connection lives");
    }
}

#[test]
fn memory_lives_until_the_last_work_request_has_completed() {
    let world = World::new();
    let [a, _b] = world.pair(&ConnectionOptions::default());
    let granted = grant(&world, &a, 1, 4096, ALL);
    let local = SharedRegion::allocate(4096).unwrap();
    local.write(0, &[9; 4096]).unwrap();
    let memory = Arc::downgrade(local.memory());
    a.channel.register(&local).unwrap();
    world.fabric.pause();
    a.channel.post(&[Operation::write(&[local.whole().unwrap()], &granted.remote.whole())]).unwrap();
    local.close();
    drop(local);
    assert!(memory.upgrade().is_some());
    world.fabric.resume();
    a.until("the write", |a| a.lock().transmit.done() == 1);
    assert_eq!(bytes(&granted.memory, 0, 4096), [9; 4096]);
    super::until("the memory to go", || memory.upgrade().is_none());
}

/// A registration whose end takes its time: it tells whether the channel is free meanwhile.
struct Slow {
    channel: Weak<Channel>,
    free: mpsc::Sender<bool>,
}

impl Registration for Slow {}

impl Drop for Slow {
    fn drop(&mut self) {
        let Some(channel) = self.channel.upgrade() else { return };
        let (answer, answered) = mpsc::channel();
        std::thread::spawn(move || answer.send(channel.stats().work_in_flight));
        let _ = self.free.send(answered.recv_timeout(Duration::from_secs(10)).is_ok());
    }
}

/// What is given up may be the last to hold a region that is closed, and to deregister it is a system call.
#[test]
fn the_channel_is_free_while_regions_end_with_what_is_given_up() {
    for how in ["withdrawn", "revoked", "destroyed"] {
        let world = World::new();
        let [a, _b] = world.pair(&ConnectionOptions::default());
        let granted = grant(&world, &a, 1, 64, ALL);
        let remote = granted.remote.whole();
        world.fabric.pause();
        a.channel.post(&[Operation::write(&[], &remote); 200]).unwrap();
        let (free, is_free) = mpsc::channel();
        let slow = Box::new(Slow { channel: Arc::downgrade(&a.channel), free });
        let memory = Arc::new(Memory::allocate(64).unwrap());
        let region = Arc::new(Region::new(slow, memory, 4096, LKey(1), RKey::new(1)));
        let local = smallvec::smallvec![Slice::new(&region, 0, 64)];
        let write = Transfer::new(Direction::Write { immediate: None }, local, remote.at(0), 2, false);
        drop(region);
        let ids = a.channel.with(|state, after| a.channel.give_out(state, after, [Body::Transfer(write)]));
        let id = ids.unwrap().start;
        match how {
            "withdrawn" => assert!(a.channel.take_back(|transmit| transmit.withdraw(id))),
            "revoked" => {
                let revoked = granted.remote.revoked();
                a.channel.with(|state, _| state.transmit.settle_grant(2, &revoked));
            }
            _ => a.channel.destroy(None),
        }
        assert!(is_free.recv_timeout(Duration::from_secs(20)).unwrap(), "{how}");
        world.fabric.resume();
    }
}

#[test]
fn what_is_not_posted_when_its_grant_is_revoked_fails_alone() {
    let world = World::new();
    let [a, b] = world.pair(&ConnectionOptions::default());
    let (first, second) = (grant(&world, &a, 1, 64, ALL), grant(&world, &a, 2, 3 * PIECE, ALL));
    let local = SharedRegion::allocate(3 * PIECE).unwrap();
    a.channel.register(&local).unwrap();
    let (slice, long) = ([local.slice(0, 64).unwrap()], [local.whole().unwrap()]);
    let (to_first, to_second) = (first.remote.whole(), second.remote.whole());
    world.fabric.pause();
    // 126 fit; the last of these is cut in the middle.
    let mut list = vec![Operation::write(&slice, &to_first); 124];
    list.push(Operation::write(&long, &to_second));
    list.push(Operation::write(&slice, &to_second));
    list.push(Operation::write(&slice, &to_first));
    list.push(Operation::Send { message: b"last" });
    a.channel.post(&list).unwrap();
    a.channel.with(|state, _| {
        assert!(state.transmit.names_grant(2));
        second.remote.revoke();
        state.transmit.settle_grant(2, &second.remote.revoked());
    });
    assert!(outcome(&a, 126).is_none(), "not before its turn");
    world.fabric.resume();
    assert_eq!(b.next().unwrap().unwrap(), b"last");
    a.until("all to be done", |a| a.lock().transmit.done() == 128);
    assert!(!a.channel.lock().transmit.names_grant(2));
    for id in 1..=128 {
        let code = outcome(&a, id).map(|outcome| outcome.unwrap_err().code());
        let expected = matches!(id, 125 | 126).then_some(ErrorCode::RegionRevoked);
        assert_eq!(code, expected, "operation {id}");
    }
}
