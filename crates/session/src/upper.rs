//! The seam between the bring-up and what lives on the connected queue pair.
//!
//! `session` moves the queue pair and keeps the control channel; what travels over the queue pair is the upper
//! layer's business (`crates/connection`). The two meet in these traits, so that neither knows the other's inside.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use secure_rdma_rdma::{
    Access, Addressing, Device, Error, ErrorCode, LocalAddress, PathMtu, QueuePair, Result,
};

/// What one side's upper layer states in its offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The longest message that this side takes, in bytes.
    pub max_message_size: u64,
    /// Bytes of each receive buffer: the longest segment that may be sent to this side.
    pub segment_size: u32,
    /// Receive buffers that this side keeps posted for the peer: its first credits.
    pub credits: u16,
}

/// What lives on one queue pair. Made in RESET, driven by `session` through the bring-up, called by it for as long
/// as the control channel lives. No method may block.
pub trait UpperLayer: Send + Sync + 'static {
    /// What the peer may do to the queue pair: what RESET→INIT gives it. Which memory it may touch is for regions and
    /// windows to say. At the least the right to WRITE, because a WRITE of no bytes is how an idle path is probed.
    fn access(&self) -> Access {
        Access::LOCAL_WRITE | Access::REMOTE_WRITE
    }

    /// Called in INIT: makes sure that receives are posted before the peer's first packet can come.
    ///
    /// # Errors
    /// When there is no room for them.
    fn post_receives(&self) -> Result<()>;

    /// This side's terms, for the offer.
    fn terms(&self) -> Terms;

    /// Takes over the peer's terms (already checked for plausible ranges) and the agreed path MTU. Called before RTR.
    ///
    /// # Errors
    /// When they cannot be met.
    fn adopt(&self, peer: &Terms, path_mtu: PathMtu) -> Result<()>;

    /// Called in RTS: sends one message of a full path MTU over the queue pair.
    ///
    /// # Errors
    /// When it cannot be posted.
    fn prove_path(&self) -> Result<()>;

    /// Ready when the own message was acknowledged *and* the peer's has arrived, or with the error that ended either.
    ///
    /// Called from RTR on, where there is no own message yet but the peer's requests are answered: an error that is known
    /// then, of what the peer has sent or of the device, ends the bring-up.
    fn poll_path_proven(&self, cx: &mut Context<'_>) -> Poll<Result<()>>;

    /// Called four times a second from the moment the connection is up: for probes on an idle queue pair.
    ///
    /// # Errors
    /// An error ends the connection with it.
    fn tick(&self, now: Instant) -> Result<()>;

    /// The peer's upper layer has told something by [`crate::Control::tell`]: 1 to 2048 bytes, in the order of telling,
    /// from the moment the connection is up.
    ///
    /// # Errors
    /// An error ends the connection with it, and the peer is told. Without a body of its own every message is one.
    fn told(&self, message: &[u8]) -> Result<()> {
        Err(Error::new(
            ErrorCode::Protocol,
            format!("the peer told {} bytes where nothing is to be told", message.len()),
        ))
    }

    /// There is room again for [`crate::Control::tell`], which had refused for lack of it.
    fn may_tell(&self) {}

    /// The peer has closed in order: it has sent its last message and reads no more.
    fn peer_closed(&self);

    /// The connection is over: the control channel ended, fell silent, or the peer broke a rule. Called once at the
    /// most, and last.
    fn lost(&self, error: Error);
}

/// The addresses of the TLS connection, by which a device is chosen.
#[derive(Clone, Copy, Debug)]
pub struct TlsAddresses {
    /// Our end.
    pub local: SocketAddr,
    /// The peer's end.
    pub peer: SocketAddr,
}

/// What [`Host::prepare`] makes for one connection.
pub struct Prepared<U> {
    /// The device, for its limits and its way to the peer.
    pub device: Arc<dyn Device>,
    /// Port, GID and path MTU, and why these.
    pub local: LocalAddress,
    /// How the path is to be found.
    pub addressing: Addressing,
    /// The queue pair, in RESET. `session` lets go of it when the bring-up ends; the upper layer alone keeps it then,
    /// and may drop it when the connection is over.
    pub queue_pair: Arc<dyn QueuePair>,
    /// The upper layer that lives on it.
    pub upper: Arc<U>,
}

/// Chooses the device and makes queue pairs. Called for peers only that TLS has verified and `authorize` has let in.
pub trait Host: Send + Sync + 'static {
    /// The upper layer that it makes.
    type Upper: UpperLayer;

    /// Chooses and opens the device for a TLS connection and makes the queue pair in RESET. **May block**; `session`
    /// calls it off its event loop.
    ///
    /// # Errors
    /// No device, no memory, no room.
    fn prepare(&self, addresses: TlsAddresses) -> Result<Prepared<Self::Upper>>;
}
