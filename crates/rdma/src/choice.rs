//! Which device, port and GID a connection uses, and why.

use std::net::IpAddr;

use crate::{
    DeviceInfo, Error, ErrorCode, Gid, GidEntry, GidKind, LinkLayer, LocalAddress, PortInfo, PortState,
    Result,
};

/// What the user asked for. Everything empty is `auto`.
#[derive(Clone, Debug, Default)]
pub struct DeviceWish {
    /// A device by name.
    pub device: Option<String>,
    /// A port, from 1.
    pub port: Option<u8>,
    /// A GID index.
    pub gid_index: Option<u8>,
    /// The local address that RDMA uses, where it is not the one of the TLS connection.
    pub rdma_address: Option<IpAddr>,
}

/// The outcome of [`choose`].
#[derive(Clone, Debug)]
pub enum Choice {
    /// A listed device.
    Device(LocalAddress),
    /// None is there, or the TLS connection is on loopback: the embedded device may take it.
    Embedded {
        /// Why, as a sentence for people.
        reason: String,
    },
}

/// Chooses among `devices` for a TLS connection whose local address is `tls_local`.
///
/// The rule: the GID equal to the local address (RoCE v2; link-local last), or the port whose network interface
/// carries that address (InfiniBand, whose GIDs are no IP addresses). A wish narrows what is looked at. Where there
/// are devices but none fits, that is an error with the candidates in it: never a silent substitute.
///
/// # Errors
/// [`ErrorCode::DeviceNotFound`], [`ErrorCode::DeviceUnsupported`], [`ErrorCode::NoMatchingDevice`].
pub fn choose(devices: &[DeviceInfo], wish: &DeviceWish, tls_local: IpAddr) -> Result<Choice> {
    let address = canonical(wish.rdma_address.unwrap_or(tls_local));
    let auto = wish.device.is_none() && wish.port.is_none() && wish.gid_index.is_none();

    let named = match &wish.device {
        Some(name) => {
            let found: Vec<_> = devices.iter().filter(|device| device.name == *name).collect();
            match found.first() {
                None => return Err(not_found(name, devices)),
                Some(device) => {
                    if let Some(why) = &device.unusable {
                        return Err(Error::new(
                            ErrorCode::DeviceUnsupported,
                            format!("{name} cannot be used: {why}"),
                        ));
                    }
                }
            }
            found
        }
        None => devices.iter().filter(|device| device.unusable.is_none()).collect(),
    };

    let mut candidates = Vec::new();
    for device in named {
        for port in &device.ports {
            if wish.port.is_none_or(|number| number == port.number) {
                candidates.extend(port_candidates(device, port, wish, address));
            }
        }
    }
    // Stable sort: of equals, the first listed wins.
    candidates.sort_by_key(|candidate| candidate.rank);
    if let Some(best) = candidates.into_iter().next() {
        return Ok(Choice::Device(best.local));
    }

    let usable = devices.iter().any(|device| device.unusable.is_none());
    if auto && address.is_loopback() {
        return Ok(Choice::Embedded { reason: format!("the connection is on loopback ({address})") });
    }
    if auto && !usable {
        return Ok(Choice::Embedded { reason: "there is no RDMA device on this host".to_owned() });
    }
    Err(no_match(devices, wish, address))
}

struct Candidate {
    rank: u8,
    local: LocalAddress,
}

fn port_candidates<'a>(
    device: &'a DeviceInfo,
    port: &'a PortInfo,
    wish: &'a DeviceWish,
    address: IpAddr,
) -> impl Iterator<Item = Candidate> + 'a {
    port.gids.iter().filter_map(move |entry| {
        if port.state != PortState::Active || entry.gid.is_unspecified() {
            return None;
        }
        let by_gid = port.link_layer == LinkLayer::Ethernet && entry.gid == Gid::from_ip(address);
        let by_interface = port.link_layer == LinkLayer::Infiniband && port.addresses.contains(&address);
        let reason = match (wish.gid_index, by_gid, by_interface) {
            (Some(index), _, _) if index != entry.index => return None,
            (Some(index), _, _) => format!("GID index {index} was asked for"),
            (None, true, _) if wish.rdma_address.is_some() => format!("its GID is the rdmaAddress {address}"),
            (None, true, _) => format!("its GID is the local address of the TLS connection, {address}"),
            (None, _, true) => format!("its network interface carries the local address {address}"),
            _ => return None,
        };
        if port.link_layer == LinkLayer::Ethernet && entry.kind != GidKind::RoceV2 {
            return None;
        }
        Some(Candidate {
            rank: u8::from(entry.gid.is_link_local()),
            local: local_address(device, port, entry, reason),
        })
    })
}

fn local_address(device: &DeviceInfo, port: &PortInfo, entry: &GidEntry, reason: String) -> LocalAddress {
    LocalAddress {
        device: device.name.clone(),
        kind: device.kind,
        port: port.number,
        gid_index: entry.index,
        gid: entry.gid,
        interface: entry.interface.clone(),
        link_layer: port.link_layer,
        lid: port.lid,
        path_mtu: port.active_mtu,
        reason,
    }
}

/// A socket that is bound to `::` tells an IPv4 peer's address in mapped form.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn not_found(name: &str, devices: &[DeviceInfo]) -> Error {
    let there = if devices.is_empty() {
        "there is no RDMA device on this host (ibv_devices lists them)".to_owned()
    } else {
        format!("there are: {}", devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", "))
    };
    Error::new(ErrorCode::DeviceNotFound, format!("no RDMA device is called {name:?}; {there}"))
}

fn no_match(devices: &[DeviceInfo], wish: &DeviceWish, address: IpAddr) -> Error {
    let mut list = Vec::new();
    for device in devices {
        if let Some(why) = &device.unusable {
            list.push(format!("{}: {why}", device.name));
        }
        for port in &device.ports {
            let gids: Vec<_> =
                port.gids.iter().map(|entry| format!("{}={}", entry.index, entry.gid)).collect();
            let state = if port.state == PortState::Active { "" } else { ", down" };
            list.push(format!("{} port {}{state}: GIDs {}", device.name, port.number, gids.join(" ")));
        }
    }
    let mut asked = format!("address {address}");
    if let Some(device) = &wish.device {
        asked.push_str(&format!(", device {device}"));
    }
    if let Some(port) = wish.port {
        asked.push_str(&format!(", port {port}"));
    }
    if let Some(index) = wish.gid_index {
        asked.push_str(&format!(", GID index {index}"));
    }
    Error::new(
        ErrorCode::NoMatchingDevice,
        format!(
            "no RDMA device fits {asked}. Candidates: {}. Connect over an address that one of them has, or say \
             rdmaAddress, or device, port and gidIndex",
            if list.is_empty() { "none".to_owned() } else { list.join("; ") }
        ),
    )
}
