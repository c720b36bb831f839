//! Type 2 memory windows, SEND with invalidate, and fences.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use secure_rdma_rdma::{Access, MemoryWindow, QpState, RKey, RemoteSlice, SendFlags, SendOperation, Slice};
use secure_rdma_roce::Opcode;

use super::pair::{ALL, Fate, Options, Pair, bytes_of, remote};
use crate::engine::WindowId;

#[derive(Debug)]
struct Window(WindowId);

impl MemoryWindow for Window {
    fn next_key(&self) -> RKey {
        RKey::new(0)
    }
    fn as_any(&self) -> &dyn Any {
        &self.0
    }
}

fn window(pair: &mut Pair, index: usize) -> (Arc<dyn MemoryWindow>, RKey) {
    let id = pair.sides[index].engine.create_window();
    let key = pair.sides[index].engine.next_window_key(id).unwrap();
    (Arc::new(Window(id)), key)
}

const SEND: SendOperation = SendOperation::Send { immediate: None };

#[test]
fn a_window_opens_its_range_to_the_peer_until_it_is_invalidated() {
    let mut pair = Pair::new();
    let target = pair.sides[1].region(4096, Access::LOCAL_WRITE | Access::MEMORY_WINDOW_BIND);
    let local = pair.sides[0].region(4096, ALL);
    local.memory().write(0, &[7; 100]).unwrap();
    let (handle, rkey) = window(&mut pair, 1);
    let access = Access::REMOTE_WRITE | Access::REMOTE_READ;
    let bind = SendOperation::Bind { window: handle, rkey, target: Slice::new(&target, 1000, 100), access };
    pair.send(1, bind, &[]);
    pair.run();
    assert_eq!(pair.sides[1].statuses(), [(1, 0)]);
    let at = |offset: u64| RemoteSlice { address: target.address() + offset, rkey };
    pair.send(0, SendOperation::Write { remote: at(1000), immediate: None }, &[(&local, 0, 100)]);
    pair.send(0, SendOperation::Read { remote: at(1050) }, &[(&local, 200, 50)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 0)]);
    assert_eq!(bytes_of(&target)[999..1101], [&[0][..], &[7; 100], &[0]].concat());

    pair.send(1, SendOperation::Invalidate { rkey }, &[]);
    pair.run();
    assert_eq!(pair.sides[1].statuses(), [(1, 0), (2, 0)]);
    pair.send(0, SendOperation::Read { remote: at(1000) }, &[(&local, 0, 1)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses().last(), Some(&(3, 10)));
}

#[test]
fn a_send_with_invalidate_ends_a_window_and_says_which() {
    for length in [0, 8, 5000] {
        let mut pair = Pair::new();
        let target = pair.sides[1].region(8192, ALL);
        let local = pair.sides[0].region(8192, ALL);
        let (handle, rkey) = window(&mut pair, 1);
        let access = Access::REMOTE_READ;
        let bind = SendOperation::Bind { window: handle, rkey, target: Slice::new(&target, 0, 8), access };
        pair.send(1, bind, &[]);
        pair.receive(1, &target, 0, 8192);
        pair.send(0, SendOperation::SendInvalidate { rkey }, &[(&local, 0, length)]);
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, 0)]);
        let done = pair.sides[1].completions.last().unwrap();
        assert_eq!((done.byte_len as usize, done.invalidated), (length, Some(rkey)));
        let remote = RemoteSlice { address: target.address(), rkey };
        pair.send(0, SendOperation::Read { remote }, &[(&local, 0, 8)]);
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 10)]);
    }
}

#[test]
fn a_foreign_key_cannot_be_invalidated() {
    let mut pair = Pair::new();
    let target = pair.sides[1].region(64, ALL);
    pair.receive(1, &target, 0, 64);
    // The key of a region is not that of a window.
    pair.send(0, SendOperation::SendInvalidate { rkey: target.rkey() }, &[]);
    pair.run();
    assert_eq!((pair.sides[0].statuses(), pair.sides[1].statuses()), (vec![(1, 10)], vec![(1, 5)]));
    assert_eq!((pair.state(0), pair.state(1)), (QpState::Err, QpState::Err));
}

#[test]
fn a_bind_that_fails_ends_the_queue_pair_after_what_was_posted_before() {
    let mut pair = Pair::new();
    let unbindable = pair.sides[0].region(64, Access::LOCAL_WRITE);
    let far = pair.sides[1].region(64, ALL);
    let (handle, rkey) = window(&mut pair, 0);
    let target = Slice::new(&unbindable, 0, 8);
    let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    pair.send(0, write.clone(), &[(&unbindable, 0, 64)]);
    pair.send(0, SendOperation::Bind { window: handle, rkey, target, access: Access::REMOTE_READ }, &[]);
    pair.send(0, write, &[(&unbindable, 0, 64)]);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 6), (3, 5)]);

    let mut pair = Pair::new();
    pair.send(0, SendOperation::Invalidate { rkey }, &[]);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 2)], "a key that is bound to nothing");
}

