//! Operations that may not be: refused before anything is posted, or by the peer's device.

use secure_rdma_rdma::{Access, ErrorCode};

use super::super::{End, World};
use super::{ALL, bytes, grant};
use crate::channel::Channel;
use crate::operations::Operation;
use crate::options::ConnectionOptions;
use crate::regions::SharedRegion;
use crate::remote::{RemoteRegion, RemoteSlice};

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
