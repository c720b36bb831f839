//! What applications give to be sent, and what is checked of it before anything is posted.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use secure_rdma_rdma::{Access, Error, ErrorCode, Region, Result, SendFlags, SendOperation, Slice};
use smallvec::SmallVec;

use crate::channel::{Channel, Life, State, over};
use crate::framing::MESSAGE_COST;
use crate::outgoing::{Atomic, Body, Direction, Transfer};
use crate::pool::Reservation;
use crate::regions::{RegionSlice, SharedRegion, check_bounds};
use crate::remote::RemoteSlice;
use crate::transmit::{MOST_OPERATIONS, Transmit};

/// Bytes that an atomic reads and changes.
const ATOMIC: u64 = 8;

/// One entry of the list that [`crate::Connection::post`] takes. They are carried out in the order of posting, messages
/// and operations alike, and complete in that order.
///
/// A READ or atomic has its bytes when it completes; a WRITE or message that follows may arrive before those bytes were
/// fetched. With `fence` an operation waits until all earlier READs and atomics are complete.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// A message, as [`crate::Connection::send`].
    Send {
        /// Its bytes, which are copied.
        message: &'a [u8],
    },
    /// RDMA WRITE: the bytes of `local`, one slice after the other, go to the begin of `remote`. The peer's application
    /// is not told, but for an immediate. Beyond 4 MiB it is several work requests, and arrives in their order.
    Write {
        /// Where the bytes come from. The peer may find any mixture of old and new when they are changed before
        /// completion.
        local: &'a [RegionSlice],
        /// Where to. It may be longer.
        remote: &'a RemoteSlice,
        /// 32 bits that the peer's `receive_immediate` gives when all bytes have arrived. Needs a credit, as messages do.
        immediate: Option<u32>,
        /// Waits for earlier READs and atomics.
        fence: bool,
    },
    /// RDMA READ: bytes from the begin of `remote` fill `local`, one slice after the other.
    Read {
        /// Where from. It may be longer.
        remote: &'a RemoteSlice,
        /// Where to: at least one byte. Undefined until completion.
        local: &'a [RegionSlice],
        /// Waits for earlier READs and atomics.
        fence: bool,
    },
    /// Stores `swap` in the first 8 bytes of `remote` if they hold `compare`, in one atomic step among all RDMA atomics
    /// of the peer's device. The bytes are an integer in the peer's byte order. The outcome is what they held before.
    CompareAndSwap {
        /// Which 8 bytes. Their address must be a multiple of 8.
        remote: &'a RemoteSlice,
        /// What must be there.
        compare: u64,
        /// What replaces it.
        swap: u64,
        /// Waits for earlier READs and atomics.
        fence: bool,
    },
    /// Adds to the first 8 bytes of `remote`, modulo 2^64; otherwise as [`Operation::CompareAndSwap`].
    FetchAndAdd {
        /// Which 8 bytes. Their address must be a multiple of 8.
        remote: &'a RemoteSlice,
        /// What is added.
        add: u64,
        /// Waits for earlier READs and atomics.
        fence: bool,
    },
}

impl<'a> Operation<'a> {
    /// A WRITE without immediate or fence.
    #[must_use]
    pub fn write(local: &'a [RegionSlice], remote: &'a RemoteSlice) -> Self {
        Self::Write { local, remote, immediate: None, fence: false }
    }

    /// A READ without fence.
    #[must_use]
    pub fn read(remote: &'a RemoteSlice, local: &'a [RegionSlice]) -> Self {
        Self::Read { remote, local, fence: false }
    }
}

