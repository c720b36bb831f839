//! The queue pair as its owner sees it.

use std::sync::Arc;

use super::device::FakeDevice;
use super::region::Keys;
use super::region::check_slices;
use super::settings::Call;
use super::state::{QpKey, failed};
use super::window::FakeWindow;
use super::world::World;
use crate::{
    CompletionKind, Error, ErrorCode, LinkLayer, PostError, QpAttr, QpState, Qpn, QueuePair, ReceiveQueue,
    ReceiveRequest, Result, SendOperation, SendRequest, WcStatus, transition,
};

const EINVAL: i32 = 22;

pub(super) struct FakeQueuePair {
    pub(super) device: Arc<FakeDevice>,
    pub(super) key: QpKey,
    /// Keeps the shared receive queue alive.
    pub(super) _receive_queue: Option<Arc<dyn ReceiveQueue>>,
}

impl QueuePair for FakeQueuePair {
    fn qpn(&self) -> Qpn {
        self.key.qpn
    }

    fn state(&self) -> QpState {
        self.device.handle.lock().queue_pairs.get(&self.key).map_or(QpState::Err, |state| state.state)
    }

    fn modify(&self, attr: &QpAttr) -> Result<()> {
        let mut world = self.device.handle.lock();
        let from = world.queue_pairs.get(&self.key).map_or(QpState::Err, |state| state.state);
        let to = transition::check_attr(from, attr)?;
        if let Some(error) = world.devices[self.key.device].ordered_failure(Call::Modify(to)) {
            return Err(error);
        }
        check_values(&world, self.key, attr)?;
        world.move_to(self.key, to, attr);
        drop(world);
        self.device.handle.wake();
        Ok(())
    }

    fn post_send(&self, requests: &[SendRequest]) -> std::result::Result<(), PostError> {
        let mut world = self.device.handle.lock();
        let done = self.post(&mut world, requests, Call::PostSend, Self::post_one_send);
        drop(world);
        self.device.handle.wake();
        done
    }

    fn post_receive(&self, requests: &[ReceiveRequest]) -> std::result::Result<(), PostError> {
        let mut world = self.device.handle.lock();
        let done = self.post(&mut world, requests, Call::PostReceive, Self::post_one_receive);
        drop(world);
        self.device.handle.wake();
        done
    }
}

impl FakeQueuePair {
    fn post<R>(
        &self,
        world: &mut World,
        requests: &[R],
        call: Call,
        one: impl Fn(&Self, &mut World, &R) -> Result<()>,
    ) -> std::result::Result<(), PostError> {
        let device = &mut world.devices[self.key.device];
        if let Some(error) =
            device.ordered_failure(call).or_else(|| device.gone.then(|| gone(&device.info.name)))
        {
            return Err(PostError { posted: 0, error });
        }
        for (posted, request) in requests.iter().enumerate() {
            one(self, world, request).map_err(|error| PostError { posted, error })?;
        }
        Ok(())
    }

    fn post_one_send(&self, world: &mut World, request: &SendRequest) -> Result<()> {
        let keys = Arc::clone(&world.devices[self.key.device].keys);
        let longest = world.devices[self.key.device].info.limits.max_message;
        let Some(state) = world.queue_pairs.get_mut(&self.key) else {
            return Err(not_postable(QpState::Err));
        };
        if matches!(state.state, QpState::Reset | QpState::Init | QpState::Rtr | QpState::Sqe) {
            return Err(not_postable(state.state));
        }
        check_slices(&request.local, (&keys, state.domain), state.max_sge, longest)?;
        check_window(request, (&keys, state.domain))?;
        let atomic =
            matches!(request.operation, SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. });
        if atomic && super::region::length(&request.local) != 8 {
            return Err(Error::new(ErrorCode::InvalidArgument, "an atomic takes a local slice of 8 bytes"));
        }
        if state.send_room() == 0 {
            return Err(full("send", state.max_send));
        }
        if state.state == QpState::Err {
            let flushed = failed(request.id, CompletionKind::Send, WcStatus::WR_FLUSH_ERR);
            world.complete(self.key, flushed);
        } else {
            state.sends.push_back(request.clone());
            world.want_to_send(self.key);
        }
        Ok(())
    }

    fn post_one_receive(&self, world: &mut World, request: &ReceiveRequest) -> Result<()> {
        let keys = Arc::clone(&world.devices[self.key.device].keys);
        let longest = u32::MAX;
        let Some(state) = world.queue_pairs.get_mut(&self.key) else {
            return Err(not_postable(QpState::Err));
        };
        if state.shared.is_some() {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "this queue pair's receives are posted to its shared receive queue",
            ));
        }
        if state.state == QpState::Reset {
            return Err(not_postable(state.state));
        }
        check_slices(&request.local, (&keys, state.domain), state.max_sge, longest)?;
        if state.receive_room() == 0 {
            return Err(full("receive", state.max_receive));
        }
        if state.state == QpState::Err {
            let flushed = failed(request.id, CompletionKind::Receive, WcStatus::WR_FLUSH_ERR);
            world.complete(self.key, flushed);
        } else {
            state.receives.push_back(request.clone());
        }
        Ok(())
    }
}

