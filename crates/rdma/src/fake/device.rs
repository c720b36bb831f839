//! The device, and the hosts that list devices.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Weak};

use super::establish::FakeEstablish;
use super::queue_pair::{FakeQueuePair, gone};
use super::receive_queue::FakeReceiveQueue;
use super::region::{Keys, register};
use super::service::Handle;
use super::settings::Call;
use super::state::{QpKey, State};
use super::window::FakeWindow;
use super::world::{DeviceState, SharedReceives};
use crate::{
    Access, Addressing, AsyncEvent, Counter, Device, DeviceInfo, DeviceLimits, Devices, Entropy, Error,
    ErrorCode, Establish, GoneNotice, LocalAddress, Memory, MemoryWindow, OsEntropy, PortState, QpState, Qpn,
    QueuePair, QueuePairConfig, ReceiveQueue, Region, Result,
};

/// An open device on a [`super::Fabric`].
pub struct FakeDevice {
    pub(super) handle: Arc<Handle>,
    id: usize,
    name: String,
    limits: DeviceLimits,
    keys: Arc<Keys>,
    /// The protection domain; 0 is the device's own.
    domain: u64,
    myself: Weak<Self>,
}

impl FakeDevice {
    pub(super) fn add(handle: &Arc<Handle>, info: DeviceInfo) -> Arc<Self> {
        let mut world = handle.lock();
        let id = world.devices.len();
        let keys = Arc::new(Keys::default());
        let (opened, faults) = (Weak::new(), Vec::new());
        let gone_notices = Vec::new();
        world.devices.push(DeviceState {
            info,
            keys,
            opened,
            gone: false,
            gone_notices,
            windows: true,
            window_ranges: true,
            cut: false,
            stalled: false,
            unacknowledged: false,
            faults,
        });
        Self::hold(handle, &mut world.devices[id], id)
    }

    fn hold(handle: &Arc<Handle>, device: &mut DeviceState, id: usize) -> Arc<Self> {
        let opened = device.opened.upgrade().unwrap_or_else(|| {
            Arc::new_cyclic(|myself| Self {
                handle: Arc::clone(handle),
                id,
                name: device.info.name.clone(),
                limits: device.info.limits.clone(),
                keys: Arc::clone(&device.keys),
                domain: 0,
                myself: myself.clone(),
            })
        });
        device.opened = Arc::downgrade(&opened);
        opened
    }

    pub(super) fn id(&self) -> usize {
        self.id
    }

    /// The address from which a connection over GID `index` of port 1 sends, as [`crate::choose`] would give it.
    /// `None` where there is no such port or index.
    #[must_use]
    pub fn local_address(&self, index: u8) -> Option<LocalAddress> {
        let world = self.handle.lock();
        let info = &world.devices[self.id].info;
        let port = info.ports.first()?;
        let entry = port.gids.iter().find(|entry| entry.index == index)?;
        Some(LocalAddress {
            device: info.name.clone(),
            kind: info.kind,
            port: port.number,
            gid_index: entry.index,
            gid: entry.gid,
            interface: entry.interface.clone(),
            link_layer: port.link_layer,
            lid: port.lid,
            path_mtu: port.active_mtu,
            reason: format!("the test asked for GID index {index}"),
        })
    }

    /// Makes the next call of this kind fail with `error`. Orders for several calls add up.
    pub fn fail_next(&self, call: Call, error: Error) {
        self.handle.lock().devices[self.id].faults.push((call, error));
    }

    /// Whether it has memory windows, as it has at first. Without, it gives private domains instead.
    pub fn set_memory_windows(&self, on: bool) {
        self.handle.lock().devices[self.id].windows = on;
    }

    /// Whether windows open their ranges alone, as they do at first. Without, a window opens the whole registration
    /// below it, as rxe's do.
    pub fn set_windows_keep_ranges(&self, on: bool) {
        self.handle.lock().devices[self.id].window_ranges = on;
    }

    /// Loses every packet from and to this device while `on`; nobody is told.
    pub fn blackhole(&self, on: bool) {
        self.handle.lock().devices[self.id].cut = on;
    }

    /// Gives no completion any more, not even a flush, as a device whose firmware hangs; nobody is told. Messages still
    /// arrive and are acknowledged.
    pub fn stall(&self) {
        self.handle.lock().devices[self.id].stalled = true;
    }

    /// Loses every acknowledgement and answer to requests of this device from now on, and nothing else: they arrive and are
    /// carried out, and stay outstanding until their queue pair is flushed. They are not repeated.
    pub fn lose_acknowledgements(&self) {
        self.handle.lock().devices[self.id].unacknowledged = true;
    }

    /// Lets an event happen to the device, with what it entails, and tells every queue pair on it.
    ///
    /// PortDown and PortUp: all its ports carry packets no more, or again. QueuePairFatal and CompletionQueueError:
    /// the queue pairs go to ERR and flush. DeviceGone: every later call fails with `ERR_RDMA_DEVICE_LOST`, and no
    /// further completion comes.
    pub fn inject(&self, event: AsyncEvent) {
        let keys = self.handle.lock().keys_of(self.id);
        self.inject_to_each(&keys, event);
    }

