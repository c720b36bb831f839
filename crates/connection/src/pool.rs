//! Registered buffers that all connections of one device share.
//!
//! Receive buffers hang on the device's shared receive queue, so that a thousand idle connections do not hold a
//! thousand receive queues; a connection reserves as many as it grants credits, so that a credit always stands for a
//! posted buffer. Send buffers are taken per segment and come back with its completion.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use secure_rdma_rdma::{
    Access, Device, Error, ErrorCode, Memory, QueuePair, ReceiveQueue, ReceiveRequest, Region, Result, WorkId,
};
use smallvec::SmallVec;

use crate::options::PoolOptions;
use crate::registrations::{Opens, Registrations};

/// Buffers that are registered at a time.
const SLAB: u32 = 64;

/// What all connections of one device share.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) receive: ReceivePool,
    pub(crate) send: SendPool,
    /// What a proof of path carries. It is the same for all, so that no proof waits for a send buffer.
    pub(crate) proof: Arc<Region>,
    /// The regions of applications, shared also with those who use other sizes of buffers.
    pub(crate) regions: Arc<Registrations>,
    /// One newcomer registers at a time. Not held by anyone who sends or receives.
    growth: Mutex<()>,
}

/// A pattern that a capture shows for what it is.
const PROOF: [u8; 4096] = [0x5A; 4096];

impl Resources {
    /// **Blocks** on the device. `regions` are what somebody else has registered with it already.
    pub(crate) fn new(
        device: Arc<dyn Device>,
        options: PoolOptions,
        regions: Option<Arc<Registrations>>,
    ) -> Result<Arc<Self>> {
        let regions = match regions {
            Some(regions) => regions,
            None => {
                let windows = device.create_memory_window()?.is_some();
                Registrations::new(&device, if windows { Opens::Windows } else { Opens::Nothing })
            }
        };
        Self::with_regions(device, options, regions)
    }

    /// The same for one connection alone, where keys cannot be told apart within the device's own protection domain:
    /// everything of it is in a domain of its own. `None` where that need not be, or cannot. **Blocks** on the device.
    pub(crate) fn of_one_connection(&self, options: PoolOptions, credits: u16) -> Result<Option<Arc<Self>>> {
        if self.regions.opens() != Opens::Nothing {
            return Ok(None);
        }
        let Some(device) = self.device.private_domain()? else { return Ok(None) };
        let credits = u32::from(credits);
        let send_buffers = options.send_buffers.min(credits);
        let options = PoolOptions { receive_buffers: credits, send_buffers, ..options };
        let regions = Registrations::new(&device, Opens::OwnDomain);
        Self::with_regions(device, options, regions).map(Some)
    }

    fn with_regions(
        device: Arc<dyn Device>,
        options: PoolOptions,
        regions: Arc<Registrations>,
    ) -> Result<Arc<Self>> {
        let shared = options.receive_buffers.min(device.limits().max_shared_receives);
        let queue = if shared == 0 { None } else { device.create_receive_queue(shared)? };
        let receive = ReceivePool {
            most: if queue.is_some() { shared } else { options.receive_buffers },
            queue,
            buffer_size: options.buffer_size,
            state: Mutex::default(),
        };
        let send = SendPool {
            buffer_size: options.buffer_size,
            most: options.send_buffers,
            state: Mutex::default(),
        };
        let proof = allocate(device.as_ref(), PROOF.len())?;
        proof.memory().write(0, &PROOF)?;
        Ok(Arc::new(Self { device, receive, send, proof, regions, growth: Mutex::new(()) }))
    }

    /// Reserves the receive buffers of one connection and sees to it that send buffers are there. **Blocks** while
    /// memory is pinned.
    pub(crate) fn reserve(self: &Arc<Self>, credits: u16) -> Result<Reservation> {
        self.receive.claim(self.device.name(), credits)?;
        // From here on the reservation gives the claim back.
        let mut reservation = Reservation { resources: Arc::clone(self), credits, region: None };
        let _one_at_a_time = self.growth.lock().unwrap_or_else(PoisonError::into_inner);
        reservation.region = self.receive.grow(self.device.as_ref(), credits)?;
        self.send.grow(self.device.as_ref(), self.receive.lock().reserved)?;
        Ok(reservation)
    }
}

