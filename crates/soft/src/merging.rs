//! Whether the kernel is to merge what arrives (`UDP_GRO`, udp(7)).
//!
//! To take a batch at one piece is what makes long messages fast. But a socket that may get batches looks at a part of
//! each datagram that another processor has just written, and that costs a datagram that comes alone more than anything
//! else on its way (0.4 µs of 1.7 on loopback, Linux 6.18). So a socket to which hardly anything but single ones comes gets
//! no batches, until several come at one time.

use crate::socket::Socket;

/// Calls after which it is judged.
const CALLS: usize = 256;

/// Packets that those have given at the most where merging ends: the few that come in pairs, an answer and an
/// acknowledgement, are not worth it.
const FEW: usize = CALLS * 3 / 2;

/// Datagrams of one call from which on it begins again.
const SEVERAL: usize = 4;

/// Whether one socket has merging, and what came to it lately.
#[derive(Debug)]
pub(crate) struct Merging {
    on: bool,
    /// Calls since it was judged, and their packets.
    calls: usize,
    packets: usize,
}

impl Default for Merging {
    fn default() -> Self {
        Self { on: true, calls: 0, packets: 0 }
    }
}

impl Merging {
    /// A call has given so many datagrams with so many packets. Changes the socket where that pays.
    pub(crate) fn received(&mut self, socket: &Socket, datagrams: usize, packets: usize) {
        if let Some(on) = self.judge(datagrams, packets)
            && socket.set_merging(on).is_ok()
        {
            self.on = on;
        }
    }

    fn judge(&mut self, datagrams: usize, packets: usize) -> Option<bool> {
        if !self.on {
            return (datagrams >= SEVERAL).then_some(true);
        }
        self.calls += 1;
        self.packets += packets;
        if self.calls < CALLS {
            return None;
        }
        let few = self.packets <= FEW;
        (self.calls, self.packets) = (0, 0);
        few.then_some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_packets_end_merging_and_several_at_a_time_begin_it() {
        let mut merging = Merging::default();
        assert!((1..CALLS).all(|_| merging.judge(1, 1).is_none()));
        assert_eq!(merging.judge(1, 200), None, "a batch");
        assert!((1..CALLS).all(|call| merging.judge(1, 1 + usize::from(call % 4 == 0)).is_none()));
        assert_eq!(merging.judge(1, 1), Some(false));
        merging.on = false;
        assert_eq!(merging.judge(SEVERAL - 1, SEVERAL - 1), None);
        assert_eq!(merging.judge(SEVERAL, SEVERAL), Some(true));
    }
}
