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
/// A GID index that is asked for by number need not fit the TLS connection's address (RDMA may be on another
/// network), but then it must be on one port only: of several, none is guessed.
///
/// # Errors
/// [`ErrorCode::DeviceNotFound`], [`ErrorCode::DeviceUnsupported`], [`ErrorCode::NoMatchingDevice`].
pub fn choose(devices: &[DeviceInfo], wish: &DeviceWish, tls_local: IpAddr) -> Result<Choice> {
    choose_scoped(devices, wish, tls_local, None)
}

/// [`choose`] where the network interface of `tls_local` is known, too.
///
/// An IPv6 link-local address means something on one interface only, and interfaces that share a hardware address
/// (VLANs, macvlan) have the same one. Without `scope`, several ports with that GID are an error.
///
/// # Errors
/// Those of [`choose`].
pub fn choose_scoped(
    devices: &[DeviceInfo],
    wish: &DeviceWish,
    tls_local: IpAddr,
    scope: Option<&str>,
) -> Result<Choice> {
    let address = wish.rdma_address.unwrap_or(tls_local).to_canonical();
    // The scope belongs to the TLS connection's address, not to another one.
    let scope = scope.filter(|_| wish.rdma_address.is_none());
    let auto = wish.device.is_none() && wish.port.is_none() && wish.gid_index.is_none();

    let mut candidates = Vec::new();
    for device in looked_at(devices, wish)? {
        for port in &device.ports {
            if port.state == PortState::Active && wish.port.is_none_or(|number| number == port.number) {
                candidates.extend(port_candidates(device, port, wish, address, scope));
            }
        }
    }
    // Stable sort: of equals, the first listed wins.
    candidates.sort_by_key(|candidate| candidate.rank);
    let mut candidates = candidates.into_iter();
    if let Some(best) = candidates.next() {
        let another = candidates.find(|candidate| candidate.rank == best.rank && !candidate.same_port(&best));
        return match another {
            Some(another) if best.rank != Rank::Address => Err(ambiguous(&best.local, &another.local)),
            _ => Ok(Choice::Device(best.local)),
        };
    }

    if auto && address.is_loopback() {
        return Ok(Choice::Embedded { reason: format!("the connection is on loopback ({address})") });
    }
    if auto && devices.iter().all(|device| device.unusable.is_some()) {
        return Ok(Choice::Embedded { reason: none_usable(devices) });
    }
    Err(no_match(devices, wish, address))
}

/// The devices that the wish leaves.
fn looked_at<'a>(devices: &'a [DeviceInfo], wish: &DeviceWish) -> Result<Vec<&'a DeviceInfo>> {
    let Some(name) = &wish.device else {
        return Ok(devices.iter().filter(|device| device.unusable.is_none()).collect());
    };
    let Some(device) = devices.iter().find(|device| device.name == *name) else {
        return Err(not_found(name, devices));
    };
    match &device.unusable {
        Some(why) => Err(Error::new(ErrorCode::DeviceUnsupported, format!("{name} cannot be used: {why}"))),
        None => Ok(vec![device]),
    }
}

/// How well a GID fits; smaller is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// By its address.
    Address,
    /// By its address, which is link-local.
    LinkLocal,
    /// Not at all, but its index was asked for.
    Index,
}

struct Candidate {
    rank: Rank,
    local: LocalAddress,
}

impl Candidate {
    fn same_port(&self, other: &Self) -> bool {
        (&self.local.device, self.local.port) == (&other.local.device, other.local.port)
    }
}