    /// The same for one queue pair alone; ports and device stay as they are.
    pub fn inject_to(&self, qpn: Qpn, event: AsyncEvent) {
        let mut world = self.handle.lock();
        let key = QpKey { device: self.id, qpn };
        world.raise(key, event);
        if matches!(event, AsyncEvent::QueuePairFatal | AsyncEvent::CompletionQueueError) {
            world.move_to_error(key);
        }
        drop(world);
        self.handle.wake();
    }

    fn inject_to_each(&self, keys: &[QpKey], event: AsyncEvent) {
        let mut world = self.handle.lock();
        let mut notices = Vec::new();
        match event {
            AsyncEvent::PortDown => world.set_ports(self.id, PortState::Down),
            AsyncEvent::PortUp => world.set_ports(self.id, PortState::Active),
            AsyncEvent::DeviceGone => {
                let device = &mut world.devices[self.id];
                device.gone = true;
                notices = std::mem::take(&mut device.gone_notices);
            }
            _ => {}
        }
        for key in keys {
            world.raise(*key, event);
            match event {
                AsyncEvent::QueuePairFatal | AsyncEvent::CompletionQueueError => world.move_to_error(*key),
                AsyncEvent::DeviceGone => world.vanish(*key),
                _ => {}
            }
        }
        drop(world);
        self.handle.wake();
        for notify in notices {
            notify();
        }
    }

    /// Itself, counted. The caller holds a count, so there is one.
    fn counted(&self) -> Result<Arc<Self>> {
        self.myself.upgrade().ok_or_else(|| gone(&self.name))
    }

    fn check(&self, call: Call) -> Result<()> {
        let device = &mut self.handle.lock().devices[self.id];
        match device.ordered_failure(call) {
            Some(error) => Err(error),
            None if device.gone => Err(gone(&self.name)),
            None => Ok(()),
        }
    }
}

impl Device for FakeDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> &DeviceLimits {
        &self.limits
    }

    fn is_gone(&self) -> bool {
        self.handle.lock().devices[self.id].gone
    }

    fn on_gone(&self, notify: GoneNotice) {
        let mut world = self.handle.lock();
        let device = &mut world.devices[self.id];
        if !device.gone {
            device.gone_notices.push(notify);
            return;
        }
        drop(world);
        notify();
    }

    /// The fabric's: of all its devices together.
    fn counters(&self, _: u8) -> Vec<Counter> {
        let tally = self.handle.lock().tally;
        let named =
            [("acknowledged", tally.acknowledged), ("lost", tally.lost), ("rnr_naks", tally.rnr_naks)];
        named.into_iter().map(|(name, value)| (name.into(), value)).collect()
    }

    fn register(&self, memory: Arc<Memory>, access: Access) -> Result<Arc<Region>> {
        self.check(Call::Register)?;
        let whole = (0, memory.len());
        register(&self.keys, self.domain, memory, whole, access)
    }

    fn windows_keep_ranges(&self) -> bool {
        self.handle.lock().devices[self.id].window_ranges
    }

    fn register_range(
        &self,
        memory: Arc<Memory>,
        offset: usize,
        length: usize,
        access: Access,
    ) -> Result<Arc<Region>> {
        self.check(Call::Register)?;
        register(&self.keys, self.domain, memory, (offset, length), access)
    }

    fn create_memory_window(&self) -> Result<Option<Arc<dyn MemoryWindow>>> {
        self.check(Call::CreateMemoryWindow)?;
        if !self.handle.lock().devices[self.id].windows {
            return Ok(None);
        }
        Ok(Some(FakeWindow::create(&self.keys, self.domain)?))
    }

    fn private_domain(&self) -> Result<Option<Arc<dyn Device>>> {
        let mut world = self.handle.lock();
        if world.devices[self.id].windows {
            return Ok(None);
        }
        let domain = world.next_domain;
        world.next_domain += 1;
        drop(world);
        Ok(Some(Arc::new_cyclic(|myself| Self {
            handle: Arc::clone(&self.handle),
            id: self.id,
            name: self.name.clone(),
            limits: DeviceLimits { max_shared_receives: 0, ..self.limits.clone() },
            keys: Arc::clone(&self.keys),
            domain,
            myself: myself.clone(),
        })))
    }

    fn create_receive_queue(&self, capacity: u32) -> Result<Option<Arc<dyn ReceiveQueue>>> {
        self.check(Call::CreateReceiveQueue)?;
        if self.limits.max_shared_receives == 0 {
            return Ok(None);
        }
        if capacity == 0 || capacity > self.limits.max_shared_receives {
            return Err(over(
                &self.name,
                "receives in a shared queue",
                capacity,
                self.limits.max_shared_receives,
            ));
        }
        let device = self.counted()?;
        let mut world = self.handle.lock();
        let number = world.next_receive_queue;
        world.next_receive_queue += 1;
        world
            .receive_queues
            .insert(number, SharedReceives { capacity: capacity as usize, requests: VecDeque::new() });
        Ok(Some(Arc::new(FakeReceiveQueue { device, number })))
    }

    fn create_queue_pair(&self, config: QueuePairConfig) -> Result<Arc<dyn QueuePair>> {
        self.check(Call::CreateQueuePair)?;
        let limits = &self.limits;
        for (what, value, limit) in [
            ("send work requests", config.max_send, limits.max_work_requests),
            ("receive work requests", config.max_receive, limits.max_work_requests),
            ("slices", config.max_sge, limits.max_sge),
            ("completions", config.max_send.saturating_add(config.max_receive), limits.max_completions),
        ] {
            if value > limit {
                return Err(over(&self.name, what, value, limit));
            }
        }
        let shared = match &config.receive_queue {
            None => None,
            Some(queue) => match queue.as_any().downcast_ref::<FakeReceiveQueue>() {
                Some(queue)
                    if queue.device.id == self.id && Arc::ptr_eq(&queue.device.handle, &self.handle) =>
                {
                    Some(queue.number)
                }
                _ => {
                    return Err(Error::new(
                        ErrorCode::InvalidArgument,
                        "the shared receive queue belongs to another device",
                    ));
                }
            },
        };
        let device = self.counted()?;
        let mut world = self.handle.lock();
        let key = loop {
            if let Some(qpn) = draw_qpn()? {
                let key = QpKey { device: self.id, qpn };
                if !world.queue_pairs.contains_key(&key) {
                    break key;
                }
            }
        };
        world.queue_pairs.insert(key, State::new(&config, self.domain, shared));
        Ok(Arc::new(FakeQueuePair { device, key, _receive_queue: config.receive_queue }))
    }

    fn establish(&self, local: &LocalAddress, addressing: Addressing) -> Result<Box<dyn Establish>> {
        self.check(Call::Establish)?;
        let world = self.handle.lock();
        let entry = world.devices[self.id]
            .port(local.port)
            .and_then(|port| port.gids.iter().find(|entry| entry.index == local.gid_index));
        if local.device != self.name || entry.is_none_or(|entry| entry.gid != local.gid) {
            return Err(Error::new(
                ErrorCode::DeviceLost,
                format!(
                    "{} port {} has no GID {} at index {}",
                    self.name, local.port, local.gid, local.gid_index
                ),
            ));
        }
        drop(world);
        Ok(Box::new(FakeEstablish { device: self.counted()?, local: local.clone(), addressing }))
    }
}

