//! Regions that are published and taken back, between two channels on the in-memory device.

use std::sync::{Arc, OnceLock};

use secure_rdma_rdma::fake::{Fabric, FakeDevice};
use secure_rdma_rdma::{Access, Device as _, ErrorCode, WcStatus};
use secure_rdma_session::UpperLayer;

use super::{End, World, message, until};
use crate::channel::{Channel, Life};
use crate::grant_messages::{Grant, GrantMessage};
use crate::grants::{MOST, PublicationState, REVOKE_TICKS};
use crate::operations::Operation;
use crate::options::{ConnectionOptions, PoolOptions};
use crate::regions::{RegionSlice, SharedRegion};
use crate::remote::{RemoteRegion, RemoteSlice};

const READ: Access = Access::REMOTE_READ;
const WRITE: Access = Access::REMOTE_WRITE;
const ATOMIC: Access = Access::REMOTE_ATOMIC;

/// How a device opens something to one peer.
type Kind = (&'static str, fn(&FakeDevice));

const KINDS: [Kind; 3] = [
    ("windows that keep their ranges", |_| {}),
    ("windows that open all below them", |device| device.set_windows_keep_ranges(false)),
    ("a domain for each connection", |device| device.set_memory_windows(false)),
];

fn world(kind: Kind) -> World {
    let world = World::new();
    world.devices.iter().for_each(|device| kind.1(device));
    world
}

fn pair(world: &World) -> [End; 2] {
    world.pair(&ConnectionOptions::default())
}

/// What the control channel would do: tells each side what the other has to say.
fn carry(ends: &[End; 2]) -> bool {
    let mut any = false;
    for i in 0..2 {
        loop {
            let told = ends[i].channel.lock().grants.next_told();
            let Some(told) = told else { break };
            any = true;
            ends[1 - i].upper.told(&told.encode()).unwrap();
        }
    }
    any
}

/// Lets everything happen that can.
fn settle(world: &World, ends: &[End; 2]) {
    loop {
        world.fabric.settle();
        if !carry(ends) {
            return;
        }
    }
}

fn region(length: usize) -> SharedRegion {
    SharedRegion::allocate(length).unwrap()
}

fn slice(length: usize) -> RegionSlice {
    region(length).whole().unwrap()
}

/// Publishes on the second end, for the first.
fn publish(
    world: &World,
    ends: &[End; 2],
    name: &str,
    slice: &RegionSlice,
    access: Access,
) -> (u32, RemoteRegion) {
    let id = ends[1].channel.publish(name, slice, access).unwrap();
    settle(world, ends);
    assert_eq!(ends[1].channel.publication(id), PublicationState::Announced);
    (id, ends[0].channel.find_remote(name).unwrap().unwrap())
}

/// The same range as another connection's grant, for `channel`: what a hostile peer would make of it.
fn forged(of: &RemoteRegion, channel: &Arc<Channel>, (address, length): (u64, u64)) -> RemoteSlice {
    let at = of.whole().at(0);
    let name = (7, of.name().to_owned());
    let all = READ | WRITE | ATOMIC;
    RemoteRegion::new(Arc::downgrade(channel), name, all, (address, length), at.rkey).whole()
}

fn write(end: &End, local: &RegionSlice, remote: &RemoteSlice) -> Result<u64, ErrorCode> {
    let local = std::slice::from_ref(local);
    let posted = end.channel.post(&[Operation::write(local, remote)]);
    posted.map(|ids| ids.start).map_err(|error| error.code())
}

fn done(world: &World, end: &End, id: u64) {
    world.fabric.settle();
    let mut state = end.channel.lock();
    assert!(state.transmit.done() >= id, "{} of {id}, {:?}", state.transmit.done(), state.life);
    assert!(state.transmit.outcome(id).is_none_or(|outcome| outcome.is_ok()));
}

fn is_open(end: &End) -> bool {
    matches!(end.channel.lock().life, Life::Open)
}

/// How a connection failed.
fn error(end: &End) -> (ErrorCode, Option<u32>) {
    match &end.channel.lock().life {
        Life::Over(closed) => {
            let error = closed.error.as_ref().unwrap();
            (error.code(), error.wc_status())
        }
        life => panic!("{life:?}"),
    }
}

fn end_of(world: World, ends: [End; 2]) {
    let fabric = world.fabric.clone();
    for end in &ends {
        end.channel.destroy(None);
    }
    drop((ends, world));
    until("everything to be unmade", || {
        let counters = fabric.counters();
        counters.all_unmade() && counters.bound_windows == 0
    });
}

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

#[test]
fn a_region_is_registered_once_however_many_connections_publish_it() {
    let world = world(KINDS[0]);
    let large = region(256 << 20);
    let first = pair(&world);
    let before = world.fabric.counters();
    let mut all = vec![first];
    for i in 0..64 {
        // Some with other sizes of buffers, on the same open device.
        let buffer_size = if i % 16 == 15 { 8192 } else { 4096 };
        let pool = PoolOptions { buffer_size, ..PoolOptions::default() };
        all.push(world.pair(&ConnectionOptions { pool, ..ConnectionOptions::default() }));
    }
    let connected = world.fabric.counters();
    let remotes: Vec<_> = all[1..]
        .iter()
        .map(|ends| publish(&world, ends, "large", &large.whole().unwrap(), READ | WRITE).1)
        .collect();
    let published = world.fabric.counters();
    assert_eq!(published.registrations, connected.registrations + 1);
    assert_eq!(published.bound_windows, before.bound_windows + 64);
    let keys: std::collections::HashSet<_> = remotes.iter().map(|remote| remote.whole().at(0).rkey).collect();
    assert_eq!(keys.len(), 64, "a key each");
    // It stays while something of it is published, whoever lets go of the region.
    large.close();
    drop(large);
    let id = write(&all[64][0], &slice(64), &remotes[63].slice(1 << 20, 64).unwrap()).unwrap();
    done(&world, &all[64][0], id);
    let regions = world.fabric.counters().regions;
    for ends in &all[1..] {
        ends[1].channel.unpublish("large").unwrap();
        settle(&world, ends);
    }
    let after = world.fabric.counters();
    assert_eq!((after.bound_windows, after.windows), (before.bound_windows, before.windows));
    assert_eq!(after.regions, regions - 1, "the large one is gone");
}

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
fn publishing_goes_on_after_the_end_of_messages() {
    let world = world(KINDS[0]);
    let ends = pair(&world);
    ends[1].channel.end().unwrap();
    let (_, remote) = publish(&world, &ends, "inbox", &slice(64), WRITE);
    let id = write(&ends[0], &slice(64), &remote.whole()).unwrap();
    done(&world, &ends[0], id);
    ends[1].channel.unpublish("inbox").unwrap();
    settle(&world, &ends);
    assert_eq!(world.fabric.counters().bound_windows, 0);
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

#[test]
fn only_what_can_be_published_is() {
    let world = world(KINDS[0]);
    let ends = pair(&world);
    let channel = &ends[1].channel;
    let one = slice(64);
    let code =
        |name: &str, slice: &RegionSlice, access| channel.publish(name, slice, access).unwrap_err().code();
    assert_eq!(code("", &one, READ), ErrorCode::RegionName);
    assert_eq!(code(&"n".repeat(256), &one, READ), ErrorCode::RegionName);
    assert_eq!(code("a", &one, Access::empty()), ErrorCode::InvalidArgument);
    assert_eq!(code("a", &one, READ | Access::LOCAL_WRITE), ErrorCode::InvalidArgument);
    assert_eq!(code("a", &one, Access::MEMORY_WINDOW_BIND), ErrorCode::InvalidArgument);
    assert_eq!(code("a", &one.slice(64, 0).unwrap(), READ), ErrorCode::RegionBounds);
    let closed = slice(64);
    closed.region().close();
    assert_eq!(code("a", &closed, READ), ErrorCode::RegionClosed);
    assert_eq!(channel.unpublish("a").unwrap_err().code(), ErrorCode::RegionName);
    assert_eq!(channel.find_remote("").unwrap_err().code(), ErrorCode::RegionName);
    for i in 0..MOST {
        channel.publish(&format!("{i} {}", "ü".repeat(120)), &one, READ).unwrap();
    }
    assert_eq!(code("a", &one, READ), ErrorCode::RegionLimit);
    assert_eq!(code(&format!("7 {}", "ü".repeat(120)), &one, READ), ErrorCode::RegionName);
    settle(&world, &ends);
    assert_eq!(ends[0].channel.lock().grants.counts(), (0, MOST));
    channel.unpublish(&format!("7 {}", "ü".repeat(120))).unwrap();
    settle(&world, &ends);
    channel.publish("a", &one, READ).unwrap();
    settle(&world, &ends);
    assert!(ends[0].channel.find_remote("a").unwrap().is_some());
    end_of(world, ends);
}

#[test]
fn a_failure_to_register_or_to_make_a_window_leaves_nothing_behind() {
    use secure_rdma_rdma::fake::Call;
    let world = world(KINDS[0]);
    let ends = pair(&world);
    let before = world.fabric.counters();
    for call in [Call::Register, Call::CreateMemoryWindow] {
        let refusal = secure_rdma_rdma::Error::new(ErrorCode::Resource, "no more");
        world.devices[1].fail_next(call, refusal);
        let inbox = slice(64);
        let error = ends[1].channel.publish("inbox", &inbox, READ).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Resource);
        drop(inbox);
        let after = world.fabric.counters();
        assert_eq!((after.regions, after.windows), (before.regions, before.windows));
    }
    publish(&world, &ends, "inbox", &slice(64), READ);
}

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

#[test]
fn each_connection_without_windows_has_a_domain_and_buffers_of_its_own() {
    let world = world(KINDS[2]);
    let before = world.fabric.counters();
    let ends = pair(&world);
    ends[0].channel.send(&message(3, 50_000)).unwrap();
    assert_eq!(ends[1].next().unwrap().unwrap(), message(3, 50_000));
    // Memory of such a connection is registered for it alone.
    let (local, again) = (region(64), pair(&world));
    for ends in [&ends, &again] {
        ends[0].channel.register(&local).unwrap();
        ends[0].channel.register(&local).unwrap();
    }
    let registered = world.fabric.counters().regions;
    local.close();
    assert_eq!(world.fabric.counters().regions, registered - 2);
    for ends in [ends, again] {
        ends.iter().for_each(|end| end.channel.destroy(None));
        drop(ends);
    }
    until("both to be gone", || world.fabric.counters().queue_pairs == before.queue_pairs);
    assert_eq!(world.devices[0].limits().max_shared_receives, 65_536, "the device itself has such queues");
}
