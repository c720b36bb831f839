//! Messages that have arrived and wait to be read.

use std::collections::VecDeque;

use smallvec::SmallVec;

/// Messages in their order. Those that came in one segment stay together: each would cost an allocation of its own else.
#[derive(Debug, Default)]
pub(crate) struct Ready {
    segments: VecDeque<Segment>,
    count: usize,
}

#[derive(Debug)]
enum Segment {
    /// A message by itself.
    Whole(Vec<u8>),
    /// Several, one behind the other: what is read of them is the lengths before `next`, and the bytes before `begin`.
    Packed { bytes: Vec<u8>, lengths: SmallVec<[u16; 32]>, next: usize, begin: usize },
}

impl Ready {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    pub(crate) fn push(&mut self, message: Vec<u8>) {
        self.count += 1;
        self.segments.push_back(Segment::Whole(message));
    }

    /// Adds the messages whose lengths these are and whose bytes `bytes` begins with.
    pub(crate) fn push_packed(&mut self, bytes: Vec<u8>, lengths: SmallVec<[u16; 32]>) {
        self.count += lengths.len();
        if !lengths.is_empty() {
            self.segments.push_back(Segment::Packed { bytes, lengths, next: 0, begin: 0 });
        }
    }

    /// The oldest.
    pub(crate) fn front(&self) -> Option<&[u8]> {
        self.segments.front().map(Segment::front)
    }

    /// Takes the oldest.
    pub(crate) fn pop(&mut self) -> Option<Vec<u8>> {
        if let Some(Segment::Whole(_)) = self.segments.front() {
            self.count -= 1;
            let Some(Segment::Whole(message)) = self.segments.pop_front() else { return None };
            return Some(message);
        }
        let message = self.front()?.to_vec();
        self.skip();
        Some(message)
    }

    /// Lets go of the oldest, and gives its length.
    pub(crate) fn skip(&mut self) -> Option<usize> {
        let segment = self.segments.front_mut()?;
        let length = segment.front().len();
        self.count -= 1;
        if segment.advance(length) {
            self.segments.pop_front();
        }
        Some(length)
    }
}

impl Segment {
    fn front(&self) -> &[u8] {
        match self {
            Self::Whole(message) => message,
            Self::Packed { bytes, lengths, next, begin } => {
                let length = lengths.get(*next).copied().map_or(0, usize::from);
                bytes.get(*begin..*begin + length).unwrap_or_default()
            }
        }
    }

    /// Goes on behind a message of this length; tells whether it was the last.
    fn advance(&mut self, length: usize) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Packed { lengths, next, begin, .. } => {
                *next += 1;
                *begin += length;
                *next == lengths.len()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;

    #[test]
    fn messages_come_out_in_order_however_they_are_taken() {
        for skips in 0..1 << 7 {
            let mut ready = Ready::default();
            ready.push(b"a".to_vec());
            ready.push_packed(b"bccddd\x01\0".to_vec(), smallvec![1, 2, 0, 3]);
            ready.push_packed(Vec::new(), smallvec![]);
            ready.push(Vec::new());
            ready.push_packed(b"e".to_vec(), smallvec![1]);
            for (at, wanted) in ["a", "b", "cc", "", "ddd", "", "e"].into_iter().enumerate() {
                assert_eq!(ready.len(), 7 - at);
                assert_eq!(ready.front(), Some(wanted.as_bytes()));
                if skips >> at & 1 == 1 {
                    assert_eq!(ready.skip(), Some(wanted.len()));
                } else {
                    assert_eq!(ready.pop().as_deref(), Some(wanted.as_bytes()));
                }
            }
            assert_eq!((ready.len(), ready.front()), (0, None));
            assert_eq!((ready.pop(), ready.skip()), (None, None));
        }
    }
}
