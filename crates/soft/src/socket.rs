//! UDP sockets: the crate's one file with `unsafe`.
//!
//! What RoCEv2 asks of a socket is unusual: never connected and `IP_PMTUDISC_PROBE`, so that Linux gives IPv4 ID 0,
//! which the ICRC covers; `UDP_SEGMENT`, whose segments count the ID up; the source address of each packet by
//! `IP_PKTINFO`; zero checksums accepted over IPv6; TOS and TTL of each packet. Compared for it were
//!
//! * `quinn-udp` 0.5: the options fit, but it leaves no say in DSCP or hop limit, turns `UDP_SEGMENT` off for the whole
//!   socket at the first EINVAL of one destination, and keeps errors of `send` to itself;
//! * `rustix` 1: knows neither `IP_PKTINFO` nor `UDP_SEGMENT` as control messages;
//! * `socket2` 0.6: control messages are bytes that the caller lays out, and there is no recvmmsg(2);
//! * `nix` 0.30: has every control message and nearly every option, with safe calls. Its `recvmmsg` is the exception: the
//!   headers that it keeps do not get their control lengths back, so that control messages are cut off from the
//!   second call on.
//!
//! So it is `nix`, and recvmmsg(2) by `libc`.
#![allow(unsafe_code)]
// Lengths of structures and of arrays, which the system calls take as 32 bits.
#![allow(clippy::cast_possible_truncation)]

use std::io::{IoSlice, IoSliceMut};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::socket::sockopt;
use nix::sys::socket::{
    AddressFamily, ControlMessage, GetSockOpt, MsgFlags, SetSockOpt, SockFlag, SockType, SockaddrIn,
    SockaddrIn6, SockaddrLike, bind, getsockname, getsockopt, sendmsg, setsockopt, socket,
};

/// Datagrams per call at the most.
pub(crate) const BATCH: usize = 16;

/// Bytes that one datagram, or a batch that the kernel put together, can have.
const LONGEST: usize = 1 << 16;

/// The hop limit that packets carry where nothing else is said.
pub(crate) const HOP_LIMIT: u8 = 64;

/// The traffic class likewise: DSCP 0, ECT(0) (RFC 3168).
const TRAFFIC_CLASS: u8 = 2;

/// An option that is a number, of those that `nix` has not.
#[derive(Clone, Copy, Debug)]
struct Number {
    level: libc::c_int,
    name: libc::c_int,
}

/// Whether and how packets may be fragmented on IPv4 (ip(7)).
const MTU_DISCOVER: Number = Number { level: libc::IPPROTO_IP, name: libc::IP_MTU_DISCOVER };
/// The same on IPv6.
const MTU_DISCOVER6: Number = Number { level: libc::IPPROTO_IPV6, name: libc::IPV6_MTU_DISCOVER };
/// The traffic class of what is sent on IPv4 (ip(7)).
const TOS: Number = Number { level: libc::IPPROTO_IP, name: libc::IP_TOS };
/// The same on IPv6 (RFC 3542, 6.5).
const TRAFFIC_CLASS6: Number = Number { level: libc::IPPROTO_IPV6, name: libc::IPV6_TCLASS };
/// Accept datagrams without a checksum over IPv6: rxe and NICs send them so.
const NO_CHECK6_RECEIVE: Number = Number { level: libc::IPPROTO_UDP, name: libc::UDP_NO_CHECK6_RX };

impl SetSockOpt for Number {
    type Val = libc::c_int;

    fn set<F: AsFd>(&self, fd: &F, value: &libc::c_int) -> nix::Result<()> {
        let length = mem::size_of_val(value) as libc::socklen_t;
        let descriptor = fd.as_fd().as_raw_fd();
        // SAFETY: `value` is a number of `length` bytes.
        let answer = unsafe {
            libc::setsockopt(descriptor, self.level, self.name, (&raw const *value).cast(), length)
        };
        Errno::result(answer).map(drop)
    }
}

/// The kernel's account of a socket's memory (`SO_MEMINFO`): of its nine numbers the last is the datagrams dropped.
#[derive(Clone, Copy, Debug)]
struct MemoryInfo;

impl GetSockOpt for MemoryInfo {
    type Val = [u32; 9];

