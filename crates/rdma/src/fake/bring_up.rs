//! Bring-up of queue pairs in tests that are about something else.

use super::device::FakeDevice;
use crate::{
    Access, Addressing, Device, Error, ErrorCode, LocalAddress, OsEntropy, PathContext, Psn, QpAttr, QpState,
    QueuePair, Result, Route,
};

/// Moves a queue pair from RESET to INIT with every remote right, so that receives can be posted.
///
/// # Errors
/// Those of [`QueuePair::modify`].
pub fn init(queue_pair: &dyn QueuePair) -> Result<()> {
    let mut attr = QpAttr::to(QpState::Init);
    attr.access =
        Some(Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC);
    attr.pkey_index = Some(0);
    attr.port = Some(1);
    queue_pair.modify(&attr)
}

/// Connects two queue pairs over their devices' GID index 1: both to INIT where they are in RESET, then both to RTR
/// and both to RTS, with random PSNs, MTU and depths of the smaller device, and RNR repeated for ever.
///
/// # Errors
/// Those of [`QueuePair::modify`] and [`crate::Establish::resolve`].
pub fn connect(ours: (&FakeDevice, &dyn QueuePair), theirs: (&FakeDevice, &dyn QueuePair)) -> Result<()> {
    let (our_psn, their_psn) = (Psn::draw(&OsEntropy)?, Psn::draw(&OsEntropy)?);
    let (our_address, their_address) = (address(ours.0)?, address(theirs.0)?);
    let mtu = our_address.path_mtu.min(their_address.path_mtu);
    let initiator = |device: &FakeDevice, peer: &FakeDevice| {
        device.limits().max_initiator_depth.min(peer.limits().max_responder_resources)
    };

    for (queue_pair, peer, expected, responder, route) in [
        (ours.1, theirs.1, their_psn, ours.0, route(ours.0, &our_address, theirs.0, &their_address)?),
        (theirs.1, ours.1, our_psn, theirs.0, route(theirs.0, &their_address, ours.0, &our_address)?),
    ] {
        if queue_pair.state() == QpState::Reset {
            init(queue_pair)?;
        }
        let mut attr = QpAttr::to(QpState::Rtr);
        route.rtr(&mut attr)?;
        attr.path_mtu = Some(mtu);
        attr.dest_qpn = Some(peer.qpn());
        attr.rq_psn = Some(expected);
        attr.max_dest_rd_atomic = Some(responder.limits().max_responder_resources);
        attr.min_rnr_timer = Some(12);
        queue_pair.modify(&attr)?;
    }
    for (queue_pair, psn, depth) in
        [(ours.1, our_psn, initiator(ours.0, theirs.0)), (theirs.1, their_psn, initiator(theirs.0, ours.0))]
    {
        let mut attr = QpAttr::to(QpState::Rts);
        attr.timeout = Some(14);
        attr.retry_count = Some(6);
        attr.rnr_retry = Some(7);
        attr.sq_psn = Some(psn);
        attr.max_rd_atomic = Some(depth);
        queue_pair.modify(&attr)?;
    }
    Ok(())
}

fn address(device: &FakeDevice) -> Result<LocalAddress> {
    device
        .local_address(1)
        .ok_or_else(|| Error::new(ErrorCode::DeviceLost, format!("{} has no GID index 1", device.name())))
}

fn route(
    device: &FakeDevice,
    local: &LocalAddress,
    peer: &FakeDevice,
    remote: &LocalAddress,
) -> Result<Box<dyn Route>> {
    let context = PathContext {
        tls_local: local.gid.to_ip(),
        tls_peer: remote.gid.to_ip(),
        allowed_peer_addresses: Vec::new(),
    };
    let part = peer.establish(remote, Addressing::Verbs)?.local_part();
    device.establish(local, Addressing::Verbs)?.resolve(&part, &context)
}
