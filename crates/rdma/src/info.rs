//! What is known of a device before it is used.

use std::fmt;
use std::net::IpAddr;

use crate::{Gid, GidKind, Lid, PathMtu};

/// Which implementation stands behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// libibverbs: a NIC, or the kernel's soft-RoCE.
    Verbs,
    /// The embedded device.
    Soft,
    /// In memory, for tests.
    Fake,
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verbs => "verbs",
            Self::Soft => "soft",
            Self::Fake => "fake",
        })
    }
}

/// What carries a port's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkLayer {
    /// InfiniBand: addressed by LID.
    Infiniband,
    /// Ethernet: RoCE, addressed by GID.
    Ethernet,
}

/// A port's state, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortState {
    /// It carries packets.
    Active,
    /// It does not.
    Down,
}

/// One entry of a port's GID table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidEntry {
    /// Its index. Assignment order, never to be assumed.
    pub index: u8,
    /// The GID.
    pub gid: Gid,
    /// How its packets are carried.
    pub kind: GidKind,
    /// The network interface that it comes from, where there is one.
    pub interface: Option<String>,
    /// The largest path MTU that this interface carries, where it need not be the port's: the embedded device has one
    /// port for all interfaces.
    pub mtu: Option<PathMtu>,
}

/// One port of a device.
#[derive(Clone, Debug)]
pub struct PortInfo {
    /// Its number, from 1.
    pub number: u8,
    /// Whether it carries packets.
    pub state: PortState,
    /// InfiniBand or Ethernet.
    pub link_layer: LinkLayer,
    /// Its LID; 0 on Ethernet.
    pub lid: Lid,
    /// The largest path MTU that the port carries now.
    pub active_mtu: PathMtu,
    /// Its GIDs, empty entries left out.
    pub gids: Vec<GidEntry>,
    /// IP addresses of the network interface that belongs to the port (for InfiniBand: IPoIB), which its GIDs
    /// need not show.
    pub addresses: Vec<IpAddr>,
}

/// What a device can do at the most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceLimits {
    /// Work requests per queue.
    pub max_work_requests: u32,
    /// Scatter/gather entries per work request.
    pub max_sge: u32,
    /// Completions per completion queue.
    pub max_completions: u32,
    /// READs and atomics as responder (`max_qp_rd_atom`).
    pub max_responder_resources: u8,
    /// READs and atomics as requester (`max_qp_init_rd_atom`).
    pub max_initiator_depth: u8,
    /// Work requests per shared receive queue; 0 where there are none.
    pub max_shared_receives: u32,
    /// The longest message, in bytes.
    pub max_message: u32,
}

/// A device as listed.
#[derive(Clone, Debug)]
pub struct DeviceInfo {
    /// `rxe0`, `mlx5_0`, `soft`.
    pub name: String,
    /// Which implementation.
    pub kind: DeviceKind,
    /// Why it cannot carry our connections, where it cannot (iWARP).
    pub unusable: Option<String>,
    /// Its ports.
    pub ports: Vec<PortInfo>,
    /// What it can do.
    pub limits: DeviceLimits,
}

/// The port, GID and path MTU from which one connection sends; the outcome of [`crate::choose`].
#[derive(Clone, Debug)]
pub struct LocalAddress {
    /// The device's name.
    pub device: String,
    /// Which implementation.
    pub kind: DeviceKind,
    /// The port, from 1.
    pub port: u8,
    /// Index of the GID in the port's table.
    pub gid_index: u8,
    /// The GID.
    pub gid: Gid,
    /// The network interface that the GID comes from.
    pub interface: Option<String>,
    /// InfiniBand or Ethernet.
    pub link_layer: LinkLayer,
    /// The port's LID; 0 on Ethernet.
    pub lid: Lid,
    /// The largest path MTU that the port, or the GID's interface, carries.
    pub path_mtu: PathMtu,
    /// Why this one was chosen, as a sentence for people.
    pub reason: String,
}
