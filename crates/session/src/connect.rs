//! The client's way to a connection.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use secure_rdma_rdma::{Error, ErrorCode, Phase, Result};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{TlsConnector, TlsStream};

use crate::channel::Channel;
use crate::config::invalid;
use crate::driver::{Negotiation, timed_out};
use crate::farewell::{Failed, Remains};
use crate::pending::Progress;
use crate::report::Stopwatch;
use crate::tls::{ClientTls, Secured, Suspect};
use crate::{ConnectConfig, Control, Host, Peer, Report, Role, UpperLayer};

/// A connection that is up: both queue pairs are in RTS and the path is proven both ways.
pub struct Established<U: UpperLayer> {
    /// The upper layer on its queue pair.
    pub upper: Arc<U>,
    /// The control channel. Dropping it ends the connection.
    pub control: Control,
    /// Who the peer is.
    pub peer: Arc<Peer>,
    /// What happened.
    pub report: Report,
}

impl<U: UpperLayer> std::fmt::Debug for Established<U> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Established").field("report", &self.report).finish_non_exhaustive()
    }
}

/// Connects: TCP, TLS, `authorize`, device, exchange, bring-up, proof of path.
///
/// Dropping the future unmakes whatever was made; a blocking call that is under way ends first, and its result is
/// dropped then. Must be polled inside a tokio runtime with I/O and time.
///
/// # Errors
/// Every code of `TLS` and `exchange` in [`secure_rdma_rdma::ErrorCode`], with the phase, and what the host gives.
pub async fn connect<H: Host + ?Sized>(config: ConnectConfig, host: Arc<H>) -> Result<Established<H::Upper>> {
    config.options.validate()?;
    if config.port == 0 {
        return Err(invalid("port is 0: give 1 to 65535".to_owned()));
    }
    let tls = ClientTls::new(&config.tls, &config.host)?;
    match attempt(&config, tls, host).await {
        Ok(established) => Ok(established),
        Err(Failed { error, rest }) => {
            if let Some(rest) = rest {
                tokio::spawn(rest.farewell());
            }
            Err(error)
        }
    }
}

async fn attempt<H: Host + ?Sized>(
    config: &ConnectConfig,
    tls: ClientTls,
    host: Arc<H>,
) -> Result<Established<H::Upper>, Failed> {
    let deadline = Instant::now() + config.options.handshake_timeout;
    let progress = Progress::new();
    let mut watch = Stopwatch::new();
    let whom = || format!("{}:{}", config.host, config.port);
    let late = |phase| timed_out(whom(), config.options.handshake_timeout, phase);

    let tcp = timeout_at(deadline, open_tcp(config, deadline))
        .await
        .map_err(|_| late(Phase::Connect))?
        .map_err(|error| error.in_phase(Phase::Connect))?;
    let (local, address) = both_ends(&tcp).map_err(|error| error.in_phase(Phase::Connect))?;
    watch.lap("tcp");

    progress.enter(Phase::Tls);
    let suspect = Suspect { address, role: Role::Client, witness: tls.witness };
    let handshake = TlsConnector::from(tls.config).connect(tls.name, tcp).into_fallible();
    let stream = match timeout_at(deadline, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((cause, tcp))) => {
            let error = suspect.judge(&cause).in_phase(Phase::Tls);
            return Err(Failed { error, rest: Some(Remains::Tcp(tcp)) });
        }
        Err(_) => return Err(late(Phase::Tls).into()),
    };
    let secured = Secured::new(stream.get_ref().1, local, &suspect);
    let channel = Channel::new(TlsStream::Client(stream));
    watch.lap("tls");
    let secured = match secured {
        Ok(secured) => secured,
        Err(error) => {
            let rest = Some(Remains::Tls(Box::new(channel)));
            return Err(Failed { error: error.in_phase(Phase::Tls), rest });
        }
    };

    let negotiation = Negotiation {
        role: Role::Client,
        channel,
        secured,
        suspect,
        host,
        options: &config.options,
        own_names: tls.own,
        progress: &progress,
        watch,
        path: None,
    };
    negotiation.run(deadline, || Ok(())).await
}

