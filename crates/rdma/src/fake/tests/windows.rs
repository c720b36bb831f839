//! Memory windows, and protection domains of their own where there are none.

use std::sync::Arc;

use super::harness::{ALL, End, assert_unmade, devices, join, pair};
use crate::fake::Fabric;
use crate::{
    Access, CompletionKind, Device, ErrorCode, Memory, MemoryWindow, QpState, RKey, Region, RemoteSlice,
    SendFlags, SendOperation, SendRequest, Slice, WorkId,
};

use CompletionKind::{Receive, Send};

/// What is tried on a range of 100 bytes, and with how many of its own.
type Attack = fn(RemoteSlice) -> (SendOperation, usize);

const BINDABLE: Access = Access::LOCAL_WRITE.union(Access::MEMORY_WINDOW_BIND);

fn region(end: &End, access: Access) -> Arc<Region> {
    end.device.register(Arc::new(Memory::allocate(4096).unwrap()), access).unwrap()
}

fn window(end: &End) -> Arc<dyn MemoryWindow> {
    end.device.create_memory_window().unwrap().unwrap()
}

fn bare(id: u64, operation: SendOperation) -> SendRequest {
    SendRequest { id: WorkId(id), operation, local: smallvec::SmallVec::new(), flags: SendFlags::empty() }
}

/// Binds `window` to bytes 100 to 200 of `region`; gives how the peer names byte 100.
fn bind(
    end: &End,
    id: u64,
    window: &Arc<dyn MemoryWindow>,
    region: &Arc<Region>,
    access: Access,
) -> RemoteSlice {
    let rkey = window.next_key();
    let target = Slice::new(region, 100, 100);
    let operation = SendOperation::Bind { window: Arc::clone(window), rkey, target, access };
    end.queue_pair.post_send(&[bare(id, operation)]).unwrap();
    RemoteSlice { address: region.address() + 100, rkey }
}

fn write(remote: RemoteSlice) -> SendOperation {
    SendOperation::Write { remote, immediate: None }
}

#[test]
fn a_window_opens_its_range_with_its_rights_until_it_is_invalidated() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    let (granted, window) = (region(&other, BINDABLE), window(&other));
    let remote = bind(&other, 1, &window, &granted, Access::REMOTE_WRITE);
    assert_eq!(other.log.outcomes(1), [(Send, 1, 0)]);
    assert_eq!(fabric.counters().bound_windows, 1);
    one.put(0, &[7; 100]);
    one.post(2, write(remote), 0, 100);
    assert_eq!(one.log.outcomes(1), [(Send, 2, 0)]);
    let mut bytes = Vec::new();
    granted.memory().append_to(0, 4096, &mut bytes).unwrap();
    assert_eq!((&bytes[100..200], bytes.iter().filter(|byte| **byte == 7).count()), (&[7; 100][..], 100));

    other.queue_pair.post_send(&[bare(3, SendOperation::Invalidate { rkey: remote.rkey })]).unwrap();
    assert_eq!(other.log.outcomes(2)[1], (Send, 3, 0));
    assert_eq!(fabric.counters().bound_windows, 0);
    // The next binding has another key, and the old one stays worthless.
    let again = bind(&other, 4, &window, &granted, Access::REMOTE_READ);
    assert_ne!(again.rkey, remote.rkey);
    one.post(5, SendOperation::Read { remote: again }, 0, 100);
    one.post(6, write(remote), 0, 1);
    assert_eq!(one.log.outcomes(3)[1..], [(Send, 5, 0), (Send, 6, 10)]);
    drop((one, other, window, granted));
    assert_unmade(&fabric);
}

