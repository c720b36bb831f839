//! Building packets straight into the transmit buffer, as batches that one system call can send.

use secure_rdma_roce::{Headers, IcrcContext};

/// The longest batch: what one UDP datagram of IPv4 can hold (`UDP_SEGMENT` cuts one such datagram up).
const MOST_BYTES: usize = 65_507;

/// How many packets of `length` bytes a batch of at most `segments` can have.
pub(super) fn most_packets(length: usize, segments: usize) -> usize {
    (MOST_BYTES / length).clamp(1, segments)
}

/// A batch under construction at the end of a buffer.
pub(super) struct Batch<'a> {
    buffer: &'a mut Vec<u8>,
    start: usize,
    most_segments: usize,
    segments: usize,
    segment_size: usize,
    /// A shorter segment ended it.
    closed: bool,
    /// Where the last packet begins, whose ICRC is still to be made, and its flow.
    open: Option<(usize, IcrcContext)>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(buffer: &'a mut Vec<u8>, most_segments: usize) -> Self {
        let start = buffer.len();
        Self { buffer, start, most_segments, segments: 0, segment_size: 0, closed: false, open: None }
    }

    /// Whether a packet of `length` bytes may be the next: no longer than the first, and none after a shorter one
    /// (Linux `udp_sendmsg`, `UDP_SEGMENT`).
    pub(super) fn fits(&self, length: usize) -> bool {
        self.segments == 0
            || (!self.closed
                && self.segments < self.most_segments
                && length <= self.segment_size
                && self.length() + length <= MOST_BYTES)
    }

    /// Whether a packet of `length` bytes that fits is likely to be the last that does.
    pub(super) fn ends_with(&self, length: usize) -> bool {
        (self.segments > 0 && length < self.segment_size)
            || self.segments + 1 >= self.most_segments
            || self.length() + 2 * length > MOST_BYTES
    }

    /// Appends a packet; `payload` appends exactly `length` bytes, or tells that it cannot: then there is no packet.
    pub(super) fn push(
        &mut self,
        flow: &IcrcContext,
        headers: &Headers,
        length: usize,
        payload: impl FnOnce(&mut Vec<u8>) -> bool,
    ) -> bool {
        let at = self.buffer.len();
        let whole = headers.packet_length(length);
        self.buffer.reserve(whole);
        headers.append_to(self.buffer);
        let filled = payload(self.buffer);
        let behind = whole.saturating_sub(headers.length()).saturating_sub(length);
        self.buffer.extend_from_slice(PAD_AND_ICRC.get(..behind).unwrap_or_default());
        if !filled || self.buffer.len() != at + whole {
            self.buffer.truncate(at);
            return false;
        }
        self.seal_before(at);
        self.open = Some((at, *flow));
        if self.segments == 0 {
            self.segment_size = whole;
        }
        self.closed |= whole < self.segment_size;
        self.segments += 1;
        true
    }

    /// Makes the ICRC of the last packet, which ends at `end`.
    ///
    /// Each is made when the next has been copied: to read what was written a moment ago waits until that has left the
    /// processor's store buffer.
    fn seal_before(&mut self, end: usize) {
        let Some((start, flow)) = self.open.take() else { return };
        // The IPv4 ID that the kernel gives to segment i of a batch is i (`inet_gso_segment`).
        let id = u16::try_from(self.segments.saturating_sub(1)).unwrap_or(u16::MAX);
        if let Some(packet) = self.buffer.get_mut(start..end) {
            flow.finish(id, packet);
        }
    }

    /// Makes the last packet's. To be called when the batch is whole.
    pub(super) fn seal(&mut self) {
        self.seal_before(self.buffer.len());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments == 0
    }

    pub(super) fn segments(&self) -> usize {
        self.segments
    }

    pub(super) fn segment_size(&self) -> usize {
        self.segment_size
    }

    pub(super) fn length(&self) -> usize {
        self.buffer.len().saturating_sub(self.start)
    }
}

/// Padding and ICRC before they are computed.
const PAD_AND_ICRC: [u8; 7] = [0; 7];
