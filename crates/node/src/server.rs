//! A server as JavaScript holds it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use napi::bindgen_prelude::Either;
use napi_derive::napi;
use secure_rdma_connection::{Connection, Server};
use secure_rdma_rdma::{Error, Result};
use secure_rdma_session::{HandshakeFailed, Task};

use crate::authorize::{NativeQuestion, Questions};
use crate::bell::{Bell, lock};
use crate::connection::NativeConnection;
use crate::environment::{House, Tenant, value};
use crate::error::NativeError;
use crate::options::{NativeListen, NativeSecureContext};
use crate::process::Process;
use crate::report::number;

/// Failed handshakes that wait for JavaScript to come. Beyond it the oldest are forgotten; all are counted.
const FAILURES: usize = 256;

/// An address and a port.
#[napi(object, object_from_js = false)]
pub struct NativeAddress {
    /// IPv4 or IPv6.
    pub address: String,
    /// The TCP port.
    pub port: u32,
}

impl From<SocketAddr> for NativeAddress {
    fn from(address: SocketAddr) -> Self {
        Self { address: address.ip().to_canonical().to_string(), port: address.port().into() }
    }
}

/// A handshake that failed.
#[napi(object, object_from_js = false)]
pub struct NativeFailure {
    /// Why.
    pub error: NativeError,
    /// Whose.
    pub peer: NativeAddress,
}

/// Counters of a server.
#[napi(object, object_from_js = false)]
pub struct NativeServerStats {
    /// TCP connections taken.
    pub tcp_accepted: f64,
    /// Handshakes that are under way.
    pub pending: u32,
    /// Connections that came up.
    pub established: f64,
    /// Handshakes that failed, evicted ones included.
    pub failed: f64,
    /// Handshakes that gave way to newcomers.
    pub evicted: f64,
    /// Times that accepting paused for want of descriptors or memory.
    pub paused: f64,
    /// Failed handshakes by the code of their error.
    pub failures: HashMap<String, f64>,
}

type Failures = Arc<Mutex<VecDeque<(Error, SocketAddr)>>>;

/// A server, before and after it listens.
struct Desk {
    bell: Bell,
    server: OnceLock<Result<Server>>,
    listen: OnceLock<Task>,
    accepted: Mutex<Accepted>,
    accepting: AtomicBool,
    free: AtomicBool,
}

/// Connections that JavaScript has not taken yet.
#[derive(Default)]
struct Accepted {
    waiting: VecDeque<Connection>,
    /// No more will come, and none is wanted.
    ended: bool,
}

impl Accepted {
    /// Takes a connection in, or gives it back where none is wanted: its end must not happen under the lock.
    fn add(&mut self, connection: Option<Connection>) -> Option<Connection> {
        self.ended |= connection.is_none();
        if self.ended {
            return connection;
        }
        self.waiting.extend(connection);
        None
    }
}

impl Desk {
    fn server(&self) -> Option<&Server> {
        self.server.get()?.as_ref().ok()
    }

    fn close(&self) {
        // What JavaScript was not handed it will not ask for.
        let unwanted = {
            let mut accepted = lock(&self.accepted);
            accepted.ended = true;
            std::mem::take(&mut accepted.waiting)
        };
        // Behind the lock: either the server is seen here, or its task sees the end there.
        if let Some(server) = self.server() {
            server.close();
        }
        drop(unwanted);
    }

    /// Takes over what `listen` gave; a server that nobody wants any more is closed.
    fn listens(&self, server: Result<Server>) {
        // The only place that sets it.
        let _ = self.server.set(server);
        if lock(&self.accepted).ended
            && let Some(server) = self.server()
        {
            server.close();
        }
    }
}

impl Tenant for Desk {
    fn evict(&self) {
        if let Some(task) = self.listen.get() {
            task.abort();
        }
        self.close();
    }

    fn is_gone(&self) -> bool {
        self.listen.get().is_none_or(Task::is_finished)
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.evict();
    }
}

/// A server that is about to listen. Dropping it unmakes it.
#[napi]
pub struct Listening {
    house: Arc<House>,
    desk: Arc<Desk>,
    failures: Failures,
    questions: Questions,
}

impl Listening {
    pub(crate) fn begin(house: &Arc<House>, id: u32, options: NativeListen) -> Result<Self> {
        let process = Process::get()?;
        let bell = house.bell(id);
        let questions = Questions::new(bell.clone());
        let failures = Failures::default();
        let (session, device, options) =
            options.into_parts(&questions, on_failure(&failures, bell.clone()))?;
        let desk = Arc::new(Desk {
            bell,
            server: OnceLock::new(),
            listen: OnceLock::new(),
            accepted: Mutex::default(),
            accepting: AtomicBool::new(false),
            free: AtomicBool::new(false),
        });
        let waiting = Arc::downgrade(&desk);
        let task = process.runtime.spawn(async move {
            let server = Server::listen(&process.registry, session, device, options).await;
            if let Some(desk) = waiting.upgrade() {
                desk.listens(server);
                desk.bell.ring();
            }
        });
        let _ = desk.listen.set(task);
        let tenant: Weak<Desk> = Arc::downgrade(&desk);
        house.enter(tenant);
        Ok(Self { house: Arc::clone(house), desk, failures, questions })
    }
}

