//! Sending a packet, or a batch.
#![allow(unsafe_code)]
// Lengths of structures, which the system call takes as 32 bits.
#![allow(clippy::cast_possible_truncation)]

use std::io::IoSlice;
use std::mem;
use std::net::{IpAddr, SocketAddr};

use nix::errno::Errno;

use super::layout::{Control, Name};
use super::{HOP_LIMIT, TRAFFIC_CLASS};

/// What [`super::Socket::send`] sends.
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

/// Sends it by a socket that is bound to `local`. Of its control messages (source address, segment size, traffic class, hop
/// limit) each costs the kernel some, so those that say what holds anyway are left out.
pub(super) fn send(descriptor: i32, local: IpAddr, message: &Message<'_>) -> Result<(), Errno> {
    let mut control = Control::EMPTY;
    let mut length = match (message.source, message.destination) {
        (IpAddr::V4(_), SocketAddr::V4(_)) | (IpAddr::V6(_), SocketAddr::V6(_))
            if message.source == local =>
        {
            0
        }
        (IpAddr::V4(source), SocketAddr::V4(_)) => {
            // struct in_pktinfo: interface, source address, nothing.
            let info = [[0; 4], source.octets(), [0; 4]];
            control.push(0, libc::IPPROTO_IP, libc::IP_PKTINFO, info.as_flattened())
        }
        (IpAddr::V6(source), SocketAddr::V6(destination)) => {
            // struct in6_pktinfo: source address, interface.
            let mut info = [0; mem::size_of::<libc::in6_pktinfo>()];
            info[..16].copy_from_slice(&source.octets());
            info[16..].copy_from_slice(&destination.scope_id().to_ne_bytes());
            control.push(0, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
        }
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    let (level, class, hops) = match message.source {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TOS, libc::IP_TTL),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::IPV6_HOPLIMIT),
    };
    if let Some(size) = message.segment_size {
        length = control.push(length, libc::SOL_UDP, libc::UDP_SEGMENT, &size.to_ne_bytes());
    }
    for (kind, value, usual) in
        [(class, message.traffic_class, TRAFFIC_CLASS), (hops, message.hop_limit, HOP_LIMIT)]
    {
        if value != usual {
            length = control.push(length, level, kind, &i32::from(value).to_ne_bytes());
        }
    }
    let (mut name, name_length) = Name::of(&message.destination);
    if length == 0 {
        let (bytes, address) = (message.bytes.as_ptr(), (&raw const name.0).cast::<libc::sockaddr>());
        // SAFETY: the two pointers are to places of the lengths beside them, which outlive the call.
        let answer = unsafe {
            libc::syscall(
                libc::SYS_sendto,
                descriptor,
                bytes,
                message.bytes.len(),
                libc::MSG_DONTWAIT,
                address,
                name_length,
            )
        };
        return Errno::result(answer).map(drop);
    }
    let mut piece = IoSlice::new(message.bytes);
    // SAFETY: the structure holds numbers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_name = (&raw mut name.0).cast();
    header.msg_namelen = name_length as libc::socklen_t;
    // An `IoSlice` is laid out as an `iovec` (std's documentation).
    header.msg_iov = (&raw mut piece).cast();
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control.0).cast();
    header.msg_controllen = length as _;
    // SAFETY: the header points to places of the lengths that it says, which outlive the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_sendmsg, descriptor, &raw const header, libc::MSG_DONTWAIT) };
    Errno::result(answer).map(drop)
}
