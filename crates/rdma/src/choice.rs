//! Which device, port and GID a connection uses, and why.

use std::net::IpAddr;

use crate::{
    DeviceInfo, DeviceKind, Error, ErrorCode, Gid, GidEntry, GidKind, LinkLayer, LocalAddress, PortInfo,
    PortState, Result,
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

/// Chooses among `devices` for a TLS connection whose local address is `tls_local`.
///
/// The rule: the GID equal to the local address (RoCE v2; link-local last), or the port whose network interface
/// carries that address (InfiniBand, whose GIDs are no IP addresses). A wish narrows what is looked at. Where there
/// are devices but none fits, that is an error with the candidates in it: never a silent substitute.
///
/// The embedded device has every address of the host, and so would fit always. It is taken where it is asked for by
/// name, where there is no other device that can be used, and on loopback, where there seldom is one.
///
/// A GID index that is asked for by number need not fit the TLS connection's address (RDMA may be on another
/// network), but then it must be on one port only: of several, none is guessed.
///
/// # Errors
/// [`ErrorCode::DeviceNotFound`], [`ErrorCode::DeviceUnsupported`], [`ErrorCode::NoMatchingDevice`], and
/// [`ErrorCode::NoDevice`] where it would be the embedded device's turn and it is not listed.
pub fn choose(devices: &[DeviceInfo], wish: &DeviceWish, tls_local: IpAddr) -> Result<LocalAddress> {
    choose_scoped(devices, wish, tls_local, None)
}

/// [`choose`] where the network interface of `tls_local` is known, too: that of a link-local address.
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
) -> Result<LocalAddress> {
    let address = wish.rdma_address.unwrap_or(tls_local).to_canonical();
    // The scope belongs to the TLS connection's address, not to another one.
    let scope = scope.filter(|_| wish.rdma_address.is_none());
    let auto = wish.device.is_none() && wish.port.is_none() && wish.gid_index.is_none();

    if let Some(best) = best(looked_at(devices, wish)?, wish, address, scope)? {
        return Ok(best);
    }
    let others = || devices.iter().filter(|device| device.kind != DeviceKind::Soft);
    if auto && address.is_loopback() {
        return embedded(devices, wish, address, scope, format!("the connection is on loopback ({address})"));
    }
    if auto && others().all(|device| device.unusable.is_some()) {
        return embedded(devices, wish, address, scope, none_usable(&others().collect::<Vec<_>>()));
    }
    Err(no_match(devices, wish, address, scope))
}

/// What fits best on these devices, if anything does.
fn best(
    looked_at: Vec<&DeviceInfo>,
    wish: &DeviceWish,
    address: IpAddr,
    scope: Option<&str>,
) -> Result<Option<LocalAddress>> {
    let mut candidates = Vec::new();
    for device in looked_at {
        for port in &device.ports {
            if port.state == PortState::Active && wish.port.is_none_or(|number| number == port.number) {
                candidates.extend(port_candidates(device, port, wish, address, scope));
            }
        }
    }
    // Stable sort: of equals, the first listed wins.
    candidates.sort_by_key(|candidate| candidate.rank);
    let mut candidates = candidates.into_iter();
    let Some(best) = candidates.next() else { return Ok(None) };
    let another = candidates.find(|candidate| candidate.rank == best.rank && !candidate.same_port(&best));
    match another {
        Some(another) if best.rank != Rank::Address => Err(ambiguous(&best.local, &another.local)),
        _ => Ok(Some(best.local)),
    }
}

/// The embedded device, and why it is its turn.
fn embedded(
    devices: &[DeviceInfo],
    wish: &DeviceWish,
    address: IpAddr,
    scope: Option<&str>,
    reason: String,
) -> Result<LocalAddress> {
    let soft = devices.iter().find(|device| device.kind == DeviceKind::Soft);
    match soft {
        None => Err(Error::new(
            ErrorCode::NoDevice,
            format!(
                "{reason}, and there is no embedded device either. Use a host with an RDMA NIC, or give it a \
                 soft-RoCE device: modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0"
            ),
        )),
        Some(DeviceInfo { name, unusable: Some(why), .. }) => {
            Err(Error::new(ErrorCode::NoDevice, format!("{reason}, and {name} cannot be used: {why}")))
        }
        Some(soft) => match best(vec![soft], wish, address, scope)? {
            Some(local) => Ok(LocalAddress { reason, ..local }),
            None => {
                let wish = DeviceWish { device: Some(soft.name.clone()), ..wish.clone() };
                Err(no_match(devices, &wish, address, scope))
            }
        },
    }
}

