//! Operations on a connection, and how applications learn what became of them.

use std::future::poll_fn;
use std::ops::Range;
use std::task::Poll;

use secure_rdma_rdma::Result;

use crate::channel::{Channel, Life, over};
use crate::connection::{Connection, Received};
use crate::operations::Operation;
use crate::regions::{RegionSlice, SharedRegion};
use crate::remote::RemoteSlice;

impl Connection {
    /// Checks all `operations`, then posts them, in their order, in one list. What credits and queue do not take at once
    /// is posted as earlier work completes. Refused is the list as a whole: nothing of it has been posted then.
    ///
    /// Gives their ids, one each, in their order; [`Connection::done`] tells when they are over, [`Connection::outcome`]
    /// what came of them.
    ///
    /// Blocks only where a local region is used for the first time on this device: it is registered then. See
    /// [`Connection::register`].
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_BOUNDS`, `ERR_RDMA_REGION_ACCESS`, `ERR_RDMA_REGION_ALIGNMENT`, `ERR_RDMA_REGION_REVOKED`,
    /// `ERR_RDMA_REGION_CLOSED`, `ERR_RDMA_OPERATION_LIMIT`; `ERR_RDMA_INVALID_ARGUMENT` for a grant of another connection
    /// or a READ of nothing; those of [`Connection::send`] and of [`Connection::register`].
    pub fn post(&self, operations: &[Operation<'_>]) -> Result<Range<u64>> {
        self.channel_ref().post(operations)
    }

    /// Registers a region with the device of this connection, where no connection of that device has done so. Operations
    /// do it by themselves, but **it blocks** while pages are pinned: whoever must not block calls it before, elsewhere.
    ///
    /// # Errors
    /// `ERR_RDMA_MEMLOCK`, `ERR_RDMA_RESOURCE`, `ERR_RDMA_REGION_CLOSED`, or why the connection is over.
    pub fn register(&self, region: &SharedRegion) -> Result<()> {
        self.channel_ref().register(region)
    }

    /// Every message and operation with an id up to this one is over: acknowledged by the peer's device, withdrawn, or
    /// failed alone, which its [`outcome`](Self::outcome) tells. What is behind it when the connection is over has failed
    /// with the connection.
    ///
    /// That a message is acknowledged is not "read by the peer's application".
    #[must_use]
    pub fn done(&self) -> u64 {
        self.channel_ref().lock().transmit.done()
    }

    /// Takes the outcome of an operation that is [`done`](Self::done): of an atomic what the 8 bytes held before, of any
    /// that failed alone its error (`ERR_RDMA_REGION_REVOKED`). `None` of all others: they were carried out. Outcomes that
    /// nobody takes count against the limit of pending operations.
    #[must_use]
    pub fn outcome(&self, id: u64) -> Option<Result<u64>> {
        self.channel_ref().lock().transmit.outcome(id)
    }

    /// [`Connection::done`], and, taken in the same step, all [outcomes](Self::outcome) up to it, in no order.
    #[must_use]
    pub fn outcomes(&self) -> (u64, Vec<(u64, Result<u64>)>) {
        self.channel_ref().lock().transmit.outcomes()
    }

    /// Takes back a message or operation of which nothing has been posted; `false` when it is too late. Its id is done
    /// when all earlier ones are.
    #[must_use]
    pub fn withdraw(&self, id: u64) -> bool {
        self.channel_ref().take_back(|transmit| transmit.withdraw(id))
    }

    /// Says that nobody will ask for the outcome of `id`: withdraws it where that is possible, and otherwise forgets
    /// what comes of it.
    pub fn disregard(&self, id: u64) {
        self.channel_ref().take_back(|transmit| transmit.disregard(id));
    }

    /// Waits until `id` is done, and takes its outcome: of an atomic what the 8 bytes held before, of anything else 0.
    ///
    /// # Errors
    /// Why it failed, alone or with the connection.
    pub async fn completed(&self, id: u64) -> Result<u64> {
        poll_fn(|cx| {
            let mut state = self.channel_ref().lock();
            if state.transmit.done() >= id {
                return Poll::Ready(state.transmit.outcome(id).unwrap_or(Ok(0)));
            }
            if let life @ Life::Over(_) = &state.life {
                return Poll::Ready(Err(over(life)));
            }
            Channel::wake_on_news(&mut state, cx.waker());
            Poll::Pending
        })
        .await
    }

    /// [`Connection::post`] of one operation, and waits for it: [`Connection::completed`]. Dropping the future withdraws
    /// it if it has not begun; otherwise it is carried out, and uses its regions until then.
    ///
    /// # Errors
    /// Those of both.
    pub async fn perform(&self, operation: Operation<'_>) -> Result<u64> {
        let id = self.post(&[operation])?.start;
        let mut given_up = GivenUp { connection: self, id: Some(id) };
        let completed = self.completed(id).await;
        given_up.id = None;
        completed
    }

    /// RDMA WRITE of one slice: see [`Operation::Write`].
    ///
    /// # Errors
    /// Those of [`Connection::perform`].
    pub async fn write(&self, local: &RegionSlice, remote: &RemoteSlice) -> Result<()> {
        self.perform(Operation::write(std::slice::from_ref(local), remote)).await.map(drop)
    }

    /// RDMA READ into one slice: see [`Operation::Read`].
    ///
    /// # Errors
    /// Those of [`Connection::perform`].
    pub async fn read(&self, remote: &RemoteSlice, local: &RegionSlice) -> Result<()> {
        self.perform(Operation::read(remote, std::slice::from_ref(local))).await.map(drop)
    }

    /// Atomic compare-and-swap; gives what was there before: see [`Operation::CompareAndSwap`].
    ///
    /// # Errors
    /// Those of [`Connection::perform`].
    pub async fn compare_and_swap(&self, remote: &RemoteSlice, compare: u64, swap: u64) -> Result<u64> {
        self.perform(Operation::CompareAndSwap { remote, compare, swap, fence: false }).await
    }

    /// Atomic fetch-and-add; gives what was there before: see [`Operation::FetchAndAdd`].
    ///
    /// # Errors
    /// Those of [`Connection::perform`].
    pub async fn fetch_and_add(&self, remote: &RemoteSlice, add: u64) -> Result<u64> {
        self.perform(Operation::FetchAndAdd { remote, add, fence: false }).await
    }

    /// Takes the next immediate that a WRITE of the peer brought, if one is there. Its bytes, and those of all earlier
    /// WRITEs, are in place. Immediates that nobody takes count as unread messages do: the peer then gets no more credits.
    #[must_use]
    pub fn receive_immediate(&self) -> Received<u32> {
        self.channel_ref().take_immediate()
    }

    /// Waits for the next immediate; `None` when no more will come.
    ///
    /// # Errors
    /// Why the connection failed.
    pub async fn next_immediate(&self) -> Result<Option<u32>> {
        poll_fn(|cx| {
            // Register first: one that comes in between wakes.
            Channel::wake_on_news(&mut self.channel_ref().lock(), cx.waker());
            self.receive_immediate().poll()
        })
        .await
    }
}

/// An operation whose future may be dropped before its end.
struct GivenUp<'a> {
    connection: &'a Connection,
    id: Option<u64>,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.connection.disregard(id);
        }
    }
}
