//! The task that keeps a control channel: keep-alive, ticks, orderly close, cause of death.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{Error, ErrorCode, Phase, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use crate::UpperLayer;
use crate::channel::{Broken, Channel, Incoming};
use crate::control::{Order, Orders};
use crate::frame::{Frame, Told};
use crate::keep_alive::{Pulse, Verdict};

/// How often the upper layer is ticked, and the pulse asked at least: well within a second.
pub(crate) const TICK: Duration = Duration::from_millis(250);

/// Bytes that may wait in the channel before more is told: the rest of its room is for what must be said.
const TELL_AHEAD: usize = 16 * 1024;

/// The same before a close, which still finds room behind the longest message.
const TELL_LAST: usize = 60 * 1024;

/// Keeps one control channel until it ends.
pub(crate) struct ChannelTask<U, S> {
    channel: Channel<S>,
    upper: Arc<U>,
    orders: Arc<Orders>,
    peer: SocketAddr,
    pulse: Pulse,
    tick_at: Instant,
    close_timeout: Duration,
}

/// What to do next.
enum Next {
    Received(Result<Incoming, Broken>),
    Ordered(Order),
    Time,
}

/// Why the serving ended.
enum Over {
    /// We close; the peer may have closed already.
    Close,
    /// The peer has closed.
    PeerClosed,
    /// We destroy it, for this reason.
    Destroy(Error),
    /// The peer broke a rule, or the upper layer gave up: the peer is told.
    Fault(Error),
    /// The peer is gone.
    Lost(Error),
}

impl<U: UpperLayer, S: AsyncRead + AsyncWrite + Unpin> ChannelTask<U, S> {
    pub(crate) fn new(
        channel: Channel<S>,
        upper: Arc<U>,
        orders: Arc<Orders>,
        peer: SocketAddr,
        pulse: Pulse,
        close_timeout: Duration,
    ) -> Self {
        let tick_at = Instant::now() + TICK;
        Self { channel, upper, orders, peer, pulse, tick_at, close_timeout }
    }

    /// Runs to the end: `Ok` for a close in order.
    pub(crate) async fn run(mut self) -> Result<()> {
        let over = self.serve().await;
        self.tell_the_rest(&over);
        self.orders.end_telling();
        match over {
            Over::Close => self.close().await,
            Over::PeerClosed => self.answer_close().await,
            Over::Destroy(reason) => {
                self.tell(&reason).await;
                Err(reason)
            }
            Over::Fault(error) => {
                let error = error.in_phase(Phase::Connected);
                self.tell(&error).await;
                self.upper.lost(error.clone());
                Err(error)
            }
            Over::Lost(error) => {
                let error = error.in_phase(Phase::Connected);
                self.upper.lost(error.clone());
                Err(error)
            }
        }
    }

    async fn serve(&mut self) -> Over {
        let mut sleep = pin!(tokio::time::sleep_until(self.wake_at().into()));
        loop {
            let over = match poll_fn(|cx| self.poll_next(cx, sleep.as_mut())).await {
                Next::Received(received) => self.received(received),
                Next::Ordered(Order::Close) => Some(Over::Close),
                Next::Ordered(Order::Destroy(reason)) => Some(Over::Destroy(reason)),
                Next::Time => None,
            };
            // After every event, so that a peer that sends without pause does not stop the clock.
            if let Some(over) = over.or_else(|| self.time(Instant::now())) {
                return over;
            }
            sleep.as_mut().reset(self.wake_at().into());
        }
    }

    fn wake_at(&self) -> Instant {
        self.tick_at.min(self.pulse.next())
    }

    /// What has arrived comes before the time: silence is judged only when everything is read.
    fn poll_next(&mut self, cx: &mut Context<'_>, sleep: Pin<&mut Sleep>) -> Poll<Next> {
        if let Some(order) = self.orders.poll(cx) {
            return Poll::Ready(Next::Ordered(order));
        }
        loop {
            self.tell_more();
            if let Poll::Ready(received) = self.channel.poll_receive(cx) {
                return Poll::Ready(Next::Received(received));
            }
            // What was written at once made room that nobody would wake us for.
            if self.channel.pending() >= TELL_AHEAD || !self.orders.has_telling() {
                break;
            }
        }
        sleep.poll(cx).map(|()| Next::Time)
    }

    /// Hands what is to be told to the channel, as far as it has room beside what else it must be able to say.
    fn tell_more(&mut self) {
        while self.channel.pending() < TELL_AHEAD
            && let Some(message) = self.orders.next_telling()
        {
            self.channel.queue(&Frame::Tell(Told(message)));
        }
        if self.orders.has_room_again() {
            self.upper.may_tell();
        }
    }

    /// What was told before our close goes out before it, as far as the channel has room for both.
    fn tell_the_rest(&mut self, over: &Over) {
        if !matches!(over, Over::Close) {
            return;
        }
        while self.channel.pending() < TELL_LAST
            && let Some(message) = self.orders.next_telling()
        {
            self.channel.queue(&Frame::Tell(Told(message)));
        }
    }

