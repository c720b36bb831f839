//! The device.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use secure_rdma_rdma::{
    Access, Addressing, Counter, Device, DeviceInfo, DeviceLimits, Error, ErrorCode, Establish, GoneNotice,
    LocalAddress, Memory, MemoryWindow, QueuePair, QueuePairConfig, ReceiveQueue, Region, Result,
};

use crate::capture::Capture;
use crate::core::{Core, Owner, lock};
use crate::loop_poller::LoopPoller;
use crate::options::SoftOptions;
use crate::poller::Poller;
use crate::queue_pair::SoftQueuePair;
use crate::receive_queue::SoftReceiveQueue;
use crate::traffic::SoftCounters;
use crate::{devices, establish, interfaces, region, service};

/// An open device: sockets, one service thread, and the engine between them. It closes when the last of its handles,
/// queue pairs, regions, windows and receive queues is dropped.
pub struct SoftDevice {
    owner: Arc<Owner>,
}

impl SoftDevice {
    /// Opens a device of its own, apart from the one of the process. **Blocks**, briefly.
    ///
    /// # Errors
    /// [`ErrorCode::DeviceOpen`] when a socket cannot be had or set up, or the service thread not be started;
    /// [`ErrorCode::Entropy`]; [`ErrorCode::InvalidArgument`] for options that make no sense.
    pub fn open(options: &SoftOptions) -> Result<Arc<Self>> {
        let core = Arc::new(Core::open(options)?);
        service::start(Arc::clone(&core))?;
        Ok(Arc::new(Self { owner: Arc::new(Owner::new(core)) }))
    }

    pub(crate) fn of(owner: Arc<Owner>) -> Self {
        Self { owner }
    }

    pub(crate) fn owner(&self) -> &Arc<Owner> {
        &self.owner
    }

    /// The device as [`secure_rdma_rdma::Devices::list`] would list it.
    ///
    /// # Errors
    /// When the addresses of this host cannot be listed.
    pub fn info(&self) -> Result<DeviceInfo> {
        devices::info(&self.owner.name)
    }

    /// Takes the sockets over from the service thread, for as long as the poller lives.
    #[must_use]
    pub fn poller(&self) -> Poller {
        Poller::new(Arc::clone(&self.owner))
    }

    /// The same for a thread that has an event loop, and until the device is closed.
    #[must_use]
    pub fn loop_poller(&self) -> LoopPoller {
        LoopPoller::new(&self.owner)
    }

    /// What has been counted since the device was opened.
    #[must_use]
    pub fn counters(&self) -> SoftCounters {
        let engine = *self.owner.state().engine.counters();
        self.owner.settle_graves();
        let drops = self.owner.ports.iter().filter_map(|family| family.receive.dropped().ok());
        let drops = drops.map(u64::from).sum();
        SoftCounters { engine, sockets: self.owner.traffic.read(drops) }
    }

    /// The UDP port that it receives on over IPv4, or where there is none, over IPv6.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.owner.ports.iter().next().map_or(0, crate::ports::Family::port)
    }
}

impl fmt::Debug for SoftDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftDevice").field("name", &self.owner.name).finish_non_exhaustive()
    }
}

impl Device for SoftDevice {
    fn name(&self) -> &str {
        &self.owner.name
    }

    fn limits(&self) -> &DeviceLimits {
        &self.owner.limits
    }

    fn is_gone(&self) -> bool {
        self.owner.is_gone()
    }

    fn on_gone(&self, notify: GoneNotice) {
        self.owner.gone().on_set(notify);
    }

    /// The engine's, and the sockets' behind them with `socket_` before their names; since the device was opened.
    fn counters(&self, port: u8) -> Vec<Counter> {
        if port != devices::PORT {
            return Vec::new();
        }
        let SoftCounters { engine, sockets } = Self::counters(self);
        let engine = engine.iter().map(|(name, value)| (name.into(), value));
        engine.chain(sockets.iter().map(|(name, value)| (format!("socket_{name}").into(), value))).collect()
    }

    fn register(&self, memory: Arc<Memory>, access: Access) -> Result<Arc<Region>> {
        region::register(&self.owner, memory, access)
    }

    fn create_receive_queue(&self, capacity: u32) -> Result<Option<Arc<dyn ReceiveQueue>>> {
        SoftReceiveQueue::create(&self.owner, capacity).map(Some)
    }

    fn create_memory_window(&self) -> Result<Option<Arc<dyn MemoryWindow>>> {
        region::create_window(&self.owner).map(Some)
    }

    fn create_queue_pair(&self, config: QueuePairConfig) -> Result<Arc<dyn QueuePair>> {
        SoftQueuePair::create(&self.owner, config)
    }

    /// There is one way to a peer, so that `addressing` makes no difference.
    fn establish(&self, local: &LocalAddress, _addressing: Addressing) -> Result<Box<dyn Establish>> {
        self.owner.check()?;
        establish::begin(&self.owner, local, &interfaces::gids()?)
    }

    fn capture(&self, path: &Path) -> Result<()> {
        self.owner.check()?;
        self.owner.start_capture(path)
    }
}

impl Core {
    /// Begins to write packets to a file.
    pub(crate) fn start_capture(&self, path: &Path) -> Result<()> {
        let refuse = |why: String| Err(Error::new(ErrorCode::InvalidArgument, why));
        let _one_at_a_time = lock(&self.starting_capture);
        match self.capture.get() {
            Some(capture) if capture.path() == path => Ok(()),
            Some(capture) => {
                let (asked, written) = (path.display(), capture.path().display());
                refuse(format!("{} cannot capture to {asked}: it captures to {written}", self.name))
            }
            None => match Capture::create(path) {
                Ok(capture) => {
                    let _ = self.capture.set(capture);
                    Ok(())
                }
                Err(cause) => refuse(format!("{} cannot capture to {}: {cause}", self.name, path.display())),
            },
        }
    }
}
