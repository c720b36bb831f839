//! The traits that every device implements.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};

use crate::{
    Access, Addressing, Completion, DeviceInfo, DeviceLimits, Error, ErrorCode, Establish, LocalAddress,
    Memory, MemoryWindow, PostError, QpAttr, QpState, Qpn, ReceiveRequest, Region, Result, SendRequest,
};

/// A family of devices: all that libibverbs shows, or the embedded one.
pub trait Devices: Send + Sync {
    /// Lists the devices. None is not an error.
    ///
    /// # Errors
    /// When the system cannot be asked.
    fn list(&self) -> Result<Vec<DeviceInfo>>;

    /// Opens a device, or hands out the one that is open: a device is process-wide and counted. **Blocks.**
    ///
    /// # Errors
    /// `ERR_RDMA_DEVICE_NOT_FOUND`, `ERR_RDMA_DEVICE_UNSUPPORTED`, `ERR_RDMA_DEVICE_OPEN`.
    fn open(&self, name: &str) -> Result<Arc<dyn Device>>;

    /// The network interface with this index, as [`crate::GidEntry::interface`] names it. Sockets tell the interface of a
    /// link-local address by its index. `None` where this family does not know it.
    fn interface_name(&self, index: u32) -> Option<String> {
        let _ = index;
        None
    }
}

/// An open device. It runs one service thread, and no other.
pub trait Device: Send + Sync + fmt::Debug {
    /// The name: `rxe0`, `mlx5_0`, `soft`.
    fn name(&self) -> &str;

    /// What it can do.
    fn limits(&self) -> &DeviceLimits;

    /// Whether it was removed or has failed: nothing can be made on it any more, and one of the same name that is listed
    /// is another.
    fn is_gone(&self) -> bool {
        false
    }

    /// Has `notify` called once when the device is gone: on its service thread, after every handler was told; at once
    /// where it is gone already. A removal may wait until the last holder has let go of the device, and who holds one
    /// without a queue pair hears of it in no other way. It is dropped uncalled with the device.
    fn on_gone(&self, notify: GoneNotice) {
        drop(notify);
    }

    /// Registers memory. **Blocks** while pages are pinned; call it off the event loop.
    ///
    /// # Errors
    /// `ERR_RDMA_MEMLOCK` when RLIMIT_MEMLOCK is too low (it names the limit, the need and the remedy), otherwise
    /// `ERR_RDMA_RESOURCE`.
    fn register(&self, memory: Arc<Memory>, access: Access) -> Result<Arc<Region>>;

    /// Makes a receive queue that many queue pairs share, or `None` where the device has none (its queue pairs
    /// then have receive queues of their own).
    ///
    /// # Errors
    /// `ERR_RDMA_RESOURCE`.
    fn create_receive_queue(&self, capacity: u32) -> Result<Option<Arc<dyn ReceiveQueue>>>;

    /// Makes a type 2 memory window, bound to nothing yet, or `None` where the device has none.
    ///
    /// # Errors
    /// `ERR_RDMA_RESOURCE`.
    fn create_memory_window(&self) -> Result<Option<Arc<dyn MemoryWindow>>> {
        Ok(None)
    }

    /// Whether a window opens no more than the range that it was bound to. On rxe it opens, with its rights and on its
    /// queue pair, all of the region below it (measured; `rxe_resp.c` checks the range of the region): there a
    /// window for a part must be bound to a registration of that part, made by [`Device::register_range`].
    fn windows_keep_ranges(&self) -> bool {
        true
    }

    /// Registers `length` bytes of `memory` from `offset` and no others, so that a key with remote rights opens them
    /// alone. The region's [`Region::address`] is still that of the memory's first byte. **Blocks** as
    /// [`Device::register`] does.
    ///
    /// # Errors
    /// As for [`Device::register`]; `ERR_RDMA_INVALID_ARGUMENT` for a range that is empty or not inside, and, on devices
    /// whose windows keep their ranges, perhaps for every range that is not the whole.
    fn register_range(
        &self,
        memory: Arc<Memory>,
        offset: usize,
        length: usize,
        access: Access,
    ) -> Result<Arc<Region>> {
        if offset == 0 && length == memory.len() {
            return self.register(memory, access);
        }
        Err(Error::new(
            ErrorCode::InvalidArgument,
            "this device registers memory as a whole: use memory windows",
        ))
    }

    /// A protection domain of its own on this device, for one connection where there are no memory windows: a view
    /// of the device whose regions and queue pairs know nothing of anyone else's, so that a key of one opens nothing
    /// on the queue pair of another. It has no shared receive queue (its `max_shared_receives` is 0). `None` where the
    /// device has memory windows and needs none.
    ///
    /// # Errors
    /// `ERR_RDMA_RESOURCE`.
    fn private_domain(&self) -> Result<Option<Arc<dyn Device>>> {
        Ok(None)
    }

    /// Makes a queue pair in RESET. Never blocks for the network.
    ///
    /// # Errors
    /// `ERR_RDMA_RESOURCE`, `ERR_RDMA_MEMLOCK`.
    fn create_queue_pair(&self, config: QueuePairConfig) -> Result<Arc<dyn QueuePair>>;

    /// Begins the search for a peer from `local`. The device's part of the offer comes from the result.
    ///
    /// # Errors
    /// When `local` is not this device's (any more).
    fn establish(&self, local: &LocalAddress, addressing: Addressing) -> Result<Box<dyn Establish>>;