#[test]
fn what_a_window_does_not_open_ends_the_connection() {
    let attacks: &[(&str, Attack)] = &[
        ("a byte before", |at| (write(RemoteSlice { address: at.address - 1, ..at }), 8)),
        ("a byte behind", |at| (write(RemoteSlice { address: at.address + 93, ..at }), 8)),
        ("a longer range", |at| (write(at), 101)),
        ("the other right", |at| (SendOperation::Read { remote: at }, 8)),
        ("another key of the window", |at| {
            (write(RemoteSlice { rkey: RKey::new(at.rkey.expose() ^ 1), ..at }), 8)
        }),
        ("an atomic", |at| {
            (SendOperation::FetchAdd { remote: RemoteSlice { address: at.address + 4, ..at }, add: 1 }, 8)
        }),
    ];
    for (what, attack) in attacks {
        let fabric = Fabric::new();
        let (one, other) = pair(&fabric, 8);
        let (granted, window) = (region(&other, BINDABLE), window(&other));
        let remote = bind(&other, 1, &window, &granted, Access::REMOTE_WRITE);
        other.log.completions(1);
        let (operation, length) = attack(remote);
        one.post(2, operation, 0, length);
        assert_eq!(one.log.outcomes(1), [(Send, 2, 10)], "{what}");
    }
}

#[test]
fn a_windows_key_is_worth_nothing_on_another_queue_pair() {
    let fabric = Fabric::new();
    let (device, peer) = devices(&fabric);
    let (a, b) = (End::new(&device, 4, None), End::new(&device, 4, None));
    let (of_a, of_b) = (End::new(&peer, 4, None), End::new(&peer, 4, None));
    join(&a, &of_a);
    join(&b, &of_b);
    let (granted, window) = (region(&a, BINDABLE), window(&a));
    let remote = bind(&a, 1, &window, &granted, Access::REMOTE_WRITE);
    a.log.completions(1);
    of_b.post(2, write(remote), 0, 8);
    assert_eq!(of_b.log.outcomes(1), [(Send, 2, 10)]);
    assert_eq!(b.queue_pair.state(), QpState::Err);
    of_a.post(3, write(remote), 0, 8);
    assert_eq!(of_a.log.outcomes(1), [(Send, 3, 0)]);
}

#[test]
fn bindings_that_cannot_be_fail() {
    let fabric = Fabric::new();
    let cases: &[(&str, Access, bool)] =
        &[("no right to bind", Access::LOCAL_WRITE, false), ("bound already", BINDABLE, true)];
    for (what, access, twice) in cases {
        let (one, _other) = pair(&fabric, 4);
        let (granted, window) = (region(&one, *access), window(&one));
        if *twice {
            bind(&one, 0, &window, &granted, Access::REMOTE_READ);
        }
        bind(&one, 1, &window, &granted, Access::REMOTE_READ);
        let outcomes = one.log.outcomes(1 + usize::from(*twice));
        assert_eq!(*outcomes.last().unwrap(), (Send, 1, 6), "{what}");
    }
    let (one, other) = pair(&fabric, 4);
    let (granted, foreign) = (region(&one, BINDABLE), window(&other));
    let operation = SendOperation::Bind {
        rkey: foreign.next_key(),
        window: foreign,
        target: Slice::new(&granted, 0, 8),
        access: Access::REMOTE_READ,
    };
    let refused = one.queue_pair.post_send(&[bare(1, operation)]).unwrap_err();
    assert_eq!(refused.error.code(), ErrorCode::InvalidArgument);
    one.queue_pair.post_send(&[bare(2, SendOperation::Invalidate { rkey: one.region.rkey() })]).unwrap();
    assert_eq!(one.log.outcomes(1), [(Send, 2, 2)], "a region's key is not invalidated");
}

