//! Devices as JavaScript sees them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use napi::bindgen_prelude::Either;
use napi_derive::napi;
use secure_rdma_rdma::{
    Counter, DeviceInfo, DeviceLimits, GidEntry, GidKind, LinkLayer, PortInfo, PortState, Result,
};

use crate::bell::{Bell, lock};
use crate::environment::value;
use crate::error::NativeError;
use crate::process::Process;
use crate::report::number;

/// One entry of a port's GID table.
#[napi(object, object_from_js = false)]
pub struct NativeGid {
    /// Its index.
    pub index: u32,
    /// The GID, written as an IPv6 address.
    pub gid: String,
    /// `RoCE v2` or `IB/RoCE v1`.
    pub kind: String,
    /// The network interface that it comes from.
    pub interface: Option<String>,
    /// The largest path MTU of that interface, in bytes, where it need not be the port's.
    pub mtu: Option<u32>,
}

/// One port of a device.
#[napi(object, object_from_js = false)]
pub struct NativePort {
    /// Its number, from 1.
    pub number: u32,
    /// Whether it carries packets.
    pub active: bool,
    /// `ethernet` or `infiniband`.
    pub link_layer: String,
    /// Its LID; 0 on Ethernet.
    pub lid: u32,
    /// The largest path MTU, in bytes.
    pub active_mtu: u32,
    /// Its GIDs.
    pub gids: Vec<NativeGid>,
    /// Addresses of its network interface.
    pub addresses: Vec<String>,
}

/// What a device can do at the most.
#[napi(object, object_from_js = false)]
pub struct NativeLimits {
    /// Work requests per queue.
    pub max_work_requests: u32,
    /// Scatter/gather entries per work request.
    pub max_sge: u32,
    /// Completions per completion queue.
    pub max_completions: u32,
    /// READs and atomics as responder.
    pub max_responder_resources: u32,
    /// READs and atomics as requester.
    pub max_initiator_depth: u32,
    /// Work requests per shared receive queue; 0 where there are none.
    pub max_shared_receives: u32,
    /// The longest message, in bytes.
    pub max_message: u32,
}

/// A device as listed.
#[napi(object, object_from_js = false)]
pub struct NativeDevice {
    /// `rxe0`, `mlx5_0`, `soft`.
    pub name: String,
    /// `verbs`, `soft`.
    pub kind: String,
    /// Why it cannot carry connections.
    pub unusable: Option<String>,
    /// Its ports.
    pub ports: Vec<NativePort>,
    /// What it can do.
    pub limits: NativeLimits,
}

impl From<&GidEntry> for NativeGid {
    fn from(entry: &GidEntry) -> Self {
        let kind = match entry.kind {
            GidKind::RoceV2 => "RoCE v2",
            GidKind::InfinibandOrRoceV1 => "IB/RoCE v1",
        };
        Self {
            index: entry.index.into(),
            gid: entry.gid.to_string(),
            kind: kind.to_owned(),
            interface: entry.interface.clone(),
            mtu: entry.mtu.map(mtu),
        }
    }
}

impl From<&PortInfo> for NativePort {
    fn from(port: &PortInfo) -> Self {
        Self {
            number: port.number.into(),
            active: port.state == PortState::Active,
            link_layer: link_layer(port.link_layer),
            lid: port.lid.0.into(),
            active_mtu: mtu(port.active_mtu),
            gids: port.gids.iter().map(NativeGid::from).collect(),
            addresses: port.addresses.iter().map(ToString::to_string).collect(),
        }
    }
}

impl From<&DeviceLimits> for NativeLimits {
    fn from(limits: &DeviceLimits) -> Self {
        Self {
            max_work_requests: limits.max_work_requests,
            max_sge: limits.max_sge,
            max_completions: limits.max_completions,
            max_responder_resources: limits.max_responder_resources.into(),
            max_initiator_depth: limits.max_initiator_depth.into(),
            max_shared_receives: limits.max_shared_receives,
            max_message: limits.max_message,
        }
    }
}

impl From<&DeviceInfo> for NativeDevice {
    fn from(device: &DeviceInfo) -> Self {
        Self {
            name: device.name.clone(),
            kind: device.kind.to_string(),
            unusable: device.unusable.clone(),
            ports: device.ports.iter().map(NativePort::from).collect(),
            limits: NativeLimits::from(&device.limits),
        }
    }
}

pub(crate) fn link_layer(link_layer: LinkLayer) -> String {
    match link_layer {
        LinkLayer::Ethernet => "ethernet",
        LinkLayer::Infiniband => "infiniband",
    }
    .to_owned()
}

/// 256 to 4096.
pub(crate) fn mtu(mtu: secure_rdma_rdma::PathMtu) -> u32 {
    128 << mtu.code()
}

/// A listing of the devices that is under way.
#[napi]
pub struct Listing {
    outcome: Arc<Mutex<Option<Result<Vec<DeviceInfo>>>>>,
}

#[napi]
impl Listing {
    /// The devices, or `null` while they are not known yet.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take(&self) -> Option<Either<Vec<NativeDevice>, NativeError>> {
        let devices = lock(&self.outcome).take()?;
        Some(value(devices.map(|devices| devices.iter().map(NativeDevice::from).collect())))
    }
}

impl Listing {
    pub(crate) fn begin(bell: Bell) -> Result<Self> {
        let process = Process::get()?;
        let outcome = Arc::new(Mutex::new(None));
        let told = Arc::clone(&outcome);
        process.runtime.spawn_blocking(move || {
            *lock(&told) = Some(process.registry.devices());
            bell.ring();
        });
        Ok(Self { outcome })
    }
}

/// A look at the counters of a device that is under way.
#[napi]
pub struct Counting {
    outcome: Arc<Mutex<Option<Result<Vec<Counter>>>>>,
}

#[napi]
impl Counting {
    /// The counters by name, or `null` while they are not known yet.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take(&self) -> Option<Either<HashMap<String, f64>, NativeError>> {
        let counters = lock(&self.outcome).take()?;
        let named = |(name, value): Counter| (name.into_owned(), number(value));
        Some(value(counters.map(|counters| counters.into_iter().map(named).collect())))
    }
}

impl Counting {
    pub(crate) fn begin(bell: Bell, device: String, port: u8) -> Result<Self> {
        let process = Process::get()?;
        let outcome = Arc::new(Mutex::new(None));
        let told = Arc::clone(&outcome);
        process.runtime.spawn_blocking(move || {
            *lock(&told) = Some(process.registry.counters(&device, port));
            bell.ring();
        });
        Ok(Self { outcome })
    }
}
