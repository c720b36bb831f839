//! Devices and what connections share on them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use secure_rdma_rdma::{
    Counter, DeviceInfo, DeviceWish, Devices, Error, ErrorCode, QueuePairConfig, Result, choose_scoped,
};
use secure_rdma_session::{Host, Prepared, TlsAddresses};

use crate::channel::Channel;
use crate::options::{ConnectionOptions, DeviceOptions, PoolOptions};
use crate::pool::Resources;
use crate::upper::Upper;

/// Send work requests of a queue pair, outstanding at the most.
const MAX_SEND: u32 = 128;

/// Slices of a send work request at the most: a gather list that is longer is cut.
const MAX_SGE: u32 = 8;

/// The devices of a process. One is enough for all connections.
pub struct Registry {
    families: Vec<Arc<dyn Devices>>,
    open: Mutex<HashMap<(String, PoolOptions), Weak<Resources>>>,
    /// What servers keep.
    kept: Mutex<Vec<Weak<Kept>>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("families", &self.families.len()).finish_non_exhaustive()
    }
}

impl Registry {
    /// A registry of all devices that `families` list.
    #[must_use]
    pub fn new(families: Vec<Arc<dyn Devices>>) -> Arc<Self> {
        Arc::new(Self { families, open: Mutex::default(), kept: Mutex::default() })
    }

    /// Lists the devices.
    ///
    /// # Errors
    /// When the system cannot be asked.
    pub fn devices(&self) -> Result<Vec<DeviceInfo>> {
        self.listed(&DeviceWish::default())
    }

    /// The devices as far as `wish` needs them: a family that cannot be asked does not stand in the way of a device of
    /// another one that is named.
    fn listed(&self, wish: &DeviceWish) -> Result<Vec<DeviceInfo>> {
        let mut all = Vec::new();
        let mut failure = None;
        for family in &self.families {
            match family.list() {
                Ok(devices) => all.extend(devices),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let named = |name: &String| all.iter().any(|device| device.name == *name);
        match failure {
            Some(error) if !wish.device.as_ref().is_some_and(named) => Err(error),
            _ => Ok(all),
        }
    }

    /// What a port of a device counts, by the kernel's names: see [`secure_rdma_rdma::Device::counters`]. A device that
    /// nobody has open is opened for it, and one that counts itself then begins at 0. **Blocks.**
    ///
    /// # Errors
    /// `ERR_RDMA_DEVICE_NOT_FOUND` also for a port that it does not have, and why it cannot be opened.
    pub fn counters(&self, name: &str, port: u8) -> Result<Vec<Counter>> {
        let there = self.listed(&DeviceWish { device: Some(name.to_owned()), ..DeviceWish::default() })?;
        let Some(info) = there.iter().find(|device| device.name == name) else {
            let names: Vec<_> = there.iter().map(|device| device.name.as_str()).collect();
            let what = format!("no RDMA device is called {name:?}; there are: {}", names.join(", "));
            return Err(Error::new(ErrorCode::DeviceNotFound, what));
        };
        if info.unusable.is_none() && !info.ports.iter().any(|known| known.number == port) {
            let what = format!("{name} has no port {port}: give 1 to {}", info.ports.len());
            return Err(Error::new(ErrorCode::DeviceNotFound, what));
        }
        let open = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            let of_name = open.iter().filter(|((known, _), _)| known == name);
            of_name
                .filter_map(|(_, resources)| resources.upgrade())
                .find(|resources| !resources.device.is_gone())
        };
        match open {
            Some(resources) => Ok(resources.device.counters(port)),
            None => Ok(self.family(name)?.open(name)?.counters(port)),
        }
    }

    /// The family that lists a device of this name.
    fn family(&self, name: &str) -> Result<&Arc<dyn Devices>> {
        let lists = |family: &&Arc<dyn Devices>| {
            family.list().is_ok_and(|devices| devices.iter().any(|device| device.name == name))
        };
        self.families.iter().find(lists).ok_or_else(|| {
            Error::new(
                ErrorCode::DeviceNotFound,
                format!(
                    "the RDMA device {name} is no longer there (ibv_devices lists those that are): connect again when it is back"
                ),
            )
        })
    }

    fn resources(self: &Arc<Self>, name: &str, pool: PoolOptions) -> Result<Arc<Resources>> {
        // Opening blocks, and two openers must share: the lock is held all the while. It is off the event loop.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, resources| resources.strong_count() > 0);
        let key = (name.to_owned(), pool);
        // One that is gone may still be held; another of its name is opened beside it.
        let usable = |resources: &Arc<Resources>| !resources.device.is_gone();
        if let Some(resources) = open.get(&key).and_then(Weak::upgrade).filter(usable) {
            return Ok(resources);
        }
        let device = self.family(name)?.open(name)?;
        // Whoever has a device of this name open has this one, with other sizes of buffers: regions are registered with
        // the device once.
        let regions = {
            let of_name = open.iter().filter(|((known, _), _)| known == name);
            let beside = of_name.filter_map(|(_, resources)| resources.upgrade()).find(usable);
            beside.map(|resources| Arc::clone(&resources.regions))
        };
        let resources = Resources::new(device, pool, regions)?;
        open.insert(key, Arc::downgrade(&resources));
        // The removal of a device waits for those who have it open, and a server that nobody is connected to has no queue
        // pair that would hear of it.
        let registry = Arc::downgrade(self);
        resources.device.on_gone(Box::new(move || {
            if let Some(registry) = registry.upgrade() {
                registry.drop_gone();
            }
        }));
        Ok(resources)
    }

    /// The interface of an IPv6 link-local address, which is what it belongs to; `None` of all other addresses, and where
    /// no family knows it.
    fn interface_of(&self, address: SocketAddr) -> Option<String> {
        let SocketAddr::V6(v6) = address else { return None };
        if !v6.ip().is_unicast_link_local() {
            return None;
        }
        self.families.iter().find_map(|family| family.interface_name(v6.scope_id()))
    }

    /// What a new server keeps.
    fn keep(&self) -> Arc<Kept> {
        let kept = Arc::new(Kept(Mutex::new(Some(Vec::new()))));
        let mut all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(&kept));
        kept
    }