fn port_candidates<'a>(
    device: &'a DeviceInfo,
    port: &'a PortInfo,
    wish: &'a DeviceWish,
    address: IpAddr,
    scope: Option<&'a str>,
) -> impl Iterator<Item = Candidate> + 'a {
    let carries = port.addresses.iter().any(|carried| carried.to_canonical() == address);
    port.gids.iter().filter_map(move |entry| {
        let ethernet = port.link_layer == LinkLayer::Ethernet;
        if entry.gid.is_unspecified() || (ethernet && entry.kind != GidKind::RoceV2) {
            return None;
        }
        // InfiniBand's GIDs are link-local by their prefix, which means nothing here.
        let link_local = ethernet && entry.gid.is_link_local();
        let fits = if ethernet {
            entry.gid == Gid::from_ip(address) && !(link_local && on_another_interface(entry, scope))
        } else {
            carries
        };
        let whose =
            if wish.rdma_address.is_some() { "rdmaAddress" } else { "local address of the TLS connection" };
        let (rank, reason) = match wish.gid_index {
            Some(index) if index != entry.index => return None,
            Some(index) if !fits && wish.rdma_address.is_none() => {
                (Rank::Index, format!("GID index {index} was asked for"))
            }
            _ if !fits => return None,
            _ => {
                let rank = if link_local { Rank::LinkLocal } else { Rank::Address };
                let how = if ethernet { "its GID is" } else { "its network interface carries" };
                (rank, format!("{how} the {whose}, {address}"))
            }
        };
        Some(Candidate { rank, local: local_address(device, port, entry, reason) })
    })
}

fn on_another_interface(entry: &GidEntry, scope: Option<&str>) -> bool {
    matches!((scope, &entry.interface), (Some(scope), Some(interface)) if scope != interface)
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

fn not_found(name: &str, devices: &[DeviceInfo]) -> Error {
    let there = if devices.is_empty() {
        "there is no RDMA device on this host (ibv_devices lists them)".to_owned()
    } else {
        format!("there are: {}", devices.iter().map(|d| d.name.as_str()).collect::<Vec<_>>().join(", "))
    };
    Error::new(ErrorCode::DeviceNotFound, format!("no RDMA device is called {name:?}; {there}"))
}

fn none_usable(devices: &[DeviceInfo]) -> String {
    if devices.is_empty() {
        return "there is no RDMA device on this host".to_owned();
    }
    format!("no RDMA device of this host can be used ({})", candidates(devices).join("; "))
}

fn ambiguous(one: &LocalAddress, another: &LocalAddress) -> Error {
    let name = |local: &LocalAddress| format!("{} port {}", local.device, local.port);
    Error::new(
        ErrorCode::NoMatchingDevice,
        format!(
            "{} and {} fit equally: {}, and {}. Say device and devicePort",
            name(one),
            name(another),
            one.reason,
            another.reason
        ),
    )
}

fn no_match(devices: &[DeviceInfo], wish: &DeviceWish, address: IpAddr) -> Error {
    let list = candidates(devices);
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
             rdmaAddress, or device, devicePort and gidIndex",
            if list.is_empty() { "none".to_owned() } else { list.join("; ") }
        ),
    )
}

/// What there is, for people who ask why none of it fits.
fn candidates(devices: &[DeviceInfo]) -> Vec<String> {
    let mut list = Vec::new();
    for device in devices {
        if let Some(why) = &device.unusable {
            list.push(format!("{}: {why}", device.name));
            continue;
        }
        for port in &device.ports {
            let state = if port.state == PortState::Active { "" } else { " (down)" };
            list.push(format!("{} port {}{state}: {}", device.name, port.number, names(port)));
        }
    }
    list
}

/// A port's GIDs, and on InfiniBand, where they say nothing, its interface's addresses.
fn names(port: &PortInfo) -> String {
    let gid = |entry: &GidEntry| match (port.link_layer, entry.kind) {
        (LinkLayer::Infiniband, _) => format!("{}={}", entry.index, entry.gid),
        (LinkLayer::Ethernet, GidKind::RoceV2) => format!("{}={}", entry.index, entry.gid.to_ip()),
        (LinkLayer::Ethernet, GidKind::InfinibandOrRoceV1) => {
            format!("{}={} (RoCE v1, not used)", entry.index, entry.gid.to_ip())
        }
    };
    let gids: Vec<_> = port.gids.iter().map(gid).collect();
    let gids = if gids.is_empty() { "no GID".to_owned() } else { format!("GIDs {}", gids.join(" ")) };
    if port.link_layer == LinkLayer::Ethernet {
        return gids;
    }
    let addresses: Vec<_> = port.addresses.iter().map(ToString::to_string).collect();
    let addresses = if addresses.is_empty() { "no IP address".to_owned() } else { addresses.join(" ") };
    format!("interface with {addresses}, {gids}")
}
