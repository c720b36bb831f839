//! Receive queues: a queue pair's own, and shared ones.

/// Names a shared receive queue of an engine. None is given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReceiveQueueId(pub(super) u32);