    /// The counters of a port, from 1, each by the name that the kernel gives it (`hw_counters` and `counters` in sysfs;
    /// those of soft-RoCE are in `rxe_hw_counters.c`). They only grow; since when they count is the device's affair, and
    /// the kernel's count for all processes. Empty where there are none. **Blocks**: firmware may be asked.
    fn counters(&self, port: u8) -> Vec<Counter> {
        let _ = port;
        Vec::new()
    }

    /// Writes every packet that the device sends or receives from now on into a new pcapng file at `path`, until the
    /// device is closed. **Whoever reads the file sees all data, PSNs and R_Keys.** Asked again for the same path, it
    /// does nothing. **Blocks** while the file is made.
    ///
    /// # Errors
    /// `ERR_RDMA_DEVICE_UNSUPPORTED` where packets do not pass through this process, `ERR_RDMA_INVALID_ARGUMENT` when
    /// the file cannot be made, or another one is being written.
    fn capture(&self, path: &Path) -> Result<()> {
        Err(Error::new(
            ErrorCode::DeviceUnsupported,
            format!(
                "{} cannot capture to {}: its packets do not pass through this process. The embedded device can; \
                 for others there are tcpdump (soft-RoCE) and their vendors' tools",
                self.name(),
                path.display()
            ),
        ))
    }
}

/// The name and the value of a counter.
pub type Counter = (Cow<'static, str>, u64);

/// What [`Device::on_gone`] takes. Must not block.
pub type GoneNotice = Box<dyn FnOnce() + Send>;

/// What a queue pair is made with.
pub struct QueuePairConfig {
    /// Send work requests that can be outstanding.
    pub max_send: u32,
    /// Receive work requests that can be outstanding: on the queue pair's own receive queue, or at the most those
    /// of the shared one that this queue pair's peer may consume before they are drained.
    pub max_receive: u32,
    /// Scatter/gather entries per work request.
    pub max_sge: u32,
    /// The shared receive queue, where there is one.
    pub receive_queue: Option<Arc<dyn ReceiveQueue>>,
    /// Who is told of completions and events. Held weakly: the queue pair belongs to its handler.
    pub handler: Weak<dyn QueuePairHandler>,
}

/// A receive queue that many queue pairs share (SRQ).
pub trait ReceiveQueue: Send + Sync {
    /// Posts receives. Never blocks; many threads may call.
    ///
    /// # Errors
    /// [`PostError`] with the number that was posted; `ERR_RDMA_QUEUE_FULL` when there is no room.
    fn post_receive(&self, requests: &[ReceiveRequest]) -> std::result::Result<(), PostError>;

    /// The device's own part.
    fn as_any(&self) -> &dyn std::any::Any;
}

/// A queue pair of a reliable connection. Dropping it destroys it; what was posted is forgotten without
/// completions, and its regions are released when the device has let go of them.
pub trait QueuePair: Send + Sync {
    /// Its number.
    fn qpn(&self) -> Qpn;

    /// The state that it was last moved to, or ERR when the device has reported that.
    fn state(&self) -> QpState;

    /// Moves the queue pair. [`crate::transition::check`] is asked before the driver. INIT→RTR **blocks** on
    /// Ethernet while the kernel resolves the peer's hardware address; call it off the event loop. A move to ERR of the
    /// embedded device may wait a millisecond for a thread that receives, so that what has come has come before.
    ///
    /// # Errors
    /// `ERR_RDMA_TRANSITION` by name, `ERR_RDMA_UNREACHABLE` when the address did not resolve, `ERR_RDMA_MODIFY`
    /// with the errno otherwise. The state is unchanged then.
    fn modify(&self, attr: &QpAttr) -> Result<()>;

    /// Posts a list of send work requests, in order. Never blocks.
    ///
    /// # Errors
    /// [`PostError`]; `ERR_RDMA_QUEUE_FULL` when `max_send` are outstanding: no completion can be lost.
    fn post_send(&self, requests: &[SendRequest]) -> std::result::Result<(), PostError>;

    /// Posts receives to the queue pair's own receive queue. Never blocks.
    ///
    /// # Errors
    /// [`PostError`]; `ERR_RDMA_QUEUE_FULL`; `ERR_RDMA_INVALID_ARGUMENT` where the receive queue is shared.
    fn post_receive(&self, requests: &[ReceiveRequest]) -> std::result::Result<(), PostError>;

    /// Sends what the device holds back, such as acknowledgements that wait for something to travel with. To be called before
    /// the peer is told otherwise of what they acknowledge. Never blocks. Most devices hold nothing back.
    fn flush(&self) {}
}

impl fmt::Debug for dyn QueuePair + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("qpn", &self.qpn())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for dyn ReceiveQueue + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceiveQueue").finish_non_exhaustive()
    }
}

/// Who lives on a queue pair. Called on the device's service thread only, one call at a time per queue pair; must
/// not block, and may drop the queue pair.
pub trait QueuePairHandler: Send + Sync {
    /// Completions of this queue pair, oldest first.
    fn completed(&self, batch: &[Completion]);

    /// Something happened that no work request asked for.
    fn happened(&self, event: AsyncEvent);
}

/// Events that no work request asked for (`ibv_get_async_event`(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AsyncEvent {
    /// The queue pair is in ERR, and the reason is not in a completion.
    QueuePairFatal,
    /// A completion queue overran: the connection cannot go on.
    CompletionQueueError,
    /// The port stopped carrying packets.
    PortDown,
    /// The port carries packets again.
    PortUp,
    /// The device is gone (`IBV_EVENT_DEVICE_FATAL`, or it was removed).
    DeviceGone,
}
