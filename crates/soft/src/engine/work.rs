//! A send work request on its way.

use secure_rdma_rdma::{SendOperation, SendRequest, WcStatus};

/// A posted send, and which PSNs are its own.
pub(super) struct Work {
    pub(super) request: SendRequest,
    /// Bytes of the message.
    pub(super) length: u32,
    /// Its first PSN, as a count.
    pub(super) first: u64,
    /// How many PSNs it takes: none, if it is the own device's alone.
    pub(super) packets: u32,
    /// Whether READ responses and atomics' results may be placed.
    pub(super) writable: bool,
    /// A local operation that has been carried out.
    pub(super) done: bool,
    /// Why it cannot be carried out. It ends with this when all before it have ended.
    pub(super) failed: Option<WcStatus>,
}

impl Work {
    /// One past its last PSN.
    pub(super) fn end(&self) -> u64 {
        self.first.wrapping_add(u64::from(self.packets))
    }

    pub(super) fn is_local(&self) -> bool {
        self.request.operation.is_local()
    }

    pub(super) fn is_write(&self) -> bool {
        matches!(self.request.operation, SendOperation::Write { .. })
    }

    pub(super) fn is_read(&self) -> bool {
        matches!(self.request.operation, SendOperation::Read { .. })
    }

    /// A READ of no bytes.
    pub(super) fn asks_for_nothing(&self) -> bool {
        self.is_read() && self.length == 0
    }

    pub(super) fn is_atomic(&self) -> bool {
        matches!(self.request.operation, SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. })
    }

    /// Whether only a response of its own completes it.
    pub(super) fn is_answered(&self) -> bool {
        self.is_read() || self.is_atomic()
    }

    /// How many PSNs a request takes: one per packet, for READs one per response (IBTA 9.7.2).
    pub(super) fn packets(operation: &SendOperation, length: u32, mtu: usize) -> u32 {
        match operation {
            SendOperation::Send { .. }
            | SendOperation::SendInvalidate { .. }
            | SendOperation::Write { .. }
            | SendOperation::Read { .. } => {
                let mtu = u32::try_from(mtu).unwrap_or(u32::MAX).max(1);
                length.div_ceil(mtu).max(1)
            }
            SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. } => 1,
            SendOperation::Bind { .. } | SendOperation::Invalidate { .. } => 0,
        }
    }

    /// How many bytes of the message the packets `from..to` hold.
    pub(super) fn bytes(&self, from: u64, to: u64, mtu: usize) -> u64 {
        let end = |packets: u64| packets.saturating_mul(mtu as u64).min(u64::from(self.length));
        end(to).saturating_sub(end(from))
    }
}
