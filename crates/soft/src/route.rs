//! From an address vector to the engine's path.

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use secure_rdma_rdma::{
    AddressVector, Error, ErrorCode, Gid, GidEntry, GlobalRoute, ROCE_UDP_PORT, Result, UdpRoute,
};

use crate::core::Owner;
use crate::engine::Path;
use crate::interfaces;

/// The path of an address vector. One without UDP ports is that of a peer on 4791, as NICs take it.
pub(crate) fn path(owner: &Owner, vector: &AddressVector) -> Result<Path> {
    let refuse = |what: &str| {
        Error::new(ErrorCode::Modify, format!("{} refuses the address vector: {what}", owner.name))
    };
    let Some(route) = &vector.global else { return Err(refuse("RoCE needs a GRH")) };
    let udp = match &vector.udp {
        Some(udp) => udp.clone(),
        None => by_index(route)?,
    };
    let Some(family) = owner.ports.of(udp.source) else {
        return Err(refuse("this host has no sockets of the own address's family"));
    };
    if udp.source.is_ipv4() != udp.destination.is_ipv4() {
        return Err(refuse("own and peer's address are of different families"));
    }
    if udp.destination.port() == 0 {
        return Err(refuse("the peer's UDP port is 0"));
    }
    Ok(Path {
        local: udp.source,
        peer: udp.destination,
        source_port: family.send.port(udp.source),
        expected_source_port: udp.expected_source_port,
        receive_buffer: udp.receive_buffer,
        sequential_ids: udp.receive_buffer.is_some(),
        hop_limit: route.hop_limit,
        traffic_class: route.traffic_class,
    })
}

fn by_index(route: &GlobalRoute) -> Result<UdpRoute> {
    let gids = interfaces::gids()?;
    let Some(entry) = gids.iter().find(|entry| entry.index == route.source_gid_index) else {
        let message = format!("the GID index {} is empty", route.source_gid_index);
        return Err(Error::new(ErrorCode::Modify, message));
    };
    Ok(UdpRoute {
        source: entry.gid.to_ip(),
        destination: destination(route.destination, ROCE_UDP_PORT, entry.interface.as_deref()),
        expected_source_port: None,
        receive_buffer: None,
    })
}

/// Where packets for a GID go. A link-local address means something on the own address's interface only.
pub(crate) fn destination(gid: Gid, port: u16, interface: Option<&str>) -> SocketAddr {
    match gid.to_ip() {
        IpAddr::V6(address) if gid.is_link_local() => {
            let scope = interface.map_or(0, interfaces::index);
            SocketAddrV6::new(address, port, 0, scope).into()
        }
        address => SocketAddr::new(address, port),
    }
}

/// Whether `gid` is of this host's table at that index. 127.0.0.1 stands for all of 127.0.0.0/8: every host has those
/// addresses, whether its interface shows them or not.
pub(crate) fn is_own(entry: &GidEntry, gid: Gid) -> bool {
    let loopback = |gid: Gid| gid.is_loopback() && gid.to_ip().is_ipv4();
    entry.gid == gid || (loopback(entry.gid) && loopback(gid))
}