/// The receive buffers of one connection.
#[derive(Debug)]
pub(crate) struct Reservation {
    resources: Arc<Resources>,
    credits: u16,
    /// Buffers of the connection's own, where the device has no shared receive queue.
    region: Option<Arc<Region>>,
}

impl Reservation {
    pub(crate) fn resources(&self) -> &Arc<Resources> {
        &self.resources
    }

    pub(crate) fn credits(&self) -> u16 {
        self.credits
    }

    pub(crate) fn queue(&self) -> Option<Arc<dyn ReceiveQueue>> {
        self.resources.receive.queue.clone()
    }

    pub(crate) fn buffer_size(&self) -> u32 {
        self.resources.receive.buffer_size
    }

    /// Whether a receive that failed must be posted again, since others would miss it.
    pub(crate) fn is_shared(&self) -> bool {
        self.resources.receive.is_shared()
    }

    /// Posts the first receives. Those on a shared queue are there already.
    pub(crate) fn post_all(&self, queue_pair: &dyn QueuePair) -> Result<()> {
        match &self.region {
            None => Ok(()),
            Some(_) => self.repost(queue_pair, &(0..u64::from(self.credits)).map(WorkId).collect::<Vec<_>>()),
        }
    }

    /// Posts buffers again whose content has been taken.
    pub(crate) fn repost(&self, queue_pair: &dyn QueuePair, buffers: &[WorkId]) -> Result<()> {
        let size = self.buffer_size() as usize;
        let posted = match &self.region {
            Some(region) => {
                let requests: SmallVec<[_; 16]> = buffers
                    .iter()
                    .map(|id| ReceiveRequest::new(*id, region, index(*id) * size, size))
                    .collect();
                queue_pair.post_receive(&requests)
            }
            None => {
                let pool = &self.resources.receive;
                let state = pool.lock();
                let requests: SmallVec<[_; 16]> =
                    buffers.iter().filter_map(|id| state.request(*id, size)).collect();
                drop(state);
                match &pool.queue {
                    Some(queue) => queue.post_receive(&requests),
                    None => Ok(()),
                }
            }
        };
        posted.map_err(|refused| refused.error)
    }

    /// Appends the first `length` bytes of a buffer to `bytes`.
    pub(crate) fn take(&self, buffer: WorkId, skip: usize, length: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let size = self.buffer_size() as usize;
        match &self.region {
            Some(region) => region.memory().append_to(index(buffer) * size + skip, length - skip, bytes),
            None => {
                let state = self.resources.receive.lock();
                let Some((region, offset)) = state.place(buffer, size) else {
                    return Err(Error::internal("a completion names no receive buffer"));
                };
                let region = Arc::clone(region);
                drop(state);
                region.memory().append_to(offset + skip, length - skip, bytes)
            }
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.resources.receive.lock().reserved -= u32::from(self.credits);
    }
}

/// The receive side of a device.
pub(crate) struct ReceivePool {
    queue: Option<Arc<dyn ReceiveQueue>>,
    buffer_size: u32,
    most: u32,
    state: Mutex<ReceiveState>,
}

impl std::fmt::Debug for ReceivePool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceivePool").field("most", &self.most).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct ReceiveState {
    slabs: Vec<Arc<Region>>,
    posted: u32,
    reserved: u32,
}

impl ReceiveState {
    fn place(&self, buffer: WorkId, size: usize) -> Option<(&Arc<Region>, usize)> {
        let slab = self.slabs.get(index(buffer) / SLAB as usize)?;
        Some((slab, index(buffer) % SLAB as usize * size))
    }

    fn request(&self, buffer: WorkId, size: usize) -> Option<ReceiveRequest> {
        let (region, offset) = self.place(buffer, size)?;
        Some(ReceiveRequest::new(buffer, region, offset, size))
    }
}

