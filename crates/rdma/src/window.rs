//! Memory windows: rights to a part of a region that can be given and ended without registering anything.

use std::any::Any;
use std::fmt;

use crate::RKey;

/// A type 2 memory window (IBTA 10.6.7.2.2): bound by [`crate::SendOperation::Bind`] to a range of a region and to the
/// queue pair that the bind is posted to; its key is worth nothing on another.
///
/// Its binding ends with [`crate::SendOperation::Invalidate`], with the peer's SEND with invalidate, or when the
/// window is dropped.
pub trait MemoryWindow: Any + Send + Sync + fmt::Debug {
    /// The key for the next bind; each call gives another. Devices of hardware draw its upper 24 bits when the window
    /// is made and count the lower 8; the embedded device draws all 32 anew.
    fn next_key(&self) -> RKey;

    /// The device's own part.
    fn as_any(&self) -> &dyn Any;
}
