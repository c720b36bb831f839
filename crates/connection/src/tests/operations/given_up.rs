//! Operations that are given up or cut off, and the memory that they hold until then.

use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use secure_rdma_rdma::{ErrorCode, LKey, Memory, RKey, Region, Registration, Slice};

use super::super::{World, until};
use super::{ALL, bytes, carry_out, done, grant, outcome};
use crate::channel::Channel;
use crate::operations::Operation;
use crate::options::ConnectionOptions;
use crate::outgoing::{Body, Direction, PIECE, Transfer};
use crate::regions::SharedRegion;

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
    until("the memory to go", || memory.upgrade().is_none());
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