/// Why nothing of a list is posted.
enum Refused {
    Error(Error),
    /// This region is not registered with the device yet.
    Unregistered(SharedRegion),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl Channel {
    pub(crate) fn send(&self, message: &[u8]) -> Result<u64> {
        self.with(|state, after| {
            may_send(&state.life)?;
            let mut waiting = state.transmit.queued_cost();
            self.check_message(state, message, &mut waiting)?;
            let ids =
                self.give_out(state, after, [Body::Message { bytes: Cow::Borrowed(message), sent: 0 }])?;
            Ok(ids.start)
        })
    }

    pub(crate) fn post(&self, operations: &[Operation<'_>]) -> Result<Range<u64>> {
        loop {
            let posted = self.with(|state, after| {
                let bodies = self.check(state, operations)?;
                Ok(self.give_out(state, after, bodies)?)
            });
            match posted {
                Ok(ids) => return Ok(ids),
                Err(Refused::Error(error)) => return Err(error),
                // Pinning takes its time: without the lock.
                Err(Refused::Unregistered(region)) => self.register(&region)?,
            }
        }
    }

    /// Takes something out of what waits to be posted.
    pub(crate) fn take_back<T>(&self, change: impl FnOnce(&mut Transmit) -> T) -> T {
        self.with(|state, after| {
            let changed = change(&mut state.transmit);
            // What waited behind it may need less than it did. Nothing else need come that would see to that.
            self.pump(state, after);
            // Others may wait for this id to be done, and a close for the queue to be empty.
            if state.transmit.advanced() {
                self.news(state, after);
            }
            self.tell_when_drained(state, after);
            changed
        })
    }

    /// Registers a region with the device of this connection. **Blocks** while pages are pinned.
    pub(crate) fn register(&self, region: &SharedRegion) -> Result<()> {
        let reservation = {
            let state = self.lock();
            state.reservation.clone().ok_or_else(|| over(&state.life))?
        };
        reservation.resources().regions.register(region).map(drop)
    }

    fn check<'a>(
        &self,
        state: &State,
        operations: &[Operation<'a>],
    ) -> Result<SmallVec<[Body<'a>; 1]>, Refused> {
        may_send(&state.life)?;
        let reservation = state.reservation.as_ref().ok_or_else(|| over(&state.life))?;
        let mut waiting = state.transmit.queued_cost();
        let mut pending = state.transmit.pending_operations();
        let mut regions = Regions { reservation, last: None };
        let mut bodies = SmallVec::with_capacity(operations.len());
        for operation in operations {
            let body = match *operation {
                Operation::Send { message } => {
                    self.check_message(state, message, &mut waiting)?;
                    bodies.push(Body::Message { bytes: Cow::Borrowed(message), sent: 0 });
                    continue;
                }
                Operation::Write { local, remote, immediate, fence } => {
                    remote.region().check(&self.myself, Access::REMOTE_WRITE)?;
                    regions.transfer(Direction::Write { immediate }, local, remote, fence)?
                }
                Operation::Read { remote, local, fence } => {
                    remote.region().check(&self.myself, Access::REMOTE_READ)?;
                    regions.transfer(Direction::Read, local, remote, fence)?
                }
                Operation::CompareAndSwap { remote, compare, swap, fence } => {
                    let remote_slice = self.check_atomic(remote)?;
                    let operation = SendOperation::CompareSwap { remote: remote_slice, compare, swap };
                    atomic(operation, remote, fence)
                }
                Operation::FetchAndAdd { remote, add, fence } => {
                    let remote_slice = self.check_atomic(remote)?;
                    atomic(SendOperation::FetchAdd { remote: remote_slice, add }, remote, fence)
                }
            };
            pending += 1;
            if pending > MOST_OPERATIONS {
                return Err(Error::new(
                    ErrorCode::OperationLimit,
                    format!(
                        "{MOST_OPERATIONS} operations wait on this connection to be posted, or have outcomes that nobody has \
                         asked for: await earlier ones first"
                    ),
                )
                .into());
            }
            bodies.push(body);
        }
        Ok(bodies)
    }

    fn check_atomic(&self, remote: &RemoteSlice) -> Result<secure_rdma_rdma::RemoteSlice> {
        remote.region().check(&self.myself, Access::REMOTE_ATOMIC)?;
        check_bounds("the peer's slice", 0, ATOMIC, remote.len())?;
        let at = remote.at(0);
        if !at.address.is_multiple_of(ATOMIC) {
            return Err(Error::new(
                ErrorCode::RegionAlignment,
                format!(
                    "the 8 bytes at offset {} of the peer's {:?} do not lie at a multiple of 8: move them",
                    remote.offset(),
                    remote.region().name()
                ),
            ));
        }
        Ok(at)
    }

    /// Refuses a message that is too long, or too much with what is `waiting` already.
    fn check_message(&self, state: &State, message: &[u8], waiting: &mut usize) -> Result<()> {
        let most = state.transmit.max_message;
        if message.len() as u64 > most {
            return Err(Error::new(
                ErrorCode::MessageTooLarge,
                format!(
                    "a message of {} bytes is longer than the peer's maxMessageSize of {most} bytes: split it, or raise \
                     maxMessageSize on the peer",
                    message.len(),
                ),
            ));
        }
        // A message that would be posted at once does not count: a single one may be longer than the buffer.
        if *waiting > 0 && *waiting + message.len() > self.options.send_buffer_size {
            return Err(Error::new(
                ErrorCode::SendBufferFull,
                format!(
                    "{waiting} bytes of messages already wait to be sent and sendBufferSize is {} (each message counts 64 \
                     bytes besides its own): await earlier sends first",
                    self.options.send_buffer_size
                ),
            ));
        }
        *waiting += message.len() + MESSAGE_COST;
        Ok(())
    }
}

/// Looks up the registrations of local regions. Lists often name the same region again and again.
struct Regions<'a> {
    reservation: &'a Reservation,
    last: Option<(SharedRegion, Arc<Region>)>,
}

impl Regions<'_> {
    /// A transfer between `local` and the begin of `remote`.
    fn transfer<'b>(
        &mut self,
        direction: Direction,
        local: &[RegionSlice],
        remote: &RemoteSlice,
        fence: bool,
    ) -> Result<Body<'b>, Refused> {
        let length = local.iter().fold(0_u64, |sum, slice| sum.saturating_add(slice.len() as u64));
        check_bounds("the peer's slice", 0, length, remote.len())?;
        if length == 0 && direction == Direction::Read {
            let what = "a READ of no bytes: give local slices of one byte at the least";
            return Err(Error::new(ErrorCode::InvalidArgument, what).into());
        }
        let mut slices = SmallVec::with_capacity(local.len());
        for slice in local {
            // To a device a slice of length 0 may be one of 2^31 bytes (IBTA 10.4.4.1).
            if slice.is_empty() {
                slice.region().check_open()?;
                continue;
            }
            let region = self.find(slice.region())?;
            slices.push(Slice { region, offset: slice.offset(), length: slice.len() });
        }
        let transfer = Transfer::new(direction, slices, remote.at(0), remote.region().id(), fence);
        Ok(Body::Transfer(transfer))
    }

    fn find(&mut self, region: &SharedRegion) -> Result<Arc<Region>, Refused> {
        if let Some((last, registered)) = &self.last
            && last.id() == region.id()
        {
            return Ok(Arc::clone(registered));
        }
        region.check_open()?;
        let found = self.reservation.resources().regions.find(region);
        let registered = found.ok_or_else(|| Refused::Unregistered(region.clone()))?;
        self.last = Some((region.clone(), Arc::clone(&registered)));
        Ok(registered)
    }
}

fn atomic<'a>(operation: SendOperation, remote: &RemoteSlice, fence: bool) -> Body<'a> {
    let flags = if fence { SendFlags::FENCE } else { SendFlags::empty() };
    Body::Atomic(Atomic { operation, flags, grant: remote.region().id() })
}

fn may_send(life: &Life) -> Result<()> {
    match life {
        Life::Open => Ok(()),
        Life::Ended | Life::Closing { .. } => {
            Err(Error::new(ErrorCode::Ended, "nothing can be sent after end() or close() of this connection"))
        }
        life => Err(over(life)),
    }
}
