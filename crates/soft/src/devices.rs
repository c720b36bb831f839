//! Listing the embedded device, and opening it: process-wide, and counted.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    Device, DeviceInfo, DeviceKind, Devices, Error, ErrorCode, GidEntry, Lid, LinkLayer, PathMtu, PortInfo,
    PortState, Result,
};

use crate::NAME;
use crate::core::{Owner, lock};
use crate::device::SoftDevice;
use crate::interfaces;
use crate::limits::limits;
use crate::options::SoftOptions;
use crate::socket::Opener;

/// The number of the one port.
pub(crate) const PORT: u8 = 1;

/// The device of the process, and what is left of it when all its sockets are closed.
static OPEN: Mutex<(Weak<Owner>, Weak<Opener>)> = Mutex::new((Weak::new(), Weak::new()));

/// Held by whoever opens it, and not by who only looks.
static OPENING: Mutex<()> = Mutex::new(());

/// How long the end of a device that is closing is waited for: of its threads one may be busy with something else.
const CLOSES: Duration = Duration::from_secs(2);

/// The embedded device, as a family of one. Its name is [`NAME`], its one port has every address of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftDevices;

impl SoftDevices {
    /// Opens the device, or hands out the one that is open. [`SoftDevice::open`] opens another. **Blocks**: where the one
    /// before is still closing, until its UDP port is free again.
    ///
    /// # Errors
    /// [`ErrorCode::DeviceOpen`] when there are no sockets, [`ErrorCode::Entropy`].
    pub fn open_soft() -> Result<Arc<SoftDevice>> {
        let _opening = lock(&OPENING);
        let (open, last) = lock(&OPEN).clone();
        match open.upgrade() {
            Some(owner) if owner.check().is_ok() => return Ok(Arc::new(SoftDevice::of(owner))),
            // It has failed, or is our parent's: whoever holds it may do so for long.
            Some(_) => {}
            None => wait_until_closed(&last),
        }
        let device = SoftDevice::open(&SoftOptions::default())?;
        *lock(&OPEN) = (Arc::downgrade(device.owner()), Arc::downgrade(&device.owner().opener));
        Ok(device)
    }
}

/// Waits until a device that is closing has closed its sockets. In a forked child that is the parent's to do.
fn wait_until_closed(last: &Weak<Opener>) {
    let began = Instant::now();
    while began.elapsed() < CLOSES && last.upgrade().is_some_and(|opener| opener.is_current()) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl SoftDevices {
    /// The device of the process, if it is open.
    #[must_use]
    pub fn opened() -> Option<Arc<SoftDevice>> {
        let owner = lock(&OPEN).0.upgrade()?;
        Some(Arc::new(SoftDevice::of(owner)))
    }
}

impl Devices for SoftDevices {
    fn list(&self) -> Result<Vec<DeviceInfo>> {
        Ok(vec![info(NAME)?])
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>> {
        if name != NAME {
            let message = format!("no RDMA device is called {name:?}; the embedded one is {NAME:?}");
            return Err(Error::new(ErrorCode::DeviceNotFound, message));
        }
        Ok(Self::open_soft()?)
    }
}

/// The device as it is now: addresses come and go.
pub(crate) fn info(name: &str) -> Result<DeviceInfo> {
    let gids = interfaces::gids()?;
    let addresses: Vec<IpAddr> = gids.iter().map(|entry| entry.gid.to_ip()).collect();
    let widest = gids.iter().filter_map(|entry: &GidEntry| entry.mtu).max();
    let state = if gids.is_empty() { PortState::Down } else { PortState::Active };
    let port = PortInfo {
        number: PORT,
        state,
        link_layer: LinkLayer::Ethernet,
        lid: Lid(0),
        active_mtu: widest.unwrap_or(PathMtu::Bytes256),
        gids,
        addresses,
    };
    Ok(DeviceInfo {
        name: name.to_owned(),
        kind: DeviceKind::Soft,
        unusable: None,
        ports: vec![port],
        limits: limits(),
    })
}
