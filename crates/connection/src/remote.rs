//! What the peer has granted, as this side holds it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use secure_rdma_rdma::{Access, Error, ErrorCode, RKey, RemoteSlice as WireSlice, Result};

use crate::channel::Channel;
use crate::regions::check_bounds;

/// A range of the peer's memory that the peer has published to this connection, as [`crate::Connection::remote`] gives
/// it. It is worth something on that connection alone.
///
/// Clones are handles to the same grant. When the peer takes it back, every operation that has not been posted and
/// every later one fails with `ERR_RDMA_REGION_REVOKED`; the connection lives on.
#[derive(Clone)]
pub struct RemoteRegion(Arc<Inner>);

struct Inner {
    channel: Weak<Channel>,
    id: u32,
    name: String,
    access: Access,
    address: u64,
    length: u64,
    rkey: RKey,
    revoked: AtomicBool,
}

impl RemoteRegion {
    /// A grant as the peer announced it. Its range has been checked not to overflow.
    pub(crate) fn new(
        channel: Weak<Channel>,
        (id, name): (u32, String),
        access: Access,
        (address, length): (u64, u64),
        rkey: RKey,
    ) -> Self {
        let revoked = AtomicBool::new(false);
        Self(Arc::new(Inner { channel, id, name, access, address, length, rkey, revoked }))
    }

    /// The name that the peer published it under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What may be done with it: remote rights.
    #[must_use]
    pub fn access(&self) -> Access {
        self.0.access
    }

    /// The address of its first byte, in the peer's own numbering.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.0.address
    }

    /// Length in bytes, at least 1.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.0.length
    }

    /// Never true: nothing empty can be published.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.length == 0
    }

    /// Whether the peer has taken it back. Its connection's end is none of that.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.0.revoked.load(Ordering::Acquire)
    }

    /// A range of it. It may be empty.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_BOUNDS` when it does not lie inside.
    pub fn slice(&self, offset: u64, length: u64) -> Result<RemoteSlice> {
        check_bounds("the peer's region", offset, length, self.0.length)?;
        Ok(RemoteSlice { region: self.clone(), offset, length })
    }

    /// All of it.
    #[must_use]
    pub fn whole(&self) -> RemoteSlice {
        RemoteSlice { region: self.clone(), offset: 0, length: self.0.length }
    }

    /// The same key as if it had been granted to `connection` with all rights, and `length` bytes from `offset` of the
    /// address: what a hostile peer would try.
    #[cfg(any(test, feature = "hostile"))]
    #[must_use]
    pub fn forged(&self, connection: &crate::Connection, offset: i64, length: u64) -> Self {
        let all = Access::REMOTE_READ | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
        let address = self.0.address.wrapping_add_signed(offset);
        let name = (u32::MAX, self.0.name.clone());
        Self::new(connection.channel(), name, all, (address, length), self.0.rkey)
    }

    /// The number that both sides call it by.
    pub(crate) fn id(&self) -> u32 {
        self.0.id
    }

    /// From now on no operation may name it. Called under the channel's lock, so that no operation is between its
    /// check and its place in the queue.
    pub(crate) fn revoke(&self) {
        self.0.revoked.store(true, Ordering::Release);
    }

    /// Refuses what may not be done with it on `channel`.
    ///
    /// # Errors
    /// `ERR_RDMA_INVALID_ARGUMENT` for another connection's, `ERR_RDMA_REGION_REVOKED`, `ERR_RDMA_REGION_ACCESS`.
    pub(crate) fn check(&self, channel: &Weak<Channel>, access: Access) -> Result<()> {
        if !self.0.channel.ptr_eq(channel) {
            let what = format!(
                "the peer published {:?} to another connection: ask this one's peer for a region of its own",
                self.0.name
            );
            return Err(Error::new(ErrorCode::InvalidArgument, what));
        }
        if self.is_revoked() {
            return Err(self.revoked());
        }
        if !self.0.access.contains(access) {
            let what = format!(
                "the peer published {:?} for {}, not for {}",
                self.0.name,
                rights(self.0.access),
                rights(access)
            );
            return Err(Error::new(ErrorCode::RegionAccess, what));
        }
        Ok(())
    }

    /// The error of an operation that comes too late.
    pub(crate) fn revoked(&self) -> Error {
        Error::new(
            ErrorCode::RegionRevoked,
            format!("the peer has unpublished {:?}: wait until it is published again", self.0.name),
        )
    }
}

/// Remote rights as people say them.
pub(crate) fn rights(access: Access) -> String {
    let names =
        [(Access::REMOTE_READ, "read"), (Access::REMOTE_WRITE, "write"), (Access::REMOTE_ATOMIC, "atomics")];
    let granted: Vec<_> =
        names.iter().filter(|(right, _)| access.contains(*right)).map(|(_, name)| *name).collect();
    if granted.is_empty() { "nothing".to_owned() } else { granted.join(" and ") }
}

impl fmt::Debug for RemoteRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteRegion")
            .field("name", &self.0.name)
            .field("access", &self.0.access)
            .field("length", &self.0.length)
            .field("revoked", &self.is_revoked())
            .finish_non_exhaustive()
    }
}

/// A range of a [`RemoteRegion`]. Its bounds are good for as long as it lives; the grant may be taken back meanwhile.
#[derive(Clone, Debug)]
pub struct RemoteSlice {
    region: RemoteRegion,
    offset: u64,
    length: u64,
}

impl RemoteSlice {
    /// The region.
    #[must_use]
    pub fn region(&self) -> &RemoteRegion {
        &self.region
    }

    /// Its first byte, from the region's start.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it holds no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// A range of it; `offset` counts from its own begin.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_BOUNDS` when it does not lie inside.
    pub fn slice(&self, offset: u64, length: u64) -> Result<Self> {
        check_bounds("the slice", offset, length, self.length)?;
        Ok(Self { region: self.region.clone(), offset: self.offset + offset, length })
    }

    /// What a work request says to mean its bytes from `skip` on.
    pub(crate) fn at(&self, skip: u64) -> WireSlice {
        // The announced range does not overflow, and both lie inside.
        let address = self.region.0.address.wrapping_add(self.offset).wrapping_add(skip);
        WireSlice { address, rkey: self.region.0.rkey }
    }
}