/// The devices that the wish leaves. Nothing but its name leads to the embedded one.
fn looked_at<'a>(devices: &'a [DeviceInfo], wish: &DeviceWish) -> Result<Vec<&'a DeviceInfo>> {
    let Some(name) = &wish.device else {
        let usable = |device: &&DeviceInfo| device.kind != DeviceKind::Soft && device.unusable.is_none();
        return Ok(devices.iter().filter(usable).collect());
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
        let whole_loopback = device.kind == DeviceKind::Soft
            && wish.gid_index.is_none()
            && both_ipv4_loopback(entry.gid, address);
        let fits = if !ethernet {
            carries
        } else if whole_loopback {
            true
        } else {
            entry.gid == Gid::from_ip(address) && !(link_local && on_another_interface(entry, scope))
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
        let mut local = local_address(device, port, entry, reason);
        if whole_loopback {
            local.gid = Gid::from_ip(address);
        }
        Some(Candidate { rank, local })
    })
}

/// The loopback interface has 127.0.0.1, and every other address of 127.0.0.0/8 is this host's, too. The embedded
/// device sends from any of them.
fn both_ipv4_loopback(gid: Gid, address: IpAddr) -> bool {
    address.is_ipv4() && address.is_loopback() && gid.to_ip().is_ipv4() && gid.is_loopback()
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
        path_mtu: entry.mtu.unwrap_or(port.active_mtu),
        reason,
    }
}

fn not_found(name: &str, devices: &[DeviceInfo]) -> Error {
    let names = |soft: bool| {
        let which = devices.iter().filter(|device| (device.kind == DeviceKind::Soft) == soft);
        which.map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ")
    };
    let there = match (names(false), names(true)) {
        (others, soft) if others.is_empty() && soft.is_empty() => {
            "there is no RDMA device on this host (ibv_devices lists them)".to_owned()
        }
        (others, soft) if others.is_empty() => {
            format!("there is none on this host (ibv_devices lists them) but the embedded one, {soft}")
        }
        (others, soft) if soft.is_empty() => format!("there are: {others}"),
        (others, soft) => format!("there are: {others}, {soft}"),
    };
    Error::new(ErrorCode::DeviceNotFound, format!("no RDMA device is called {name:?}; {there}"))
}

fn none_usable(devices: &[&DeviceInfo]) -> String {
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

fn no_match(devices: &[DeviceInfo], wish: &DeviceWish, address: IpAddr, scope: Option<&str>) -> Error {
    let soft = devices.iter().find(|device| device.kind == DeviceKind::Soft);
    let by_name = soft.filter(|soft| wish.device.as_ref() == Some(&soft.name));
    let list = match by_name {
        Some(soft) => candidates(&[soft]),
        None => {
            candidates(&devices.iter().filter(|device| device.kind != DeviceKind::Soft).collect::<Vec<_>>())
        }
    };
    let mut asked = format!("address {address}");
    if let Some(scope) = scope {
        asked.push_str(&format!(" on the interface {scope}"));
    }
    if let Some(device) = &wish.device {
        asked.push_str(&format!(", device {device}"));
    }
    if let Some(port) = wish.port {
        asked.push_str(&format!(", port {port}"));
    }
    if let Some(index) = wish.gid_index {
        asked.push_str(&format!(", GID index {index}"));
    }
    let embedded = match (soft, by_name) {
        (Some(soft), None) => {
            format!(
                ". The embedded device, {:?}, has every address of this host: it is used if device names it",
                soft.name
            )
        }
        _ => String::new(),
    };
    Error::new(
        ErrorCode::NoMatchingDevice,
        format!(
            "no RDMA device fits {asked}. Candidates: {}. Connect over an address that one of them has, or say \
             rdmaAddress, or device, devicePort and gidIndex{embedded}",
            if list.is_empty() { "none".to_owned() } else { list.join("; ") }
        ),
    )
}

/// What there is, for people who ask why none of it fits.
fn candidates(devices: &[&DeviceInfo]) -> Vec<String> {
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
