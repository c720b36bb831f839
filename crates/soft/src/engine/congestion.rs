//! Congestion notices (CNP): sent when a switch has marked a packet, obeyed when the peer sends one (DCQCN).

use std::time::{Duration, Instant};

use secure_rdma_roce::{Bth, Extension, Headers, Opcode, PacketPsn};

use super::packetizer::Batch;
use super::queue_pair::{QueuePair, Shared};

/// The ECN bits of a packet that a switch has marked: CE (RFC 3168).
pub(super) const CONGESTION_EXPERIENCED: u8 = 0b11;

/// The notice that a queue pair owes its peer.
#[derive(Default)]
pub(super) struct Notices {
    due: bool,
    last: Option<Instant>,
}

impl Notices {
    /// A marked packet came: a notice is due, unless the last is not `interval` old.
    pub(super) fn marked(&mut self, now: Instant, interval: Duration) {
        if self.last.is_none_or(|last| now.saturating_duration_since(last) >= interval) {
            self.due = true;
            self.last = Some(now);
        }
    }

    pub(super) fn is_due(&self) -> bool {
        self.due
    }
}

impl QueuePair {
    /// Appends the notice that is due. It goes alone, since it has a traffic class of its own.
    pub(super) fn send_notice(&mut self, shared: &mut Shared, batch: &mut Batch<'_>) {
        let Some(flows) = self.flows.as_ref().filter(|_| self.notices.due) else { return };
        self.notices.due = false;
        let bth = Bth::new(Opcode::Cnp, flows.peer.get(), PacketPsn::new(0));
        if batch.push(&flows.out, &Headers::new(bth, Extension::Cnp, 0), 0, |_| true) {
            shared.counters.sent_cnps += 1;
        }
    }
}
