//! The server's way to connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use secure_rdma_rdma::{Error, ErrorCode, Result};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Mutex, mpsc, watch};

use crate::accept::accept_loop;
use crate::connect::{tcp_error, zone};
use crate::farewell::race;
use crate::pending::Pending;
use crate::tls::ServerTls;
use crate::{Established, Host, ListenConfig, TlsOptions};

/// Counters of a listener, since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerStats {
    /// TCP connections taken.
    pub tcp_accepted: u64,
    /// Handshakes that are under way.
    pub pending: usize,
    /// Connections that came up.
    pub established: u64,
    /// Handshakes that failed, evicted ones included.
    pub failed: u64,
    /// Handshakes that gave way to newcomers.
    pub evicted: u64,
    /// Times that accepting paused for want of descriptors or memory.
    pub paused: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) tcp_accepted: AtomicU64,
    pub(crate) established: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) paused: AtomicU64,
    /// No more entries than there are codes.
    failures: std::sync::Mutex<BTreeMap<&'static str, (ErrorCode, u64)>>,
}

impl Counters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a handshake that failed with `code`.
    pub(crate) fn count_failure(&self, code: ErrorCode) {
        Self::count(&self.failed);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.entry(code.as_str()).or_insert((code, 0)).1 += 1;
    }

    fn failures(&self) -> Vec<(ErrorCode, u64)> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }
}

/// What the accepting task and the handshakes share with the [`Listener`].
pub(crate) struct Shared<H: Host + ?Sized> {
    pub(crate) config: ListenConfig,
    tls: RwLock<Arc<ServerTls>>,
    pub(crate) host: Arc<H>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) counters: Counters,
    pub(crate) closing: watch::Sender<bool>,
}

