//! How two fake devices find each other.

use std::sync::Arc;

use super::device::FakeDevice;
use super::settings::Call;
use crate::{
    AddressVector, Addressing, Error, ErrorCode, Establish, Gid, GlobalRoute, Lid, LinkLayer, LocalAddress,
    PathContext, PortState, QpAttr, Result, Route,
};

/// What a part begins with: a name and a version.
const HEAD: &[u8; 5] = b"fake\x01";
const LENGTH: usize = HEAD.len() + 16 + 2;

pub(super) struct FakeEstablish {
    pub(super) device: Arc<FakeDevice>,
    pub(super) local: LocalAddress,
    pub(super) addressing: Addressing,
}

impl Establish for FakeEstablish {
    fn local_part(&self) -> Vec<u8> {
        [HEAD.as_slice(), &self.local.gid.bytes(), &self.local.lid.0.to_be_bytes()].concat()
    }

    fn resolve(self: Box<Self>, peer_part: &[u8], context: &PathContext) -> Result<Box<dyn Route>> {
        let world = &mut self.device.handle.lock();
        if let Some(error) = world.devices[self.device.id()].ordered_failure(Call::Resolve) {
            return Err(error);
        }
        let (gid, lid) = parse(peer_part)?;
        if self.local.link_layer == LinkLayer::Ethernet {
            check_peer(gid, context)?;
        } else if !lid.is_unicast() {
            return Err(offer(format!("the peer's LID is {lid}")));
        }
        let reachable =
            world.devices.iter().filter(|device| !device.gone).any(|device| {
                device.info.ports.iter().any(|port| {
                    port.state == PortState::Active && port.gids.iter().any(|entry| entry.gid == gid)
                })
            });
        if !reachable {
            let message = format!("{} did not resolve: no device on the fabric has it", gid.to_ip());
            return Err(Error::new(ErrorCode::Unreachable, message).with_syscall("ibv_modify_qp", 113));
        }
        Ok(Box::new(FakeRoute { local: self.local, gid, lid, addressing: self.addressing }))
    }
}

fn parse(part: &[u8]) -> Result<(Gid, Lid)> {
    if part.len() != LENGTH || !part.starts_with(HEAD) {
        return Err(offer(format!("the peer's device part is none of a fake device ({} bytes)", part.len())));
    }
    let (gid, lid) = part[HEAD.len()..].split_at(16);
    match (<[u8; 16]>::try_from(gid), <[u8; 2]>::try_from(lid)) {
        (Ok(gid), Ok(lid)) => Ok((Gid::new(gid), Lid(u16::from_be_bytes(lid)))),
        _ => Err(offer("the peer's device part is cut short".to_owned())),
    }
}

/// The peer's GID must be the TLS peer's address or one that was allowed; loopback only if the TLS peer is.
fn check_peer(gid: Gid, context: &PathContext) -> Result<()> {
    let address = gid.to_ip();
    let peer = context.tls_peer.to_canonical();
    let allowed = context.allowed_peer_addresses.iter().any(|allowed| allowed.to_canonical() == address);
    if gid.is_unspecified() || gid.is_multicast() {
        return Err(offer(format!("the peer's GID {gid} is no host's address")));
    }
    if gid.is_loopback() && !peer.is_loopback() {
        return Err(offer(format!("the peer's GID {gid} is on loopback, the peer {peer} is not")));
    }
    if address != peer && !allowed {
        return Err(offer(format!(
            "the peer's GID is {address}, its TLS address {peer}: name it in allowedPeerAddresses if that is meant"
        )));
    }
    Ok(())
}

fn offer(message: String) -> Error {
    Error::new(ErrorCode::Offer, message)
}

struct FakeRoute {
    local: LocalAddress,
    gid: Gid,
    lid: Lid,
    addressing: Addressing,
}

impl Route for FakeRoute {
    fn rtr(&self, attr: &mut QpAttr) -> Result<()> {
        attr.address = Some(AddressVector {
            port: self.local.port,
            destination_lid: self.lid,
            global: Some(GlobalRoute {
                destination: self.gid,
                source_gid_index: self.local.gid_index,
                flow_label: 0,
                hop_limit: 64,
                traffic_class: 0,
            }),
            ..AddressVector::default()
        });
        Ok(())
    }

    fn peer_gid(&self) -> Gid {
        self.gid
    }

    fn udp_port(&self) -> Option<u16> {
        (self.local.link_layer == LinkLayer::Ethernet).then_some(4791)
    }

    fn description(&self) -> String {
        format!("{} (fake)", self.addressing)
    }
}
