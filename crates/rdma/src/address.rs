//! Where the packets of a queue pair go.

use std::net::{IpAddr, SocketAddr};

use crate::{Gid, Lid};

/// The address vector of a reliable connection: what INIT→RTR takes as `ah_attr`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressVector {
    /// The local port, from 1.
    pub port: u8,
    /// The peer's LID; 0 on RoCE.
    pub destination_lid: Lid,
    /// InfiniBand service level, 0 to 15; on RoCE it becomes the VLAN priority.
    pub service_level: u8,
    /// Low bits of the source LID, for multipath subnets; 0 on RoCE.
    pub source_path_bits: u8,
    /// The largest rate, `enum ibv_rate`; 0 is the port's own.
    pub static_rate: u8,
    /// The GRH. RoCE always has one, InfiniBand only across subnets or when asked.
    pub global: Option<GlobalRoute>,
    /// What a device needs whose packets go through a UDP socket (`soft`). Others take no notice of it.
    pub udp: Option<UdpRoute>,
}

/// Where packets go that go through a UDP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UdpRoute {
    /// The own address that they come from.
    pub source: IpAddr,
    /// The peer's address, with the port that it receives on; a link-local one with its interface.
    pub destination: SocketAddr,
    /// The UDP port that the peer's packets come from, where it is one port for all.
    pub expected_source_port: Option<u16>,
    /// Bytes that the peer's receive buffer holds, where it told: it is a `soft` device then.
    pub receive_buffer: Option<u32>,
}

/// The global routing header's fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalRoute {
    /// The peer's GID.
    pub destination: Gid,
    /// Index of the own GID in the port's table. Look it up; never assume it.
    pub source_gid_index: u8,
    /// 20 bits. 0 lets the device derive the UDP source port from the two QPNs.
    pub flow_label: u32,
    /// TTL or hop limit, usually 64.
    pub hop_limit: u8,
    /// DSCP and ECN bits.
    pub traffic_class: u8,
}
