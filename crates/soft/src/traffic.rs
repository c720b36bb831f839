//! What has gone through a device's sockets.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Counters;

/// What a device has counted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SoftCounters {
    /// The engine's counters.
    pub engine: Counters,
    /// What went through the sockets.
    pub sockets: SocketCounters,
}

/// What went through the sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SocketCounters {
    /// Calls that sent, each one packet or a batch.
    pub send_calls: u64,
    /// Packets sent.
    pub sent_packets: u64,
    /// Packets that the kernel did not take (no buffer, no route, too long, a firewall); they count as lost, and are
    /// repeated.
    pub unsent_packets: u64,
    /// Batches that the kernel refused to cut; packets to that destination are sent one by one from then on.
    pub refused_batches: u64,
    /// How often a socket took no more and was waited for.
    pub send_waits: u64,
    /// Calls that received at least one packet.
    pub receive_calls: u64,
    /// Packets received.
    pub received_packets: u64,
    /// Packets that the kernel dropped because a receive buffer was full.
    pub receive_drops: u64,
}

impl SocketCounters {
    /// Each counter's name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let Self {
            send_calls,
            sent_packets,
            unsent_packets,
            refused_batches,
            send_waits,
            receive_calls,
            received_packets,
            receive_drops,
        } = *self;
        [
            ("send_calls", send_calls),
            ("sent_packets", sent_packets),
            ("unsent_packets", unsent_packets),
            ("refused_batches", refused_batches),
            ("send_waits", send_waits),
            ("receive_calls", receive_calls),
            ("received_packets", received_packets),
            ("receive_drops", receive_drops),
        ]
        .into_iter()
    }
}

/// The counts as they grow.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) send_calls: AtomicU64,
    pub(crate) sent_packets: AtomicU64,
    pub(crate) unsent_packets: AtomicU64,
    pub(crate) refused_batches: AtomicU64,
    pub(crate) send_waits: AtomicU64,
    pub(crate) receive_calls: AtomicU64,
    pub(crate) received_packets: AtomicU64,
}

/// Adds to a count. Of what is sent and of what is received one thread at a time counts, so that this needs no locked addition.
pub(crate) fn add(count: &AtomicU64, more: usize) {
    count.store(count.load(Ordering::Relaxed) + more as u64, Ordering::Relaxed);
}

impl Traffic {
    pub(crate) fn read(&self, receive_drops: u64) -> SocketCounters {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        SocketCounters {
            send_calls: of(&self.send_calls),
            sent_packets: of(&self.sent_packets),
            unsent_packets: of(&self.unsent_packets),
            refused_batches: of(&self.refused_batches),
            send_waits: of(&self.send_waits),
            receive_calls: of(&self.receive_calls),
            received_packets: of(&self.received_packets),
            receive_drops,
        }
    }
}