impl ReceivePool {
    fn lock(&self) -> MutexGuard<'_, ReceiveState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, device: &str, credits: u16) -> Result<()> {
        let credits = u32::from(credits);
        let mut state = self.lock();
        if state.reserved + credits > self.most {
            return Err(Error::new(
                ErrorCode::ReceivePoolFull,
                format!(
                    "the receive pool of {device} holds {} buffers, and {} are reserved: this connection needs {credits} \
                     more. Raise pool.receiveBuffers or lower credits",
                    self.most, state.reserved
                ),
            ));
        }
        state.reserved += credits;
        Ok(())
    }

    /// Registers what is claimed and not there yet: for a shared queue whole slabs, otherwise the claimant's own
    /// buffers, which it gets. One caller at a time.
    fn grow(&self, device: &dyn Device, credits: u16) -> Result<Option<Arc<Region>>> {
        let size = self.buffer_size as usize;
        let Some(queue) = &self.queue else {
            return allocate(device, size * usize::from(credits)).map(Some);
        };
        loop {
            let (first, wanted) = {
                let state = self.lock();
                (state.posted, state.reserved)
            };
            if first >= wanted {
                return Ok(None);
            }
            let count = SLAB.min(self.most - first);
            let region = allocate(device, size * count as usize)?;
            let requests: Vec<_> = (0..count)
                .map(|i| ReceiveRequest::new(WorkId((first + i).into()), &region, i as usize * size, size))
                .collect();
            // Known before it is posted: a message may be in it as soon as it is.
            let mut state = self.lock();
            state.slabs.push(region);
            state.posted += count;
            drop(state);
            queue.post_receive(&requests).map_err(|refused| refused.error)?;
        }
    }

    /// Whether the buffers hang on a queue that many connections share.
    fn is_shared(&self) -> bool {
        self.queue.is_some()
    }
}

/// One send buffer.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) region: Arc<Region>,
    pub(crate) offset: usize,
    length: usize,
}

impl Slot {
    /// Writes into this buffer, and into no other of its region.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.length) {
            return Err(Error::internal("a segment is longer than its send buffer"));
        }
        self.region.memory().write(self.offset + offset, bytes)
    }
}

/// Someone who waits for a send buffer.
pub(crate) trait Waiting: Send + Sync {
    /// A buffer is free. No lock of the pool is held.
    fn slot_free(&self);
}

/// The send side of a device.
pub(crate) struct SendPool {
    buffer_size: u32,
    most: u32,
    state: Mutex<SendState>,
}

impl std::fmt::Debug for SendPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SendPool").field("most", &self.most).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct SendState {
    registered: u32,
    free: Vec<Slot>,
    waiting: VecDeque<Weak<dyn Waiting>>,
}

impl SendPool {
    fn lock(&self) -> MutexGuard<'_, SendState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn buffer_size(&self) -> usize {
        self.buffer_size as usize
    }

    /// Registers buffers until there are `wanted`, or as many as there may be. One caller at a time.
    fn grow(&self, device: &dyn Device, wanted: u32) -> Result<()> {
        loop {
            let registered = self.lock().registered;
            if registered >= wanted.min(self.most) {
                return Ok(());
            }
            let count = SLAB.min(self.most - registered);
            let length = self.buffer_size();
            let region = allocate(device, length * count as usize)?;
            let slots =
                (0..count as usize).map(|i| Slot { region: Arc::clone(&region), offset: i * length, length });
            self.lock().registered += count;
            self.give(slots);
        }
    }

    /// Takes a buffer, if one is free. Otherwise `waiting` is told, once, when one comes back.
    pub(crate) fn take_or_wait(&self, waiting: Option<Weak<dyn Waiting>>) -> Option<Slot> {
        let mut state = self.lock();
        let slot = state.free.pop();
        if slot.is_none() {
            state.waiting.extend(waiting);
        }
        slot
    }

    /// Gives buffers back. The caller holds no lock that [`Waiting::slot_free`] might want.
    pub(crate) fn give(&self, slots: impl IntoIterator<Item = Slot>) {
        let mut state = self.lock();
        state.free.extend(slots);
        // Each of those who wait is asked once; who still lacks a buffer then queues again.
        let asked = if state.free.is_empty() { VecDeque::new() } else { std::mem::take(&mut state.waiting) };
        drop(state);
        for waiting in asked.iter().filter_map(Weak::upgrade) {
            waiting.slot_free();
        }
    }
}

fn allocate(device: &dyn Device, length: usize) -> Result<Arc<Region>> {
    device.register(Arc::new(Memory::allocate(length)?), Access::LOCAL_WRITE)
}

fn index(buffer: WorkId) -> usize {
    usize::try_from(buffer.0).unwrap_or(usize::MAX)
}
