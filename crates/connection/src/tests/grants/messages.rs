//! GRANT, REVOKE and REVOKED: which of them a peer may tell, and when.

use secure_rdma_rdma::ErrorCode;
use secure_rdma_session::UpperLayer;

use super::{KINDS, READ, pair, publish, slice, world};
use crate::grant_messages::{Grant, GrantMessage};
use crate::grants::{MOST, PublicationState};
use crate::options::ConnectionOptions;

fn grant(id: u32, name: &str) -> GrantMessage {
    let (access, rkey) = (READ, secure_rdma_rdma::RKey::new(1));
    GrantMessage::Grant(Grant { id, access, address: 4096, length: 64, rkey, name: name.to_owned() })
}

/// What a hostile peer tells, and whether the last of it is what it may not tell.
#[test]
fn what_a_peer_may_not_tell_is_a_violation() {
    use GrantMessage::{Revoke, Revoked};
    let many = |count: u32| (1..=count).map(|id| grant(id, &id.to_string())).collect::<Vec<_>>();
    let most = u32::try_from(MOST).unwrap();
    let cases: Vec<(&str, bool, Vec<GrantMessage>)> = vec![
        ("number 0", true, vec![grant(0, "a")]),
        ("numbers may leave gaps", false, vec![grant(5, "a"), grant(u32::MAX, "b")]),
        ("a number again", true, vec![grant(5, "a"), grant(5, "b")]),
        ("a lower number", true, vec![grant(5, "a"), grant(4, "b")]),
        ("a number again after its end", true, vec![grant(5, "a"), Revoke(5), grant(5, "a")]),
        ("a name again", true, vec![grant(1, "a"), grant(2, "a")]),
        (
            "a name again before it can know that it is free",
            true,
            vec![grant(1, "a"), Revoke(1), grant(2, "a")],
        ),
        ("as many as may be", false, many(most)),
        ("one more", true, many(most + 1)),
        ("REVOKE of nothing", true, vec![Revoke(1)]),
        ("REVOKE", false, vec![grant(1, "a"), Revoke(1)]),
        ("REVOKE of another", true, vec![grant(1, "a"), Revoke(2)]),
        ("REVOKE twice", true, vec![grant(1, "a"), Revoke(1), Revoke(1)]),
        ("REVOKED unasked", true, vec![Revoked(1)]),
        ("REVOKED of its own", true, vec![grant(1, "a"), Revoked(1)]),
    ];
    for (what, is_violation, messages) in cases {
        let world = world(KINDS[0]);
        let ends = pair(&world);
        let (last, good) = messages.split_last().unwrap();
        for message in good {
            ends[0].upper.told(&message.encode()).unwrap();
        }
        let told = ends[0].upper.told(&last.encode());
        let expected = is_violation.then_some(ErrorCode::PeerViolation);
        assert_eq!(told.err().map(|error| error.code()), expected, "{what}");
    }
}

#[test]
fn revoked_is_good_once_and_only_when_asked_for() {
    let world = world(KINDS[0]);
    let ends = pair(&world);
    let (id, _) = publish(&world, &ends, "a", &slice(64), READ);
    let revoked = GrantMessage::Revoked(id).encode();
    assert_eq!(ends[1].upper.told(&revoked).unwrap_err().code(), ErrorCode::PeerViolation);
    ends[1].channel.unpublish("a").unwrap();
    world.fabric.pause();
    ends[1].upper.told(&revoked).unwrap();
    assert_eq!(ends[1].channel.publication(id), PublicationState::Ending, "the window is still bound");
    assert_eq!(ends[1].upper.told(&revoked).unwrap_err().code(), ErrorCode::PeerViolation);
    world.fabric.resume();
    world.fabric.settle();
    assert_eq!(ends[1].channel.publication(id), PublicationState::Ended);
}

#[test]
fn what_is_told_before_the_connection_is_open_counts() {
    let world = world(KINDS[0]);
    let ends = world.proven(&ConnectionOptions::default());
    ends[0].upper.told(&grant(1, "early").encode()).unwrap();
    ends[0].upper.told(&grant(2, "late").encode()).unwrap();
    ends[0].upper.told(&GrantMessage::Revoke(1).encode()).unwrap();
    ends[0].channel.open(None, "between two tests".to_owned());
    assert!(ends[0].channel.find_remote("early").unwrap().is_none());
    assert_eq!(ends[0].channel.find_remote("late").unwrap().unwrap().len(), 64);
    assert_eq!(ends[0].channel.lock().grants.next_told(), Some(GrantMessage::Revoked(1)));
}
