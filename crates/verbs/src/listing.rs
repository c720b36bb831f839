//! Listing devices, ports and GIDs.

use std::net::IpAddr;
use std::path::Path;

use rdma_sys::{
    ibv_atomic_cap, ibv_device_attr, ibv_device_cap_flags, ibv_gid_entry, ibv_port_attr, ibv_port_state,
    ibv_transport_type,
};
use secure_rdma_rdma::{
    DeviceInfo, DeviceKind, DeviceLimits, Gid, GidEntry, GidKind, Lid, LinkLayer, PathMtu, PortInfo,
    PortState, Result,
};

use crate::context::{Context, DeviceList, ListedDevice};
use crate::interfaces;
use crate::library::Verbs;
use crate::sysfs;

/// `IBV_LINK_LAYER_ETHERNET` of an anonymous enum.
const ETHERNET: u8 = 2;

/// Messages of a reliable connection are below 2^31 bytes.
const MAX_MESSAGE: u32 = (1 << 31) - 1;

/// Lists the devices that the library shows. One that cannot be opened is listed as unusable, with the reason.
pub(crate) fn list(verbs: &'static Verbs) -> Result<Vec<DeviceInfo>> {
    let addresses = interfaces::addresses();
    Ok(DeviceList::get(verbs)?.iter().map(|device| describe(&device, &addresses)).collect())
}

fn describe(device: &ListedDevice<'_>, addresses: &[(String, IpAddr)]) -> DeviceInfo {
    let name = device.name();
    let told = match unusable(device.transport()) {
        Some(why) => Err(why),
        None => device
            .open()
            .and_then(|context| read(&context, &name, addresses))
            .map_err(|error| error.to_string()),
    };
    let (unusable, ports, limits) = match told {
        Ok((ports, limits)) => (None, ports, limits),
        Err(why) => (Some(why), Vec::new(), none()),
    };
    DeviceInfo { name, kind: DeviceKind::Verbs, unusable, ports, limits }
}

/// Why a device of this transport cannot carry our connections.
pub(crate) fn unusable(transport: i32) -> Option<String> {
    match transport {
        ibv_transport_type::IBV_TRANSPORT_IB => None,
        ibv_transport_type::IBV_TRANSPORT_IWARP => Some(
            "it is an iWARP device: its queue pairs run over a TCP connection that only the RDMA connection manager \
             can make, and cannot be moved by hand"
                .to_owned(),
        ),
        other => Some(format!("its transport ({other}) is neither InfiniBand nor RoCE")),
    }
}

fn read(
    context: &Context,
    name: &str,
    addresses: &[(String, IpAddr)],
) -> Result<(Vec<PortInfo>, DeviceLimits)> {
    let attributes = context.attributes()?;
    let ports: Vec<_> = (1..=attributes.phys_port_cnt)
        .map(|number| Ok((number, context.port(number)?)))
        .collect::<Result<_>>()?;
    let max_message = ports.iter().map(|(_, port)| port.max_msg_sz).fold(MAX_MESSAGE, u32::min);
    let room = ports.iter().map(|(_, port)| usize::try_from(port.gid_tbl_len).unwrap_or(0)).sum();
    let table = context.gids(room);
    let describe = |(number, port): &(u8, ibv_port_attr)| {
        let files = sysfs::Port::new(Path::new(sysfs::DEVICES), name, *number);
        let gids = match &table {
            Some(table) => gids_of(*number, table),
            // One file per entry: slow where the table is long.
            None => files.gids(port.gid_tbl_len),
        };
        describe_port(*number, port, gids, files.ipoib_interfaces(), addresses)
    };
    let ports = ports.iter().map(describe).collect();
    Ok((ports, limits(&attributes, max_message)))
}