#[test]
fn an_invalidation_waits_for_everything_before_it_and_a_bind_does_not() {
    let mut pair = Pair::new();
    let target = pair.sides[0].region(64, ALL);
    let far = pair.sides[1].region(64, ALL);
    let (handle, rkey) = window(&mut pair, 0);
    pair.filter = Box::new(|_| Fate::Drop);
    let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    pair.send(0, write.clone(), &[(&target, 0, 8)]);
    let access = Access::REMOTE_READ;
    pair.send(
        0,
        SendOperation::Bind { window: handle, rkey, target: Slice::new(&target, 0, 8), access },
        &[],
    );
    pair.send(0, SendOperation::Invalidate { rkey }, &[]);
    pair.send(0, write, &[(&target, 0, 8)]);
    pair.exchange();
    let counters = pair.sides[0].engine.counters();
    assert_eq!((counters.binds, counters.invalidates), (1, 0));
    assert_eq!(pair.log.len(), 1, "what follows the invalidation waits with it");
    pair.filter = Box::new(|_| Fate::Pass);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 0), (3, 0), (4, 0)], "and all complete in order");
}

#[test]
fn a_bind_between_two_requests_ends_with_the_first_whatever_acknowledges_that() {
    let mut pair = Pair::new();
    let target = pair.sides[0].region(64, ALL);
    let far = pair.sides[1].region(64, ALL);
    far.memory().write(0, &[9; 64]).unwrap();
    let (handle, rkey) = window(&mut pair, 0);
    // The ACK of the WRITE is left out: the READ response stands for it.
    let write = SendOperation::Write { remote: remote(&far, 32), immediate: None };
    pair.send(0, write, &[(&target, 0, 8)]);
    let access = Access::REMOTE_READ;
    pair.send(
        0,
        SendOperation::Bind { window: handle, rkey, target: Slice::new(&target, 0, 8), access },
        &[],
    );
    pair.send(0, SendOperation::Read { remote: remote(&far, 0) }, &[(&target, 0, 8)]);
    pair.send(0, SendOperation::FetchAdd { remote: remote(&far, 8), add: 0 }, &[(&target, 8, 8)]);
    pair.run();
    assert_eq!(pair.opcodes(1), [Opcode::ReadResponseOnly, Opcode::AtomicAcknowledge]);
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 0), (3, 0), (4, 0)]);
    assert_eq!(bytes_of(&target)[..16], [9; 16]);
}

#[test]
fn a_fence_waits_for_reads_and_atomics() {
    for fence in [false, true] {
        let mut pair = Pair::new();
        let local = pair.sides[0].region(64, ALL);
        let far = pair.sides[1].region(64, ALL);
        pair.send(0, SendOperation::Read { remote: remote(&far, 0) }, &[(&local, 0, 8)]);
        let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
        let mut request = pair.sides[0].request(write, &[(&local, 8, 8)]);
        request.flags.set(SendFlags::FENCE, fence);
        let side = &mut pair.sides[0];
        side.engine.post_send(pair.now, side.qpn, &[request]).unwrap();
        let first: Vec<_> = pair.take(0).iter().map(|headers| headers.bth.opcode).collect();
        assert_eq!(first.contains(&Opcode::WriteOnly), !fence);
        pair.run();
        assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 0)]);
    }
}

#[test]
fn sqd_finishes_what_it_began_and_begins_nothing() {
    let mut pair = Pair::with(Options { timeout: 20, ..Options::default() });
    let local = pair.sides[0].region(1 << 20, ALL);
    let far = pair.sides[1].region(1 << 20, ALL);
    let write = SendOperation::Write { remote: remote(&far, 0), immediate: None };
    pair.send(0, write.clone(), &[(&local, 0, 1 << 20)]);
    // The first window of it is on the wire.
    pair.take(0);
    pair.send(0, write, &[(&local, 0, 8)]);
    pair.move_to_state(0, QpState::Sqd);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0)], "begun before");
    pair.send(0, SEND, &[(&local, 0, 0)]);
    pair.receive(1, &far, 0, 8);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0)], "what is posted waits");
    pair.back_to_rts(0);
    pair.run();
    assert_eq!(pair.sides[0].statuses(), [(1, 0), (2, 0), (3, 0)]);
    assert!(!pair.wait(Duration::from_secs(3600)));
}
