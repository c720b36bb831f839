//! What the kernel tells of a network interface.
#![allow(unsafe_code)]

use std::mem;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

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
