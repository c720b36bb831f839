//! `ibv_modify_qp`: attributes as the driver takes them, and its errno as a sentence.

use std::ffi::c_int;

use rdma_sys::{ibv_ah_attr, ibv_gid, ibv_global_route, ibv_qp_attr};
use secure_rdma_rdma::{Access, AddressVector, AttrMask, Error, ErrorCode, QpAttr, QpState};

use crate::body::Body;
use crate::core::Core;
use crate::errno;

/// The address vector as the driver takes it: with a GRH on RoCE, with the LID on InfiniBand.
fn address(vector: &AddressVector) -> ibv_ah_attr {
    // SAFETY: the structure holds numbers only, for which zero is a value.
    let mut attr: ibv_ah_attr = unsafe { std::mem::zeroed() };
    attr.dlid = vector.destination_lid.0;
    attr.sl = vector.service_level;
    attr.src_path_bits = vector.source_path_bits;
    attr.static_rate = vector.static_rate;
    attr.port_num = vector.port;
    if let Some(route) = &vector.global {
        attr.is_global = 1;
        attr.grh = ibv_global_route {
            dgid: ibv_gid { raw: route.destination.bytes() },
            flow_label: route.flow_label,
            sgid_index: route.source_gid_index,
            hop_limit: route.hop_limit,
            traffic_class: route.traffic_class,
        };
    }
    attr
}

/// The attributes as the driver takes them. What is not in the mask is zero, and the driver does not look at it.
fn translate(from: QpState, attr: &QpAttr) -> ibv_qp_attr {
    // SAFETY: the structure holds numbers only, for which zero is a value.
    let mut raw: ibv_qp_attr = unsafe { std::mem::zeroed() };
    raw.cur_qp_state = from as u32;
    raw.qp_state = attr.state.unwrap_or(from) as u32;
    raw.qp_access_flags = attr.access.unwrap_or_default().bits();
    raw.pkey_index = attr.pkey_index.unwrap_or(0);
    raw.port_num = attr.port.unwrap_or(0);
    if let Some(vector) = &attr.address {
        raw.ah_attr = address(vector);
    }
    raw.path_mtu = attr.path_mtu.map_or(0, |mtu| mtu.code().into());
    raw.dest_qp_num = attr.dest_qpn.map_or(0, secure_rdma_rdma::Qpn::get);
    raw.rq_psn = attr.rq_psn.map_or(0, secure_rdma_rdma::Psn::expose);
    raw.sq_psn = attr.sq_psn.map_or(0, secure_rdma_rdma::Psn::expose);
    raw.timeout = attr.timeout.unwrap_or(0);
    raw.retry_cnt = attr.retry_count.unwrap_or(0);
    raw.rnr_retry = attr.rnr_retry.unwrap_or(0);
    raw.min_rnr_timer = attr.min_rnr_timer.unwrap_or(0);
    raw.max_rd_atomic = attr.max_rd_atomic.unwrap_or(0);
    raw.max_dest_rd_atomic = attr.max_dest_rd_atomic.unwrap_or(0);
    raw
}

/// Calls the driver with any mask, asking no table. Gives the driver's errno.
pub(crate) fn raw(core: &Core, body: &Body, attr: &QpAttr, mask: AttrMask) -> Result<(), i32> {
    let mut raw = translate(body.state(), attr);
    if !core.features.atomics {
        raw.qp_access_flags &= !Access::REMOTE_ATOMIC.bits();
    }
    let mask = c_int::try_from(mask.bits()).unwrap_or(c_int::MAX);
    // SAFETY: the queue pair is alive, and `raw` is a valid structure.
    let answer = unsafe { (core.verbs().ibv_modify_qp)(body.qp(), &raw mut raw, mask) };
    match errno::of(answer) {
        None => Ok(()),
        Some(errno) => Err(errno),
    }
}

/// Moves a queue pair to ERR before it is destroyed. Fails only where there is nothing to flush.
pub(crate) fn to_error(core: &Core, body: &Body) {
    let attr = QpAttr::to(QpState::Err);
    let _ = raw(core, body, &attr, attr.mask());
}

