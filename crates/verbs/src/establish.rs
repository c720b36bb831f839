//! Finding the way to a peer: our part of the offer, the peer's part judged, the address vector of INIT→RTR.
//!
//! No way of addressing here runs `rdma_connect` or sends a CM packet. A later one that does (`cm`) would be a third
//! [`Establish`] beside these two: it would keep its id from `resolve` on, amend attributes in [`Route::rtr`] and
//! [`Route::rts`], and end in [`Route::established`].

use std::sync::Arc;

use secure_rdma_rdma::{
    AddressVector, Addressing, DevicePart, Error, ErrorCode, Establish, Gid, GidEntry, GlobalRoute,
    LinkLayer, LocalAddress, PathContext, PathMtu, QpAttr, ROCE_UDP_PORT, Result, Route,
};

use crate::core::Owner;
use crate::resolve::{self, Resolved};

/// TTL and hop limit where no route says another.
const HOP_LIMIT: u8 = 64;

/// Begins the search from `local`, whose entry in the GID table is now `entry`.
pub(crate) fn begin(
    owner: &Arc<Owner>,
    local: &LocalAddress,
    entry: Option<&GidEntry>,
    addressing: Addressing,
) -> Result<Box<dyn Establish>> {
    if local.device != owner.name {
        let message = format!("the local address is on {}, the device is {}", local.device, owner.name);
        return Err(Error::new(ErrorCode::InvalidArgument, message));
    }
    if entry.is_none_or(|entry| entry.gid != local.gid) {
        return Err(Error::new(
            ErrorCode::NoMatchingDevice,
            format!(
                "GID index {} of {} port {} is no longer {}: the address was removed from its interface. Connect \
                 again over one that is there",
                local.gid_index, local.device, local.port, local.gid
            ),
        ));
    }
    Ok(Box::new(VerbsEstablish { local: local.clone(), addressing }))
}

struct VerbsEstablish {
    local: LocalAddress,
    addressing: Addressing,
}

impl Establish for VerbsEstablish {
    fn local_part(&self) -> Vec<u8> {
        DevicePart::new(self.local.link_layer, self.local.gid, self.local.lid).encode()
    }

    fn resolve(self: Box<Self>, peer_part: &[u8], context: &PathContext) -> Result<Box<dyn Route>> {
        let peer = DevicePart::decode(peer_part)?;
        context.check_peer(self.local.link_layer, &peer)?;
        if let Some(port) = peer.receive_port().filter(|port| *port != ROCE_UDP_PORT) {
            return Err(Error::new(
                ErrorCode::Offer,
                format!(
                    "the peer receives on UDP port {port}; a verbs device sends to {ROCE_UDP_PORT} only: let the \
                     peer use {ROCE_UDP_PORT}, or the embedded device on this side"
                ),
            ));
        }
        let (vector, path_mtu, description) = match (self.addressing, self.local.link_layer) {
            (Addressing::Verbs, _) => (address_vector(&self.local, &peer), None, "verbs".to_owned()),
            (Addressing::Hybrid, LinkLayer::Infiniband) => {
                let description =
                    "verbs, not hybrid: on InfiniBand the peer's LID comes from its offer".to_owned();
                (address_vector(&self.local, &peer), None, description)
            }
            (Addressing::Hybrid, LinkLayer::Ethernet) => match resolve::resolve(&self.local, peer.gid)? {
                Resolved::Path(path) => {
                    let mut vector = address_vector(&self.local, &peer);
                    vector.service_level = path.service_level;
                    if let Some(route) = &mut vector.global {
                        route.flow_label = path.flow_label;
                        route.traffic_class = path.traffic_class;
                        route.hop_limit = path.hop_limit.unwrap_or(HOP_LIMIT);
                    }
                    (vector, path.mtu, "hybrid".to_owned())
                }
                Resolved::Unavailable(why) => {
                    (address_vector(&self.local, &peer), None, format!("verbs, not hybrid: {why}"))
                }
            },
        };
        Ok(Box::new(VerbsRoute {
            vector,
            peer: peer.gid,
            udp_port: peer.receive_port(),
            path_mtu,
            description,
        }))
    }
}

/// The address vector from the two ends alone.
fn address_vector(local: &LocalAddress, peer: &DevicePart) -> AddressVector {
    let subnet = |gid: Gid| gid.bytes()[..8].to_vec();
    let global = match local.link_layer {
        LinkLayer::Ethernet => true,
        LinkLayer::Infiniband => subnet(local.gid) != subnet(peer.gid),
    };
    AddressVector {
        port: local.port,
        destination_lid: peer.lid,
        global: global.then_some(GlobalRoute {
            destination: peer.gid,
            source_gid_index: local.gid_index,
            flow_label: 0,
            hop_limit: HOP_LIMIT,
            traffic_class: 0,
        }),
        ..AddressVector::default()
    }
}

