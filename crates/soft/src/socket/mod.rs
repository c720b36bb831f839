//! UDP sockets: the crate's one folder with `unsafe`.
//!
//! What RoCEv2 asks of a socket is unusual: never connected and `IP_PMTUDISC_PROBE`, so that Linux gives IPv4 ID 0,
//! which the ICRC covers; `UDP_SEGMENT`, whose segments count the ID up; the source address of each packet by
//! `IP_PKTINFO`, where the socket is bound to none; zero checksums accepted over IPv6; TOS and TTL of each packet. Compared for it were
//!
//! * `quinn-udp` 0.5: the options fit, but it leaves no say in DSCP or hop limit, turns `UDP_SEGMENT` off for the whole
//!   socket at the first EINVAL of one destination, and keeps errors of `send` to itself;
//! * `rustix` 1: knows neither `IP_PKTINFO` nor `UDP_SEGMENT` as control messages;
//! * `socket2` 0.6: control messages are bytes that the caller lays out, and there is no recvmmsg(2);
//! * `nix` 0.30: has every control message and nearly every option, with safe calls. Its `recvmmsg` is the exception: the
//!   headers that it keeps do not get their control lengths back, so that control messages are cut off from the
//!   second call on.
//!
//! So it is `nix` for the options. The calls of the data path are made here, straight to the kernel: `nix`'s `sendmsg`
//! allocates memory each time, and the C library makes each of them a point of cancellation, which takes two more atomic
//! operations in a process with threads. A spinning ping-pong of short messages notices both.

mod interface;
mod layout;
mod opener;
mod options;
mod receive;
mod transmit;

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockname, getsockopt, setsockopt,
    socket, sockopt,
};

use options::{MTU_DISCOVER, MTU_DISCOVER6, MemoryInfo, NO_CHECK6_RECEIVE, TOS, TRAFFIC_CLASS6};

pub(crate) use interface::interface_mtu;
pub(crate) use opener::Opener;
pub(crate) use receive::{BATCH, Datagrams, Receiver};
pub(crate) use transmit::Message;

/// The hop limit that packets carry where nothing else is said.
pub(crate) const HOP_LIMIT: u8 = 64;

/// The traffic class likewise: DSCP 0, ECT(0) (RFC 3168).
const TRAFFIC_CLASS: u8 = 2;

/// A UDP socket of one address family, never connected, never blocking.
#[derive(Debug)]
pub(crate) struct Socket {
    descriptor: OwnedFd,
    local: SocketAddr,
}

