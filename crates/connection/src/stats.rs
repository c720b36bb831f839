//! Numbers of a connection.

use crate::credit::Credits;
use crate::grants::Grants;
use crate::receive::Receive;
use crate::transmit::Transmit;

/// What a connection has done and holds at this moment. Nothing in it is secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionStats {
    /// Messages given to `send`.
    pub messages_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// WRITEs, READs and atomics given to `post`.
    pub operations_posted: u64,
    /// Whole messages that arrived.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Segments posted, messages and credits alike.
    pub segments_sent: u64,
    /// Bytes of messages that wait to be posted.
    pub bytes_queued: u64,
    /// Operations that wait to be posted, and outcomes that nobody has asked for.
    pub operations_pending: u64,
    /// Work requests that are posted and not yet complete.
    pub work_in_flight: u64,
    /// Messages that wait to be read.
    pub messages_ready: u64,
    /// Their bytes.
    pub bytes_ready: u64,
    /// Immediates of WRITEs that wait to be read.
    pub immediates_ready: u64,
    /// Segments that this side may send now.
    pub credits_available: u64,
    /// Segments that the peer may send now.
    pub credits_granted: u64,
    /// How often sending stopped for lack of credit.
    pub waits_for_credit: u64,
    /// How often sending stopped for lack of a send buffer.
    pub waits_for_buffer: u64,
    /// Regions that this side publishes now.
    pub regions_published: u64,
    /// Regions that the peer publishes now.
    pub regions_remote: u64,
    /// Zero-length WRITEs that proved an idle path.
    pub path_probes: u64,
}

impl ConnectionStats {
    pub(crate) fn of(transmit: &Transmit, receive: &Receive, credits: &Credits, grants: &Grants) -> Self {
        let (published, remote) = grants.counts();
        let (counters, posting) = (transmit.counters, transmit.posting());
        Self {
            messages_sent: counters.messages,
            bytes_sent: counters.bytes,
            operations_posted: counters.operations,
            messages_received: receive.messages,
            bytes_received: receive.bytes,
            segments_sent: posting.counters.segments,
            bytes_queued: transmit.queued_bytes() as u64,
            operations_pending: transmit.pending_operations() as u64,
            work_in_flight: posting.outstanding().len() as u64,
            messages_ready: receive.ready() as u64,
            bytes_ready: receive.ready_bytes() as u64,
            immediates_ready: receive.immediates() as u64,
            credits_available: credits.available().into(),
            credits_granted: credits.granted().into(),
            waits_for_credit: posting.counters.waits_for_credit,
            waits_for_buffer: posting.counters.waits_for_buffer,
            regions_published: published as u64,
            regions_remote: remote as u64,
            path_probes: posting.counters.probes,
        }
    }
}
