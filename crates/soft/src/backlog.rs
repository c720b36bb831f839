//! What has come to a socket and was not received yet, and what had no room there.
//!
//! Peers of other makes send without regard for a receive buffer: rxe up to 128 packets in one go, of which Debian's default
//! holds 50. What such a peer lost is best asked for when the buffer is empty, and the end of what it has sent is asked for
//! by nobody unless somebody looks.

use crate::socket::Socket;

/// Packets that come without a pause before it is worth asking what was dropped: a receive buffer that has overflown held
/// more. To ask costs a system call.
const MANY: usize = 16;

/// What is known of one socket.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// Packets since all that had come was received.
    packets: usize,
    /// Datagrams dropped so far.
    dropped: u32,
}

impl Backlog {
    /// A call has given so many packets.
    pub(crate) fn received(&mut self, packets: usize) {
        self.packets += packets;
    }

    /// Whether nobody has said since the last call that all was received.
    pub(crate) fn is_open(&self) -> bool {
        self.packets > 0
    }

    /// All that had come was received. Tells whether the kernel has dropped some of what came since the last time.
    pub(crate) fn end(&mut self, socket: &Socket) -> bool {
        let many = std::mem::take(&mut self.packets) >= MANY;
        many && socket.dropped().is_ok_and(|dropped| self.has_grown(dropped))
    }

    fn has_grown(&mut self, dropped: u32) -> bool {
        std::mem::replace(&mut self.dropped, dropped) != dropped
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

    use super::*;

    #[test]
    fn what_had_no_room_is_told_once_and_behind_many_packets_only() {
        let socket = Socket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let holds = socket.set_receive_buffer(1).unwrap() as usize;
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut backlog = Backlog::default();
        assert!(!backlog.is_open());
        backlog.received(MANY);
        assert!(backlog.is_open());
        assert!(!backlog.end(&socket), "nothing has come");
        assert!(!backlog.is_open());
        for _ in 0..=holds {
            sender.send_to(&[0], socket.local()).unwrap();
        }
        assert!(socket.dropped().unwrap() > 0, "each takes more than a byte");
        backlog.received(MANY - 1);
        assert!(!backlog.end(&socket));
        backlog.received(MANY - 1);
        backlog.received(1);
        assert!(backlog.end(&socket));
        backlog.received(MANY);
        assert!(!backlog.end(&socket), "it is known");
    }
}