impl Socket {
    /// Binds a socket to an address with a port; 0 is any. It sends packets that are never fragmented, and whose IPv4 ID
    /// is 0.
    pub(crate) fn bind(address: SocketAddr) -> Result<Self, Errno> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let descriptor = socket(family, SockType::Datagram, flags, None)?;
        match address {
            SocketAddr::V4(_) => {
                setsockopt(&descriptor, MTU_DISCOVER, &libc::IP_PMTUDISC_PROBE)?;
                setsockopt(&descriptor, sockopt::Ipv4Ttl, &i32::from(HOP_LIMIT))?;
                setsockopt(&descriptor, TOS, &i32::from(TRAFFIC_CLASS))?;
            }
            SocketAddr::V6(_) => {
                setsockopt(&descriptor, sockopt::Ipv6V6Only, &true)?;
                setsockopt(&descriptor, MTU_DISCOVER6, &libc::IPV6_PMTUDISC_PROBE)?;
                setsockopt(&descriptor, sockopt::Ipv6Ttl, &i32::from(HOP_LIMIT))?;
                setsockopt(&descriptor, TRAFFIC_CLASS6, &i32::from(TRAFFIC_CLASS))?;
            }
        }
        let local = match address {
            SocketAddr::V4(v4) => {
                bind(descriptor.as_raw_fd(), &SockaddrIn::from(v4))?;
                SocketAddr::from(getsockname::<SockaddrIn>(descriptor.as_raw_fd())?)
            }
            SocketAddr::V6(v6) => {
                bind(descriptor.as_raw_fd(), &SockaddrIn6::from(v6))?;
                SocketAddr::from(getsockname::<SockaddrIn6>(descriptor.as_raw_fd())?)
            }
        };
        Ok(Self { descriptor, local })
    }

    /// Makes it one that receives: asks for destination address and TOS of each packet, and for batches where `merge`.
    /// Batches need Linux 5.0; an older kernel gives each packet by itself.
    pub(crate) fn enable_receiving(&self, merge: bool) -> Result<(), Errno> {
        if self.local.is_ipv4() {
            setsockopt(&self.descriptor, sockopt::Ipv4PacketInfo, &true)?;
            setsockopt(&self.descriptor, sockopt::IpRecvTos, &true)?;
        } else {
            setsockopt(&self.descriptor, sockopt::Ipv6RecvPacketInfo, &true)?;
            setsockopt(&self.descriptor, sockopt::Ipv6RecvTClass, &true)?;
            setsockopt(&self.descriptor, NO_CHECK6_RECEIVE, &1)?;
        }
        if merge {
            match self.set_merging(true) {
                Ok(()) | Err(Errno::ENOPROTOOPT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Has the kernel merge datagrams of one sender that come together, or not.
    pub(crate) fn set_merging(&self, on: bool) -> Result<(), Errno> {
        setsockopt(&self.descriptor, sockopt::UdpGroSegment, &on)
    }

    /// Asks for a receive buffer and gives what it really is. The kernel doubles the number, after cutting it to
    /// net.core.rmem_max (socket(7)); the doubled number is what datagrams with all their overhead have room in.
    pub(crate) fn set_receive_buffer(&self, bytes: usize) -> Result<u32, Errno> {
        setsockopt(&self.descriptor, sockopt::RcvBuf, &bytes)?;
        let got = getsockopt(&self.descriptor, sockopt::RcvBuf)?;
        Ok(u32::try_from(got).unwrap_or(u32::MAX))
    }

    /// Asks for a send buffer; cut to net.core.wmem_max.
    pub(crate) fn set_send_buffer(&self, bytes: usize) -> Result<(), Errno> {
        setsockopt(&self.descriptor, sockopt::SndBuf, &bytes)
    }

    /// Datagrams that the kernel has dropped since the socket was made because its receive buffer was full (and the
    /// few whose checksum was wrong).
    pub(crate) fn dropped(&self) -> Result<u32, Errno> {
        getsockopt(&self.descriptor, MemoryInfo).map(|values| values[8])
    }

    /// Sends without checksums, which the kernel answers with EINVAL for every batch.
    #[cfg(test)]
    pub(crate) fn refuse_batches(&self) {
        let option = match self.local {
            SocketAddr::V4(_) => options::Number { level: libc::SOL_SOCKET, name: libc::SO_NO_CHECK },
            SocketAddr::V6(_) => options::Number { level: libc::IPPROTO_UDP, name: libc::UDP_NO_CHECK6_TX },
        };
        setsockopt(&self.descriptor, option, &1).unwrap();
    }

    /// The address that it is bound to.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends one datagram, or, where it has a segment size, a batch of them.
    pub(crate) fn send(&self, message: &Message<'_>) -> Result<(), Errno> {
        transmit::send(self.descriptor.as_raw_fd(), self.local.ip(), message)
    }

    /// Receives what is there, up to `most` datagrams (at the most [`BATCH`]). 0 when there is none.
    pub(crate) fn receive(&self, into: &mut Receiver, most: usize) -> Result<usize, Errno> {
        into.receive(self.descriptor.as_raw_fd(), most)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use super::*;

    fn pair(address: &str) -> (Socket, Socket) {
        let receive = Socket::bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        receive.enable_receiving(true).unwrap();
        let send = Socket::bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
        (receive, send)
    }

    /// Loopback delivers within the call that sends, so that there is nothing to wait for.
    #[test]
    fn a_batch_comes_with_all_that_is_known_of_it() {
        for (any, address) in [("0.0.0.0", "127.0.0.3"), ("::", "::1")] {
            let (receive, send) = pair(any);
            let address: IpAddr = address.parse().unwrap();
            let bytes: Vec<u8> = (0..250_u8).collect();
            let mut receiver = Receiver::default();
            for (segment_size, traffic_class) in [(Some(100), 0x6B), (None, 0), (Some(100), 0), (None, 2)] {
                let message = Message {
                    source: address,
                    destination: SocketAddr::new(address, receive.local().port()),
                    traffic_class,
                    hop_limit: 17,
                    segment_size,
                    bytes: &bytes,
                };
                send.send(&message).unwrap();
                let mut got = Vec::<u8>::new();
                while receive.receive(&mut receiver, BATCH).unwrap() > 0 {
                    let one = receiver.get(0).unwrap();
                    assert_eq!(one.source, SocketAddr::new(address, send.local().port()));
                    assert_eq!((one.destination, one.traffic_class), (address, traffic_class));
                    assert!(one.segment_size == 100 || segment_size.is_none() || one.bytes.len() <= 100);
                    got.extend(one.bytes);
                }
                assert_eq!(got, bytes);
            }
        }
    }

    #[test]
    fn a_full_buffer_is_told() {
        let (receive, send) = pair("127.0.0.1");
        let got = receive.set_receive_buffer(4096).unwrap();
        assert!((4096..=16384).contains(&got), "{got}");
        let message = Message {
            source: Ipv4Addr::LOCALHOST.into(),
            destination: receive.local(),
            traffic_class: 0,
            hop_limit: HOP_LIMIT,
            segment_size: None,
            bytes: &[0; 1000],
        };
        assert_eq!(receive.dropped(), Ok(0));
        for _ in 0..100 {
            send.send(&message).unwrap();
        }
        assert!(receive.dropped().unwrap() > 80);
    }

    #[test]
    fn a_port_that_is_taken_is_refused() {
        let first = Socket::bind("0.0.0.0:0".parse().unwrap()).unwrap();
        assert_eq!(Socket::bind(first.local()).err(), Some(Errno::EADDRINUSE));
        let other_family = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), first.local().port());
        assert!(Socket::bind(other_family).is_ok());
    }
}