/// Tries every address of the host; each gets an equal share of the time that is left.
async fn open_tcp(config: &ConnectConfig, deadline: Instant) -> Result<TcpStream> {
    let (host, port) = (config.host.as_str(), config.port);
    let found = tokio::net::lookup_host((host, port)).await.map_err(|cause| {
        Error::new(
            ErrorCode::Tcp,
            format!("{host:?} does not resolve to an address: {cause}. Check the name, or give an address"),
        )
        .with_syscall("getaddrinfo", cause.raw_os_error().unwrap_or(0))
    })?;
    let fits =
        |address: &SocketAddr| config.local_address.is_none_or(|own| own.is_ipv4() == address.is_ipv4());
    let addresses: Vec<SocketAddr> = found.filter(fits).collect();
    let mut last = None;
    for (tried, address) in addresses.iter().enumerate() {
        let now = Instant::now();
        let left = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
        let share = now + deadline.saturating_duration_since(now) / left;
        match timeout_at(share, open_one(config, *address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = Some(error),
            Err(_) => {
                last = Some(Error::new(
                    ErrorCode::Tcp,
                    format!(
                        "{address} did not answer: check address and port, and that no firewall drops TCP"
                    ),
                ));
            }
        }
    }
    Err(last.unwrap_or_else(|| {
        Error::new(
            ErrorCode::Tcp,
            format!("{host:?} has no address of localAddress's family: give another localAddress, or none"),
        )
    }))
}

async fn open_one(config: &ConnectConfig, address: SocketAddr) -> Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(|cause| tcp_error("socket", &format!("no socket for {address}"), &cause))?;
    if let Some(own) = config.local_address {
        let own = local(own, address);
        socket.bind(own).map_err(|cause| {
            let what = format!("the local address {} cannot be used{}", own.ip(), zone(own));
            tcp_error("bind", &what, &cause)
        })?;
    }
    let stream = socket.connect(address).await.map_err(|cause| {
        tcp_error("connect", &format!("no connection to {address}{}", zone(address)), &cause)
    })?;
    stream.set_nodelay(true).map_err(|cause| tcp_error("setsockopt", "TCP_NODELAY", &cause))?;
    Ok(stream)
}

/// What to say of a link-local address without its zone.
pub(crate) fn zone(address: SocketAddr) -> &'static str {
    match address {
        SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() && v6.scope_id() == 0 => {
            " (a link-local address needs its zone, as in fe80::1%eth0, which is given in host)"
        }
        _ => "",
    }
}

/// `own` with any port, towards `peer`. A link-local address is on the interface that the peer is reached by.
fn local(own: IpAddr, peer: SocketAddr) -> SocketAddr {
    match (own, peer) {
        (IpAddr::V6(own), SocketAddr::V6(peer)) if own.is_unicast_link_local() => {
            SocketAddrV6::new(own, 0, 0, peer.scope_id()).into()
        }
        _ => SocketAddr::new(own, 0),
    }
}

pub(crate) fn both_ends(tcp: &TcpStream) -> Result<(SocketAddr, SocketAddr)> {
    let ends = tcp.local_addr().and_then(|local| Ok((local, tcp.peer_addr()?)));
    ends.map_err(|cause| tcp_error("getpeername", "the connection broke at once", &cause))
}

/// What to do about a failure of TCP, where its cause tells.
fn remedy(syscall: &str, cause: &std::io::Error) -> &'static str {
    match cause.kind() {
        ErrorKind::ConnectionRefused => ". Is the server running, and is this its port?",
        ErrorKind::AddrInUse => ". Another process has this port: choose another one",
        ErrorKind::AddrNotAvailable => ". Give an address that this host has",
        ErrorKind::PermissionDenied if syscall == "bind" => {
            ". Ports below 1024 are for root, and for who has CAP_NET_BIND_SERVICE"
        }
        ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable => {
            ". Check the route to it (ip route get)"
        }
        ErrorKind::TimedOut => ". Check that no firewall drops TCP",
        _ if matches!(cause.raw_os_error(), Some(23 | 24)) => ". Raise the limit on open files (ulimit -n)",
        _ => "",
    }
}

pub(crate) fn tcp_error(syscall: &'static str, what: &str, cause: &std::io::Error) -> Error {
    let remedy = remedy(syscall, cause);
    Error::new(ErrorCode::Tcp, format!("{what}: {cause}{remedy}"))
        .with_syscall(syscall, cause.raw_os_error().unwrap_or(0))
}