    fn get<F: AsFd>(&self, fd: &F) -> nix::Result<[u32; 9]> {
        let mut values = [0_u32; 9];
        let mut length = mem::size_of_val(&values) as libc::socklen_t;
        let descriptor = fd.as_fd().as_raw_fd();
        // SAFETY: `values` has room for `length` bytes.
        let answer = unsafe {
            libc::getsockopt(
                descriptor,
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                (&raw mut values).cast(),
                &raw mut length,
            )
        };
        Errno::result(answer).map(|_| values)
    }
}

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
            SocketAddr::V4(_) => Number { level: libc::SOL_SOCKET, name: libc::SO_NO_CHECK },
            SocketAddr::V6(_) => Number { level: libc::IPPROTO_UDP, name: libc::UDP_NO_CHECK6_TX },
        };
        setsockopt(&self.descriptor, option, &1).unwrap();
    }

    /// The address that it is bound to.
    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Sends one datagram, or, where it has a segment size, a batch of them.
    pub(crate) fn send(&self, message: &Message<'_>) -> Result<(), Errno> {
        let bytes = [IoSlice::new(message.bytes)];
        match (message.source, message.destination) {
            (IpAddr::V4(source), SocketAddr::V4(destination)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                let (tos, ttl) = (message.traffic_class, i32::from(message.hop_limit));
                let own = [
                    ControlMessage::Ipv4PacketInfo(&info),
                    ControlMessage::Ipv4Tos(&tos),
                    ControlMessage::Ipv4Ttl(&ttl),
                ];
                self.send_with(&bytes, &own, message, &SockaddrIn::from(destination))
            }
            (IpAddr::V6(source), SocketAddr::V6(destination)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                    ipi6_ifindex: destination.scope_id(),
                };
                let (class, hops) = (i32::from(message.traffic_class), i32::from(message.hop_limit));
                let own = [
                    ControlMessage::Ipv6PacketInfo(&info),
                    ControlMessage::Ipv6TClass(&class),
                    ControlMessage::Ipv6HopLimit(&hops),
                ];
                self.send_with(&bytes, &own, message, &SockaddrIn6::from(destination))
            }
            _ => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// Adds what `message` needs of the three control messages (source address, traffic class, hop limit), and its
    /// segment size. Each costs the kernel some, so those that say what holds anyway are left out.
    fn send_with<A: SockaddrLike>(
        &self,
        bytes: &[IoSlice<'_>],
        [source, class, hops]: &[ControlMessage<'_>; 3],
        message: &Message<'_>,
        destination: &A,
    ) -> Result<(), Errno> {
        let size = message.segment_size.unwrap_or(0);
        let mut control = [*source; 4];
        let mut count = 1;
        for (needed, one) in [
            (message.segment_size.is_some(), ControlMessage::UdpGsoSegments(&size)),
            (message.traffic_class != TRAFFIC_CLASS, *class),
            (message.hop_limit != HOP_LIMIT, *hops),
        ] {
            if needed {
                control[count] = one;
                count += 1;
            }
        }
        let sent = sendmsg(
            self.descriptor.as_raw_fd(),
            bytes,
            &control[..count],
            MsgFlags::MSG_DONTWAIT,
            Some(destination),
        );
        sent.map(drop)
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

/// What [`Socket::send`] sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    /// Own address that it comes from.
    pub(crate) source: IpAddr,
    /// Where to.
    pub(crate) destination: SocketAddr,
    /// DSCP and ECN.
    pub(crate) traffic_class: u8,
    /// TTL or hop limit.
    pub(crate) hop_limit: u8,
    /// Bytes per datagram, where there are several; the last may be shorter.
    pub(crate) segment_size: Option<u16>,
    /// One datagram after the other.
    pub(crate) bytes: &'a [u8],
}

/// One datagram, or several that came together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagrams<'a> {
    /// Where from.
    pub(crate) source: SocketAddr,
    /// The own address that it was sent to.
    pub(crate) destination: IpAddr,
    /// DSCP and ECN.
    pub(crate) traffic_class: u8,
    /// Bytes per datagram; the last may be shorter. Never 0.
    pub(crate) segment_size: usize,
    /// One datagram after the other.
    pub(crate) bytes: &'a [u8],
}

/// The places that datagrams are received into, kept from call to call.
#[derive(Debug)]
pub(crate) struct Receiver {
    bytes: Box<[u8]>,
    names: [Name; BATCH],
    controls: [Control; BATCH],
    /// Of each datagram received: its bytes, and those of its control messages.
    lengths: [(usize, usize); BATCH],
}

/// Room for a `sockaddr_in6`, or the shorter `sockaddr_in`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Name([u8; mem::size_of::<libc::sockaddr_in6>()]);

/// Room for destination address, TOS and segment size, and some to spare.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Control([u8; 128]);

impl Default for Receiver {
    fn default() -> Self {
        Self {
            // Zeroed pages: memory is taken when a datagram first comes to lie there.
            bytes: vec![0; BATCH * LONGEST].into_boxed_slice(),
            names: [Name([0; 28]); BATCH],
            controls: [Control([0; 128]); BATCH],
            lengths: [(0, 0); BATCH],
        }
    }
}

impl Receiver {
    fn receive(&mut self, descriptor: i32, most: usize) -> Result<usize, Errno> {
        let most = most.min(BATCH);
        // SAFETY: the structures hold numbers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { mem::zeroed() };
        let mut slices: [IoSliceMut<'_>; BATCH] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        let places = self.bytes.chunks_exact_mut(LONGEST).zip(&mut self.names).zip(&mut self.controls);
        for (((place, name), control), (header, slice)) in
            places.zip(headers.iter_mut().zip(&mut slices)).take(most)
        {
            *slice = IoSliceMut::new(place);
            let header = &mut header.msg_hdr;
            header.msg_name = (&raw mut name.0).cast();
            header.msg_namelen = mem::size_of::<Name>() as libc::socklen_t;
            // An `IoSliceMut` is laid out as an `iovec` (std's documentation).
            header.msg_iov = (&raw mut *slice).cast();
            header.msg_iovlen = 1;
            header.msg_control = (&raw mut control.0).cast();
            header.msg_controllen = mem::size_of::<Control>() as _;
        }
        let flags = libc::MSG_DONTWAIT as _;
        // SAFETY: `most` headers point to places of the lengths that they say, which outlive the call.
        let answer = unsafe {
            libc::recvmmsg(
                descriptor,
                headers.as_mut_ptr(),
                most as libc::c_uint,
                flags,
                std::ptr::null_mut(),
            )
        };
        match Errno::result(answer) {
            Ok(count) => {
                let count = usize::try_from(count).unwrap_or(0);
                for (length, header) in self.lengths.iter_mut().zip(&headers).take(count) {
                    *length = (header.msg_len as usize, header.msg_hdr.msg_controllen);
                }
                Ok(count)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            Err(errno) => Err(errno),
        }
    }

    /// What lies at `index`, below the number that was received. `None` for what says too little of itself.
    pub(crate) fn get(&self, index: usize) -> Option<Datagrams<'_>> {
        let (length, control_length) = *self.lengths.get(index)?;
        let bytes = self.bytes.get(index * LONGEST..)?.get(..length)?;
        let source = source(&self.names.get(index)?.0)?;
        let mut found = Datagrams {
            source,
            destination: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            traffic_class: 0,
            segment_size: length.max(1),
            bytes,
        };
        let mut control = self.controls.get(index)?.0.get(..control_length)?;
        while let Some((message, rest)) = split_control(control) {
            found.take(&message);
            control = rest;
        }
        (!found.destination.is_unspecified()).then_some(found)
    }
}

impl Datagrams<'_> {
    fn take(&mut self, message: &ControlBytes<'_>) {
        let int = || message.data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
        match (message.level, message.kind) {
            // struct in_pktinfo: interface, local address, destination address of the header.
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                if let Some(octets) =
                    message.data.get(8..12).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok())
                {
                    self.destination = Ipv4Addr::from(octets).into();
                }
            }
            // struct in6_pktinfo: destination address, interface.
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                if let Some(octets) = message.data.first_chunk::<16>() {
                    self.destination = Ipv6Addr::from(*octets).into();
                }
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                self.traffic_class = message.data.first().copied().unwrap_or(0);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                self.traffic_class = int().and_then(|value| u8::try_from(value).ok()).unwrap_or(0);
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                if let Some(size) =
                    int().and_then(|value| usize::try_from(value).ok()).filter(|size| *size > 0)
                {
                    self.segment_size = size;
                }
            }
            _ => {}
        }
    }
}

