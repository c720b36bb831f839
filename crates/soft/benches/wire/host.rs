//! A device, and queue pairs connected over a link.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use secure_rdma_rdma::{
    Access, Addressing, Device, Gid, LocalAddress, Memory, OsEntropy, PathContext, PathMtu, Psn, QpAttr,
    QpState, Qpn, QueuePair, QueuePairConfig, QueuePairHandler, RKey, Region, RemoteSlice,
};
use secure_rdma_soft::{SoftDevice, SoftOptions};

use crate::link::Link;

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(crate) fn open(receive_buffer: usize) -> Arc<SoftDevice> {
    SoftDevice::open(&SoftOptions { port: Some(0), receive_buffer, ..SoftOptions::default() }).unwrap()
}

pub(crate) fn region(device: &SoftDevice, length: usize) -> Arc<Region> {
    let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
    let memory = Memory::allocate(length).unwrap();
    // Every page is there before anything is measured.
    for at in (0..length).step_by(4096) {
        memory.write(at, &[1]).unwrap();
    }
    device.register(Arc::new(memory), access).unwrap()
}

fn local(device: &SoftDevice) -> LocalAddress {
    let info = device.info().unwrap();
    let port = &info.ports[0];
    let entry = port.gids.iter().find(|entry| entry.gid == Gid::from_ip(ADDRESS)).unwrap();
    LocalAddress {
        device: info.name.clone(),
        kind: info.kind,
        port: port.number,
        gid_index: entry.index,
        gid: entry.gid,
        interface: entry.interface.clone(),
        link_layer: port.link_layer,
        lid: port.lid,
        path_mtu: port.active_mtu,
        reason: String::new(),
    }
}

/// A queue pair in RTS, and the peer's region.
pub(crate) struct Connected {
    pub(crate) pair: Arc<dyn QueuePair>,
    pub(crate) remote: RemoteSlice,
}

/// Makes a queue pair and moves it to RTS together with the one that the other side makes at the same time. `ready` is
/// called before the peer can send.
pub(crate) fn connect(
    link: &mut Link,
    device: &SoftDevice,
    region: &Region,
    depth: u32,
    handler: &Arc<dyn QueuePairHandler>,
    ready: impl FnOnce(&Arc<dyn QueuePair>),
) -> Connected {
    let config = QueuePairConfig {
        max_send: depth,
        max_receive: depth,
        max_sge: 1,
        receive_queue: None,
        handler: Arc::downgrade(handler),
    };
    let pair = device.create_queue_pair(config).unwrap();
    let init = QpAttr {
        access: Some(Access::REMOTE_WRITE | Access::REMOTE_READ),
        pkey_index: Some(0),
        port: Some(1),
        ..QpAttr::to(QpState::Init)
    };
    pair.modify(&init).unwrap();
    ready(&pair);
    let establish = device.establish(&local(device), Addressing::default()).unwrap();
    link.send(&establish.local_part());
    let part = link.receive();
    let psn = Psn::draw(&OsEntropy).unwrap();
    let peer_qpn = link.number(u64::from(pair.qpn().get()));
    let peer_psn = link.number(u64::from(psn.expose()));
    let address = link.number(region.address());
    let rkey = link.number(u64::from(region.rkey().expose()));
    let context = PathContext { tls_local: ADDRESS, tls_peer: ADDRESS, allowed_peer_addresses: Vec::new() };
    let route = establish.resolve(&part, &context).unwrap();
    let mut rtr = QpAttr {
        path_mtu: Some(PathMtu::Bytes4096),
        dest_qpn: Qpn::new(u32::try_from(peer_qpn).unwrap()),
        rq_psn: Psn::new(u32::try_from(peer_psn).unwrap()),
        max_dest_rd_atomic: Some(16),
        min_rnr_timer: Some(1),
        ..QpAttr::to(QpState::Rtr)
    };
    route.rtr(&mut rtr).unwrap();
    pair.modify(&rtr).unwrap();
    // Both are in RTR before one sends.
    link.number(0);
    let rts = QpAttr {
        timeout: Some(14),
        retry_count: Some(7),
        rnr_retry: Some(7),
        sq_psn: Some(psn),
        max_rd_atomic: Some(16),
        ..QpAttr::to(QpState::Rts)
    };
    pair.modify(&rts).unwrap();
    // And in RTS before one must answer.
    link.number(0);
    let rkey = RKey::new(u32::try_from(rkey).unwrap());
    Connected { pair, remote: RemoteSlice { address, rkey } }
}
