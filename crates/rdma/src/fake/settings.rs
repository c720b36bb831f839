//! What tests set and what they read: device descriptions, calls to fail, counters.

use std::net::IpAddr;

use crate::{
    DeviceInfo, DeviceKind, DeviceLimits, Gid, GidEntry, GidKind, Lid, LinkLayer, PathMtu, PortInfo,
    PortState, QpState,
};

/// A RoCE device with one active port and a path MTU of 1024, to be changed as a test needs it.
///
/// The GID of `address` has index 1, as on most hosts: index 0 is a link-local one, so that whoever takes index 0
/// unseen fails. `limits.max_shared_receives = 0` makes a device without shared receive queues.
#[must_use]
pub fn device_info(name: &str, address: IpAddr) -> DeviceInfo {
    let gid = Gid::from_ip(address);
    let mut link_local = gid.bytes();
    link_local[..8].copy_from_slice(&[0xFE, 0x80, 0, 0, 0, 0, 0, 0]);
    let entry = |index, gid| GidEntry {
        index,
        gid,
        kind: GidKind::RoceV2,
        interface: Some(format!("{name}n")),
        mtu: None,
    };
    DeviceInfo {
        name: name.to_owned(),
        kind: DeviceKind::Fake,
        unusable: None,
        ports: vec![PortInfo {
            number: 1,
            state: PortState::Active,
            link_layer: LinkLayer::Ethernet,
            lid: Lid(0),
            active_mtu: PathMtu::Bytes1024,
            gids: vec![entry(0, Gid::new(link_local)), entry(1, gid)],
            addresses: vec![address],
        }],
        limits: DeviceLimits {
            max_work_requests: 16_384,
            max_sge: 4,
            max_completions: 65_536,
            max_responder_resources: 16,
            max_initiator_depth: 16,
            max_shared_receives: 65_536,
            max_message: 1 << 30,
        },
    }
}

/// A call that a device can be told to fail: [`super::FakeDevice::fail_next`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// [`crate::Devices::open`].
    Open,
    /// [`crate::Device::register`].
    Register,
    /// [`crate::Device::create_memory_window`].
    CreateMemoryWindow,
    /// [`crate::Device::create_receive_queue`].
    CreateReceiveQueue,
    /// [`crate::Device::create_queue_pair`].
    CreateQueuePair,
    /// [`crate::Device::establish`].
    Establish,
    /// [`crate::Establish::resolve`].
    Resolve,
    /// [`crate::QueuePair::modify`] to this state.
    Modify(QpState),
    /// [`crate::QueuePair::post_send`]; nothing of the list is posted.
    PostSend,
    /// `post_receive` of a queue pair or a shared receive queue; nothing of the list is posted.
    PostReceive,
}

/// What is alive on a fabric, and what has happened on it so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Devices that somebody holds open.
    pub open_devices: usize,
    /// Queue pairs alive.
    pub queue_pairs: usize,
    /// Regions alive.
    pub regions: usize,
    /// Memory windows alive.
    pub windows: usize,
    /// Memory windows that are bound now.
    pub bound_windows: usize,
    /// Registrations, ever.
    pub registrations: u64,
    /// Shared receive queues alive.
    pub receive_queues: usize,
    /// Work requests posted and neither completed nor forgotten.
    pub work_requests: usize,
    /// Requests delivered to their responder and acknowledged, ever.
    pub acknowledged: u64,
    /// Transmissions lost, repetitions counted each, ever.
    pub lost: u64,
    /// RNR NAKs, ever.
    pub rnr_naks: u64,
    /// Completion queues that overran, ever: receives of a shared queue beyond `max_receive`.
    pub overruns: u64,
    /// Calls of a handler that panicked, ever. Such a panic is caught and counted, nothing else.
    pub handler_panics: u64,
}

impl Counters {
    /// Whether nothing is alive but open devices: what a test asserts at its end.
    #[must_use]
    pub fn all_unmade(&self) -> bool {
        self.queue_pairs == 0
            && self.regions == 0
            && self.windows == 0
            && self.receive_queues == 0
            && self.work_requests == 0
    }
}
