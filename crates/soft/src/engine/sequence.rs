//! PSNs as counts that do not wrap.

use secure_rdma_rdma::Psn;
use secure_rdma_roce::PacketPsn;

/// One direction's numbering. Inside the engine a packet is named by how many PSNs came before it, in 64 bits; the PSN
/// is only how the wire writes that. So nothing but this file has to think of the wrap at 2^24 (IBTA 9.7.2).
#[derive(Clone, Copy, Default)]
pub(super) struct Sequence {
    first: u32,
}

impl Sequence {
    pub(super) fn new(first: Psn) -> Self {
        Self { first: first.expose() }
    }

    /// The PSN of a count.
    pub(super) fn psn(self, count: u64) -> PacketPsn {
        #[allow(clippy::cast_possible_truncation, reason = "24 bits are kept anyway")]
        PacketPsn::new(self.first.wrapping_add(count as u32))
    }

    /// The count of a PSN: the nearest to `near`, at most 2^23 away. `None` for one before the first.
    pub(super) fn count(self, psn: PacketPsn, near: u64) -> Option<u64> {
        near.checked_add_signed(i64::from(psn.distance_from(self.psn(near))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_the_wrap_both_ways() {
        for first in [0, 1, 0x80_0000, 0xFF_FFFE, 0xFF_FFFF] {
            let sequence = Sequence::new(Psn::new(first).unwrap());
            for near in [0_u64, 1, 5, 0xFF_FFFF, 0x100_0000, 0x8765_4321_0000] {
                for step in [0_i64, 1, 127, 0x7F_FFFF, -1, -127, -0x80_0000] {
                    let Some(count) = near.checked_add_signed(step) else { continue };
                    assert_eq!(sequence.count(sequence.psn(count), near), Some(count));
                }
            }
            assert_eq!(sequence.psn(0).expose(), first);
            assert_eq!(sequence.count(PacketPsn::new(first.wrapping_sub(1)), 0), None, "before the first");
        }
    }
}
