//! Opening devices: process-wide, and counted.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use secure_rdma_rdma::{
    Access, Addressing, Counter, Device, DeviceInfo, DeviceLimits, Devices, Error, ErrorCode, Establish,
    GoneNotice, LocalAddress, Memory, MemoryWindow, QueuePair, QueuePairConfig, ReceiveQueue, Region, Result,
};

use crate::context::{DeviceList, Domain};
use crate::core::{Core, Owner};
use crate::library::{self, Loaded};
use crate::private::PrivateDevice;
use crate::{establish, interfaces, listing, queue_pair, region, service, shared, sysfs, window};

/// The open devices of the process, by name. Opening the same one twice at once gives one.
static OPEN: Mutex<Option<HashMap<String, Weak<Owner>>>> = Mutex::new(None);

/// All devices that libibverbs shows.
///
/// The library is loaded when it is first asked for something. Without it there are no devices: listing gives an
/// empty list, and opening one says what to install.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verbs;

impl Devices for Verbs {
    fn list(&self) -> Result<Vec<DeviceInfo>> {
        match library::verbs() {
            Loaded::Absent(_) => Ok(Vec::new()),
            _ => listing::list(library::require_verbs()?),
        }
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>> {
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let open = open.get_or_insert_default();
        open.retain(|_, owner| owner.strong_count() > 0);
        let usable = |owner: &Arc<Owner>| owner.opener.is_current() && !owner.is_gone();
        let found = open.get(name).and_then(Weak::upgrade).filter(usable);
        let owner = match found {
            Some(owner) => owner,
            None => {
                let owner = open_new(name)?;
                open.insert(name.to_owned(), Arc::downgrade(&owner));
                owner
            }
        };
        Ok(Arc::new(VerbsDevice { owner }))
    }

    fn interface_name(&self, index: u32) -> Option<String> {
        interfaces::name(index)
    }
}

/// The open device of that name, for tests that look behind the traits.
pub(crate) fn find_open(name: &str) -> Option<Arc<Owner>> {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.as_ref()?.get(name)?.upgrade()
}

fn open_new(name: &str) -> Result<Arc<Owner>> {
    let verbs = library::require_verbs()?;
    let list = DeviceList::get(verbs)?;
    let Some(device) = list.iter().find(|device| device.name() == name) else {
        let names: Vec<_> = list.iter().map(|device| device.name()).collect();
        let there = if names.is_empty() {
            "none is there".to_owned()
        } else {
            format!("there are: {}", names.join(", "))
        };
        return Err(Error::new(
            ErrorCode::DeviceNotFound,
            format!("no RDMA device is called {name:?}; {there}"),
        ));
    };
    if let Some(why) = listing::unusable(device.transport()) {
        return Err(Error::new(ErrorCode::DeviceUnsupported, format!("{name} cannot be used: {why}")));
    }
    let context = device.open()?;
    let (limits, shared, features) = listing::limits_of(&context)?;
    let domain = Domain::make(context)?;
    let core = Arc::new(Core::new(name.to_owned(), device.node(), limits, shared, features, domain)?);
    service::start(Arc::clone(&core))?;
    Ok(Arc::new(Owner::new(core)))
}

/// An open device of libibverbs.
struct VerbsDevice {
    owner: Arc<Owner>,
}

impl fmt::Debug for VerbsDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerbsDevice").field("name", &self.owner.name).finish_non_exhaustive()
    }
}

impl Device for VerbsDevice {
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

    fn counters(&self, port: u8) -> Vec<Counter> {
        sysfs::Port::new(Path::new(sysfs::DEVICES), &self.owner.name, port).counters()
    }

    fn register(&self, memory: Arc<Memory>, access: Access) -> Result<Arc<Region>> {
        let whole = (0, memory.len());
        region::register(&self.owner, None, memory, whole, access)
    }

    fn windows_keep_ranges(&self) -> bool {
        self.owner.features.window_ranges
    }

    fn register_range(
        &self,
        memory: Arc<Memory>,
        offset: usize,
        length: usize,
        access: Access,
    ) -> Result<Arc<Region>> {
        region::register(&self.owner, None, memory, (offset, length), access)
    }

    fn create_memory_window(&self) -> Result<Option<Arc<dyn MemoryWindow>>> {
        window::create(&self.owner, None)
    }

    fn private_domain(&self) -> Result<Option<Arc<dyn Device>>> {
        if self.owner.features.windows {
            return Ok(None);
        }
        let device = Arc::new(Self { owner: Arc::clone(&self.owner) });
        PrivateDevice::make(&self.owner, device).map(Some)
    }

    fn create_receive_queue(&self, capacity: u32) -> Result<Option<Arc<dyn ReceiveQueue>>> {
        shared::create(&self.owner, capacity)
    }

    fn create_queue_pair(&self, config: QueuePairConfig) -> Result<Arc<dyn QueuePair>> {
        queue_pair::create(&self.owner, None, &config)
    }

    fn establish(&self, local: &LocalAddress, addressing: Addressing) -> Result<Box<dyn Establish>> {
        self.owner.check()?;
        let port = sysfs::Port::new(Path::new(sysfs::DEVICES), &self.owner.name, local.port);
        let entry = port.gid(local.gid_index);
        establish::begin(&self.owner, local, entry.as_ref(), addressing)
    }
}
