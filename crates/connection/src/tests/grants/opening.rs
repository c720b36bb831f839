//! What a grant opens: its range, for what it allows, to one peer.

use secure_rdma_rdma::{ErrorCode, WcStatus};

use super::super::message;
use super::{
    ATOMIC, KINDS, READ, WRITE, done, end_of, error, forged, is_open, pair, publish, region, slice, world,
    write,
};
use crate::operations::Operation;

#[test]
fn the_peer_finds_what_is_published_and_uses_it() {
    for kind in KINDS {
        let world = world(kind);
        let ends = pair(&world);
        let inbox = region(10_000);
        assert!(ends[0].channel.find_remote("inbox").unwrap().is_none());
        let (_, remote) =
            publish(&world, &ends, "inbox", &inbox.slice(1000, 800).unwrap(), READ | WRITE | ATOMIC);
        assert_eq!((remote.name(), remote.len(), remote.access()), ("inbox", 800, READ | WRITE | ATOMIC));
        let local = region(800);
        local.write(0, &message(1, 800)).unwrap();
        let id = write(&ends[0], &local.whole().unwrap(), &remote.whole()).unwrap();
        done(&world, &ends[0], id);
        let mut bytes = vec![0; 10_000];
        inbox.read(0, &mut bytes).unwrap();
        assert_eq!(&bytes[1000..1800], message(1, 800), "{}", kind.0);
        assert!(bytes[..1000].iter().chain(&bytes[1800..]).all(|byte| *byte == 0), "{}", kind.0);

        let back = slice(100);
        let (from, into) = (remote.slice(700, 100).unwrap(), std::slice::from_ref(&back));
        let id = ends[0].channel.post(&[Operation::read(&from, into)]).unwrap().start;
        done(&world, &ends[0], id);
        let mut bytes = [0; 100];
        back.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, message(1, 800)[700..]);
        end_of(world, ends);
    }
}

#[test]
fn what_may_not_be_done_is_refused_before_it_is_posted() {
    let world = world(KINDS[0]);
    let (ends, others) = (pair(&world), pair(&world));
    let (_, reads) = publish(&world, &ends, "reads", &slice(64), READ);
    let (_, writes) = publish(&world, &ends, "writes", &slice(64), WRITE);
    let atomics = region(64);
    let (_, atomics) = publish(&world, &ends, "atomics", &atomics.slice(4, 32).unwrap(), ATOMIC);
    let local = slice(64);
    let locals = std::slice::from_ref(&local);
    let (reads_64, writes_64) = (reads.whole(), writes.whole());
    let writes_63 = writes.slice(1, 63).unwrap();
    let add = |remote| Operation::FetchAndAdd { remote, add: 1, fence: false };
    let (add_0, add_4, add_28) =
        (atomics.whole(), atomics.slice(4, 8).unwrap(), atomics.slice(28, 4).unwrap());
    let refused: [(Operation<'_>, ErrorCode); 8] = [
        (Operation::write(locals, &reads_64), ErrorCode::RegionAccess),
        (Operation::read(&writes_64, locals), ErrorCode::RegionAccess),
        (add(&reads_64), ErrorCode::RegionAccess),
        (add(&writes_64), ErrorCode::RegionAccess),
        (Operation::write(locals, &add_0), ErrorCode::RegionAccess),
        (add(&add_0), ErrorCode::RegionAlignment),
        (add(&add_28), ErrorCode::RegionBounds),
        (Operation::write(locals, &writes_63), ErrorCode::RegionBounds),
    ];
    for (operation, code) in refused {
        assert_eq!(ends[0].channel.post(&[operation]).unwrap_err().code(), code, "{operation:?}");
    }
    let foreign = others[0].channel.post(&[Operation::write(locals, &writes_64)]).unwrap_err();
    assert_eq!(foreign.code(), ErrorCode::InvalidArgument, "a grant of another connection");
    for (offset, length) in [(0, 65), (64, 1), (65, 0), (u64::MAX, 1), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        assert_eq!(writes.slice(offset, length).unwrap_err().code(), ErrorCode::RegionBounds);
        assert_eq!(writes_64.slice(offset, length).unwrap_err().code(), ErrorCode::RegionBounds);
    }
    assert!(writes.slice(64, 0).unwrap().is_empty());
    let id = ends[0].channel.post(&[add(&add_4)]).unwrap().start;
    world.fabric.settle();
    assert_eq!(ends[0].channel.lock().transmit.outcome(id).unwrap().unwrap(), 0);
    assert!(is_open(&ends[0]) && is_open(&others[0]));
}

#[test]
fn a_key_of_one_connection_ends_another_that_uses_it() {
    for kind in KINDS {
        let world = world(kind);
        let (a, b) = (pair(&world), pair(&world));
        let inbox = region(4096);
        let (_, remote) = publish(&world, &a, "inbox", &inbox.whole().unwrap(), WRITE);
        // B has a grant of the same memory, with a key of its own.
        let (_, of_b) = publish(&world, &b, "inbox", &inbox.whole().unwrap(), WRITE);
        assert_eq!(remote.address(), of_b.address());
        assert_ne!(remote.whole().at(0).rkey, of_b.whole().at(0).rkey, "{}", kind.0);
        let local = slice(64);
        let stolen = forged(&remote, &b[0].channel, (remote.address(), 64));
        write(&b[0], &local, &stolen).unwrap();
        world.fabric.settle();
        assert_eq!(error(&b[0]), (ErrorCode::Work, Some(WcStatus::REM_ACCESS_ERR.0)), "{}", kind.0);
        let mut bytes = [1; 64];
        inbox.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 64]);
        let id = write(&a[0], &local, &remote.slice(0, 64).unwrap()).unwrap();
        done(&world, &a[0], id);
        assert!(is_open(&a[0]) && is_open(&a[1]));
    }
}

#[test]
fn a_grant_opens_not_one_byte_beside_its_range() {
    for kind in KINDS {
        for (before, length) in [(1, 2), (0, 65)] {
            let world = world(kind);
            let ends = pair(&world);
            let inbox = region(4096);
            let (_, remote) = publish(&world, &ends, "inbox", &inbox.slice(128, 64).unwrap(), WRITE);
            let beyond = forged(&remote, &ends[0].channel, (remote.address() - before, length));
            let local = slice(usize::try_from(length).unwrap());
            local.write(0, &vec![9; local.len()]).unwrap();
            write(&ends[0], &local, &beyond).unwrap();
            world.fabric.settle();
            assert_eq!(error(&ends[0]), (ErrorCode::Work, Some(WcStatus::REM_ACCESS_ERR.0)), "{}", kind.0);
            let mut bytes = vec![1; 4096];
            inbox.read(0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "{}", kind.0);
        }
    }
}
