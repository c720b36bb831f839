//! What a peer may do to a queue pair or a region.

use bitflags::bitflags;

bitflags! {
    /// Access rights. The bits are those of `enum ibv_access_flags`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Access: u32 {
        /// The device may write here for local work: receives and READ responses land in such regions.
        const LOCAL_WRITE = 1;
        /// The peer may RDMA WRITE.
        const REMOTE_WRITE = 1 << 1;
        /// The peer may RDMA READ.
        const REMOTE_READ = 1 << 2;
        /// The peer may use atomics.
        const REMOTE_ATOMIC = 1 << 3;
        /// Memory windows may be bound to the region.
        const MEMORY_WINDOW_BIND = 1 << 4;
    }
}
