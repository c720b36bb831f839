//! What goes wrong when it is told to.

use std::time::{Duration, Instant};

use super::harness::{assert_unmade, pair};
use crate::fake::{Call, Fabric};
use crate::{AsyncEvent, CompletionKind, Device, Devices, Error, ErrorCode, Memory, QpAttr, QpState};

use CompletionKind::{Receive, Send};

#[test]
fn a_blackhole_ends_in_retry_exceeded_and_flushes_in_order() {
    let fabric = Fabric::new();
    fabric.set_retry_budget(Duration::from_millis(50));
    let (one, other) = pair(&fabric, 8);
    fabric.blackhole(true);
    one.receive(1, 0, 8);
    one.receive(2, 0, 8);
    let began = Instant::now();
    (10..13).for_each(|id| one.send(id, 0, 8));
    let expected = [(Send, 10, 12), (Send, 11, 5), (Send, 12, 5), (Receive, 1, 5), (Receive, 2, 5)];
    assert_eq!(one.log.outcomes(5), expected);
    assert!(began.elapsed() >= Duration::from_millis(50));
    assert_eq!(one.queue_pair.state(), QpState::Err);
    assert_eq!(fabric.counters().lost, 8);

    // What is posted now is flushed at once.
    one.send(13, 0, 8);
    one.receive(3, 0, 8);
    assert_eq!(one.log.outcomes(7)[5..], [(Send, 13, 5), (Receive, 3, 5)]);
    assert_eq!((other.queue_pair.state(), other.log.so_far()), (QpState::Rts, (0, 0)));
}

#[test]
fn without_a_budget_the_queue_pairs_own_count_decides() {
    let fabric = Fabric::new();
    fabric.set_retry_budget(None);
    let (one, _other) = pair(&fabric, 8);
    fabric.blackhole(true);
    one.send(0, 0, 8);
    assert_eq!(one.log.outcomes(1), [(Send, 0, 12)]);
    // `connect` sets a retry count of 6.
    assert_eq!(fabric.counters().lost, 7);
}

#[test]
fn a_short_blackhole_loses_nothing() {
    let fabric = Fabric::new();
    fabric.set_retry_budget(Duration::from_secs(5));
    let (one, other) = pair(&fabric, 8);
    (0..3).for_each(|id| other.receive(id, 0, 8));
    fabric.blackhole(true);
    (0..3).for_each(|id| one.send(id, 0, 8));
    fabric.settle();
    assert_eq!(one.log.so_far().0, 0);
    fabric.blackhole(false);
    assert_eq!(one.log.outcomes(3), [(Send, 0, 0), (Send, 1, 0), (Send, 2, 0)]);
    assert_eq!(other.log.outcomes(3), [(Receive, 0, 0), (Receive, 1, 0), (Receive, 2, 0)]);
}

#[test]
fn only_what_is_long_is_lost_on_a_path_with_too_small_an_mtu() {
    let fabric = Fabric::new();
    fabric.set_retry_budget(Duration::from_millis(20));
    let (one, other) = pair(&fabric, 8);
    fabric.drop_larger_than(1000);
    other.receive(0, 0, 4000);
    other.receive(1, 0, 4000);
    one.send(0, 0, 1000);
    one.send(1, 0, 1001);
    assert_eq!(one.log.outcomes(2), [(Send, 0, 0), (Send, 1, 12)]);
    assert_eq!(other.log.so_far().0, 1);
}

#[test]
fn no_time_passes_while_the_wire_is_paused() {
    let fabric = Fabric::new();
    fabric.set_retry_budget(Duration::from_millis(40));
    let (one, other) = pair(&fabric, 8);
    other.receive(0, 0, 8);
    fabric.pause();
    one.send(0, 0, 8);
    std::thread::sleep(Duration::from_millis(120));
    fabric.settle();
    assert_eq!((one.log.so_far().0, fabric.counters().work_requests), (0, 2));
    fabric.resume();
    assert_eq!(one.log.outcomes(1), [(Send, 0, 0)]);
}