/// The entries of one port in the table of all. An index that a GID index cannot name is left out.
fn gids_of(port: u8, table: &[ibv_gid_entry]) -> Vec<GidEntry> {
    /// `IBV_GID_TYPE_ROCE_V2`.
    const ROCE_V2: u32 = 2;
    let of_port = table.iter().filter(|entry| entry.port_num == u32::from(port));
    of_port
        .filter_map(|entry| {
            // SAFETY: both members of the union are 16 bytes.
            let gid = Gid::new(unsafe { entry.gid.raw });
            let kind = if entry.gid_type == ROCE_V2 { GidKind::RoceV2 } else { GidKind::InfinibandOrRoceV1 };
            let index = u8::try_from(entry.gid_index).ok().filter(|_| !gid.is_unspecified())?;
            Some(GidEntry { index, gid, kind, interface: interfaces::name(entry.ndev_ifindex), mtu: None })
        })
        .collect()
}

fn describe_port(
    number: u8,
    port: &ibv_port_attr,
    gids: Vec<GidEntry>,
    ipoib: Vec<String>,
    addresses: &[(String, IpAddr)],
) -> PortInfo {
    let link_layer = link_layer(port.link_layer);
    let mut interfaces = ipoib;
    interfaces.extend(gids.iter().filter_map(|entry| entry.interface.clone()));
    let carried = addresses.iter().filter(|(interface, _)| interfaces.contains(interface));
    PortInfo {
        number,
        state: if port.state == ibv_port_state::IBV_PORT_ACTIVE {
            PortState::Active
        } else {
            PortState::Down
        },
        link_layer,
        lid: if link_layer == LinkLayer::Infiniband { Lid(port.lid) } else { Lid(0) },
        active_mtu: path_mtu(port.active_mtu),
        gids,
        addresses: carried.map(|(_, address)| *address).collect(),
    }
}

/// Unspecified means InfiniBand: drivers from before RoCE.
fn link_layer(number: u8) -> LinkLayer {
    if number == ETHERNET { LinkLayer::Ethernet } else { LinkLayer::Infiniband }
}

fn path_mtu(code: u32) -> PathMtu {
    u8::try_from(code).ok().and_then(PathMtu::from_code).unwrap_or(PathMtu::Bytes256)
}

/// What the device can do, as the structure's signed numbers tell it.
pub(crate) fn limits(attributes: &ibv_device_attr, max_message: u32) -> DeviceLimits {
    let count = |value: i32| u32::try_from(value).unwrap_or(0);
    let depth = |value: i32| u8::try_from(value.clamp(0, 255)).unwrap_or(0);
    DeviceLimits {
        max_work_requests: count(attributes.max_qp_wr),
        max_sge: count(attributes.max_sge),
        max_completions: count(attributes.max_cqe),
        max_responder_resources: depth(attributes.max_qp_rd_atom),
        max_initiator_depth: depth(attributes.max_qp_init_rd_atom),
        max_shared_receives: if loses_shared_receives(attributes) { 0 } else { shared_receives(attributes) },
        max_message: max_message.min(MAX_MESSAGE),
    }
}

/// Work requests that the driver's shared receive queues hold; 0 where it has none.
pub(crate) fn shared_receives(attributes: &ibv_device_attr) -> u32 {
    if attributes.max_srq > 0 { u32::try_from(attributes.max_srq_wr).unwrap_or(0) } else { 0 }
}

/// Whether the device is rxe, whose shared receive queues we do not use.
///
/// A queue pair of rxe that ends in the middle of a message forgets the receive that it took from the shared queue:
/// no completion tells which (`flush_recv_queue` in `rxe_resp.c` passes shared queues over; measured on 6.1 and 6.12:
/// after 60 such ends nothing is left of 4 receives). A peer that does so again and again would starve all others.
/// Receive queues of the queue pairs' own lose nothing.
fn loses_shared_receives(attributes: &ibv_device_attr) -> bool {
    is_rxe(attributes)
}