/// A control message as it lies in the buffer.
struct ControlBytes<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

/// The MTU of a network interface of this thread's network namespace, in bytes (`SIOCGIFMTU`, netdevice(7)). What is
/// mounted at /sys may show another namespace's. `None` where there is no such interface.
pub(crate) fn interface_mtu(name: &str) -> Option<usize> {
    let any = [AddressFamily::Inet, AddressFamily::Inet6].into_iter();
    let mut sockets = any.map(|family| socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None));
    let socket = sockets.find_map(nix::Result::ok)?;
    // SAFETY: the structure holds numbers and a union of them, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let (bytes, room) = (name.as_bytes(), request.ifr_name.len());
    if bytes.len() >= room {
        return None;
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: the call reads the name and writes the MTU of the structure, which lives as long as the call.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if answer != 0 {
        return None;
    }
    // SAFETY: SIOCGIFMTU has set this member.
    usize::try_from(unsafe { request.ifr_ifru.ifru_mtu }).ok()
}

/// The first control message and what follows it, by the layout of cmsg(3): length, level, type, data, each aligned to a
/// word.
fn split_control(bytes: &[u8]) -> Option<(ControlBytes<'_>, &[u8])> {
    const WORD: usize = mem::size_of::<usize>();
    const HEAD: usize = mem::size_of::<libc::cmsghdr>();
    let (length, rest) = bytes.split_first_chunk::<WORD>()?;
    let (level, rest) = rest.split_first_chunk::<4>()?;
    let (kind, _) = rest.split_first_chunk::<4>()?;
    let length = usize::from_ne_bytes(*length);
    let data = bytes.get(HEAD..length)?;
    let next = bytes.get(length.checked_next_multiple_of(WORD)?..).unwrap_or(&[]);
    let message = ControlBytes { level: i32::from_ne_bytes(*level), kind: i32::from_ne_bytes(*kind), data };
    Some((message, next))
}