struct VerbsRoute {
    vector: AddressVector,
    peer: Gid,
    udp_port: Option<u16>,
    path_mtu: Option<PathMtu>,
    description: String,
}

impl Route for VerbsRoute {
    fn rtr(&self, attr: &mut QpAttr) -> Result<()> {
        attr.address = Some(self.vector.clone());
        Ok(())
    }

    fn peer_gid(&self) -> Gid {
        self.peer
    }

    fn udp_port(&self) -> Option<u16> {
        self.udp_port
    }

    fn path_mtu(&self) -> Option<PathMtu> {
        self.path_mtu
    }

    fn description(&self) -> String {
        self.description.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secure_rdma_rdma::{DeviceKind, Lid};

    fn local(link_layer: LinkLayer, gid: Gid, lid: u16) -> LocalAddress {
        LocalAddress {
            device: "mlx5_0".to_owned(),
            kind: DeviceKind::Verbs,
            port: 2,
            gid_index: 5,
            gid,
            interface: None,
            link_layer,
            lid: Lid(lid),
            path_mtu: PathMtu::Bytes4096,
            reason: String::new(),
        }
    }

    fn establish(local: LocalAddress) -> Box<dyn Establish> {
        Box::new(VerbsEstablish { local, addressing: Addressing::Verbs })
    }

    fn context(peer: &str) -> PathContext {
        let tls_peer = peer.parse().unwrap();
        PathContext { tls_local: tls_peer, tls_peer, allowed_peer_addresses: Vec::new() }
    }

    fn vector(route: &dyn Route) -> AddressVector {
        let mut attr = QpAttr::default();
        route.rtr(&mut attr).unwrap();
        attr.address.unwrap()
    }

    fn infiniband_gid(prefix: u8, id: u8) -> Gid {
        Gid::new([0xFE, 0x80, 0, 0, 0, 0, 0, prefix, 0, 0, 0, 0, 0, 0, 0, id])
    }

    #[test]
    fn roce_sends_to_the_gid() {
        let ours = Gid::from_ip("10.8.0.1".parse().unwrap());
        let theirs = Gid::from_ip("10.8.0.2".parse().unwrap());
        let part = DevicePart::new(LinkLayer::Ethernet, theirs, Lid(0)).encode();
        let route =
            establish(local(LinkLayer::Ethernet, ours, 0)).resolve(&part, &context("10.8.0.2")).unwrap();
        let vector = vector(route.as_ref());
        let global = vector.global.unwrap();
        assert_eq!((vector.port, vector.destination_lid), (2, Lid(0)));
        assert_eq!((global.destination, global.source_gid_index, global.hop_limit), (theirs, 5, 64));
        assert_eq!((route.udp_port(), route.description().as_str()), (Some(4791), "verbs"));
    }

    #[test]
    fn infiniband_sends_to_the_lid_with_a_grh_across_subnets_only() {
        for (prefix, global) in [(0, false), (9, true)] {
            let peer = DevicePart::new(LinkLayer::Infiniband, infiniband_gid(prefix, 2), Lid(7));
            let ours = local(LinkLayer::Infiniband, infiniband_gid(0, 1), 3);
            assert_eq!(DevicePart::decode(&establish(ours.clone()).local_part()).unwrap().lid, Lid(3));
            let route = establish(ours).resolve(&peer.encode(), &context("192.0.2.1")).unwrap();
            let vector = vector(route.as_ref());
            assert_eq!((vector.destination_lid, vector.global.is_some()), (Lid(7), global));
            assert_eq!(route.udp_port(), None);
        }
    }

    #[test]
    fn a_peer_on_another_udp_port_is_refused_by_name() {
        let gid = Gid::from_ip("10.8.0.2".parse().unwrap());
        let part = DevicePart { udp_port: Some(4800), ..DevicePart::new(LinkLayer::Ethernet, gid, Lid(0)) };
        let refused =
            establish(local(LinkLayer::Ethernet, gid, 0)).resolve(&part.encode(), &context("10.8.0.2"));
        let error = refused.err().unwrap();
        assert_eq!(error.code(), ErrorCode::Offer);
        assert!(error.message().contains("4800") && error.message().contains("4791"), "{error}");
    }

    #[test]
    fn an_address_that_is_not_the_tls_peers_is_refused() {
        let gid = Gid::from_ip("10.8.0.2".parse().unwrap());
        let part = DevicePart::new(LinkLayer::Ethernet, gid, Lid(0)).encode();
        let refused = establish(local(LinkLayer::Ethernet, gid, 0)).resolve(&part, &context("10.8.0.3"));
        assert_eq!(refused.err().unwrap().code(), ErrorCode::Offer);
    }
}
