//! How two fake devices find each other.

use std::sync::Arc;

use super::device::FakeDevice;
use super::settings::Call;
use crate::{
    AddressVector, Addressing, DevicePart, Error, ErrorCode, Establish, Gid, GlobalRoute, LocalAddress,
    PathContext, PortState, QpAttr, Result, Route,
};

pub(super) struct FakeEstablish {
    pub(super) device: Arc<FakeDevice>,
    pub(super) local: LocalAddress,
    pub(super) addressing: Addressing,
}

impl Establish for FakeEstablish {
    fn local_part(&self) -> Vec<u8> {
        DevicePart::new(self.local.link_layer, self.local.gid, self.local.lid).encode()
    }

    fn resolve(self: Box<Self>, peer_part: &[u8], context: &PathContext) -> Result<Box<dyn Route>> {
        let world = &mut self.device.handle.lock();
        if let Some(error) = world.devices[self.device.id()].ordered_failure(Call::Resolve) {
            return Err(error);
        }
        let peer = DevicePart::decode(peer_part)?;
        context.check_peer(self.local.link_layer, &peer)?;
        let reachable = world.devices.iter().filter(|device| !device.gone).any(|device| {
            device.info.ports.iter().any(|port| {
                port.state == PortState::Active && port.gids.iter().any(|entry| entry.gid == peer.gid)
            })
        });
        if !reachable {
            let message = format!("{} did not resolve: no device on the fabric has it", peer.gid.to_ip());
            return Err(Error::new(ErrorCode::Unreachable, message).with_syscall("ibv_modify_qp", 113));
        }
        Ok(Box::new(FakeRoute { local: self.local, peer, addressing: self.addressing }))
    }
}

struct FakeRoute {
    local: LocalAddress,
    peer: DevicePart,
    addressing: Addressing,
}

impl Route for FakeRoute {
    fn rtr(&self, attr: &mut QpAttr) -> Result<()> {
        attr.address = Some(AddressVector {
            port: self.local.port,
            destination_lid: self.peer.lid,
            global: Some(GlobalRoute {
                destination: self.peer.gid,
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
        self.peer.gid
    }

    fn udp_port(&self) -> Option<u16> {
        self.peer.receive_port()
    }

    fn description(&self) -> String {
        format!("{} (fake)", self.addressing)
    }
}