/// The sender's address, by the layout of `sockaddr_in` (ip(7)) and `sockaddr_in6` (ipv6(7)).
fn source(name: &[u8; 28]) -> Option<SocketAddr> {
    let (family, rest) = name.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => {
            let address = Ipv4Addr::from(*rest.first_chunk::<4>()?);
            Some(SocketAddrV4::new(address, port).into())
        }
        libc::AF_INET6 => {
            let (_flow, rest) = rest.split_first_chunk::<4>()?;
            let (address, rest) = rest.split_first_chunk::<16>()?;
            let scope = u32::from_ne_bytes(*rest.first_chunk::<4>()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(*address), port, 0, scope).into())
        }
        _ => None,
    }
}

/// How often this process has come out of fork(2) as the child.
static GENERATION: AtomicU32 = AtomicU32::new(0);

extern "C" fn count_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// The process that opened a device. Its sockets come along to a child of fork(2), its thread does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opener(u32);

impl Opener {
    /// This process.
    pub(crate) fn current() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            // SAFETY: the hook only adds to an atomic, which is allowed in the child of a threaded process.
            let _ = unsafe { libc::pthread_atfork(None, None, Some(count_child)) };
        });
        Self(GENERATION.load(Ordering::Relaxed))
    }

    /// Whether this is still the process that opened it.
    pub(crate) fn is_current(self) -> bool {
        self.0 == GENERATION.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn control_messages_that_are_cut_off_end_the_list() {
        let message = |length: usize, level: i32, kind: i32, data: &[u8]| {
            [&length.to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), data].concat()
        };
        let two = [message(20, 1, 2, &[3; 8]), message(17, 4, 5, &[6])].concat();
        let (first, rest) = split_control(&two).unwrap();
        assert_eq!((first.level, first.kind, first.data), (1, 2, &[3; 4][..]));
        let (second, rest) = split_control(rest).unwrap();
        assert_eq!((second.level, second.kind, second.data, rest.len()), (4, 5, &[6][..], 0));
        for broken in
            [message(15, 1, 2, &[]), message(usize::MAX, 1, 2, &[9; 8]), message(0, 1, 2, &[]), vec![1; 9]]
        {
            assert!(split_control(&broken).is_none());
        }
    }
}
