//! Listing the embedded device, and opening it: process-wide, and counted.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, Weak};

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

/// The number of the one port.
pub(crate) const PORT: u8 = 1;

/// The open device of the process.
static OPEN: Mutex<Weak<Owner>> = Mutex::new(Weak::new());

/// The embedded device, as a family of one. Its name is [`NAME`], its one port has every address of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct SoftDevices;

impl SoftDevices {
    /// Opens the device, or hands out the one that is open. [`SoftDevice::open`] opens another.
    ///
    /// # Errors
    /// [`ErrorCode::DeviceOpen`] when there are no sockets, [`ErrorCode::Entropy`].
    pub fn open_soft() -> Result<Arc<SoftDevice>> {
        let mut open = lock(&OPEN);
        if let Some(owner) = open.upgrade().filter(|owner| owner.check().is_ok()) {
            return Ok(Arc::new(SoftDevice::of(owner)));
        }
        let device = SoftDevice::open(&SoftOptions::default())?;
        *open = Arc::downgrade(device.owner());
        Ok(device)
    }
}

impl SoftDevices {
    /// The device of the process, if it is open.
    #[must_use]
    pub fn opened() -> Option<Arc<SoftDevice>> {
        let owner = lock(&OPEN).upgrade()?;
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
