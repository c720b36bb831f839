//! Connecting and accepting.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use secure_rdma_rdma::{ErrorCode, Result};
use secure_rdma_session::{ConnectConfig, Established, ListenConfig, Listener, ListenerStats, TlsOptions};

use crate::channel::Channel;
use crate::connection::Connection;
use crate::host::{DeviceHost, Registry};
use crate::options::{ConnectionOptions, DeviceOptions};
use crate::upper::Upper;

/// Connects. Dropping the future unmakes everything.
///
/// # Errors
/// Whatever [`secure_rdma_session::connect`] gives, and `ERR_RDMA_INVALID_ARGUMENT` for options out of range.
pub async fn connect(
    registry: &Arc<Registry>,
    session: ConnectConfig,
    device: DeviceOptions,
    options: ConnectionOptions,
) -> Result<Connection> {
    options.validate()?;
    let host = DeviceHost::new(registry, device, options, false);
    Ok(connection(secure_rdma_session::connect(session, host).await?))
}

fn connection(established: Established<Upper>) -> Connection {
    let Established { upper, control, peer, report } = established;
    let channel = Arc::clone(&upper.0);
    let path = format!(
        "between {} ({} port {}) and {}{}",
        report.local.gid.to_ip(),
        report.local.device,
        report.local.port,
        report.peer_gid.to_ip(),
        report.udp_port.map(|port| format!(", UDP port {port}")).unwrap_or_default()
    );
    channel.open(Some(control), path);
    Connection::new(channel, peer, report)
}

/// Accepts connections.
pub struct Server {
    listener: Listener<DeviceHost>,
    host: Arc<DeviceHost>,
    live: Mutex<Vec<Weak<Channel>>>,
}

impl Server {
    /// Listens.
    ///
    /// # Errors
    /// Whatever [`Listener::bind`] gives, and `ERR_RDMA_INVALID_ARGUMENT` for options out of range.
    pub async fn listen(
        registry: &Arc<Registry>,
        session: ListenConfig,
        device: DeviceOptions,
        options: ConnectionOptions,
    ) -> Result<Self> {
        options.validate()?;
        let host = DeviceHost::new(registry, device, options, true);
        let listener = Listener::bind(session, Arc::clone(&host)).await?;
        Ok(Self { listener, host, live: Mutex::default() })
    }

    /// The next connection; `None` when the server is closed. A failed handshake does not show here. Many may wait;
    /// dropping the future loses no connection.
    pub async fn accept(&self) -> Option<Connection> {
        let connection = connection(self.listener.accept().await.ok()?);
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(is_live);
        live.push(connection.channel());
        Some(connection)
    }

    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Connections that were accepted here and are not over.
    #[must_use]
    pub fn connections(&self) -> usize {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.retain(is_live);
        live.len()
    }

    /// Counters of the handshakes.
    #[must_use]
    pub fn stats(&self) -> ListenerStats {
        self.listener.stats()
    }

    /// Handshakes that failed, by the code of their error: see [`Listener::failures`].
    #[must_use]
    pub fn failures(&self) -> Vec<(ErrorCode, u64)> {
        self.listener.failures()
    }

    /// Changes who this server is and whom it trusts, for connections to come: see [`Listener::set_tls`].
    ///
    /// # Errors
    /// `ERR_RDMA_TLS_CONFIG`, and then nothing has changed.
    pub fn set_tls(&self, tls: &TlsOptions) -> Result<()> {
        self.listener.set_tls(tls)
    }

    /// Stops accepting. Connections that were accepted stay; those that were not are destroyed. Never blocks.
    /// Idempotent.
    pub fn close(&self) {
        self.listener.close();
        self.host.release();
    }

    /// Waits until the server is closed, its port is free and its handshakes are over.
    pub async fn closed(&self) {
        self.listener.closed().await;
    }
}

fn is_live(channel: &Weak<Channel>) -> bool {
    channel.upgrade().is_some_and(|channel| !channel.is_over())
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("local_addr", &self.local_addr()).finish_non_exhaustive()
    }
}