impl Drop for FakeQueuePair {
    fn drop(&mut self) {
        let forgotten = self.device.handle.lock().remove_queue_pair(self.key);
        // Its regions go when the lock is free again.
        drop(forgotten);
    }
}

/// Checks what concerns memory windows of a work request when it is posted.
fn check_window(request: &SendRequest, (keys, domain): (&Arc<Keys>, u64)) -> Result<()> {
    if request.operation.is_local() && !request.local.is_empty() {
        return Err(Error::new(ErrorCode::InvalidArgument, "a bind and an invalidate take no local bytes"));
    }
    let SendOperation::Bind { window, target, .. } = &request.operation else { return Ok(()) };
    let known = window.as_any().downcast_ref::<FakeWindow>().is_some_and(|window| window.is_of(keys, domain));
    if !known {
        return Err(Error::new(ErrorCode::InvalidArgument, "the memory window belongs to another device"));
    }
    check_slices(std::slice::from_ref(target), (keys, domain), 1, u32::MAX)
}

/// What a driver checks and the transition table does not: the values.
fn check_values(world: &World, key: QpKey, attr: &QpAttr) -> Result<()> {
    let device = &world.devices[key.device];
    if device.gone {
        return Err(gone(&device.info.name));
    }
    let refuse = |what: &str| {
        let message = format!("{} refused the transition: {what}", device.info.name);
        Err(Error::new(ErrorCode::Modify, message).with_syscall("ibv_modify_qp", EINVAL))
    };
    let limits = &device.info.limits;
    let above = |value: Option<u8>, limit: u8| value.is_some_and(|value| value > limit);
    if attr.port.is_some_and(|number| device.port(number).is_none()) {
        return refuse("no such port");
    }
    if attr.pkey_index.is_some_and(|index| index != 0) {
        return refuse("no such P_Key index");
    }
    if above(attr.timeout, 31)
        || above(attr.min_rnr_timer, 31)
        || above(attr.retry_count, 7)
        || above(attr.rnr_retry, 7)
    {
        return refuse("a timer code or a count is out of range");
    }
    if above(attr.max_rd_atomic, limits.max_initiator_depth)
        || above(attr.max_dest_rd_atomic, limits.max_responder_resources)
    {
        return refuse("initiator depth or responder resources are above the device's limits");
    }
    let Some(address) = &attr.address else { return Ok(()) };
    let Some(port) = device.port(address.port) else {
        return refuse("the address vector's port does not exist");
    };
    if attr.path_mtu.is_some_and(|mtu| mtu > port.active_mtu) {
        return refuse("the path MTU is above the port's");
    }
    match &address.global {
        None if port.link_layer == LinkLayer::Ethernet => refuse("RoCE needs a GRH in the address vector"),
        None if !address.destination_lid.is_unicast() => refuse("the destination LID is not one"),
        Some(route) if !port.gids.iter().any(|entry| entry.index == route.source_gid_index) => {
            refuse("the GID index is empty")
        }
        Some(route) if route.hop_limit == 0 => refuse("the hop limit is 0"),
        _ => Ok(()),
    }
}

pub(super) fn gone(name: &str) -> Error {
    Error::new(ErrorCode::DeviceLost, format!("the device {name} is gone"))
}

pub(super) fn full(which: &str, capacity: usize) -> Error {
    Error::new(
        ErrorCode::QueueFull,
        format!("the {which} queue has {capacity} work requests outstanding, its limit"),
    )
}

fn not_postable(state: QpState) -> Error {
    Error::new(ErrorCode::Post, format!("nothing of this kind can be posted to a queue pair in {state}"))
        .with_syscall("ibv_post", EINVAL)
}
