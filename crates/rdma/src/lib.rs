//! The vocabulary of RDMA reliable connections, and the traits that every device of secure-rdma implements.
//!
//! Nothing here talks to hardware or to a network. The crate says what a queue pair *is*: its number
//! ([`Qpn`]), where its packet sequence starts ([`Psn`]), how it moves from RESET to RTS
//! ([`transition`]), what can be posted to it ([`SendRequest`], [`ReceiveRequest`]) and what comes back
//! ([`Completion`]). The [`Device`] trait is the door to a device; `verbs` and `soft` stand behind it.
//!
//! The names are the field's own. A QPN is a QPN, a PSN is a PSN.

#![deny(unsafe_code)]

mod access;
mod address;
mod attr;
mod choice;
mod completion;
mod device;
mod device_part;
mod error;
mod establish;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod gid;
mod ids;
mod info;
mod memory;
mod mtu;
mod peer_address;
mod psn;
mod region;
mod state;
pub mod transition;
mod window;
mod work;

pub use access::Access;
pub use address::{AddressVector, GlobalRoute, UdpRoute};
pub use attr::{AttrMask, QpAttr};
pub use choice::{DeviceWish, choose, choose_scoped};
pub use completion::{Completion, CompletionKind, WcStatus};
pub use device::{
    AsyncEvent, Counter, Device, Devices, GoneNotice, QueuePair, QueuePairConfig, QueuePairHandler,
    ReceiveQueue,
};
pub use device_part::{DevicePart, ROCE_UDP_PORT};
pub use error::{Error, ErrorCode, Phase, Result};
pub use establish::{Addressing, Establish, PathContext, Route};
pub use gid::{Gid, GidKind};
pub use ids::{LKey, Lid, PKey, Qpn, RKey};
pub use info::{
    DeviceInfo, DeviceKind, DeviceLimits, GidEntry, LinkLayer, LocalAddress, PortInfo, PortState,
};
pub use memory::Memory;
pub use mtu::PathMtu;
pub use psn::{Entropy, OsEntropy, Psn};
pub use region::{Region, Registration, Slice};
pub use state::QpState;
pub use window::MemoryWindow;
pub use work::{PostError, ReceiveRequest, RemoteSlice, SendFlags, SendOperation, SendRequest, WorkId};
