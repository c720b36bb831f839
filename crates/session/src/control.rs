//! The handle of a control channel.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use secure_rdma_rdma::{Error, ErrorCode, Result};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::UpperLayer;
use crate::channel_task::{ChannelTask, TICK};
use crate::farewell::TlsChannel;
use crate::frame::MAX_TOLD;
use crate::keep_alive::Pulse;

/// What the handle asks of the task.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    Close,
    /// The reason that the peer is told.
    Destroy(Error),
}

/// What may wait to be told, in bytes, each message counting 64 besides its own.
const MAX_TELLING: usize = 64 * 1024;

/// What a message costs beside its bytes.
const TELLING_COST: usize = 64;

/// The last order, what is to be told, and the task that waits for either.
#[derive(Default)]
pub(crate) struct Orders(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    order: Option<Order>,
    waker: Option<Waker>,
    telling: VecDeque<Vec<u8>>,
    telling_cost: usize,
    /// Somebody was refused for lack of room.
    refused: bool,
    /// The channel has ended, or is about to: nothing is told any more.
    over: bool,
}

impl Orders {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing overrides a destroy.
    fn give(&self, order: Order) {
        let waker = {
            let mut inner = self.inner();
            if !matches!(inner.order, Some(Order::Destroy(_))) {
                inner.order = Some(order);
            }
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The order, or `None` and the task is woken when there is one.
    pub(crate) fn poll(&self, cx: &mut Context<'_>) -> Option<Order> {
        let mut inner = self.inner();
        if inner.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            inner.waker = Some(cx.waker().clone());
        }
        inner.order.clone()
    }

    fn tell(&self, message: Vec<u8>) -> Result<()> {
        let waker = {
            let mut inner = self.inner();
            if inner.over || inner.order.is_some() {
                return Err(Error::new(ErrorCode::Closed, "the control channel is closed"));
            }
            if inner.telling_cost + message.len() + TELLING_COST > MAX_TELLING {
                inner.refused = true;
                return Err(Error::new(
                    ErrorCode::SendBufferFull,
                    "the peer does not read what it is told over the control channel",
                ));
            }
            inner.telling_cost += message.len() + TELLING_COST;
            inner.telling.push_back(message);
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// The next message to tell. The caller has registered its waker with [`Orders::poll`].
    pub(crate) fn next_telling(&self) -> Option<Vec<u8>> {
        let mut inner = self.inner();
        let message = inner.telling.pop_front()?;
        inner.telling_cost -= message.len() + TELLING_COST;
        Some(message)
    }

    /// Whether something waits to be told.
    pub(crate) fn has_telling(&self) -> bool {
        !self.inner().telling.is_empty()
    }

    /// Whether somebody was refused and there is room now. Told once.
    pub(crate) fn has_room_again(&self) -> bool {
        let mut inner = self.inner();
        inner.telling_cost <= MAX_TELLING / 2 && std::mem::take(&mut inner.refused)
    }

    /// Nothing is told any more.
    pub(crate) fn end_telling(&self) {
        let mut inner = self.inner();
        inner.over = true;
        inner.telling = VecDeque::new();
    }
}

/// How a channel ended: in order, or of what.
pub(crate) type End = Option<Result<()>>;

/// The handle of a control channel. Dropping it ends the channel as [`Control::destroy`] without an error does, unless
/// a close has begun.
pub struct Control {
    orders: Arc<Orders>,
    end: watch::Receiver<End>,
    runtime: Handle,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("ended", &self.is_ended()).finish_non_exhaustive()
    }
}

impl Control {
    /// Starts the task that keeps the channel.
    pub(crate) fn start<U: UpperLayer>(
        channel: TlsChannel,
        upper: Arc<U>,
        peer: SocketAddr,
        pulse: Pulse,
        close_timeout: Duration,
    ) -> Self {
        let orders = Arc::new(Orders::default());
        let (told, end) = watch::channel(None);
        let task = ChannelTask::new(channel, upper, Arc::clone(&orders), peer, pulse, close_timeout);
        tokio::spawn(async move {
            let end = task.run().await;
            told.send_replace(Some(end));
        });
        Self { orders, end, runtime: Handle::current() }
    }

    /// Closes in order: tells the peer (CLOSE, then TLS close_notify) and waits until it has closed too, at most
    /// [`crate::SessionOptions::close_timeout`]. The peer's side answers by itself, so that this does not wait for its
    /// application. Whatever the peer must still get has to be acknowledged before. Idempotent; dropping the future does
    /// not take the close back.
    ///
    /// # Errors
    /// `ERR_RDMA_CLOSE_TIMEOUT`; the cause of death where the channel ended otherwise.
    pub async fn close(&self) -> Result<()> {
        self.begin_close();
        self.ended().await
    }

    /// Tells the peer's upper layer something: 1 to 2048 bytes, delivered whole and in order by
    /// [`crate::UpperLayer::told`]. What was told before a close is delivered before it. Never blocks; about 64 KiB may
    /// wait for a peer that reads slowly.
    ///
    /// # Errors
    /// `ERR_RDMA_INVALID_ARGUMENT` for another length; `ERR_RDMA_SEND_BUFFER_FULL` when too much waits:
    /// [`crate::UpperLayer::may_tell`] is called when there is room again; `ERR_RDMA_CLOSED` after a close or the end.
    pub fn tell(&self, message: &[u8]) -> Result<()> {
        if message.is_empty() || message.len() > MAX_TOLD {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "a message of {} bytes over the control channel: it takes 1 to {MAX_TOLD}",
                    message.len()
                ),
            ));
        }
        self.orders.tell(message.to_vec())
    }

    /// Begins what [`Control::close`] does and returns at once. The upper layer hears the outcome: `peer_closed` when
    /// the peer's CLOSE comes (or has come), otherwise `lost`. Dropping the handle then leaves the close going on.
    pub fn begin_close(&self) {
        self.orders.give(Order::Close);
    }

    /// Ends the channel at once. The peer is told the reason if the network takes it without waiting. Idempotent;
    /// [`crate::UpperLayer::lost`] is not called for it.
    pub fn destroy(&self, reason: Option<Error>) {
        self.orders.give(Order::Destroy(reason.unwrap_or_else(destroyed)));
    }

    /// Waits for the end of the channel, whoever ends it: `Ok` for a close in order.
    ///
    /// # Errors
    /// The cause of death.
    pub async fn ended(&self) -> Result<()> {
        let mut end = self.end.clone();
        let end = end.wait_for(Option::is_some).await;
        // The task vanishes without a word only with its runtime.
        end.ok().and_then(|end| end.clone()).unwrap_or_else(|| Err(destroyed()))
    }

    /// Calls `work` four times a second until it gives `false`, on the runtime that keeps the channel: also when the
    /// channel has ended, and with it [`UpperLayer::tick`]. It must not block.
    pub fn each_tick(&self, mut work: impl FnMut() -> bool + Send + 'static) {
        self.runtime.spawn(async move {
            // Each a whole tick behind the last: a process that was stopped is not called for what it missed.
            loop {
                tokio::time::sleep(TICK).await;
                if !work() {
                    return;
                }
            }
        });
    }

    /// Whether the channel has ended.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.end.borrow().is_some() || self.end.has_changed().is_err()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if !matches!(self.orders.inner().order, Some(Order::Close)) {
            self.destroy(None);
        }
    }
}

fn destroyed() -> Error {
    Error::new(ErrorCode::Destroyed, "the connection was destroyed by its application")
}
