//! The napi-rs binding: picks a device, turns completions into promises. No logic of its own.
//!
//! Results cross to JavaScript as values: a function gives what it was asked for, or a [`NativeError`], which the
//! TypeScript side throws as `RdmaError`. What happens on other threads rings a [`bell`]; JavaScript is called once
//! per batch, and then asks every object that has news.

mod authorize;
mod bell;
mod buffers;
mod commands;
mod connecting;
mod connection;
mod data_plane;
mod device;
mod environment;
mod error;
#[cfg(feature = "fake")]
mod faults;
mod loop_poller;
mod messages;
mod news;
mod options;
mod peer;
mod process;
mod region;
mod remote;
mod report;
mod server;
mod shown;
mod work;

pub use authorize::NativeQuestion;
pub use connecting::Connecting;
pub use connection::{NativeClosed, NativeConnection, NativeConnectionStats};
pub use data_plane::{NativeOutcome, NativeOutcomes};
pub use device::{Counting, Listing, NativeDevice, NativeGid, NativeLimits, NativePort};
pub use environment::Environment;
pub use error::{NativeError, error_codes};
#[cfg(feature = "fake")]
pub use faults::{is_refused_in_fork, soft_drop, soft_dropped, soft_pass};
pub use options::{
    NativeConnect, NativeListen, NativeOptions, NativePool, NativeQueuePair, NativeSecureContext,
};
pub use peer::{NativeNames, NativePeer};
pub use region::NativeRegion;
pub use remote::{NativeRemote, Seeking};
pub use report::{NativeLocal, NativeReport, NativeSecrets, NativeStep, NativeTerms};
pub use server::{Listening, NativeAddress, NativeFailure, NativeServer, NativeServerStats};
pub use work::Work;
