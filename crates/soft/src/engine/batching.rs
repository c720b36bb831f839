//! Waiting for room for a whole batch.
//!
//! What a batch costs depends little on its length, so that three packets should not go by themselves where fifteen could
//! go together a moment later: TCP's sender, too, does not follow each small opening of the window (the silly window,
//! RFC 9293, 3.8.6.2.1). Nobody waits for what may not come: only while an acknowledgement of everything in flight has
//! been asked for, and never for more than half a window. Towards peers that tell of no receive buffer (rxe, NICs) nobody waits.

use super::packetizer;
use super::requester::Requester;
use super::window::{batched_charge, charge};
use super::work::Work;

/// Bytes of a packet in the middle of a message beside its payload: BTH and ICRC.
const MIDDLE: usize = secure_rdma_roce::bth::LENGTH + secure_rdma_roce::icrc::LENGTH;

impl Requester {
    /// For how many full packets `room` in the peer's receive buffer is. Where others wait for it they take turns there, and
    /// a batch may be as short as it comes.
    pub(super) fn places(&self, room: u64, crowded: bool, mtu: usize) -> u64 {
        let bytes = mtu as u64;
        let one = if self.batches { batched_charge(1, bytes) } else { charge(1, bytes) };
        if crowded { u64::MAX } else { room / one }
    }

    /// Whether to wait at the cursor, which stands at `work`, with `places` for packets.
    pub(super) fn waits_for_batch(&self, work: &Work, mtu: usize, places: u64) -> bool {
        self.unasked == 0
            && self.next == self.newest
            && self.in_flight() > 0
            && places < self.next_batch(work, self.cursor.1, mtu)
    }

    /// Whether the last packet of a batch is to ask for an acknowledgement: where it would have to be asked for in the midst
    /// of the next batch, and where that is to wait for `places`.
    pub(super) fn asks_after_batch(&self, work: &Work, mtu: usize, places: u64, interval: u32) -> bool {
        let next = self.next_batch(work, self.cursor.1.saturating_add(1), mtu);
        self.batches && (u64::from(self.unasked) + 1 + next > u64::from(interval) || places < next)
    }

    /// How many packets a batch has that begins with this packet of `work`, where nothing else ends it.
    fn next_batch(&self, work: &Work, packet: u32, mtu: usize) -> u64 {
        if !self.batches || work.is_answered() {
            return 1;
        }
        // The first packet of a WRITE is longer than those behind it, so that only one of those can follow in its batch.
        let most = match packet {
            0 if work.is_write() => 2,
            _ => packetizer::most_packets(mtu + MIDDLE, self.max_segments) as u64,
        };
        most.min(u64::from(work.packets.saturating_sub(packet))).min(u64::from(self.window.size() / 2)).max(1)
    }
}