/// Whether the device is the kernel's soft-RoCE.
fn is_rxe(attributes: &ibv_device_attr) -> bool {
    /// `RXE_VENDOR_ID`; rxe leaves the part at 0.
    const RXE: (u32, u32) = (0x00FF_FFFF, 0);
    (attributes.vendor_id, attributes.vendor_part_id) == RXE
}

fn none() -> DeviceLimits {
    // SAFETY: the structure holds numbers only, for which zero is a value.
    limits(&unsafe { std::mem::zeroed() }, 0)
}

/// What the driver says of its shared receive queues, whether we use them or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SharedLimits {
    /// Work requests in one queue; 0 where there are none.
    pub(crate) max_receives: u32,
    /// Scatter/gather entries of a work request.
    pub(crate) max_sge: u32,
}

/// What a device has or has not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    /// Type 2 memory windows.
    pub(crate) windows: bool,
    /// Windows that open no more than what they are bound to: rxe's open all of the region below.
    pub(crate) window_ranges: bool,
    /// Atomics as responder. Where there are none, some drivers refuse a queue pair that allows them.
    pub(crate) atomics: bool,
}

impl Features {
    fn of(attributes: &ibv_device_attr) -> Self {
        let type_2 = ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2A.0
            | ibv_device_cap_flags::IBV_DEVICE_MEM_WINDOW_TYPE_2B.0;
        Self {
            windows: attributes.device_cap_flags & type_2 != 0 && attributes.max_mw > 0,
            window_ranges: !is_rxe(attributes),
            atomics: attributes.atomic_cap != ibv_atomic_cap::IBV_ATOMIC_NONE,
        }
    }
}

/// The limits of an open device.
pub(crate) fn limits_of(context: &Context) -> Result<(DeviceLimits, SharedLimits, Features)> {
    let attributes = context.attributes()?;
    let mut max_message = MAX_MESSAGE;
    for number in 1..=attributes.phys_port_cnt {
        max_message = max_message.min(context.port(number)?.max_msg_sz);
    }
    let max_sge = u32::try_from(attributes.max_srq_sge).unwrap_or(0);
    let shared = SharedLimits { max_receives: shared_receives(&attributes), max_sge };
    Ok((limits(&attributes, max_message), shared, Features::of(&attributes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iwarp_is_refused_by_name() {
        assert_eq!(unusable(0), None);
        assert!(unusable(1).unwrap().contains("iWARP"));
        assert!(unusable(2).is_some());
    }

    #[test]
    fn windows_of_type_1_alone_are_none() {
        // SAFETY: the structure holds numbers only, for which zero is a value.
        let mut attributes: ibv_device_attr = unsafe { std::mem::zeroed() };
        attributes.max_mw = 7;
        attributes.device_cap_flags = 1 << 17;
        assert!(!Features::of(&attributes).windows && !Features::of(&attributes).atomics);
        for bit in [1 << 23, 1 << 24] {
            attributes.device_cap_flags = bit;
            assert!(Features::of(&attributes).windows);
        }
        (attributes.max_mw, attributes.atomic_cap) = (0, 1);
        assert!(!Features::of(&attributes).windows && Features::of(&attributes).atomics);
    }

    #[test]
    fn limits_are_clamped_and_a_device_without_srq_says_so() {
        // SAFETY: the structure holds numbers only, for which zero is a value.
        let mut attributes: ibv_device_attr = unsafe { std::mem::zeroed() };
        attributes.max_qp_rd_atom = 100_000;
        attributes.max_qp_init_rd_atom = -1;
        attributes.max_srq_wr = 77;
        let told = limits(&attributes, u32::MAX);
        assert_eq!((told.max_responder_resources, told.max_initiator_depth), (255, 0));
        assert_eq!((told.max_shared_receives, told.max_message), (0, MAX_MESSAGE));
        attributes.max_srq = 1;
        assert_eq!(limits(&attributes, 5).max_shared_receives, 77);
        attributes.vendor_id = 0x00FF_FFFF;
        assert_eq!(limits(&attributes, 5).max_shared_receives, 0, "rxe's lose receives");
    }
}
