//! The global identifier: a port's address in the GRH, and under RoCEv2 an IP address.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// A global identifier: 16 bytes. On RoCEv2 it is an IP address; IPv4 stands as `::ffff:a.b.c.d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid([u8; 16]);

impl Gid {
    /// Takes the bytes as they stand in the GID table.
    #[must_use]
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes as they stand in the GID table and in the GRH.
    #[must_use]
    pub const fn bytes(self) -> [u8; 16] {
        self.0
    }

    /// The GID that RoCEv2 gives to an address.
    #[must_use]
    pub fn from_ip(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().octets()),
            IpAddr::V6(v6) => Self(v6.octets()),
        }
    }

    /// The IP address that this GID stands for on RoCEv2. On InfiniBand it stands for none.
    #[must_use]
    pub fn to_ip(self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.0);
        v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
    }

    /// Whether the table entry is empty.
    #[must_use]
    pub fn is_unspecified(self) -> bool {
        self.0 == [0; 16] || self.to_ip().is_unspecified()
    }

    /// Whether it is an IPv6 link-local address (fe80::/10).
    #[must_use]
    pub const fn is_link_local(self) -> bool {
        self.0[0] == 0xFE && self.0[1] & 0xC0 == 0x80
    }

    /// Whether it stands for a loopback address.
    #[must_use]
    pub fn is_loopback(self) -> bool {
        self.to_ip().is_loopback()
    }

    /// Whether it is a multicast or broadcast address.
    #[must_use]
    pub fn is_multicast(self) -> bool {
        match self.to_ip() {
            IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_multicast(),
        }
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv6Addr::from(self.0).fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({self})")
    }
}

/// How packets of a GID are carried, as sysfs `gid_attrs/types/N` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GidKind {
    /// InfiniBand, or RoCE version 1: sysfs says `IB/RoCE v1`.
    InfinibandOrRoceV1,
    /// RoCE version 2, over UDP port 4791: sysfs says `RoCE v2`.
    RoceV2,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_mapped() {
        let gid = Gid::from_ip("10.8.0.1".parse().unwrap());
        assert_eq!(gid.bytes(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 8, 0, 1]);
        assert_eq!(gid.to_ip(), "10.8.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn kinds_of_address_are_told_apart() {
        let gid = |text: &str| Gid::from_ip(text.parse().unwrap());
        assert!(gid("0.0.0.0").is_unspecified() && gid("::").is_unspecified());
        assert!(gid("127.0.0.5").is_loopback() && gid("::1").is_loopback() && !gid("10.8.0.1").is_loopback());
        assert!(
            gid("fe80::1").is_link_local()
                && gid("febf::1").is_link_local()
                && !gid("fec0::1").is_link_local()
        );
        assert!(
            gid("224.0.0.1").is_multicast()
                && gid("255.255.255.255").is_multicast()
                && gid("ff02::1").is_multicast()
        );
    }
}
