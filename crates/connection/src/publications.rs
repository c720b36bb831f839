//! Regions that a connection publishes to its peer, and those that the peer publishes, as applications see them.

use secure_rdma_rdma::{Access, Result};

use crate::connection::Connection;
use crate::grants::PublicationState;
use crate::regions::RegionSlice;
use crate::remote::RemoteRegion;

/// What [`Connection::publish`] calls what it has published. No two of one connection are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Publication(u32);

impl Connection {
    /// Grants the peer of this connection, and nobody else, `access` to a range: any of [`Access::REMOTE_READ`],
    /// [`Access::REMOTE_WRITE`] and [`Access::REMOTE_ATOMIC`]. Where the device has memory windows, one is bound to this
    /// connection's queue pair and the memory is pinned once however many connections it is published on; elsewhere it
    /// is registered in a protection domain of this connection's own. The peer finds it by `name`, 1 to 255 bytes, by
    /// [`Connection::remote`]; it is told when the window is bound ([`Connection::publication`]).
    ///
    /// It lasts until [`Connection::unpublish`] or the connection's end; handles of the region may be dropped, and the
    /// region may be closed. **Blocks** while pages are pinned.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_NAME` for a name that none can have or that something is published under,
    /// `ERR_RDMA_REGION_BOUNDS` for 0 bytes, `ERR_RDMA_INVALID_ARGUMENT` for other rights, `ERR_RDMA_REGION_CLOSED`,
    /// `ERR_RDMA_REGION_LIMIT` (1024), `ERR_RDMA_MEMLOCK`, `ERR_RDMA_RESOURCE`, `ERR_RDMA_DEVICE_UNSUPPORTED`,
    /// `ERR_RDMA_ENDED` after `close`, or why the connection is over.
    pub fn publish(&self, name: &str, slice: &RegionSlice, access: Access) -> Result<Publication> {
        self.channel_ref().publish(name, slice, access).map(Publication)
    }

    /// How far a publication is. Never blocks; an observer is told when it changes.
    #[must_use]
    pub fn publication(&self, publication: Publication) -> PublicationState {
        self.channel_ref().publication(publication.0)
    }

    /// Waits until the peer is being told of a publication.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_REVOKED` when it was unpublished before; why the connection is over.
    pub async fn wait_announced(&self, publication: Publication) -> Result<()> {
        let channel = self.channel_ref();
        channel.found(|| channel.is_announced(publication.0)).await
    }

    /// Begins to take back what is published under `name`: the peer's library settles what uses it there with
    /// `ERR_RDMA_REGION_REVOKED`, waits for what is in flight, and confirms; then the key dies. A peer that has not
    /// confirmed within 2 s loses the connection (`ERR_RDMA_PEER_VIOLATION`), since a key that is ended under its
    /// requests would end it as well. Asked again meanwhile, it does nothing. Never blocks.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_NAME` when nothing is published so; why the connection is over.
    pub fn unpublish(&self, name: &str) -> Result<Publication> {
        self.channel_ref().unpublish(name).map(Publication)
    }

    /// Waits until the peer cannot use a publication any more: it is unpublished, or the connection is over.
    pub async fn wait_unpublished(&self, publication: Publication) {
        let channel = self.channel_ref();
        let ended = || channel.publication(publication.0) == PublicationState::Ended;
        // It never fails.
        let _ = channel.found(|| Ok(ended().then_some(()))).await;
    }

    /// What the peer has published under `name`, if it has. Never blocks.
    ///
    /// # Errors
    /// `ERR_RDMA_REGION_NAME` for a name that none can have; why the connection is over.
    pub fn find_remote(&self, name: &str) -> Result<Option<RemoteRegion>> {
        self.channel_ref().find_remote(name)
    }

    /// What the peer publishes under `name`; waits until it does. Dropping the future gives the wait up.
    ///
    /// # Errors
    /// As for [`Connection::find_remote`]: the end of the connection ends the wait.
    pub async fn remote(&self, name: &str) -> Result<RemoteRegion> {
        let channel = self.channel_ref();
        channel.found(|| channel.find_remote(name)).await
    }
}
