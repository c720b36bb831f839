//! How two devices find each other: what each puts into the offer, and what it makes of the peer's.

use std::fmt;
use std::net::IpAddr;

use crate::{Gid, PathMtu, QpAttr, Result};

/// How the path to the peer is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Addressing {
    /// RDMA CM's address and route resolution, and nothing more of it. Falls to [`Addressing::Verbs`] where there is
    /// no RDMA CM device node.
    #[default]
    Hybrid,
    /// GID table and the kernel's neighbour look-up; no RDMA CM at all.
    Verbs,
}

impl fmt::Display for Addressing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hybrid => "hybrid",
            Self::Verbs => "verbs",
        })
    }
}

/// What the TLS connection knows, for judging the peer's part of the offer.
#[derive(Clone, Debug)]
pub struct PathContext {
    /// Local address of the TLS connection.
    pub tls_local: IpAddr,
    /// The peer's address of the TLS connection.
    pub tls_peer: IpAddr,
    /// Addresses besides `tls_peer` that the peer's GID may stand for.
    pub allowed_peer_addresses: Vec<IpAddr>,
}

/// One connection's way to its peer, before the peer is known. Made by [`crate::Device::establish`].
///
/// A way that runs the communication manager's own exchange would fit here too: it may wait in
/// [`Establish::resolve`], amend attributes in [`Route`], and finish in [`Route::established`].
pub trait Establish: Send {
    /// The device's part of the own offer: GID, LID, link layer, and whatever else the other device must know.
    /// Opaque to everyone between the two devices.
    fn local_part(&self) -> Vec<u8>;

    /// Reads the peer's part, checks it, and finds the path. **Blocks** (address resolution, at most a few seconds).
    ///
    /// # Errors
    /// `ERR_RDMA_OFFER` for a part that is malformed or not allowed (a GID that is neither the TLS peer's address
    /// nor in `allowed_peer_addresses`), `ERR_RDMA_UNREACHABLE` when no path is found.
    fn resolve(self: Box<Self>, peer_part: &[u8], context: &PathContext) -> Result<Box<dyn Route>>;
}

/// A path that was found.
///
/// It fills in addresses only: the PSNs are set by the bring-up *after* these calls, so that no way of addressing
/// can choose them.
pub trait Route: Send + Sync {
    /// Adds the address vector (and whatever else the fabric demands) to the attributes of INIT→RTR.
    ///
    /// # Errors
    /// When the fabric's attributes cannot be had.
    fn rtr(&self, attr: &mut QpAttr) -> Result<()>;

    /// Amends the attributes of RTR→RTS. Most have nothing to add.
    ///
    /// # Errors
    /// When the fabric's attributes cannot be had.
    fn rts(&self, _attr: &mut QpAttr) -> Result<()> {
        Ok(())
    }

    /// Called when the queue pair is in RTS. Most have nothing to do.
    ///
    /// # Errors
    /// When the fabric does not accept it.
    fn established(&self) -> Result<()> {
        Ok(())
    }

    /// The peer's GID, for messages to people.
    fn peer_gid(&self) -> Gid;

    /// The UDP port that packets go to, on RoCEv2.
    fn udp_port(&self) -> Option<u16>;

    /// The largest path MTU of the path, where the resolution told one.
    fn path_mtu(&self) -> Option<PathMtu> {
        None
    }

    /// Which way of addressing was used, and why where it was not the one asked for.
    fn description(&self) -> String;
}

impl fmt::Debug for dyn Establish + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Establish").finish_non_exhaustive()
    }
}

impl fmt::Debug for dyn Route + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route")
            .field("peer_gid", &self.peer_gid())
            .field("description", &self.description())
            .finish_non_exhaustive()
    }
}
