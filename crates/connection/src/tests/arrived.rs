//! What the peer says has arrived, where acknowledgements are missing when it closes.

use secure_rdma_rdma::ErrorCode;
use secure_rdma_session::UpperLayer;

use super::operations::{ALL, done, grant};
use super::{End, World, message};
use crate::channel::Life;
use crate::connection::{CloseReason, Closed};
use crate::control_messages::ControlMessage;
use crate::operations::Operation;
use crate::options::ConnectionOptions;
use crate::regions::SharedRegion;

/// Two ends, the second of which has ended its direction, and the first of which hears no acknowledgement.
fn pair(world: &World) -> [End; 2] {
    let [a, b] = world.pair(&ConnectionOptions::default());
    b.channel.end().unwrap();
    a.until("the peer's END", |a| a.lock().receive.ended());
    world.fabric.settle();
    world.devices[0].lose_acknowledgements();
    [a, b]
}

/// The second end closes: what it says before goes first, if it is `heard`.
fn closes([a, b]: &[End; 2], heard: bool) -> Closed {
    if heard {
        let received = b.channel.lock().receive.received();
        a.upper.told(&received.encode()).unwrap();
    }
    a.upper.peer_closed();
    a.until("the end", |a| matches!(a.lock().life, Life::Over(_)));
    match a.channel.lock().life.clone() {
        Life::Over(closed) => closed,
        _ => unreachable!(),
    }
}

#[test]
fn messages_that_the_peer_has_are_delivered_without_an_acknowledgement() {
    for (heard, arrived) in [(true, 3), (false, 0)] {
        let world = World::new();
        let ends = pair(&world);
        let [a, b] = &ends;
        for i in 0..3 {
            a.channel.send(&message(i, 9000 * i)).unwrap();
        }
        for i in 0..3 {
            assert_eq!(b.next().unwrap().unwrap(), message(i, 9000 * i));
        }
        let closed = closes(&ends, heard);
        assert_eq!((closed.reason, closed.delivered), (CloseReason::PeerClosed, heard));
        assert_eq!(done(a), arrived);
    }
}

#[test]
fn a_message_that_it_has_in_part_is_not_delivered() {
    let world = World::new();
    let ends = pair(&world);
    let [a, b] = &ends;
    a.channel.send(b"whole").unwrap();
    assert_eq!(b.next().unwrap().unwrap(), b"whole");
    // More than there are credits for, of which each is a segment.
    a.channel.send(&message(1, 1 << 20)).unwrap();
    world.fabric.settle();
    let closed = closes(&ends, true);
    assert!(!closed.delivered);
    assert_eq!(done(a), 1);
}

#[test]
fn a_write_has_arrived_where_what_follows_it_has() {
    for follows in [true, false] {
        let world = World::new();
        let ends = pair(&world);
        let [a, b] = &ends;
        let granted = grant(&world, a, 1, 64, ALL);
        let (local, remote) = (SharedRegion::allocate(64).unwrap(), granted.remote.whole());
        let local = [local.whole().unwrap()];
        a.channel.post(&[Operation::write(&local, &remote)]).unwrap();
        if follows {
            let write = Operation::Write { local: &local, remote: &remote, immediate: Some(7), fence: false };
            a.channel.post(&[write]).unwrap();
            b.until("the immediate", |b| b.lock().receive.immediates() == 1);
        }
        world.fabric.settle();
        assert_eq!(closes(&ends, true).delivered, follows);
        assert_eq!(done(a), if follows { 2 } else { 0 });
    }
}

#[test]
fn a_read_is_done_with_its_answer_alone_and_nothing_behind_it_is_before() {
    let world = World::new();
    let ends = pair(&world);
    let [a, b] = &ends;
    let granted = grant(&world, a, 1, 64, ALL);
    let (landing, remote) = (SharedRegion::allocate(64).unwrap(), granted.remote.whole());
    let landing = [landing.whole().unwrap()];
    a.channel.send(b"before").unwrap();
    a.channel.post(&[Operation::read(&remote, &landing)]).unwrap();
    a.channel.send(b"behind").unwrap();
    assert_eq!(b.next().unwrap().unwrap(), b"before");
    assert_eq!(b.next().unwrap().unwrap(), b"behind");
    assert!(!closes(&ends, true).delivered);
    assert_eq!(done(a), 1);
}

#[test]
fn more_than_was_sent_is_a_violation() {
    let world = World::new();
    let [a, b] = pair(&world);
    a.channel.send(b"one").unwrap();
    assert_eq!(b.next().unwrap().unwrap(), b"one");
    let ControlMessage::Received(count) = b.channel.lock().receive.received() else { unreachable!() };
    a.upper.told(&ControlMessage::Received(count).encode()).unwrap();
    let told = a.upper.told(&ControlMessage::Received(count + 1).encode());
    assert_eq!(told.unwrap_err().code(), ErrorCode::PeerViolation);
}
