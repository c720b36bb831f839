//! The end of a handshake that failed: the peer is let to take in why.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use secure_rdma_rdma::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::channel::Channel;

pub(crate) type TlsChannel = Channel<TlsStream<TcpStream>>;

/// How long a refused peer has, and how much it may still send.
const FAREWELL: Duration = Duration::from_secs(1);
const STILL_READ: usize = 64 * 1024;

/// A failed handshake, and what is left to do about it.
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) rest: Option<Remains>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, rest: None }
    }
}

/// The connection of a failed handshake.
pub(crate) enum Remains {
    Tcp(TcpStream),
    Tls(Box<TlsChannel>),
}

impl Remains {
    /// Closes without cutting off what was said last: a socket that is closed with unread bytes resets the connection,
    /// and the peer loses the reason. Takes a second at the most.
    pub(crate) async fn farewell(self) {
        let farewell = async move {
            match self {
                Self::Tcp(stream) => drain_tcp(stream).await,
                Self::Tls(mut channel) => {
                    poll_fn(|cx| channel.poll_shutdown(cx)).await;
                    let mut budget = STILL_READ;
                    poll_fn(|cx| channel.poll_drain(cx, &mut budget)).await;
                }
            }
        };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }
}

async fn drain_tcp(mut stream: TcpStream) {
    let _ = stream.shutdown().await;
    let (mut budget, mut bytes) = (STILL_READ, [0; 4096]);
    while let Ok(read @ 1..) = stream.read(&mut bytes).await {
        budget = budget.saturating_sub(read);
        if budget == 0 {
            break;
        }
    }
}

/// Waits for the first of two futures: `Ok` for the one, `Err` for the other.
pub(crate) async fn race<A: Future, B: Future>(one: A, other: B) -> Result<A::Output, B::Output> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| {
        if let Poll::Ready(output) = one.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        other.as_mut().poll(cx).map(Err)
    })
    .await
}
