//! Type 2 memory windows on a real `rdma_rxe`, and private protection domains.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;

use common::*;
use secure_rdma_rdma::{
    Access, CompletionKind, ErrorCode, Memory, MemoryWindow, Region, RemoteSlice, SendFlags, SendOperation,
    SendRequest, Slice, WcStatus, WorkId,
};

const BINDABLE: Access = Access::LOCAL_WRITE.union(Access::MEMORY_WINDOW_BIND);

fn region(end: &End) -> Arc<Region> {
    end.device.register(Arc::new(Memory::allocate(REGION).unwrap()), BINDABLE).unwrap()
}

fn window(end: &End) -> Arc<dyn MemoryWindow> {
    end.device.create_memory_window().unwrap().expect("rxe has windows of type 2B")
}

fn bare(id: u64, operation: SendOperation) -> SendRequest {
    SendRequest { id: WorkId(id), operation, local: [].into_iter().collect(), flags: SendFlags::empty() }
}

/// Binds `window` to 4096 bytes at 8192 of `region`, and waits for it.
fn bind(end: &End, window: &Arc<dyn MemoryWindow>, region: &Arc<Region>, access: Access) -> RemoteSlice {
    let rkey = window.next_key();
    let target = Slice::new(region, 8192, 4096);
    let operation = SendOperation::Bind { window: Arc::clone(window), rkey, target, access };
    end.pair.post_send(&[bare(900, operation)]).unwrap();
    let done = end.log.successes(1);
    assert_eq!((done[0].id, done[0].kind), (WorkId(900), CompletionKind::Send));
    RemoteSlice { address: region.address() + 8192, rkey }
}

fn write(remote: RemoteSlice) -> SendOperation {
    SendOperation::Write { remote, immediate: None }
}

fn bytes(region: &Region, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    region.memory().append_to(offset, length, &mut bytes).unwrap();
    bytes
}

#[test]
#[ignore = "needs an rxe device"]
fn a_window_is_bound_used_invalidated_and_bound_again() {
    let _alone = alone();
    let before = held("rxe1");
    let [us, them] = connected(Sizes::default());
    let (granted, window) = (region(&them), window(&them));
    let mut old = None;
    for round in 0..300_u64 {
        let all = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        let remote = bind(&them, &window, &granted, all);
        assert_ne!(old, Some(remote.rkey));
        old = Some(remote.rkey);
        us.fill(0, &round.to_ne_bytes());
        us.post(1, write(remote), 0, 8);
        us.post(2, SendOperation::Read { remote }, 64, 8);
        // Waited for: a READ that is repeated reads anew, and would find what the atomic has put there.
        us.log.successes(2);
        us.post(3, SendOperation::CompareSwap { remote, compare: round, swap: 7 }, 128, 8);
        us.log.successes(1);
        assert_eq!(us.bytes(64, 8), round.to_ne_bytes());
        assert_eq!(us.bytes(128, 8), round.to_ne_bytes());
        assert_eq!(bytes(&granted, 8192, 8), 7_u64.to_ne_bytes());
        them.pair.post_send(&[bare(901, SendOperation::Invalidate { rkey: remote.rkey })]).unwrap();
        them.log.successes(1);
    }
    drop((us, them, window, granted));
    settles("rxe1", before);
}

#[test]
#[ignore = "needs an rxe device"]
fn a_key_that_was_invalidated_opens_nothing() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    let (granted, window) = (region(&them), window(&them));
    let remote = bind(&them, &window, &granted, Access::REMOTE_WRITE);
    them.pair.post_send(&[bare(1, SendOperation::Invalidate { rkey: remote.rkey })]).unwrap();
    them.log.successes(1);
    us.fill(0, &[0xEE; 8]);
    us.post(2, write(remote), 0, 8);
    assert_eq!(us.log.completions(1)[0].status, WcStatus::REM_ACCESS_ERR);
    assert_eq!(bytes(&granted, 8192, 8), [0; 8]);
}