    fn received(&mut self, received: Result<Incoming, Broken>) -> Option<Over> {
        let peer = self.peer;
        match received {
            Ok(Incoming::Frame(frame)) => {
                self.pulse.heard(Instant::now());
                match frame {
                    Frame::KeepAlive => None,
                    Frame::Tell(Told(message)) => self.upper.told(&message).err().map(Over::Fault),
                    Frame::Close => {
                        self.upper.peer_closed();
                        Some(Over::PeerClosed)
                    }
                    Frame::Error { code, message } => Some(Over::Lost(Error::new(
                        ErrorCode::PeerLost,
                        format!("{peer} ended the connection: {message} ({code})"),
                    ))),
                    other => Some(Over::Fault(Error::new(
                        ErrorCode::Protocol,
                        format!(
                            "{peer} sent the frame {} on a connection that is up: update the older side",
                            other.name()
                        ),
                    ))),
                }
            }
            Ok(Incoming::End) => Some(Over::Lost(lost(format!(
                "{peer} ended TLS without closing the connection: its own log says why"
            )))),
            Err(Broken::Frame(cause)) => Some(Over::Fault(cause.into())),
            // What rustls says of it is for people who write TLS servers.
            Err(Broken::Io(cause)) if cause.kind() == io::ErrorKind::UnexpectedEof => {
                Some(Over::Lost(lost(format!(
                    "{peer} is gone: its TLS connection ended without a close, as when a process is killed"
                ))))
            }
            Err(Broken::Io(cause)) => Some(Over::Lost(lost(format!(
                "the connection to {peer} broke: {cause}. Check the network between the two"
            )))),
        }
    }

    fn time(&mut self, now: Instant) -> Option<Over> {
        if now < self.wake_at() {
            return None;
        }
        if now >= self.tick_at {
            self.tick_at = now + TICK;
            if let Err(error) = self.upper.tick(now) {
                return Some(Over::Fault(error));
            }
        }
        match self.pulse.ask(now) {
            // What has not been written yet says that we live as well as another one would.
            Verdict::Send if self.channel.pending() == 0 => {
                self.channel.queue(&Frame::KeepAlive);
                None
            }
            Verdict::Fine | Verdict::Send => None,
            Verdict::Dead(silence) => Some(Over::Lost(lost(format!(
                "{} has been silent for {silence:.1?}: its process or its network is gone, or it is too busy: \
                 then raise keepAliveMisses",
                self.peer
            )))),
        }
    }

    /// Says why, as far as the network takes it at once.
    async fn tell(&mut self, reason: &Error) {
        self.channel.queue(&Frame::error(reason.code().as_str(), reason.message()));
        poll_fn(|cx| {
            let _ = self.channel.poll_shutdown(cx);
            // A socket that is closed with unread bytes resets the connection, and what we said may be lost.
            let _ = self.channel.poll_drain(cx, &mut 4096);
            Poll::Ready(())
        })
        .await;
    }

    /// CLOSE and close_notify, then the peer's.
    async fn close(mut self) -> Result<()> {
        self.channel.queue(&Frame::Close);
        let bound = self.close_timeout;
        let over = tokio::time::timeout(bound, poll_fn(|cx| self.poll_close(cx))).await;
        let error = match over {
            Ok(Over::PeerClosed | Over::Close) => return Ok(()),
            Ok(Over::Destroy(reason)) => return Err(reason),
            Ok(Over::Fault(error) | Over::Lost(error)) => error,
            Err(_) => Error::new(
                ErrorCode::CloseTimeout,
                format!(
                    "{} did not close within {bound:?}: it is stopped or cut off, or closeTimeout is too short for it",
                    self.peer
                ),
            ),
        };
        let error = error.in_phase(Phase::Closing);
        self.upper.lost(error.clone());
        Err(error)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Over> {
        if let Some(Order::Destroy(reason)) = self.orders.poll(cx) {
            return Poll::Ready(Over::Destroy(reason));
        }
        let _ = self.channel.poll_shutdown(cx);
        loop {
            let Poll::Ready(received) = self.channel.poll_receive(cx) else { return Poll::Pending };
            if let Some(over) = self.received(received) {
                return Poll::Ready(over);
            }
        }
    }

    /// The peer has closed: it has our answer at once, since what it sent is acknowledged and it reads no more.
    async fn answer_close(mut self) -> Result<()> {
        self.channel.queue(&Frame::Close);
        let mut budget = 64 * 1024;
        let farewell = poll_fn(|cx| {
            let shut = self.channel.poll_shutdown(cx);
            let drained = self.channel.poll_drain(cx, &mut budget);
            if shut.is_ready() { drained } else { Poll::Pending }
        });
        let _ = tokio::time::timeout(self.close_timeout, farewell).await;
        Ok(())
    }
}

fn lost(message: String) -> Error {
    Error::new(ErrorCode::PeerLost, message)
}
