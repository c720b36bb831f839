//! Message framing: what the immediate of each SEND says.
//!
//! Every segment is one SEND with immediate. The immediate is the whole header, so that small messages carry not one
//! byte of overhead and their payload lies aligned in the receive buffer:
//!
//! ```text
//!  31      28 27          16 15                0
//! +----------+--------------+-------------------+
//! |   kind   |   reserved   |      credits      |
//! +----------+--------------+-------------------+
//! ```
//!
//! `credits` are receive buffers that the sender of this segment gives (back) to its receiver. `reserved` is 0.
//! A message of one segment is ONLY; several that are posted together share one, PACKED. A longer one is FIRST, MIDDLE…, LAST, the words that RoCE uses for packets. The
//! payload of FIRST begins with the message's length, 8 bytes little-endian, so that the receiver can refuse or
//! allocate at once.

use secure_rdma_rdma::{Error, ErrorCode, Result};
use smallvec::SmallVec;

/// Bytes of the length at the start of a FIRST segment.
pub(crate) const LENGTH_PREFIX: usize = 8;

/// What a segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A whole message.
    Only,
    /// The begin of a longer message, with its length in front.
    First,
    /// A part of a longer message.
    Middle,
    /// The end of a longer message.
    Last,
    /// No message: gives credits back.
    Credit,
    /// No message follows: the sender has ended its direction.
    End,
    /// The proof of path, once, before anything else.
    Proof,
    /// Several whole messages, one after the other; see [`Packing`].
    Packed,
}

/// The content of an immediate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) credits: u16,
}

impl Header {
    pub(crate) fn to_immediate(self) -> u32 {
        let kind: u32 = match self.kind {
            Kind::Only => 1,
            Kind::First => 2,
            Kind::Middle => 3,
            Kind::Last => 4,
            Kind::Credit => 5,
            Kind::End => 6,
            Kind::Proof => 7,
            Kind::Packed => 8,
        };
        kind << 28 | u32::from(self.credits)
    }

    pub(crate) fn from_immediate(immediate: u32) -> Result<Self> {
        let kind = match immediate >> 28 {
            1 => Kind::Only,
            2 => Kind::First,
            3 => Kind::Middle,
            4 => Kind::Last,
            5 => Kind::Credit,
            6 => Kind::End,
            7 => Kind::Proof,
            8 => Kind::Packed,
            unknown => return Err(violation(format!("a segment of unknown kind {unknown}"))),
        };
        if immediate >> 16 & 0xFFF != 0 {
            return Err(violation("a segment whose reserved bits are set"));
        }
        let credits = u16::try_from(immediate & 0xFFFF).unwrap_or(u16::MAX);
        Ok(Self { kind, credits })
    }
}

/// What a waiting message costs beside its bytes, so that empty ones are bounded too.
pub(crate) const MESSAGE_COST: usize = 64;

/// The messages of one segment. They lie one after the other from the segment's start, so that the first one stays where
/// it is when a second is added; behind them their lengths, then their number, 2 bytes little-endian each.
///
/// They cost, with [`MESSAGE_COST`] each, no more than a receive buffer holds: a credit stands for no more memory of the
/// receiver's than any other.
#[derive(Debug, Default)]
pub(crate) struct Packing {
    lengths: SmallVec<[u16; 32]>,
    bytes: usize,
}

impl Packing {
    /// Takes a message in, if it fits into a segment of `segment` bytes with the others: gives its place.
    pub(crate) fn add(&mut self, length: usize, segment: usize) -> Option<usize> {
        let cost = self.bytes + length + (self.lengths.len() + 1) * MESSAGE_COST;
        let short = u16::try_from(length).ok().filter(|_| cost <= segment)?;
        let place = self.bytes;
        self.lengths.push(short);
        self.bytes += length;
        Some(place)
    }

    /// What stands behind the messages, and where; nothing behind a single one.
    pub(crate) fn trailer(&self) -> Option<(usize, SmallVec<[u8; 96]>)> {
        let count = u16::try_from(self.lengths.len()).ok().filter(|count| *count > 1)?;
        Some((self.bytes, self.lengths.iter().chain([&count]).flat_map(|word| word.to_le_bytes()).collect()))
    }

    /// The lengths of the messages in a segment, which came in a receive buffer of `buffer` bytes.
    pub(crate) fn lengths(segment: &[u8], buffer: usize) -> Result<SmallVec<[u16; 32]>> {
        let wrong = || violation("several messages whose lengths do not fit their segment");
        let (rest, count) = segment.split_last_chunk().ok_or_else(wrong)?;
        let count = usize::from(u16::from_le_bytes(*count));
        let begin = rest.len().checked_sub(2 * count).filter(|_| count > 1).ok_or_else(wrong)?;
        let (_, words) = rest.split_at_checked(begin).ok_or_else(wrong)?;
        let lengths: SmallVec<_> =
            words.as_chunks().0.iter().map(|length| u16::from_le_bytes(*length)).collect();
        let bytes: usize = lengths.iter().copied().map(usize::from).sum();
        if bytes != begin || bytes + count * MESSAGE_COST > buffer { Err(wrong()) } else { Ok(lengths) }
    }
}

/// The error for a peer that breaks a rule of the connection.
pub(crate) fn violation(what: impl AsRef<str>) -> Error {
    Error::new(
        ErrorCode::PeerViolation,
        format!(
            "the peer sent {}: it does not follow secure-rdma/1, so the connection is ended. Update the older side",
            what.as_ref()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn immediates_survive_the_round_trip() {
        let kinds = [
            Kind::Only,
            Kind::First,
            Kind::Middle,
            Kind::Last,
            Kind::Credit,
            Kind::End,
            Kind::Proof,
            Kind::Packed,
        ];
        for kind in kinds {
            for credits in [0, 1, 4095, u16::MAX] {
                let header = Header { kind, credits };
                assert_eq!(Header::from_immediate(header.to_immediate()).unwrap(), header);
            }
        }
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for immediate in [0, 9 << 28, 15 << 28, u32::MAX, 1 << 28 | 1 << 16, 5 << 28 | 1 << 27] {
            assert_eq!(Header::from_immediate(immediate).unwrap_err().code(), ErrorCode::PeerViolation);
        }
    }
}
