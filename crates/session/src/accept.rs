//! The accepting task of a listener, and the server's side of one handshake.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use secure_rdma_rdma::{Error, ErrorCode, Phase, Result};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use crate::channel::Channel;
use crate::connect::both_ends;
use crate::driver::{Negotiation, timed_out};
use crate::farewell::{Failed, Remains, race};
use crate::listener::{Counters, Shared, has_room};
use crate::pending::{Full, Ticket};
use crate::report::Stopwatch;
use crate::tls::{Secured, Suspect};
use crate::{Established, Host, Role};

/// How long accepting pauses when the system has no descriptor or memory for another connection.
const PAUSE: Duration = Duration::from_millis(100);

/// Knows whether the listener is closing; [`crate::Listener::closed`] waits until all of them are dropped.
type Alive = watch::Receiver<bool>;

/// Accepts until the listener closes.
pub(crate) async fn accept_loop<H: Host + ?Sized>(
    shared: Arc<Shared<H>>,
    listener: TcpListener,
    ready: Sender<Established<H::Upper>>,
    mut alive: Alive,
) {
    let closed = async {
        let _ = alive.wait_for(|closing| *closing).await;
    };
    let accepting = async {
        for id in 0.. {
            let (tcp, address) = accept_one(&shared, &listener).await;
            Counters::count(&shared.counters.tcp_accepted);
            let Some(ticket) = admit(&shared, id).await else { return };
            let ready = ready.clone();
            let alive = shared.closing.subscribe();
            tokio::spawn(serve(Arc::clone(&shared), ticket, tcp, address, ready, alive));
            // Handshakes get their turn between two newcomers.
            tokio::task::yield_now().await;
        }
    };
    let _ = race(closed, accepting).await;
    drop(listener);
    drop(alive);
}

async fn accept_one<H: Host + ?Sized>(shared: &Shared<H>, listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            // The connection was reset while it waited: the next one may be well.
            Err(cause) if cause.kind() == std::io::ErrorKind::ConnectionAborted => {}
            // EMFILE, ENFILE, ENOBUFS, ENOMEM: handshakes and connections end, then there is room again.
            Err(_) => {
                Counters::count(&shared.counters.paused);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// A place for the newcomer, or `None` when the listener is closed.
async fn admit<H: Host + ?Sized>(shared: &Shared<H>, id: u64) -> Option<Ticket> {
    loop {
        match shared.pending.admit(id) {
            Ok((ticket, _)) => return Some(ticket),
            Err(Full::For(wait)) => tokio::time::sleep(wait).await,
            Err(Full::Closed) => return None,
        }
    }
}

/// One connection from TCP to the queue of those that are up.
async fn serve<H: Host + ?Sized>(
    shared: Arc<Shared<H>>,
    ticket: Ticket,
    tcp: TcpStream,
    address: SocketAddr,
    ready: Sender<Established<H::Upper>>,
    _alive: Alive,
) {
    let handshake = handshake(&shared, &ticket, tcp, address, &ready);
    let failed = match race(handshake, ticket.evicted()).await {
        Ok(Ok(established)) => {
            Counters::count(&shared.counters.established);
            // Behind a close it would wait where nobody looks any more.
            shared.pending.unless_closed(move || drop(ready.try_send(established)));
            return;
        }
        Ok(Err(failed)) => failed,
        Err(()) if shared.pending.is_closed() => return,
        Err(()) => {
            Counters::count(&shared.counters.evicted);
            evicted(address, ticket.progress.phase()).into()
        }
    };
    ticket.progress.over();
    shared.counters.count_failure(failed.error.code());
    if let Some(told) = &shared.config.on_handshake_failed {
        told(&failed.error, address);
    }
    if let Some(rest) = failed.rest {
        let _ = race(rest.farewell(), ticket.evicted()).await;
    }
}

fn evicted(address: SocketAddr, phase: Phase) -> Error {
    Error::new(
        ErrorCode::HandshakeEvicted,
        format!(
            "the handshake with {address} had stalled longest (phase {}) when a newcomer needed its place: raise \
             maxPendingHandshakes if it was honest",
            phase.as_str()
        ),
    )
    .in_phase(phase)
}

async fn handshake<H: Host + ?Sized>(
    shared: &Shared<H>,
    ticket: &Ticket,
    tcp: TcpStream,
    address: SocketAddr,
    ready: &Sender<Established<H::Upper>>,
) -> Result<Established<H::Upper>, Failed> {
    let options = &shared.config.options;
    let deadline = Instant::now() + options.handshake_timeout;
    let mut watch = Stopwatch::new();
    let late = |phase| Failed::from(timed_out(address, options.handshake_timeout, phase));
    // Only latency is at stake.
    let _ = tcp.set_nodelay(true);
    let (local, _) = both_ends(&tcp).map_err(|error| error.in_phase(Phase::Connect))?;
    watch.lap("tcp");

    // The ClientHello, in full, is the first step forward.
    let tls = shared.tls();
    let (config, witness) = tls.for_connection()?;
    let suspect = Suspect { address, role: Role::Server, witness };
    let refused = |cause: std::io::Error, tcp: Option<TcpStream>| Failed {
        error: suspect.judge(&cause).in_phase(Phase::Tls),
        rest: tcp.map(Remains::Tcp),
    };
    let mut acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp);
    let hello = match timeout_at(deadline, &mut acceptor).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(cause)) => return Err(refused(cause, acceptor.take_io())),
        Err(_) => return Err(late(Phase::Tls)),
    };
    ticket.progress.enter(Phase::Tls);
    let stream = match timeout_at(deadline, hello.into_stream(config).into_fallible()).await {
        Ok(Ok(stream)) => stream,
        Ok(Err((cause, tcp))) => return Err(refused(cause, Some(tcp))),
        Err(_) => return Err(late(Phase::Tls)),
    };
    let secured = Secured::new(stream.get_ref().1, local, &suspect);
    let channel = Channel::new(TlsStream::Server(stream));
    watch.lap("tls");
    let secured = match secured {
        Ok(secured) => secured,
        Err(error) => {
            let rest = Some(Remains::Tls(Box::new(channel)));
            return Err(Failed { error: error.in_phase(Phase::Tls), rest });
        }
    };
    ticket.verified(secured.peer.spki_sha256);
    let negotiation = Negotiation {
        role: Role::Server,
        channel,
        secured,
        suspect,
        host: Arc::clone(&shared.host),
        options,
        own_names: Some(tls.own.clone()),
        progress: &ticket.progress,
        watch,
        path: None,
    };
    negotiation.run(deadline, || has_room(ready, shared.config.max_unaccepted)).await
}