impl fmt::Debug for FakeDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeDevice").field("name", &self.name).finish_non_exhaustive()
    }
}

fn over(device: &str, what: &str, value: u32, limit: u32) -> Error {
    Error::new(ErrorCode::Resource, format!("{device} has no room for {value} {what}: its limit is {limit}"))
}

fn draw_qpn() -> Result<Option<Qpn>> {
    let mut bytes = [0; 3];
    OsEntropy.fill(&mut bytes)?;
    Ok(Qpn::new(u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]])))
}

/// A host: some of the devices of a fabric, as one process would see them.
pub struct Host {
    handle: Arc<Handle>,
    devices: Vec<usize>,
}

impl Host {
    pub(super) fn new(handle: &Arc<Handle>, devices: Vec<usize>) -> Self {
        Self { handle: Arc::clone(handle), devices }
    }
}

impl Devices for Host {
    fn list(&self) -> Result<Vec<DeviceInfo>> {
        let world = self.handle.lock();
        let there = self.devices.iter().map(|id| &world.devices[*id]).filter(|device| !device.gone);
        Ok(there.map(|device| device.info.clone()).collect())
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>> {
        let mut world = self.handle.lock();
        // Another of the same name may have come after one that is gone.
        let is_it = |id: &usize| !world.devices[*id].gone && world.devices[*id].info.name == name;
        let Some(id) = self.devices.iter().copied().find(is_it) else {
            return Err(Error::new(ErrorCode::DeviceNotFound, format!("no RDMA device is called {name:?}")));
        };
        let device = &mut world.devices[id];
        if let Some(error) = device.ordered_failure(Call::Open) {
            return Err(error);
        }
        if let Some(why) = &device.info.unusable {
            return Err(Error::new(ErrorCode::DeviceUnsupported, format!("{name} cannot be used: {why}")));
        }
        Ok(FakeDevice::hold(&self.handle, device, id))
    }

    /// Interface 1 is that of the first device on the fabric, and so on.
    fn interface_name(&self, index: u32) -> Option<String> {
        let world = self.handle.lock();
        let device = world.devices.get(usize::try_from(index).ok()?.checked_sub(1)?)?;
        device.info.ports.first()?.gids.first()?.interface.clone()
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("devices", &self.devices.len()).finish_non_exhaustive()
    }
}

impl super::world::World {
    /// The device under a queue pair is gone: nothing will complete.
    fn vanish(&mut self, key: QpKey) {
        self.stop_waiting(key);
        if let Some(state) = self.queue_pairs.get_mut(&key) {
            state.state = QpState::Err;
        }
    }
}
