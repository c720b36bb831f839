//! Finding the way to a peer: our part of the offer, the peer's part judged, the address vector of INIT→RTR.

use std::sync::Arc;

use secure_rdma_rdma::{
    AddressVector, DevicePart, Error, ErrorCode, Establish, Gid, GidEntry, GlobalRoute, LinkLayer,
    LocalAddress, PathContext, PathMtu, QpAttr, ROCE_UDP_PORT, Result, Route, UdpRoute,
};

use crate::core::Owner;
use crate::holder;
use crate::ports::Family;
use crate::route;
use crate::socket::HOP_LIMIT;

/// Begins the search from `local`, where this host still has that address.
pub(crate) fn begin(
    owner: &Arc<Owner>,
    local: &LocalAddress,
    gids: &[GidEntry],
) -> Result<Box<dyn Establish>> {
    if local.device != owner.name {
        let message = format!("the local address is on {}, the device is {}", local.device, owner.name);
        return Err(Error::new(ErrorCode::InvalidArgument, message));
    }
    // Indices are given out anew whenever an address comes or goes: the address itself and its interface count.
    let same = |entry: &&GidEntry| route::is_own(entry, local.gid) && entry.interface == local.interface;
    let Some(entry) = gids.iter().find(same) else {
        return Err(Error::new(
            ErrorCode::NoMatchingDevice,
            format!("{} is no longer an address of this host", local.gid.to_ip()),
        ));
    };
    if owner.ports.of(local.gid.to_ip()).is_none() {
        let message = format!("{} has no sockets for {}", owner.name, local.gid.to_ip());
        return Err(Error::new(ErrorCode::NoMatchingDevice, message));
    }
    let mut local = local.clone();
    local.gid_index = entry.index;
    Ok(Box::new(SoftEstablish { owner: Arc::clone(owner), local, path_mtu: entry.mtu }))
}

struct SoftEstablish {
    owner: Arc<Owner>,
    local: LocalAddress,
    path_mtu: Option<PathMtu>,
}

impl SoftEstablish {
    fn family(&self) -> Option<&Family> {
        self.owner.ports.of(self.local.gid.to_ip())
    }

    /// A peer that is a NIC or the kernel's soft-RoCE sends to UDP port 4791 and to no other.
    fn check_own_port(&self, family: &Family) -> Result<()> {
        if family.port() == ROCE_UDP_PORT {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::Path,
            format!(
                "the peer is a verbs device, which sends to UDP port {ROCE_UDP_PORT} only, and {} receives on {}: {}. \
                 Only the process that holds {ROCE_UDP_PORT} can serve verbs peers with {}",
                self.owner.name,
                family.port(),
                holder::describe(ROCE_UDP_PORT),
                self.owner.name,
            ),
        ))
    }
}

impl Establish for SoftEstablish {
    fn local_part(&self) -> Vec<u8> {
        let mut part = DevicePart::new(LinkLayer::Ethernet, self.local.gid, self.local.lid);
        if let Some(family) = self.family() {
            part.udp_port = Some(family.port()).filter(|port| *port != ROCE_UDP_PORT);
            part.udp_source_port = Some(family.send.port(self.local.gid.to_ip()));
            part.receive_buffer = Some(family.receive_buffer);
        }
        part.encode()
    }

    fn resolve(self: Box<Self>, peer_part: &[u8], context: &PathContext) -> Result<Box<dyn Route>> {
        let peer = DevicePart::decode(peer_part)?;
        context.check_peer(LinkLayer::Ethernet, &peer)?;
        let (own, theirs) = (self.local.gid.to_ip(), peer.gid.to_ip());
        let family = self.family().filter(|_| own.is_ipv4() == theirs.is_ipv4()).ok_or_else(|| {
            let message = format!(
                "the peer's address {theirs} cannot be reached from {own}: they are of different families"
            );
            Error::new(ErrorCode::Offer, message)
        })?;
        // A part with neither is a verbs device's.
        if peer.receive_buffer.or(peer.udp_port.map(u32::from)).is_none() {
            self.check_own_port(family)?;
        }
        let port = peer.receive_port().unwrap_or(ROCE_UDP_PORT);
        let udp = UdpRoute {
            source: own,
            destination: route::destination(peer.gid, port, self.local.interface.as_deref()),
            expected_source_port: peer.udp_source_port,
            receive_buffer: peer.receive_buffer,
        };
        let vector = AddressVector {
            port: self.local.port,
            global: Some(GlobalRoute {
                destination: peer.gid,
                source_gid_index: self.local.gid_index,
                flow_label: 0,
                hop_limit: HOP_LIMIT,
                traffic_class: 0,
            }),
            udp: Some(udp),
            ..AddressVector::default()
        };
        let description = format!("UDP ports {} and {port}", family.port());
        Ok(Box::new(SoftRoute { vector, peer: peer.gid, port, path_mtu: self.path_mtu, description }))
    }
}

struct SoftRoute {
    vector: AddressVector,
    peer: Gid,
    port: u16,
    path_mtu: Option<PathMtu>,
    description: String,
}

impl Route for SoftRoute {
    fn rtr(&self, attr: &mut QpAttr) -> Result<()> {
        attr.address = Some(self.vector.clone());
        Ok(())
    }

    fn peer_gid(&self) -> Gid {
        self.peer
    }

    fn udp_port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn path_mtu(&self) -> Option<PathMtu> {
        self.path_mtu
    }

    fn description(&self) -> String {
        self.description.clone()
    }
}