/// The driver refused `from`→`to`.
pub(crate) fn refused(from: QpState, to: QpState, attr: &QpAttr, errno: i32) -> Error {
    const SYSCALL: &str = "ibv_modify_qp";
    let unresolved = matches!(errno, libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH);
    let route = attr.address.as_ref().and_then(|vector| vector.global.as_ref());
    if let (true, Some(route)) = (unresolved, route) {
        let peer = route.destination.to_ip();
        let cause = match errno {
            libc::ETIMEDOUT => "nobody answers for its hardware address (ARP, neighbour discovery)",
            libc::EHOSTUNREACH => "the kernel finds no neighbour for it",
            _ => "the kernel has no route to it",
        };
        return Error::new(
            ErrorCode::Unreachable,
            format!(
                "the peer's address {peer} does not resolve: {cause}. Is it up, and on the RDMA network?"
            ),
        )
        .with_syscall(SYSCALL, errno);
    }
    let cause = match errno {
        libc::EINVAL if attr.address.is_some() => {
            "an attribute is out of the device's range (see the options queuePair and maxPathMtu), or the own GID is gone \
             from the port's table (is the address still on the interface?)"
        }
        libc::EINVAL => "an attribute is out of the device's range: see the options queuePair and maxPathMtu",
        libc::ENOMEM => "the device has no memory for it: close other connections",
        libc::EIO | libc::ENODEV => "the device is gone: connect again when it is back",
        _ => "the kernel's log may say why",
    };
    let text = errno::text(errno);
    Error::new(ErrorCode::Modify, format!("the driver refuses {from}→{to} ({text}): {cause}"))
        .with_syscall(SYSCALL, errno)
}

#[cfg(test)]
mod tests {
    use super::*;
    use secure_rdma_rdma::{Gid, GlobalRoute, Lid, PathMtu};

    fn roce() -> AddressVector {
        AddressVector {
            port: 1,
            global: Some(GlobalRoute {
                destination: Gid::from_ip("10.8.0.2".parse().unwrap()),
                source_gid_index: 3,
                flow_label: 0x1_2345,
                hop_limit: 64,
                traffic_class: 5,
            }),
            ..AddressVector::default()
        }
    }

    #[test]
    fn roce_has_a_grh_and_no_lid() {
        let attr = address(&roce());
        assert_eq!((attr.is_global, attr.dlid, attr.port_num), (1, 0, 1));
        assert_eq!((attr.grh.sgid_index, attr.grh.hop_limit, attr.grh.traffic_class), (3, 64, 5));
        assert_eq!(attr.grh.flow_label, 0x1_2345);
        // SAFETY: both members of the union are 16 bytes.
        assert_eq!(unsafe { attr.grh.dgid.raw }[10..], [0xFF, 0xFF, 10, 8, 0, 2]);
    }

    #[test]
    fn infiniband_has_the_lid_and_no_grh() {
        let vector =
            AddressVector { port: 2, destination_lid: Lid(7), service_level: 3, ..AddressVector::default() };
        let attr = address(&vector);
        assert_eq!((attr.is_global, attr.dlid, attr.sl, attr.port_num), (0, 7, 3, 2));
    }

    #[test]
    fn numbers_arrive_where_the_driver_looks() {
        let attr =
            QpAttr { path_mtu: Some(PathMtu::Bytes1024), timeout: Some(17), ..QpAttr::to(QpState::Rts) };
        let raw = translate(QpState::Rtr, &attr);
        assert_eq!((raw.qp_state, raw.cur_qp_state, raw.path_mtu, raw.timeout), (3, 2, 3, 17));
    }

    #[test]
    fn an_address_that_does_not_resolve_is_named() {
        for errno in [libc::ETIMEDOUT, libc::EHOSTUNREACH, libc::ENETUNREACH] {
            let attr = QpAttr { address: Some(roce()), ..QpAttr::to(QpState::Rtr) };
            let error = refused(QpState::Init, QpState::Rtr, &attr, errno);
            assert_eq!(error.code(), ErrorCode::Unreachable);
            assert_eq!((error.syscall(), error.errno()), (Some("ibv_modify_qp"), Some(errno)));
            assert!(error.message().contains("10.8.0.2"), "{error}");
        }
        let error = refused(QpState::Rts, QpState::Sqd, &QpAttr::to(QpState::Sqd), libc::EINVAL);
        assert_eq!((error.code(), error.errno()), (ErrorCode::Modify, Some(libc::EINVAL)));
    }
}