impl<H: Host + ?Sized> Shared<H> {
    /// What a handshake that begins now goes by, to its end.
    pub(crate) fn tls(&self) -> Arc<ServerTls> {
        Arc::clone(&self.tls.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Accepts connections. Dropping it, or [`Listener::close`], ends pending handshakes and leaves connections that were
/// handed out alone.
pub struct Listener<H: Host + ?Sized> {
    shared: Arc<Shared<H>>,
    address: SocketAddr,
    ready: Mutex<mpsc::Receiver<Established<H::Upper>>>,
}

impl<H: Host + ?Sized> Listener<H> {
    /// Listens. Must be called inside a tokio runtime with I/O and time: handshakes run on it.
    ///
    /// # Errors
    /// `ERR_RDMA_TLS_CONFIG`, `ERR_RDMA_INVALID_ARGUMENT`, `ERR_RDMA_TCP`.
    pub async fn bind(config: ListenConfig, host: Arc<H>) -> Result<Self> {
        config.validate()?;
        let tls = ServerTls::new(&config.tls)?;
        let listener = listen(&config).await?;
        let address =
            listener.local_addr().map_err(|cause| tcp_error("getsockname", "the listener broke", &cause))?;
        // Every handshake that is let in while there is room has a place at its end.
        let (sender, ready) = mpsc::channel(config.max_unaccepted + config.max_pending_handshakes);
        let shared = Arc::new(Shared {
            pending: Arc::new(Pending::new(config.max_pending_handshakes)),
            config,
            tls: RwLock::new(Arc::new(tls)),
            host,
            counters: Counters::default(),
            closing: watch::Sender::new(false),
        });
        // Counted before the task runs: a close that comes first waits for it too.
        let alive = shared.closing.subscribe();
        tokio::spawn(accept_loop(Arc::clone(&shared), listener, sender, alive));
        Ok(Self { shared, address, ready: Mutex::new(ready) })
    }

    /// The next connection. Failed handshakes do not end it. Dropping the future loses no connection; many may wait.
    ///
    /// # Errors
    /// `ERR_RDMA_SERVER_CLOSED`.
    pub async fn accept(&self) -> Result<Established<H::Upper>> {
        let mut closing = self.shared.closing.subscribe();
        let closed = async move {
            let _ = closing.wait_for(|closing| *closing).await;
        };
        let next = async { self.ready.lock().await.recv().await };
        // The closing first: a closed listener hands nothing out.
        match race(closed, next).await {
            Err(Some(established)) => Ok(established),
            Ok(()) | Err(None) => {
                self.discard_unaccepted();
                Err(Error::new(ErrorCode::ServerClosed, format!("the server on {} is closed", self.address)))
            }
        }
    }

    /// The address that it listens on, with the port that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> ListenerStats {
        let counters = &self.shared.counters;
        ListenerStats {
            tcp_accepted: counters.tcp_accepted.load(Ordering::Relaxed),
            pending: self.shared.pending.count(),
            established: counters.established.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
            evicted: counters.evicted.load(Ordering::Relaxed),
            paused: counters.paused.load(Ordering::Relaxed),
        }
    }

    /// Handshakes that failed, by the code of their error; codes that never came are left out. Their sum is
    /// [`ListenerStats::failed`].
    #[must_use]
    pub fn failures(&self) -> Vec<(ErrorCode, u64)> {
        self.shared.counters.failures()
    }

    /// Changes who we are and whom we trust, for TCP connections that are taken from now on. Handshakes that are under way,
    /// and connections, keep what they began with. Of `tls`, certificate and key, authorities, pins and revocation lists
    /// count; `request_cert` and the key log stay as they are.
    ///
    /// # Errors
    /// `ERR_RDMA_TLS_CONFIG`, and then nothing has changed.
    pub fn set_tls(&self, tls: &TlsOptions) -> Result<()> {
        let renewed = Arc::new(self.shared.tls().renewed(tls)?);
        *self.shared.tls.write().unwrap_or_else(PoisonError::into_inner) = renewed;
        Ok(())
    }

    /// Stops listening and ends pending handshakes; connections that nobody accepted are destroyed. Idempotent. The port
    /// is free when [`Listener::closed`] is done.
    pub fn close(&self) {
        self.shared.closing.send_replace(true);
        self.shared.pending.close();
        self.discard_unaccepted();
    }

    /// Waits until the listener is closed, its port is free and its handshakes are over.
    pub async fn closed(&self) {
        let mut closing = self.shared.closing.subscribe();
        let _ = closing.wait_for(|closing| *closing).await;
        drop(closing);
        // The accepting task drops its receiver behind its socket, a handshake behind the last that it tells.
        self.shared.closing.closed().await;
    }

    /// Where someone waits in `accept`, that one does it.
    fn discard_unaccepted(&self) {
        if let Ok(mut ready) = self.ready.try_lock() {
            ready.close();
            while ready.try_recv().is_ok() {}
        }
    }
}

impl<H: Host + ?Sized> Drop for Listener<H> {
    fn drop(&mut self) {
        self.close();
    }
}

async fn listen(config: &ListenConfig) -> Result<TcpListener> {
    let found = tokio::net::lookup_host((config.host.as_str(), config.port)).await.map_err(|cause| {
        tcp_error(
            "getaddrinfo",
            &format!("{:?} does not resolve to an address (check the name, or give an address)", config.host),
            &cause,
        )
    })?;
    let mut last = None;
    for address in found {
        match listen_on(address, config.backlog) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| Error::new(ErrorCode::Tcp, format!("{:?} has no address", config.host))))
}

fn listen_on(address: SocketAddr, backlog: u32) -> Result<TcpListener> {
    let failed = |syscall| {
        move |cause: std::io::Error| {
            tcp_error(syscall, &format!("listening on {address} failed{}", zone(address)), &cause)
        }
    };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(failed("socket"))?;
    // A restarted server takes its port over from connections in TIME_WAIT.
    socket.set_reuseaddr(true).map_err(failed("setsockopt"))?;
    socket.bind(address).map_err(failed("bind"))?;
    socket.listen(backlog).map_err(failed("listen"))
}

/// Whether fewer than `most` connections are up and not accepted. Those that come up at this moment do not count: where
/// someone accepts, they never wait.
pub(crate) fn has_room<T>(ready: &mpsc::Sender<T>, most: usize) -> Result<()> {
    if ready.is_closed() {
        return Err(Error::new(ErrorCode::ServerClosed, "the server is closed"));
    }
    let waiting = ready.max_capacity() - ready.capacity();
    if waiting < most {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::Resource,
        format!(
            "{waiting} connections wait to be accepted: call accept() more often, or raise maxUnaccepted, which is {most}"
        ),
    ))
}
