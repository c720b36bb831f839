//! An in-memory device, for tests of what stands above the traits.
//!
//! A [`Fabric`] is a wire with any number of devices on it, all in this process. It keeps the rules that code above
//! the traits can break: the transition table, what each state accepts, starting PSNs that must match, queues that
//! fill up, receives that are missing, keys and ranges, flushes in order. And it can be made to misbehave: a wire
//! that loses everything, or only what is long; a port that goes down; a device that goes away; a call that fails.
//!
//! It works message by message, not packet by packet: a message arrives whole or not at all, and one queue pair has
//! one message on the wire at a time. What needs packets (reordering, go-back-N, duplicates) is not to be tested here.
//!
//! ```
//! use secure_rdma_rdma::{Device, Devices, fake::Fabric};
//!
//! let fabric = Fabric::new();
//! let (ours, theirs) = (fabric.device("fake0", [127, 0, 0, 1].into()), fabric.device("fake1", [127, 0, 0, 2].into()));
//! let our_host = fabric.host([&ours]); // a `Devices` that lists fake0 alone
//! assert_eq!(our_host.list()?.len(), 1);
//! assert_eq!(our_host.open("fake0")?.name(), "fake0");
//!
//! fabric.blackhole(true); // every packet is lost from now on
//! assert_eq!(fabric.counters().queue_pairs, 0); // all is unmade
//! # drop(theirs);
//! # Ok::<(), secure_rdma_rdma::Error>(())
//! ```
#![forbid(unsafe_code)]

mod bring_up;
mod device;
mod establish;
mod queue_pair;
mod receive_queue;
mod region;
mod requester;
mod responder;
mod service;
mod settings;
mod state;
#[cfg(test)]
mod tests;
mod window;
mod world;

use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

pub use bring_up::{connect, init};
pub use device::{FakeDevice, Host};
pub use settings::{Call, Counters, device_info};

use crate::{Device, DeviceInfo, Devices, Result};
use service::Handle;

/// A wire, and the devices on it. Clones are the same wire. It ends when the last clone, device and queue pair is
/// dropped.
///
/// As a [`Devices`] it lists every device on it; [`Fabric::host`] gives a host that sees some of them.
#[derive(Clone)]
pub struct Fabric {
    handle: Arc<Handle>,
}

impl Default for Fabric {
    fn default() -> Self {
        Self::new()
    }
}

impl Fabric {
    /// A wire with no device on it, and its one service thread.
    #[must_use]
    pub fn new() -> Self {
        Self { handle: Handle::start() }
    }

    /// Adds a RoCE device with one port that has `address`; see [`device_info`].
    #[must_use]
    pub fn device(&self, name: &str, address: IpAddr) -> Arc<FakeDevice> {
        self.add(device_info(name, address))
    }

    /// Adds a device as described. Names need only be unique per [`Host`].
    #[must_use]
    pub fn add(&self, info: DeviceInfo) -> Arc<FakeDevice> {
        FakeDevice::add(&self.handle, info)
    }

    /// A host that sees only `devices`, for tests that play both sides of a connection.
    #[must_use]
    pub fn host<'a>(&self, devices: impl IntoIterator<Item = &'a Arc<FakeDevice>>) -> Host {
        Host::new(&self.handle, devices.into_iter().map(|device| device.id()).collect())
    }

    /// Loses every packet while `on`, as a cut cable or a filter on UDP port 4791 does.
    pub fn blackhole(&self, on: bool) {
        self.handle.lock().blackhole = on;
    }

    /// Loses every packet whose payload is longer than `bytes`, as a path with too small an MTU does; `None` ends it.
    pub fn drop_larger_than(&self, bytes: impl Into<Option<usize>>) {
        self.handle.lock().largest_payload = bytes.into();
    }

    /// Stops the wire: messages wait, and no time passes for their repetition. Completions that exist are delivered.
    pub fn pause(&self) {
        self.handle.lock().paused = true;
    }

    /// Lets the wire go on after [`Fabric::pause`].
    pub fn resume(&self) {
        self.handle.lock().paused = false;
        self.handle.wake();
    }

    /// How long a request is repeated before it fails with `RETRY_EXC_ERR`: 400 ms at first. It is put on the wire
    /// eight times in that time. `None` takes number and distance from each queue pair's `retry_count` and `timeout`.
    pub fn set_retry_budget(&self, budget: impl Into<Option<Duration>>) {
        self.handle.lock().retry_budget = budget.into();
    }

    /// What is alive now, and what has happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.handle.lock().counters()
    }

    /// Waits until every message that can be delivered is, and every handler has been told. Messages that wait for a
    /// repetition are not waited for. Never call it from a handler: it would wait for itself.
    pub fn settle(&self) {
        let mut world = self.handle.lock();
        while !world.is_idle() {
            world = self.handle.idle.wait(world).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Devices for Fabric {
    fn list(&self) -> Result<Vec<DeviceInfo>> {
        self.all().list()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn Device>> {
        self.all().open(name)
    }

    fn interface_name(&self, index: u32) -> Option<String> {
        self.all().interface_name(index)
    }
}

impl Fabric {
    fn all(&self) -> Host {
        let count = self.handle.lock().devices.len();
        Host::new(&self.handle, (0..count).collect())
    }
}

impl std::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fabric").finish_non_exhaustive()
    }
}
