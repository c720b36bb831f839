//! What waits to be posted: messages and operations, and how operations are cut into work requests.

use std::borrow::Cow;

use secure_rdma_rdma::{RemoteSlice, SendFlags, SendOperation, Slice};
use smallvec::SmallVec;

/// Bytes of a WRITE or READ that go in one work request. A long operation is cut, so that completions keep coming while
/// it runs: a path on which none comes counts as dead after `path_timeout`, and 512 MiB in one work request would take
/// longer than that on a slow but living one.
pub(crate) const PIECE: usize = 4 << 20;

/// A message, the end of the direction, or an operation, with what is left of it.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) id: u64,
    /// Whether a work request of it is made. A message of 0 bytes has sent 0 either way.
    pub(crate) begun: bool,
    /// Whether anyone will ask what became of it.
    pub(crate) wanted: bool,
    pub(crate) body: Body<'a>,
}

#[derive(Debug)]
pub(crate) enum Body<'a> {
    /// SEND.
    Message { bytes: Cow<'a, [u8]>, sent: usize },
    /// No message and no operation follows.
    End,
    /// WRITE or READ.
    Transfer(Transfer),
    /// An atomic.
    Atomic(Atomic),
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(id: u64, body: Body<'a>) -> Self {
        Self { id, begun: false, wanted: true, body }
    }

    /// The same with bytes of its own, which can wait.
    pub(crate) fn into_owned(self) -> Outgoing<'static> {
        let body = match self.body {
            Body::Message { bytes, sent } => Body::Message { bytes: Cow::Owned(bytes.into_owned()), sent },
            Body::End => Body::End,
            Body::Transfer(transfer) => Body::Transfer(transfer),
            Body::Atomic(atomic) => Body::Atomic(atomic),
        };
        Outgoing { id: self.id, begun: self.begun, wanted: self.wanted, body }
    }

    /// The grant of the peer that it uses.
    pub(crate) fn grant(&self) -> Option<u32> {
        match &self.body {
            Body::Transfer(transfer) => Some(transfer.grant),
            Body::Atomic(atomic) => Some(atomic.grant),
            Body::Message { .. } | Body::End => None,
        }
    }

    pub(crate) fn is_operation(&self) -> bool {
        matches!(self.body, Body::Transfer(_) | Body::Atomic(_))
    }

    /// Bytes of a message that are not posted; operations hold none of their own.
    pub(crate) fn unsent(&self) -> usize {
        match &self.body {
            Body::Message { bytes, sent } => bytes.len() - sent,
            _ => 0,
        }
    }
}

/// Which way the bytes of a [`Transfer`] go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Write { immediate: Option<u32> },
    Read,
}

/// A WRITE or a READ, with what is left of it.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) direction: Direction,
    fence: bool,
    /// The grant that `remote` belongs to.
    pub(crate) grant: u32,
    /// Where the next piece goes, or comes from.
    remote: RemoteSlice,
    local: SmallVec<[Slice; 1]>,
    /// Slices of `local` that are posted, and bytes of the next one.
    posted: (usize, usize),
    /// Bytes that are not posted.
    left: usize,
}

/// One work request of a [`Transfer`].
pub(crate) struct Piece {
    pub(crate) operation: SendOperation,
    pub(crate) local: SmallVec<[Slice; 1]>,
    pub(crate) flags: SendFlags,
    pub(crate) last: bool,
}

impl Transfer {
    pub(crate) fn new(
        direction: Direction,
        local: SmallVec<[Slice; 1]>,
        remote: RemoteSlice,
        grant: u32,
        fence: bool,
    ) -> Self {
        let left = local.iter().map(|slice| slice.length).sum();
        Self { direction, fence, grant, remote, local, posted: (0, 0), left }
    }

    /// Whether its next piece is the last, with `max_sge` slices in a work request.
    pub(crate) fn is_at_last(&self, max_sge: usize) -> bool {
        self.left <= PIECE && self.local.len() - self.posted.0 <= max_sge
    }

