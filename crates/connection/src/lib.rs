//! What lives on a connected queue pair: messages, flow control, and an end that is always told.
//!
//! [`connect`] and [`Server`] bring connections up through `session`; a [`Connection`] then carries messages. Each
//! message is cut into segments, each segment is one SEND with immediate ([framing](https://github.com/secure-rdma/secure-rdma/blob/main/ARCHITECTURE.md#message-framing)),
//! and none is sent without a credit, so that a slow receiver makes the sender wait instead of causing RNR NAKs.
//!
//! Nothing here knows which device it runs on. With a device crate, a Rust program needs no more than this.

#![forbid(unsafe_code)]

mod channel;
mod connection;
mod control_messages;
mod credit;
mod ending;
mod framing;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod grant_messages;
mod grants;
mod handler;
mod host;
mod look;
mod operations;
mod options;
mod outcomes;
mod outgoing;
mod outstanding;
mod pool;
mod posting;
mod publications;
mod publishing;
mod ready;
mod receive;
mod regions;
mod registrations;
mod remote;
mod server;
mod stats;
#[cfg(test)]
mod tests;
mod transmit;
mod upper;
mod watch;

pub use connection::{CloseReason, Closed, Connection, Received};
pub use grants::PublicationState;
pub use host::Registry;
pub use look::Look;
pub use operations::Operation;
pub use options::{ConnectionOptions, DeviceOptions, PoolOptions};
pub use publications::Publication;
pub use regions::{RegionSlice, SharedRegion};
pub use remote::{RemoteRegion, RemoteSlice};
pub use server::{Server, connect};
pub use stats::ConnectionStats;
