//! Socket options that are numbers, of those that `nix` has not.
#![allow(unsafe_code)]
// Lengths, which the system calls take as 32 bits.
#![allow(clippy::cast_possible_truncation)]

use std::mem;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::socket::{GetSockOpt, SetSockOpt};

/// An option that is a number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    pub(super) level: libc::c_int,
    pub(super) name: libc::c_int,
}

/// Whether and how packets may be fragmented on IPv4 (ip(7)).
pub(super) const MTU_DISCOVER: Number = Number { level: libc::IPPROTO_IP, name: libc::IP_MTU_DISCOVER };
/// The same on IPv6.
pub(super) const MTU_DISCOVER6: Number = Number { level: libc::IPPROTO_IPV6, name: libc::IPV6_MTU_DISCOVER };
/// The traffic class of what is sent on IPv4 (ip(7)).
pub(super) const TOS: Number = Number { level: libc::IPPROTO_IP, name: libc::IP_TOS };
/// The same on IPv6 (RFC 3542, 6.5).
pub(super) const TRAFFIC_CLASS6: Number = Number { level: libc::IPPROTO_IPV6, name: libc::IPV6_TCLASS };
/// Accept datagrams without a checksum over IPv6: rxe and NICs send them so.
pub(super) const NO_CHECK6_RECEIVE: Number =
    Number { level: libc::IPPROTO_UDP, name: libc::UDP_NO_CHECK6_RX };

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
pub(super) struct MemoryInfo;

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
