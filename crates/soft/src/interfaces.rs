//! The GID table: the addresses of this host's network interfaces.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use secure_rdma_rdma::{Error, ErrorCode, Gid, GidEntry, GidKind, PathMtu, Result};

use crate::socket::interface_mtu;

/// The longest headers of a packet: IPv6, UDP, BTH, the longest extension headers, ICRC; rxe leaves as much.
const HEADERS: usize = 80;

/// The GIDs, one for each address of each interface that is up, in the system's order. A table has 256 places.
pub(crate) fn gids() -> Result<Vec<GidEntry>> {
    let found = getifaddrs().map_err(|errno| {
        Error::new(ErrorCode::Resource, format!("the addresses of this host cannot be listed: {errno}"))
            .with_syscall("getifaddrs", errno as i32)
    })?;
    let addresses = found.filter(|entry| entry.flags.contains(InterfaceFlags::IFF_UP)).filter_map(|entry| {
        let address = entry.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = || address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        Some((v4.or_else(v6)?, entry.interface_name))
    });
    let entries = addresses.zip(0_u8..=u8::MAX).map(|((address, interface), index)| GidEntry {
        index,
        gid: Gid::from_ip(address),
        kind: GidKind::RoceV2,
        mtu: Some(path_mtu(&interface)),
        interface: Some(interface),
    });
    Ok(entries.collect())
}

/// The interface's number, which a link-local address needs; 0 for one that is gone.
pub(crate) fn index(interface: &str) -> u32 {
    if_nametoindex(interface).unwrap_or(0)
}

/// The largest path MTU that an interface carries. Where its MTU is not known it is taken as Ethernet's usual one.
fn path_mtu(interface: &str) -> PathMtu {
    largest(interface_mtu(interface).unwrap_or(1500))
}

/// The largest path MTU whose packets fit into `mtu` bytes (`rxe_param.h`, `eth_mtu_int_to_enum`); below 336 bytes none does, and the smallest
/// is given.
fn largest(mtu: usize) -> PathMtu {
    let fits = |code: &u8| {
        PathMtu::from_code(*code).is_some_and(|path_mtu| path_mtu.bytes() <= mtu.saturating_sub(HEADERS))
    };
    (1..=5).rev().find(fits).and_then(PathMtu::from_code).unwrap_or(PathMtu::Bytes256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_there() {
        let gids = gids().unwrap();
        let loopback = Gid::from_ip("127.0.0.1".parse().unwrap());
        let entry = gids.iter().find(|entry| entry.gid == loopback).unwrap();
        assert_eq!((entry.interface.as_deref(), entry.mtu), (Some("lo"), Some(PathMtu::Bytes4096)));
        assert!(gids.iter().zip(0..).all(|(entry, index)| entry.index == index));
        assert_eq!((index("lo"), index("no such")), (1, 0));
        let sysfs = std::fs::read_to_string("/sys/class/net/lo/mtu").unwrap();
        assert_eq!(interface_mtu("lo"), sysfs.trim().parse().ok());
        assert_eq!((interface_mtu("no such"), interface_mtu("a name that is far too long")), (None, None));
    }

    #[test]
    fn the_path_mtu_leaves_room_for_headers() {
        let cases = [(0, 256), (335, 256), (336, 256), (591, 256), (592, 512), (1500, 1024), (2200, 2048)];
        for (mtu, expected) in
            cases.into_iter().chain([(4175, 2048), (4176, 4096), (9000, 4096), (65536, 4096)])
        {
            assert_eq!(largest(mtu).bytes(), expected, "{mtu}");
        }
    }
}
