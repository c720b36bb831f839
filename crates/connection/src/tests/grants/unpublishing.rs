//! Unpublishing: what is in flight is settled, then the key is dead, and then it is told; a peer that holds on is closed.

use std::sync::{Arc, OnceLock};

use secure_rdma_rdma::fake::Fabric;
use secure_rdma_rdma::{ErrorCode, WcStatus};
use secure_rdma_session::UpperLayer;

use super::super::until;
use super::{
    KINDS, READ, WRITE, carry, done, end_of, error, forged, is_open, pair, publish, region, settle, slice,
    world, write,
};
use crate::grants::{PublicationState, REVOKE_TICKS};
use crate::operations::Operation;

#[test]
fn unpublish_settles_what_is_in_flight_and_the_connection_lives() {
    for kind in KINDS {
        let world = world(kind);
        let ends = pair(&world);
        let (regions, inbox) = (world.fabric.counters().regions, region(4096));
        let (id, remote) = publish(&world, &ends, "inbox", &inbox.whole().unwrap(), WRITE);
        let local = slice(64);
        let at = remote.slice(0, 64).unwrap();
        let list: Vec<_> = (0..200).map(|_| Operation::write(std::slice::from_ref(&local), &at)).collect();
        world.fabric.pause();
        let ids = ends[0].channel.post(&list).unwrap();
        let in_flight = ends[0].channel.lock().transmit.posting().outstanding().len();
        assert!((64..200).contains(&in_flight), "{in_flight}");
        ends[1].channel.unpublish("inbox").unwrap();
        assert_eq!(ends[1].channel.unpublish("inbox").unwrap(), id, "asking twice is one");
        while carry(&ends) {}
        // What was posted is under way: the key must live on.
        assert_eq!(ends[1].channel.publication(id), PublicationState::Ending);
        assert!(remote.is_revoked() && ends[0].channel.find_remote("inbox").unwrap().is_none());
        assert_eq!(write(&ends[0], &local, &at).unwrap_err(), ErrorCode::RegionRevoked);
        let again = ends[1].channel.publish("inbox", &local, WRITE).unwrap_err();
        assert_eq!(again.code(), ErrorCode::RegionName, "not while it is unpublished");
        world.fabric.resume();
        settle(&world, &ends);
        assert_eq!(ends[1].channel.publication(id), PublicationState::Ended);
        assert_eq!(world.fabric.counters().bound_windows, 0);
        {
            let mut state = ends[0].channel.lock();
            assert_eq!(state.transmit.done(), ids.end - 1);
            let outcomes: Vec<_> = ids.map(|id| state.transmit.outcome(id)).collect();
            assert!(outcomes[..in_flight].iter().all(Option::is_none), "these were carried out");
            for outcome in &outcomes[in_flight..] {
                let error = outcome.as_ref().unwrap().as_ref().unwrap_err();
                assert_eq!(error.code(), ErrorCode::RegionRevoked);
            }
        }
        assert!(is_open(&ends[0]) && is_open(&ends[1]));
        ends[0].channel.send(b"still here").unwrap();
        assert_eq!(ends[1].next().unwrap().unwrap(), b"still here");
        // The name is free again, and the old handle stays dead.
        let (second, renewed) = publish(&world, &ends, "inbox", &inbox.whole().unwrap(), WRITE);
        assert_ne!(second, id);
        assert_ne!(renewed.whole().at(0).rkey, remote.whole().at(0).rkey);
        assert_eq!(write(&ends[0], &local, &at).unwrap_err(), ErrorCode::RegionRevoked);
        let again = write(&ends[0], &local, &renewed.slice(0, 64).unwrap()).unwrap();
        done(&world, &ends[0], again);
        ends[1].channel.unpublish("inbox").unwrap();
        settle(&world, &ends);
        drop(list);
        drop((inbox, local));
        assert_eq!(world.fabric.counters().regions, regions, "{}", kind.0);
        end_of(world, ends);
    }
}

#[test]
fn the_key_is_dead_when_it_is_unpublished() {
    for kind in KINDS {
        let world = world(kind);
        let ends = pair(&world);
        let inbox = region(4096);
        let (_, remote) = publish(&world, &ends, "inbox", &inbox.whole().unwrap(), WRITE);
        ends[1].channel.unpublish("inbox").unwrap();
        settle(&world, &ends);
        let late = forged(&remote, &ends[0].channel, (remote.address(), 64));
        write(&ends[0], &slice(64), &late).unwrap();
        world.fabric.settle();
        assert_eq!(error(&ends[0]), (ErrorCode::Work, Some(WcStatus::REM_ACCESS_ERR.0)), "{}", kind.0);
    }
}