    /// Cuts off the next piece.
    pub(crate) fn next(&mut self, max_sge: usize) -> Piece {
        let last = self.is_at_last(max_sge);
        let whole = last && self.posted == (0, 0);
        let local = if whole { std::mem::take(&mut self.local) } else { self.cut(max_sge) };
        let bytes: usize = local.iter().map(|slice| slice.length).sum();
        let remote = self.remote;
        self.left -= bytes;
        self.remote.address = self.remote.address.wrapping_add(bytes as u64);
        let operation = match self.direction {
            // The peer hears of it when all has arrived.
            Direction::Write { immediate } => {
                SendOperation::Write { remote, immediate: immediate.filter(|_| last) }
            }
            Direction::Read => SendOperation::Read { remote },
        };
        let flags = if std::mem::take(&mut self.fence) { SendFlags::FENCE } else { SendFlags::empty() };
        Piece { operation, local, flags, last }
    }

    fn cut(&mut self, max_sge: usize) -> SmallVec<[Slice; 1]> {
        let mut piece = SmallVec::new();
        let mut room = PIECE;
        while room > 0 && piece.len() < max_sge {
            let (index, offset) = self.posted;
            let Some(slice) = self.local.get(index) else { break };
            let length = room.min(slice.length - offset);
            if length > 0 {
                piece.push(Slice::new(&slice.region, slice.offset + offset, length));
            }
            room -= length;
            self.posted =
                if offset + length == slice.length { (index + 1, 0) } else { (index, offset + length) };
        }
        piece
    }
}

/// A compare-and-swap or a fetch-and-add.
#[derive(Debug)]
pub(crate) struct Atomic {
    pub(crate) operation: SendOperation,
    pub(crate) flags: SendFlags,
    /// The grant that its remote slice belongs to.
    pub(crate) grant: u32,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use secure_rdma_rdma::fake::Fabric;
    use secure_rdma_rdma::{Access, Device as _, Memory, RKey, Region};

    use super::*;

    fn region(length: usize) -> Arc<Region> {
        let fabric = Fabric::new();
        let device = fabric.device("fake0", [10, 8, 0, 1].into());
        device.register(Arc::new(Memory::allocate(length).unwrap()), Access::LOCAL_WRITE).unwrap()
    }

    fn pieces(lengths: &[usize], max_sge: usize) -> Vec<Piece> {
        let region = region(lengths.iter().sum::<usize>().max(1));
        let mut offset = 0;
        let local = lengths.iter().map(|length| {
            offset += length;
            Slice::new(&region, offset - length, *length)
        });
        let remote = RemoteSlice { address: 1 << 40, rkey: RKey::new(1) };
        let direction = Direction::Write { immediate: Some(7) };
        let mut transfer = Transfer::new(direction, local.collect(), remote, 1, true);
        let mut pieces = Vec::new();
        while pieces.last().is_none_or(|piece: &Piece| !piece.last) {
            pieces.push(transfer.next(max_sge));
        }
        pieces
    }

    /// Every list of slices: all bytes once, in order, in pieces that the device takes; the immediate last, the fence first.
    #[test]
    fn pieces_hold_every_byte_once_and_in_order() {
        let lists: &[&[usize]] = &[
            &[],
            &[1],
            &[PIECE],
            &[PIECE + 1],
            &[3 * PIECE],
            &[1; 20],
            &[PIECE - 1, 2],
            &[PIECE, PIECE],
            &[5, 2 * PIECE, 5],
            &[7, 0, 7],
        ];
        for lengths in lists {
            for max_sge in [1, 2, 8] {
                let pieces = pieces(lengths, max_sge);
                let mut next = 0;
                for (i, piece) in pieces.iter().enumerate() {
                    let SendOperation::Write { remote, immediate } = piece.operation else { panic!() };
                    assert_eq!(remote.address, (1 << 40) + next as u64, "{lengths:?}");
                    assert!(piece.local.len() <= max_sge, "{lengths:?}");
                    let begin = next;
                    for slice in &piece.local {
                        assert_eq!(slice.offset, next, "{lengths:?}");
                        next += slice.length;
                    }
                    assert!(next - begin <= PIECE);
                    assert_eq!(immediate.is_some(), i + 1 == pieces.len());
                    assert_eq!(piece.flags.contains(SendFlags::FENCE), i == 0);
                }
                assert_eq!(next, lengths.iter().sum::<usize>(), "{lengths:?} with {max_sge}");
            }
        }
    }
}
