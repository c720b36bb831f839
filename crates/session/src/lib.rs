//! Queue pairs set up over TLS.
//!
//! Two processes authenticate each other with TLS 1.3, tell each other their queue pairs' parameters over that
//! channel, and each moves its own queue pair RESET → INIT → RTR → RTS with them. No RDMA CM exchange runs; the
//! starting PSNs come from the operating system and travel only inside TLS. The TLS connection then stays as the
//! *control channel*: keep-alive, orderly close, cause of death.
//!
//! * [`connect`] and [`Listener`] give an [`Established`] connection: the upper layer on its queue pair in RTS, the
//!   [`Control`] handle, the authenticated [`Peer`], and a [`Report`] of what happened.
//! * A [`Host`] chooses the device and makes the queue pair with the [`UpperLayer`] that lives on it. `session`
//!   never names a device.
//! * What is encrypted is the exchange and the control channel. **The data on the queue pair is not**: RoCEv2 has
//!   neither encryption nor authentication.
//!
//! Everything runs on the tokio runtime that the caller is in; [`Runtime`] starts one for callers that have none.

#![forbid(unsafe_code)]

mod accept;
mod bringup;
mod cbor;
mod channel;
mod channel_task;
mod config;
mod connect;
mod control;
mod driver;
mod exchange;
mod farewell;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod keep_alive;
mod listener;
mod offer;
mod pending;
mod report;
mod runtime;
mod tls;
mod upper;
mod way;

pub use bringup::{Bringup, Init, PeerStart, QueuePairOptions, Rtr, Rts, Transition};
pub use config::{Authorize, ConnectConfig, HandshakeFailed, KeepAlive, ListenConfig, SessionOptions};
pub use connect::{Established, connect};
pub use control::Control;
pub use frame::{Frame, FrameDecoder, FrameError, MAX_FRAME, MAX_TOLD, Told};
pub use listener::{Listener, ListenerStats};
pub use offer::{Offer, OfferError, VERSION};
pub use report::{CertificateNames, ExposedSecrets, Report, Role, Step};
pub use runtime::{Runtime, Task};
pub use tls::{ALPN, Peer, Pin, SpiffeId, TlsOptions};
pub use upper::{Host, Prepared, Terms, TlsAddresses, UpperLayer};