    fn drop_gone(&self) {
        let all: Vec<_> = {
            let all = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        all.iter().for_each(|kept| kept.drop_gone());
    }
}

/// Makes the queue pairs of one `connect` or one server.
pub(crate) struct DeviceHost {
    registry: Arc<Registry>,
    device: DeviceOptions,
    options: ConnectionOptions,
    /// A server's.
    kept: Option<Arc<Kept>>,
}

/// The devices that a server has used and keeps, so that the next client finds them open. `None` when it is closed:
/// a handshake that is still in a blocking call then must not fill it again.
struct Kept(Mutex<Option<Vec<Arc<Resources>>>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<Arc<Resources>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, resources: &Arc<Resources>) {
        {
            let mut kept = self.lock();
            let Some(kept) = kept.as_mut() else { return };
            if kept.iter().any(|known| Arc::ptr_eq(known, resources)) {
                return;
            }
            kept.push(Arc::clone(resources));
        }
        // Whoever told of it may have been here before.
        if resources.device.is_gone() {
            self.drop_gone();
        }
    }

    fn drop_gone(&self) {
        // Dropped without the lock: it unmakes what is on the device.
        let mut gone = Vec::new();
        if let Some(kept) = self.lock().as_mut() {
            gone.extend(kept.extract_if(.., |resources| resources.device.is_gone()));
        }
        drop(gone);
    }

    /// Whoever lets go of a device last gives all its memory back, which takes its time: on a thread of its own, since
    /// callers may have an event loop to turn.
    fn close(&self) {
        let kept = self.lock().take().unwrap_or_default();
        if !kept.is_empty() {
            // Where there is no thread to be had, it happens here.
            let _ = std::thread::Builder::new().name("secure-rdma-free".to_owned()).spawn(move || drop(kept));
        }
    }
}

impl DeviceHost {
    pub(crate) fn new(
        registry: &Arc<Registry>,
        device: DeviceOptions,
        options: ConnectionOptions,
        keep: bool,
    ) -> Arc<Self> {
        let kept = keep.then(|| registry.keep());
        Arc::new(Self { registry: Arc::clone(registry), device, options, kept })
    }

    /// Lets go of the devices that were kept open, and keeps none any more.
    pub(crate) fn release(&self) {
        if let Some(kept) = &self.kept {
            kept.close();
        }
    }
}

impl Drop for DeviceHost {
    fn drop(&mut self) {
        self.release();
    }
}

impl Host for DeviceHost {
    type Upper = Upper;

    fn prepare(&self, addresses: TlsAddresses) -> Result<Prepared<Upper>> {
        let devices = self.registry.listed(&self.device.wish)?;
        let scope = self.registry.interface_of(addresses.local);
        let local = choose_scoped(&devices, &self.device.wish, addresses.local.ip(), scope.as_deref())?;
        let resources = self.registry.resources(&local.device, self.options.pool)?;
        if let Some(kept) = &self.kept {
            kept.add(&resources);
        }
        let of_its_own = resources.of_one_connection(self.options.pool, self.options.credits)?;
        let resources = of_its_own.unwrap_or(resources);
        let device = Arc::clone(&resources.device);
        if let Some(path) = &self.device.capture_file {
            device.capture(path)?;
        }
        let reservation = resources.reserve(self.options.credits)?;
        let max_send = MAX_SEND.min(device.limits().max_work_requests);
        let queue = reservation.queue();
        let max_receive = u32::from(self.options.credits) + 1;
        let max_sge = device.limits().max_sge.min(MAX_SGE);
        let channel = Channel::new(self.options.clone(), reservation, (max_send, max_sge), |handler| {
            device.create_queue_pair(QueuePairConfig {
                max_send,
                max_receive,
                max_sge,
                receive_queue: queue,
                handler,
            })
        })?;
        let Some(queue_pair) = channel.queue_pair() else {
            return Err(Error::internal("a new channel has no queue pair"));
        };
        Ok(Prepared {
            device,
            local,
            addressing: self.device.addressing,
            queue_pair,
            upper: Arc::new(Upper(channel)),
        })
    }
}
