//! A connection as JavaScript holds it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

use napi::bindgen_prelude::{BufferSlice, Either, Either4, Env, Null};
use napi_derive::napi;
use secure_rdma_connection::{CloseReason, Connection, ConnectionStats, Received};
use secure_rdma_rdma::Result;

use crate::buffers;
use crate::environment::{House, Tenant, value};
use crate::error::NativeError;
use crate::peer::NativePeer;
use crate::process::refuse_fork;
use crate::report::{NativeLocal, NativeReport, number};

/// The end of a connection.
#[napi(object, object_from_js = false)]
pub struct NativeClosed {
    /// `closed`, `peerClosed`, `destroyed` or `error`.
    pub reason: String,
    /// The cause, where it was not an orderly close.
    pub error: Option<NativeError>,
    /// Whether every message given to `send` had been acknowledged by the peer's device.
    pub delivered: bool,
}

/// Numbers of a connection.
#[napi(object, object_from_js = false)]
pub struct NativeConnectionStats {
    /// Messages given to `send`.
    pub messages_sent: f64,
    /// Their bytes.
    pub bytes_sent: f64,
    /// WRITEs, READs and atomics that were posted.
    pub operations_posted: f64,
    /// Whole messages that arrived.
    pub messages_received: f64,
    /// Their bytes.
    pub bytes_received: f64,
    /// Segments posted, messages and credits alike.
    pub segments_sent: f64,
    /// Bytes that wait to be posted.
    pub bytes_queued: f64,
    /// Operations that wait to be posted, or whose outcome nobody has taken.
    pub operations_pending: f64,
    /// Work requests that are posted and not yet complete.
    pub work_in_flight: f64,
    /// Messages that wait to be read.
    pub messages_ready: f64,
    /// Their bytes.
    pub bytes_ready: f64,
    /// Immediates that wait to be read.
    pub immediates_ready: f64,
    /// Segments that this side may send now.
    pub credits_available: f64,
    /// Segments that the peer may send now.
    pub credits_granted: f64,
    /// How often sending stopped for lack of credit.
    pub waits_for_credit: f64,
    /// How often sending stopped for lack of a send buffer.
    pub waits_for_buffer: f64,
    /// Zero-length WRITEs that proved an idle path.
    pub path_probes: f64,
}

/// A connection.
#[napi]
pub struct NativeConnection {
    held: Arc<Held>,
    house: Arc<House>,
    id: u32,
}

/// What an environment knows of it.
pub(crate) struct Held {
    pub(crate) connection: Connection,
    /// Whether messages go to JavaScript with the news: it has been given all there were, and has not said that it keeps some.
    pub(crate) wanted: AtomicBool,
}

impl Tenant for Held {
    fn evict(&self) {
        self.connection.destroy(None);
    }

    fn is_gone(&self) -> bool {
        self.connection.closed().is_some()
    }
}

impl NativeConnection {
    /// `id` rings for its news, the first time at once.
    pub(crate) fn new(connection: Connection, house: &Arc<House>, id: u32) -> Self {
        let bell = house.bell(id);
        let held = Arc::new(Held { connection, wanted: AtomicBool::new(false) });
        let tenant: Weak<Held> = Arc::downgrade(&held);
        house.enter(tenant);
        house.introduce(id, &held);
        if held.connection.local().device == secure_rdma_soft::NAME {
            house.poll();
        }
        held.connection.observe(Arc::new(move || bell.ring()));
        Self { held, house: Arc::clone(house), id }
    }

    pub(crate) fn house(&self) -> &House {
        &self.house
    }

    pub(crate) fn held(&self) -> &Held {
        &self.held
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.held.connection
    }
}

impl Drop for NativeConnection {
    fn drop(&mut self) {
        self.house.forget(self.id, &self.held);
    }
}

