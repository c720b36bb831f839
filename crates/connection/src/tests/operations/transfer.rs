//! What operations carry, and in which order they complete.

use secure_rdma_rdma::{Error, ErrorCode};

use super::super::{World, message};
use super::{ALL, bytes, carry_out, done, grant, outcome};
use crate::channel::Channel;
use crate::connection::Received;
use crate::operations::Operation;
use crate::options::ConnectionOptions;
use crate::outgoing::PIECE;
use crate::regions::SharedRegion;

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
