//! A connection, as applications hold it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use secure_rdma_rdma::{Error, LocalAddress, Result};
use secure_rdma_session::{Peer, Report};

use crate::channel::{Channel, Life};
use crate::look::Look;
use crate::stats::ConnectionStats;

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// This side closed it, and everything that it sent has arrived.
    Closed,
    /// The peer closed it, and everything that it sent has arrived.
    PeerClosed,
    /// This side destroyed it.
    Destroyed,
    /// It failed.
    Error,
}

/// The end of a connection.
#[derive(Clone, Debug)]
pub struct Closed {
    /// Why.
    pub reason: CloseReason,
    /// The cause, where it was not an orderly close.
    pub error: Option<Error>,
    /// Whether every message and operation had been acknowledged by the peer's device.
    pub delivered: bool,
}

/// What [`Connection::receive`] and [`Connection::receive_immediate`] find.
#[derive(Debug)]
pub enum Received<T = Vec<u8>> {
    /// The next message, whole, or the next immediate.
    Message(T),
    /// None yet.
    Pending,
    /// None will come: the peer has ended its direction, or the connection was closed in order.
    End,
    /// None will come: the connection failed.
    Closed(Error),
}

impl<T> Received<T> {
    pub(crate) fn poll(self) -> Poll<Result<Option<T>>> {
        match self {
            Self::Message(message) => Poll::Ready(Ok(Some(message))),
            Self::End => Poll::Ready(Ok(None)),
            Self::Closed(error) => Poll::Ready(Err(error)),
            Self::Pending => Poll::Pending,
        }
    }
}

/// A connection: a queue pair in RTS and the TLS connection that set it up.
///
/// Clones are handles to the same connection. When the last one is dropped, the connection is destroyed.
#[derive(Clone)]
pub struct Connection(Arc<Shared>);

struct Shared {
    channel: Arc<Channel>,
    peer: Arc<Peer>,
    report: Report,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.channel.destroy(None);
    }
}

impl Connection {
    pub(crate) fn new(channel: Arc<Channel>, peer: Arc<Peer>, report: Report) -> Self {
        Self(Arc::new(Shared { channel, peer, report }))
    }

    pub(crate) fn channel_ref(&self) -> &Channel {
        &self.0.channel
    }

    pub(crate) fn channel(&self) -> std::sync::Weak<Channel> {
        Arc::downgrade(&self.0.channel)
    }

    /// Queues a copy of `message` and posts what credits allow. Never blocks. Messages arrive whole and in order;
    /// empty ones are messages too.
    ///
    /// Gives the message's id; [`Connection::done`] tells when the peer's device has it.
    ///
    /// # Errors
    /// `ERR_RDMA_MESSAGE_TOO_LARGE`, `ERR_RDMA_SEND_BUFFER_FULL`, `ERR_RDMA_ENDED`, or why the connection is over.
    pub fn send(&self, message: &[u8]) -> Result<u64> {
        self.0.channel.send(message)
    }

    /// [`Connection::send`], and waits until the peer's device has the message.
    ///
    /// # Errors
    /// As for [`Connection::send`].
    pub async fn send_acknowledged(&self, message: &[u8]) -> Result<()> {
        let id = self.send(message)?;
        self.completed(id).await.map(drop)
    }

    /// Takes the next message, if one is there. Messages that arrived before the end are given out after it too.
    #[must_use]
    pub fn receive(&self) -> Received {
        self.0.channel.take_message()
    }

    /// What there is, at one moment. Messages that are ready go to `take` before, oldest first, until it declines one, which
    /// stays the next. Never blocks; `take` runs under the connection's lock, so it must neither.
    pub fn look(&self, take: impl FnMut(&[u8]) -> bool) -> Look {
        self.0.channel.look(take)
    }

    /// Waits for the next message; `None` when no more will come.
    ///
    /// # Errors
    /// Why the connection failed.
    pub async fn next(&self) -> Result<Option<Vec<u8>>> {
        poll_fn(|cx| {
            // Register first: a message that comes in between wakes.
            Channel::wake_on_news(&mut self.0.channel.lock(), cx.waker());
            self.receive().poll()
        })
        .await
    }

    /// Ends the own direction: after what is queued the peer finds the end. The other direction goes on.
    ///
    /// # Errors
    /// Why the connection is over.
    pub fn end(&self) -> Result<u64> {
        self.0.channel.end()
    }

    /// Begins an orderly close: what is queued is sent, within `close_timeout`; then the peer is told, and has the
    /// session's `close_timeout` to answer. [`Connection::closed`] tells the end.
    pub fn close(&self) {
        self.0.channel.close();
    }

    /// Ends the connection at once. The peer is told `error` as far as the network takes it.
    pub fn destroy(&self, error: Option<Error>) {
        self.0.channel.destroy(error);
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        match &self.0.channel.lock().life {
            Life::Over(closed) => Some(closed.clone()),
            _ => None,
        }
    }

    /// Waits for the end.
    pub async fn wait_closed(&self) -> Closed {
        poll_fn(|cx| {
            let mut state = self.0.channel.lock();
            if let Life::Over(closed) = &state.life {
                return Poll::Ready(closed.clone());
            }
            Channel::wake_on_news(&mut state, cx.waker());
            Poll::Pending
        })
        .await
    }

    /// Calls `news` from any thread, now and whenever [`done`](Self::done), [`receive`](Self::receive),
    /// [`receive_immediate`](Self::receive_immediate) or [`closed`](Self::closed) may have news. It must not block. One observer at a time; the last one counts.
    pub fn observe(&self, news: Arc<dyn Fn() + Send + Sync>) {
        self.0.channel.observe(news);
    }

    /// Who the peer is.
    #[must_use]
    pub fn peer(&self) -> &Arc<Peer> {
        &self.0.peer
    }

    /// Device, port and GID of this side, and why these.
    #[must_use]
    pub fn local(&self) -> &LocalAddress {
        &self.0.report.local
    }

    /// How the connection came up.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.0.report
    }

    /// Its numbers.
    #[must_use]
    pub fn stats(&self) -> ConnectionStats {
        self.0.channel.stats()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("tls_peer", &self.0.report.tls_peer)
            .field("device", &self.0.report.local.device)
            .finish_non_exhaustive()
    }
}