/// Whoever hears that something is unpublished takes its memory back, and a peer may have confirmed and write on.
#[test]
fn nothing_is_unpublished_before_its_key_is_dead() {
    for kind in KINDS {
        let world = world(kind);
        let ends = pair(&world);
        let inbox = region(4096);
        let (id, _) = publish(&world, &ends, "inbox", &inbox.whole().unwrap(), WRITE);
        let opened = |fabric: &Fabric| {
            let counters = fabric.counters();
            (counters.regions, counters.bound_windows)
        };
        let before = opened(&world.fabric);
        let found = Arc::new(OnceLock::new());
        let (channel, fabric) = (Arc::downgrade(&ends[1].channel), world.fabric.clone());
        let told = Arc::clone(&found);
        ends[1].channel.observe(Arc::new(move || {
            if channel.upgrade().is_some_and(|channel| channel.publication(id) == PublicationState::Ended) {
                told.get_or_init(|| opened(&fabric));
            }
        }));
        ends[1].channel.unpublish("inbox").unwrap();
        settle(&world, &ends);
        let after = opened(&world.fabric);
        assert_ne!(before, after);
        assert_eq!(found.get(), Some(&after), "{}", kind.0);
    }
}

#[test]
fn a_peer_that_does_not_let_go_loses_its_own_connection() {
    for kind in KINDS {
        let world = world(kind);
        let (ends, others) = (pair(&world), pair(&world));
        let inbox = region(4096);
        let (id, _) = publish(&world, &ends, "inbox", &inbox.whole().unwrap(), WRITE);
        let (_, of_others) = publish(&world, &others, "inbox", &inbox.whole().unwrap(), WRITE);
        ends[1].channel.unpublish("inbox").unwrap();
        for _ in 0..REVOKE_TICKS {
            ends[1].upper.tick(std::time::Instant::now()).unwrap();
            assert!(is_open(&ends[1]));
        }
        ends[1].upper.tick(std::time::Instant::now()).unwrap();
        assert_eq!(error(&ends[1]).0, ErrorCode::PeerViolation, "{}", kind.0);
        assert_eq!(ends[1].channel.publication(id), PublicationState::Ended);
        world.fabric.settle();
        assert_eq!(world.fabric.counters().bound_windows, usize::from(kind.0.starts_with("windows")));
        let id = write(&others[0], &slice(64), &of_others.slice(0, 64).unwrap()).unwrap();
        done(&world, &others[0], id);
    }
}

#[test]
fn what_is_unpublished_while_its_window_is_bound_is_never_announced() {
    let world = world(KINDS[0]);
    let ends = pair(&world);
    world.fabric.pause();
    let id = ends[1].channel.publish("inbox", &slice(64), READ).unwrap();
    assert_eq!(ends[1].channel.publication(id), PublicationState::Announcing);
    assert!(ends[1].channel.is_announced(id).unwrap().is_none());
    ends[1].channel.unpublish("inbox").unwrap();
    assert_eq!(ends[1].channel.publication(id), PublicationState::Ending);
    assert_eq!(ends[1].channel.is_announced(id).unwrap_err().code(), ErrorCode::RegionRevoked);
    world.fabric.resume();
    world.fabric.settle();
    assert!(!carry(&ends), "nobody is told anything");
    assert_eq!(ends[1].channel.publication(id), PublicationState::Ended);
    assert_eq!(world.fabric.counters().windows, 0);
    end_of(world, ends);
}

#[test]
fn grants_end_with_their_connection() {
    for kind in KINDS {
        let world = world(kind);
        let ends = pair(&world);
        let inbox = region(4096);
        let (id, _) = publish(&world, &ends, "inbox", &inbox.whole().unwrap(), WRITE);
        ends[1].channel.destroy(None);
        assert_eq!(ends[1].channel.publication(id), PublicationState::Ended);
        let code = |result: Result<u32, secure_rdma_rdma::Error>| result.unwrap_err().code();
        assert_eq!(code(ends[1].channel.unpublish("inbox")), ErrorCode::Destroyed);
        assert_eq!(code(ends[1].channel.publish("b", &slice(1), READ)), ErrorCode::Destroyed);
        assert_eq!(ends[1].channel.find_remote("x").unwrap_err().code(), ErrorCode::Destroyed);
        until("the windows to be gone", || world.fabric.counters().windows == 0);
        end_of(world, ends);
    }
}