#[test]
fn a_port_that_is_down_carries_nothing_and_is_told() {
    let fabric = Fabric::new();
    fabric.set_retry_budget(Duration::from_secs(5));
    let (one, other) = pair(&fabric, 8);
    other.receive(0, 0, 8);
    other.device.inject(AsyncEvent::PortDown);
    other.log.event(AsyncEvent::PortDown);
    one.send(0, 0, 8);
    fabric.settle();
    assert_eq!(one.log.so_far(), (0, 0));
    other.device.inject(AsyncEvent::PortUp);
    assert_eq!(one.log.outcomes(1), [(Send, 0, 0)]);
}

#[test]
fn one_device_can_be_cut_off_alone_and_in_silence() {
    let fabric = Fabric::new();
    fabric.set_retry_budget(Duration::from_millis(10));
    let (one, other) = pair(&fabric, 8);
    let (third, fourth) = pair(&fabric, 8);
    other.receive(0, 0, 8);
    fourth.receive(0, 0, 8);
    other.device.blackhole(true);
    one.send(0, 0, 8);
    third.send(0, 0, 8);
    assert_eq!(one.log.outcomes(1), [(Send, 0, 12)]);
    assert_eq!(third.log.outcomes(1), [(Send, 0, 0)]);
    assert_eq!(other.log.so_far(), (0, 0));
}

#[test]
fn a_fatal_event_flushes_its_queue_pair_alone() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    other.receive(0, 0, 8);
    other.device.inject_to(other.queue_pair.qpn(), AsyncEvent::QueuePairFatal);
    other.log.event(AsyncEvent::QueuePairFatal);
    assert_eq!(other.log.outcomes(1), [(Receive, 0, 5)]);
    assert_eq!(other.queue_pair.state(), QpState::Err);
    assert_eq!(one.queue_pair.state(), QpState::Rts);
}

#[test]
fn a_device_that_is_gone_completes_nothing_and_refuses_everything() {
    let fabric = Fabric::new();
    let (one, other) = pair(&fabric, 8);
    one.receive(0, 0, 8);
    one.device.inject(AsyncEvent::DeviceGone);
    one.log.event(AsyncEvent::DeviceGone);
    fabric.settle();
    assert_eq!(one.log.so_far(), (0, 1));
    let request = one.request(1, crate::SendOperation::Send { immediate: None }, 0, 8);
    assert_eq!(one.queue_pair.post_send(&[request]).unwrap_err().error.code(), ErrorCode::DeviceLost);
    let memory = std::sync::Arc::new(Memory::allocate(1).unwrap());
    assert_eq!(
        one.device.register(memory, crate::Access::empty()).unwrap_err().code(),
        ErrorCode::DeviceLost
    );
    assert_eq!(fabric.list().unwrap().len(), 1);
    assert_eq!(fabric.open("fake0").unwrap_err().code(), ErrorCode::DeviceNotFound);
    drop((one, other));
    assert_unmade(&fabric);
}

#[test]
fn an_ordered_failure_comes_once() {
    let fabric = Fabric::new();
    let (one, _other) = pair(&fabric, 8);
    let memlock = Error::new(ErrorCode::Memlock, "RLIMIT_MEMLOCK");
    one.device.fail_next(Call::Register, memlock);
    let register = || {
        let memory = std::sync::Arc::new(Memory::allocate(1).unwrap());
        one.device.register(memory, crate::Access::empty())
    };
    assert_eq!(register().unwrap_err().code(), ErrorCode::Memlock);
    assert!(register().is_ok());
    one.device.fail_next(Call::Modify(QpState::Err), Error::new(ErrorCode::Modify, "ordered"));
    assert_eq!(one.queue_pair.modify(&QpAttr::to(QpState::Err)).unwrap_err().code(), ErrorCode::Modify);
    assert_eq!(one.queue_pair.state(), QpState::Rts);
    one.queue_pair.modify(&QpAttr::to(QpState::Err)).unwrap();
}
