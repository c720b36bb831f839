//! The embedded device: RoCEv2 reliable connections in userspace, over UDP.
//!
//! [`engine`] is the transport itself, without socket, clock or thread: packets and instants go in, packets,
//! completions and deadlines come out. The rest of the crate gives it a socket, and makes the device of
//! `secure-rdma-rdma` of it: [`SoftDevices`] lists and opens the one of this process, [`SoftDevice::open`] opens another.

#![deny(unsafe_code)]

// What tests/ shares is of use within, too.
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(test)]
extern crate self as secure_rdma_soft;

mod alarm;
mod backlog;
mod capture;
mod core;
mod device;
mod devices;
pub mod engine;
mod establish;
#[cfg(feature = "faults")]
pub mod faults;
mod gone;
mod holder;
mod interfaces;
mod limits;
mod loop_poller;
mod merging;
mod options;
mod poller;
mod ports;
mod queue_pair;
mod receive;
mod receive_queue;
mod region;
mod route;
mod senders;
mod service;
mod socket;
mod spin;
mod stand_by;
mod traffic;
mod transmit;
mod waiter;

pub use device::SoftDevice;
pub use devices::SoftDevices;
pub use loop_poller::{LoopPoller, Turn};
pub use options::SoftOptions;
pub use poller::Poller;
pub use traffic::{SocketCounters, SoftCounters};

/// The name of the embedded device of a process.
pub const NAME: &str = "soft";