#[test]
#[ignore = "needs an rxe device"]
fn rights_of_a_window_hold_and_ranges_are_those_of_the_registration_below() {
    let _alone = alone();
    for (from, length, right, part, status) in [
        (0, 8, false, false, WcStatus::REM_ACCESS_ERR),
        // rxe's windows open all of their region.
        (-1_i64, 8, true, false, WcStatus::SUCCESS),
        (4089, 8, true, false, WcStatus::SUCCESS),
        (-1, 8, true, true, WcStatus::REM_ACCESS_ERR),
        (4089, 8, true, true, WcStatus::REM_ACCESS_ERR),
        (0, 4097, true, true, WcStatus::REM_ACCESS_ERR),
        (0, 4096, true, true, WcStatus::SUCCESS),
    ] {
        let [us, them] = connected(Sizes::default());
        assert!(!them.device.windows_keep_ranges());
        let memory = Arc::new(Memory::allocate(REGION).unwrap());
        let (first, bytes_below) = if part { (8192, 4096) } else { (0, REGION) };
        let granted = them.device.register_range(Arc::clone(&memory), first, bytes_below, BINDABLE).unwrap();
        let window = window(&them);
        let access = if right { Access::REMOTE_WRITE } else { Access::REMOTE_READ };
        let mut remote = bind(&them, &window, &granted, access);
        remote.address = remote.address.wrapping_add_signed(from);
        us.fill(0, &[0xEE; 4097]);
        us.post(1, write(remote), 0, length);
        assert_eq!(us.log.completions(1)[0].status, status, "{from} {length} {right} {part}");
        let outside = [bytes(&granted, 0, 8192), bytes(&granted, 12_288, REGION - 12_288)].concat();
        assert_eq!(outside.iter().all(|byte| *byte == 0), part || status != WcStatus::SUCCESS);
    }
}

#[test]
#[ignore = "needs an rxe device"]
fn a_windows_key_is_worth_nothing_on_another_queue_pair() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    let [stranger, of_stranger] = connected(Sizes::default());
    let (granted, window) = (region(&them), window(&them));
    let remote = bind(&them, &window, &granted, Access::REMOTE_WRITE);
    stranger.post(1, write(remote), 0, 8);
    assert_eq!(stranger.log.completions(1)[0].status, WcStatus::REM_ACCESS_ERR);
    us.post(2, write(remote), 0, 8);
    us.log.successes(1);
    drop(of_stranger);
}

#[test]
#[ignore = "needs an rxe device"]
fn a_send_with_invalidate_ends_the_key() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    let (granted, window) = (region(&them), window(&them));
    let remote = bind(&them, &window, &granted, Access::REMOTE_WRITE);
    them.receive(5, 0, 64);
    us.post(1, SendOperation::SendInvalidate { rkey: remote.rkey }, 0, 8);
    us.log.successes(1);
    let told = them.log.successes(1)[0];
    // Which key it was, rxe does not tell a process (`do_complete` in `rxe_resp.c` fills it for the kernel's users).
    assert_eq!((told.id, told.invalidated, told.immediate), (WorkId(5), None, None));
    us.post(2, write(remote), 0, 8);
    assert_eq!(us.log.completions(1)[0].status, WcStatus::REM_ACCESS_ERR);
}

#[test]
#[ignore = "needs an rxe device"]
fn a_queue_pair_goes_at_once_though_windows_are_bound_to_it() {
    let _alone = alone();
    let before = held("rxe1");
    let [us, them] = connected(Sizes::default());
    let (granted, window) = (region(&them), window(&them));
    bind(&them, &window, &granted, Access::REMOTE_WRITE);
    // The queue pair first: rxe's would wait for the window.
    let End { device, log, pair, region, .. } = them;
    drop((us, pair));
    drop((window, granted, region, log, device));
    settles("rxe1", before);
}

#[test]
#[ignore = "needs an rxe device"]
fn windows_of_others_are_refused_before_the_driver_sees_them() {
    let _alone = alone();
    let [us, them] = connected(Sizes::default());
    let (granted, foreign) = (region(&us), window(&them));
    let operation = SendOperation::Bind {
        rkey: foreign.next_key(),
        window: foreign,
        target: Slice::new(&granted, 0, 8),
        access: Access::REMOTE_READ,
    };
    let refused = us.pair.post_send(&[bare(1, operation)]).unwrap_err();
    assert_eq!((refused.posted, refused.error.code()), (0, ErrorCode::InvalidArgument));
    assert!(us.device.private_domain().unwrap().is_none(), "a device with windows needs none");
}
