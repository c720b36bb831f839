//! Flow control: how many segments either side may send.
//!
//! A credit is one receive buffer that the receiver has posted for this peer. The sender spends one per segment and
//! the receiver gives it back when it has taken the segment. The last credit is reserved for giving credits back, so
//! that two sides that both wait can never wait for each other; a peer that sends without a credit is closed. With fewer
//! than 4 credits that would not hold.

use secure_rdma_rdma::Result;

use crate::framing::violation;

/// Credits of one connection, both directions.
#[derive(Debug)]
pub(crate) struct Credits {
    /// What this side may send.
    available: u32,
    /// What the peer may still send: buffers that it has not used.
    granted: u32,
    /// Buffers that are free again and not yet given back. Those that held credits count too: where one side sends
    /// nothing that credits ride on (a WRITE with immediate has no room), the other would run out of its own.
    owed: u32,
    /// Buffers that are free again but are held back, because the application does not read.
    withheld: u32,
    /// `owed` from which a segment of its own is worth it. At least 2, so that two sides that thank each other for
    /// credits do so ever more rarely, and fall silent.
    threshold: u32,
}

/// More than any peer can have: a peer that grants more is broken, or wants the count to wrap.
const MOST: u32 = 1 << 20;

impl Credits {
    /// `own` buffers are posted for the peer.
    pub(crate) fn new(own: u16) -> Self {
        let own = u32::from(own);
        Self { available: 0, granted: own, owed: 0, withheld: 0, threshold: (own / 2).max(2) }
    }

    /// Takes credits from the peer: its first ones in the offer, later ones in immediates.
    pub(crate) fn receive(&mut self, credits: u16) -> Result<()> {
        self.available += u32::from(credits);
        if self.available > MOST { Err(violation("more credits than there can be buffers")) } else { Ok(()) }
    }

    /// Whether a segment of a message may be sent: the last credit is not for messages.
    pub(crate) fn may_send_data(&self) -> bool {
        self.available > 1
    }

    /// Whether credits should go back in a segment of their own, since no message carries them.
    pub(crate) fn should_return(&self) -> bool {
        self.owed >= self.threshold && self.available > 0
    }

    /// Spends one credit on a segment and takes what it carries back to the peer.
    pub(crate) fn spend(&mut self) -> u16 {
        self.available = self.available.saturating_sub(1);
        let carried = u16::try_from(self.owed).unwrap_or(u16::MAX);
        self.owed -= u32::from(carried);
        self.granted += u32::from(carried);
        carried
    }

    /// Spends one credit on a segment that carries none back.
    pub(crate) fn spend_alone(&mut self) {
        self.available = self.available.saturating_sub(1);
    }

    /// The peer has used one of its credits.
    pub(crate) fn peer_used(&mut self) -> Result<()> {
        self.granted = self.granted.checked_sub(1).ok_or_else(|| violation("a segment without a credit"))?;
        Ok(())
    }

    /// A buffer is posted again. `hold` keeps its credit back.
    pub(crate) fn buffer_free(&mut self, hold: bool) {
        if hold {
            self.withheld += 1;
        } else {
            self.owed += 1;
        }
    }

    /// The application reads again: what was held back goes to the peer.
    pub(crate) fn release_withheld(&mut self) {
        self.owed += std::mem::take(&mut self.withheld);
    }

    /// What this side may send, for `stats`.
    pub(crate) fn available(&self) -> u32 {
        self.available
    }

    /// What the peer may still send, for `stats`.
    pub(crate) fn granted(&self) -> u32 {
        self.granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_without_a_credit_is_a_violation() {
        let mut credits = Credits::new(2);
        credits.peer_used().unwrap();
        credits.peer_used().unwrap();
        assert!(credits.peer_used().is_err());
    }

    #[test]
    fn granting_without_end_is_a_violation() {
        let mut credits = Credits::new(2);
        let refused = (0..64).find_map(|_| credits.receive(u16::MAX).err());
        assert!(refused.is_some());
    }

    /// Two sides, any interleaving, any share of WRITEs with immediate, on which no credits ride: nobody ever waits for
    /// ever, credits never multiply, and when nothing is left to send the wire falls silent.
    #[test]
    fn two_sides_that_both_send_never_wait_for_each_other() {
        for own in [4_u16, 5, 6, 7, 16] {
            for seed in 0..50_u64 {
                for immediates in [[0, 0], [4, 0], [4, 4], [2, 2], [1, 4]] {
                    run(own, seed, immediates, [500, 500]);
                    run(own, seed, immediates, [500, 0]);
                }
            }
        }
    }

    /// `immediates` of four sends of each side are WRITEs with immediate.
    fn run(own: u16, seed: u64, immediates: [u64; 2], mut to_send: [u32; 2]) {
        let mut sides = [Credits::new(own), Credits::new(own)];
        sides[0].receive(own).unwrap();
        sides[1].receive(own).unwrap();
        let mut wires: [std::collections::VecDeque<u16>; 2] = Default::default();
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let (mut idle, mut after_the_last) = (0, 0);
        while idle < 1000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let me = usize::from(random & 1 == 1);
            let moved = if random & 2 == 2 {
                wires[me].pop_front().is_some_and(|credit| {
                    sides[me].peer_used().unwrap();
                    sides[me].receive(credit).unwrap();
                    sides[me].buffer_free(false);
                    true
                })
            } else {
                let data = to_send[me] > 0 && sides[me].may_send_data();
                let alone = data && random >> 2 & 3 < immediates[me];
                let moves = data || sides[me].should_return();
                if moves {
                    to_send[me] -= u32::from(data);
                    let carried = if alone {
                        sides[me].spend_alone();
                        0
                    } else {
                        sides[me].spend()
                    };
                    wires[1 - me].push_back(carried);
                }
                moves
            };
            idle = if moved { 0 } else { idle + 1 };
            after_the_last += u32::from(moved && to_send == [0, 0]);
            assert!(after_the_last < 200, "credits go to and fro without end: {own} credits, seed {seed}");
            assert!(wires.iter().all(|wire| wire.len() <= usize::from(own)), "more on the wire than buffers");
        }
        assert_eq!(to_send, [0, 0], "stuck with {own} credits, seed {seed}, {immediates:?} immediates");
    }
}