fn on_failure(failures: &Failures, bell: Bell) -> HandshakeFailed {
    let failures = Arc::clone(failures);
    Arc::new(move |error, peer| {
        {
            let mut failures = lock(&failures);
            if failures.len() == FAILURES {
                failures.pop_front();
            }
            failures.push_back((error.clone(), peer));
        }
        bell.ring();
    })
}

#[napi]
impl Listening {
    /// The server, or why there is none; `null` while it is not known yet.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take(&self) -> Option<Either<NativeServer, NativeError>> {
        let server = self.desk.server.get()?;
        Some(value(server.as_ref().map_err(Clone::clone).map(|_| NativeServer {
            house: Arc::clone(&self.house),
            desk: Arc::clone(&self.desk),
            failures: Arc::clone(&self.failures),
            questions: self.questions.clone(),
        })))
    }

    /// Gives up.
    #[napi(catch_unwind)]
    pub fn cancel(&self) {
        self.desk.evict();
    }
}

/// A server that listens.
#[napi]
pub struct NativeServer {
    house: Arc<House>,
    desk: Arc<Desk>,
    failures: Failures,
    questions: Questions,
}

#[napi]
impl NativeServer {
    /// Asks for one more connection, unless one is asked for already. The server's id rings when it is there.
    #[napi(catch_unwind)]
    pub fn accept(&self) {
        let Ok(process) = Process::get() else { return };
        if self.desk.accepting.swap(true, Ordering::AcqRel) {
            return;
        }
        let desk = Arc::clone(&self.desk);
        process.runtime.spawn(async move {
            let connection = match desk.server() {
                Some(server) => server.accept().await,
                None => None,
            };
            let unwanted = lock(&desk.accepted).add(connection);
            drop(unwanted);
            desk.accepting.store(false, Ordering::Release);
            desk.bell.ring();
        });
    }

    /// A connection that was accepted; `id` rings for its news from now on. `false` when there is none yet, `null`
    /// when the server is closed.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take(&self, id: u32) -> Option<Either<NativeConnection, bool>> {
        let (connection, ended) = {
            let mut accepted = lock(&self.desk.accepted);
            (accepted.waiting.pop_front(), accepted.ended)
        };
        match connection {
            Some(connection) => Some(Either::A(NativeConnection::new(connection, &self.house, id))),
            None if ended => None,
            None => Some(Either::B(false)),
        }
    }

    /// Handshakes that failed since the last call.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take_failures(&self) -> Vec<NativeFailure> {
        let failures = std::mem::take(&mut *lock(&self.failures));
        let failure =
            |(error, peer): (Error, SocketAddr)| NativeFailure { error: error.into(), peer: peer.into() };
        failures.into_iter().map(failure).collect()
    }

    /// Peers that wait to be let in.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn take_questions(&self) -> Vec<NativeQuestion> {
        self.questions.take()
    }

    /// Lets a peer in, or says why not.
    #[napi(catch_unwind)]
    pub fn answer(&self, ticket: u32, refusal: Option<String>) {
        self.questions.answer(ticket, refusal);
    }

    /// The address that it listens on.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn address(&self) -> Option<NativeAddress> {
        // As the socket has it: `::` stays `::`.
        let address = self.desk.server()?.local_addr();
        Some(NativeAddress { address: address.ip().to_string(), port: address.port().into() })
    }

    /// Connections that were accepted here and are not over.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn connections(&self) -> u32 {
        let connections = self.desk.server().map_or(0, Server::connections);
        u32::try_from(connections).unwrap_or(u32::MAX)
    }

    /// Counters.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn stats(&self) -> NativeServerStats {
        let stats = self.desk.server().map(Server::stats).unwrap_or_default();
        let failures = self.desk.server().map(Server::failures).unwrap_or_default();
        NativeServerStats {
            tcp_accepted: number(stats.tcp_accepted),
            pending: u32::try_from(stats.pending).unwrap_or(u32::MAX),
            established: number(stats.established),
            failed: number(stats.failed),
            evicted: number(stats.evicted),
            paused: number(stats.paused),
            failures: failures.into_iter().map(|(code, count)| (code.to_string(), number(count))).collect(),
        }
    }

    /// Changes who the server is and whom it trusts; gives what is wrong with it, and then nothing has changed.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn set_secure_context(&self, context: NativeSecureContext) -> Option<NativeError> {
        let server = self.desk.server()?;
        context.into_tls().and_then(|tls| server.set_tls(&tls)).err().map(NativeError::from)
    }

    /// Stops accepting; connections that were handed out stay. The server's id rings when the port is free, and
    /// no handshake fails any more.
    #[napi(catch_unwind)]
    pub fn close(&self) {
        self.desk.close();
        let Ok(process) = Process::get() else { return };
        let desk = Arc::clone(&self.desk);
        process.runtime.spawn(async move {
            if let Some(server) = desk.server() {
                server.closed().await;
            }
            desk.free.store(true, Ordering::Release);
            desk.bell.ring();
        });
    }

    /// Whether it is closed and its port is free.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.desk.free.load(Ordering::Acquire)
    }
}