#[napi]
impl NativeConnection {
    /// Queues a copy of `message`; gives its id.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn send(&self, message: &[u8]) -> Either<f64, NativeError> {
        id_value(refuse_fork().and_then(|()| self.connection().send(message)))
    }

    /// Every id up to this one has been acknowledged by the peer's device.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn sent(&self) -> f64 {
        number(self.connection().done())
    }

    /// The next message; `false` when there is none yet; `null` when no more will come; an error when the connection
    /// failed.
    ///
    /// # Errors
    /// When Node has no memory for the message.
    #[napi(catch_unwind)]
    pub fn receive(&self, env: Env) -> napi::Result<Either4<BufferSlice<'static>, bool, Null, NativeError>> {
        if let Err(error) = refuse_fork() {
            return Ok(Either4::D(error.into()));
        }
        Ok(match self.connection().receive() {
            Received::Message(message) => {
                Either4::A(buffers::message(&env, message, self.house.external_allowed())?)
            }
            Received::Pending => Either4::B(false),
            Received::End => Either4::C(Null),
            Received::Closed(error) => Either4::D(error.into()),
        })
    }

    /// Ends the own direction; gives an id as `send` does.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn end(&self) -> Either<f64, NativeError> {
        id_value(refuse_fork().and_then(|()| self.connection().end()))
    }

    /// Begins an orderly close.
    #[napi(catch_unwind)]
    pub fn close(&self) {
        if refuse_fork().is_ok() {
            self.connection().close();
        }
    }

    /// Ends the connection at once.
    #[napi(catch_unwind)]
    pub fn destroy(&self) {
        if refuse_fork().is_ok() {
            self.connection().destroy(None);
        }
    }

    /// How it ended, if it has.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn closed(&self) -> Option<NativeClosed> {
        if let Err(error) = refuse_fork() {
            // The connection is the parent's, and it lives there: here it is over.
            let error = Some(error.into());
            return Some(NativeClosed { reason: "error".to_owned(), error, delivered: false });
        }
        let closed = self.connection().closed()?;
        let reason = match closed.reason {
            CloseReason::Closed => "closed",
            CloseReason::PeerClosed => "peerClosed",
            CloseReason::Destroyed => "destroyed",
            CloseReason::Error => "error",
        };
        let error = closed.error.map(NativeError::from);
        Some(NativeClosed { reason: reason.to_owned(), error, delivered: closed.delivered })
    }

    /// Who the peer is.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn peer(&self) -> NativePeer {
        NativePeer::from(&**self.connection().peer())
    }

    /// Device, port and GID of this side.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn local(&self) -> NativeLocal {
        NativeLocal::from(self.connection().local())
    }

    /// How it came up.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn report(&self) -> NativeReport {
        NativeReport::from(self.connection().report())
    }

    /// Its numbers.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn stats(&self) -> NativeConnectionStats {
        NativeConnectionStats::from(self.connection().stats())
    }
}

pub(crate) fn id_value(id: Result<u64>) -> Either<f64, NativeError> {
    value(id.map(number))
}

impl From<ConnectionStats> for NativeConnectionStats {
    fn from(stats: ConnectionStats) -> Self {
        Self {
            messages_sent: number(stats.messages_sent),
            bytes_sent: number(stats.bytes_sent),
            operations_posted: number(stats.operations_posted),
            messages_received: number(stats.messages_received),
            bytes_received: number(stats.bytes_received),
            segments_sent: number(stats.segments_sent),
            bytes_queued: number(stats.bytes_queued),
            operations_pending: number(stats.operations_pending),
            work_in_flight: number(stats.work_in_flight),
            messages_ready: number(stats.messages_ready),
            bytes_ready: number(stats.bytes_ready),
            immediates_ready: number(stats.immediates_ready),
            credits_available: number(stats.credits_available),
            credits_granted: number(stats.credits_granted),
            waits_for_credit: number(stats.waits_for_credit),
            waits_for_buffer: number(stats.waits_for_buffer),
            path_probes: number(stats.path_probes),
        }
    }
}