#[test]
fn a_send_with_invalidate_ends_an_own_window_and_nothing_else() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    let (granted, first) = (region(&other, BINDABLE), window(&other));
    let remote = bind(&other, 1, &first, &granted, Access::REMOTE_WRITE);
    other.receive(2, 0, 64);
    other.receive(3, 0, 64);
    other.log.completions(1);
    one.post(4, SendOperation::SendInvalidate { rkey: remote.rkey }, 0, 8);
    let told = other.log.completions(2)[1];
    assert_eq!((told.kind, told.id, told.invalidated), (Receive, WorkId(2), Some(remote.rkey)));
    assert_eq!(fabric.counters().bound_windows, 0);
    one.post(5, SendOperation::SendInvalidate { rkey: other.region.rkey() }, 0, 8);
    assert_eq!(one.log.outcomes(2), [(Send, 4, 0), (Send, 5, 10)], "a region's key is not the peer's to end");
    assert_eq!(other.log.outcomes(3)[2], (Receive, 3, 5));
}

#[test]
fn a_window_that_keeps_no_range_is_kept_by_the_registration_below_it() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    other.device.set_windows_keep_ranges(false);
    assert!(!other.device.windows_keep_ranges());
    let memory = Arc::new(Memory::allocate(4096).unwrap());
    let part = other.device.register_range(memory, 100, 100, BINDABLE).unwrap();
    for (granted, status) in [(region(&other, BINDABLE), 0), (part, 10)] {
        let window = window(&other);
        let remote = bind(&other, 1, &window, &granted, Access::REMOTE_WRITE);
        fabric.settle();
        one.post(2, write(RemoteSlice { address: remote.address - 1, ..remote }), 0, 8);
        fabric.settle();
        assert_eq!(
            one.log.wait_for("a completion", |heard| heard.completions.last().map(|done| done.status.0)),
            status
        );
    }
}

#[test]
fn dropping_a_window_ends_its_binding() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    let (granted, window) = (region(&other, BINDABLE), window(&other));
    let remote = bind(&other, 1, &window, &granted, ALL.intersection(Access::REMOTE_WRITE));
    other.log.completions(1);
    drop((window, granted));
    fabric.settle();
    assert_eq!((fabric.counters().windows, fabric.counters().regions), (0, 2));
    one.post(2, write(remote), 0, 8);
    assert_eq!(one.log.outcomes(1), [(Send, 2, 10)]);
}

#[test]
fn a_key_of_a_private_domain_is_worth_nothing_outside() {
    let fabric = Fabric::new();
    let (device, peer) = devices(&fabric);
    assert!(device.private_domain().unwrap().is_none(), "it has windows");
    device.set_memory_windows(false);
    assert!(device.create_memory_window().unwrap().is_none());
    let private = device.private_domain().unwrap().unwrap();
    assert_eq!((private.limits().max_shared_receives, private.name()), (0, device.name()));
    let memory = Arc::new(Memory::allocate(4096).unwrap());
    let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE;
    let granted = private.register_range(memory, 100, 100, access).unwrap();
    let remote = RemoteSlice { address: granted.address() + 100, rkey: granted.rkey() };

    let shared = End::new(&device, 4, None);
    let of_shared = End::new(&peer, 4, None);
    join(&shared, &of_shared);
    of_shared.post(1, write(remote), 0, 8);
    assert_eq!(of_shared.log.outcomes(1), [(Send, 1, 10)]);
    let foreign = shared.queue_pair.post_send(&[SendRequest {
        local: smallvec::smallvec![Slice::new(&granted, 100, 8)],
        ..bare(2, SendOperation::Send { immediate: None })
    }]);
    assert_eq!(foreign.unwrap_err().error.code(), ErrorCode::InvalidArgument);

    let log = super::harness::Log::new();
    let inside = private.create_queue_pair(super::harness::config(&log, 4)).unwrap();
    let of_inside = End::new(&peer, 4, None);
    crate::fake::connect((&device, &*inside), (&peer, &*of_inside.queue_pair)).unwrap();
    of_inside.post(3, write(remote), 0, 100);
    of_inside.post(4, write(RemoteSlice { address: remote.address + 1, ..remote }), 0, 100);
    assert_eq!(of_inside.log.outcomes(2), [(Send, 3, 0), (Send, 4, 10)]);
}
