//! What `connect` and `listen` are told.

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use secure_rdma_rdma::{Entropy, Error, ErrorCode, OsEntropy, PathMtu, Result};

use crate::{Peer, QueuePairOptions, TlsOptions};

/// Decides about a peer that TLS has verified, before any queue pair exists. `Err` holds the reason: it goes into
/// this side's error, and the peer is told only that it was refused. Runs under the handshake's deadline.
pub type Authorize =
    Arc<dyn Fn(Arc<Peer>) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + Send + Sync>;

/// Told of every handshake that a listener gave up, with the peer's TCP address. Must not block.
pub type HandshakeFailed = Arc<dyn Fn(&Error, SocketAddr) + Send + Sync>;

/// What both roles have in common.
#[derive(Clone)]
pub struct SessionOptions {
    /// Covers everything from TCP (server: from `accept`) to the proof of path. Default 10 s; at least 1 ms.
    pub handshake_timeout: Duration,
    /// How long [`crate::Control::close`] waits for the peer's close. Default 5 s.
    pub close_timeout: Duration,
    /// How the peer's death is noticed.
    pub keep_alive: KeepAlive,
    /// Addresses besides the TLS peer's own that its GID may stand for. Default none.
    pub allowed_peer_addresses: Vec<IpAddr>,
    /// Runs after TLS and before any queue pair exists.
    pub authorize: Option<Authorize>,
    /// Attributes of the queue pair.
    pub queue_pair: QueuePairOptions,
    /// The largest path MTU to offer. Default: what the port carries.
    pub max_path_mtu: Option<PathMtu>,
    /// Where starting PSNs come from. Default: the operating system. Another source is for tests.
    pub entropy: Arc<dyn Entropy>,
    /// Puts the starting PSNs into [`crate::Report::secrets`]. Default no. For tests and demonstrations: whoever
    /// knows them can inject packets.
    pub expose_secrets: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            close_timeout: Duration::from_secs(5),
            keep_alive: KeepAlive::default(),
            allowed_peer_addresses: Vec::new(),
            authorize: None,
            queue_pair: QueuePairOptions::default(),
            max_path_mtu: None,
            entropy: Arc::new(OsEntropy),
            expose_secrets: false,
        }
    }
}

impl SessionOptions {
    /// Checks every range.
    ///
    /// # Errors
    /// `ERR_RDMA_INVALID_ARGUMENT` naming the option.
    pub fn validate(&self) -> Result<()> {
        let long = Duration::from_secs(24 * 60 * 60);
        let timeouts = [("handshakeTimeout", self.handshake_timeout), ("closeTimeout", self.close_timeout)];
        for (name, value) in timeouts {
            if value < Duration::from_millis(1) || value > long {
                return Err(invalid(format!("{name} is {value:?}: give 1 ms to 24 h")));
            }
        }
        self.keep_alive.validate()?;
        self.queue_pair.validate()
    }
}

impl fmt::Debug for SessionOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionOptions")
            .field("handshake_timeout", &self.handshake_timeout)
            .field("keep_alive", &self.keep_alive)
            .field("authorize", &self.authorize.is_some())
            .field("queue_pair", &self.queue_pair)
            .finish_non_exhaustive()
    }
}

/// How often we say that we live, and how many of the peer's signs of life may be missing before it is taken for dead.
///
/// Each side states its interval in its offer and is judged by it: dead is who has been silent for `misses` of its *own*
/// intervals, and half a one of grace (3.5 s at the defaults), so that a peer that was stopped for 2 s lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Between two of our signs of life, one frame each. Default 1 s; 10 ms to 60 s. The peer is told.
    pub interval: Duration,
    /// Of the peer's. Default 3; 1 to 1000.
    pub misses: u32,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), misses: 3 }
    }
}

impl KeepAlive {
    /// The shortest interval.
    pub const MIN_INTERVAL: Duration = Duration::from_millis(10);
    /// The longest. A peer that states more is refused: nothing could tell whether it is alive.
    pub const MAX_INTERVAL: Duration = Duration::from_secs(60);

    fn validate(self) -> Result<()> {
        if self.interval < Self::MIN_INTERVAL || self.interval > Self::MAX_INTERVAL {
            return Err(invalid(format!("keepAliveInterval is {:?}: give 10 ms to 60 s", self.interval)));
        }
        if !(1..=1000).contains(&self.misses) {
            return Err(invalid(format!("keepAliveMisses is {}: give 1 to 1000", self.misses)));
        }
        Ok(())
    }
}

/// What [`crate::connect`] is told.
#[derive(Clone, Debug)]
pub struct ConnectConfig {
    /// Name or IP address of the server; a link-local one with its zone (`fe80::1%eth0`). All addresses of a name are tried,
    /// within the deadline.
    pub host: String,
    /// TCP port, 1 to 65535.
    pub port: u16,
    /// The local address of the TCP connection; by it the device is chosen. A link-local one is on the interface of the
    /// host's zone.
    pub local_address: Option<IpAddr>,
    /// Who we are and whom we trust.
    pub tls: TlsOptions,
    /// Everything else.
    pub options: SessionOptions,
}

impl ConnectConfig {
    /// A connection to `host` and `port` with default options.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16, tls: TlsOptions) -> Self {
        Self { host: host.into(), port, local_address: None, tls, options: SessionOptions::default() }
    }
}

/// What [`crate::Listener::bind`] is told.
#[derive(Clone)]
pub struct ListenConfig {
    /// Name or IP address to listen on, a link-local one with its zone (`fe80::1%eth0`); `::` and `0.0.0.0` are every
    /// address.
    pub host: String,
    /// TCP port; 0 lets the system choose.
    pub port: u16,
    /// Length of the kernel's queue of TCP connections. Default 4096 (the kernel caps it at `somaxconn`).
    pub backlog: u32,
    /// Handshakes at once, 1 to 65536. Default 256. When full, the one that has stalled longest gives way. A stall counts
    /// 2 s later once the client's certificate has been verified, for one key in half of the places at the most.
    pub max_pending_handshakes: usize,
    /// Connections that are up but not yet accepted, 1 to 65536. Default 1024. When so many wait, newcomers are refused;
    /// handshakes that had got past `authorize` by then come up all the same, so that a burst may exceed it by
    /// `max_pending_handshakes`.
    pub max_unaccepted: usize,
    /// Who we are and whom we trust.
    pub tls: TlsOptions,
    /// Everything else.
    pub options: SessionOptions,
    /// Told of every failed handshake. A failure never ends [`crate::Listener::accept`].
    pub on_handshake_failed: Option<HandshakeFailed>,
}

impl ListenConfig {
    /// A listener on `host` and `port` with default options.
    #[must_use]
    pub fn new(host: impl Into<String>, port: u16, tls: TlsOptions) -> Self {
        Self {
            host: host.into(),
            port,
            backlog: 4096,
            max_pending_handshakes: 256,
            max_unaccepted: 1024,
            tls,
            options: SessionOptions::default(),
            on_handshake_failed: None,
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        for (name, value) in
            [("maxPendingHandshakes", self.max_pending_handshakes), ("maxUnaccepted", self.max_unaccepted)]
        {
            if !(1..=65536).contains(&value) {
                return Err(invalid(format!("{name} is {value}: give 1 to 65536")));
            }
        }
        if self.backlog == 0 {
            return Err(invalid("backlog is 0: give at least 1".to_owned()));
        }
        self.options.validate()
    }
}

pub(crate) fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidArgument, message)
}
