//! The IP addresses of the network interfaces, by getifaddrs(3).

use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

/// Every address with the name of its interface. Empty when the system does not tell.
pub(crate) fn addresses() -> Vec<(String, IpAddr)> {
    let mut head: *mut libc::ifaddrs = ptr::null_mut();
    // SAFETY: `head` is a valid place for the list.
    if unsafe { libc::getifaddrs(&raw mut head) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut at = head;
    // SAFETY: `at` is null or an entry of the list, which is freed below only.
    while let Some(entry) = unsafe { at.as_ref() } {
        if let Some(address) = address(entry.ifa_addr) {
            // SAFETY: each entry has a name, a C string that lives as long as the list.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) };
            found.push((name.to_string_lossy().into_owned(), address));
        }
        at = entry.ifa_next;
    }
    // SAFETY: the list came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(head) };
    found
}

/// The name of an interface by its index; none for 0 and for one that is gone.
pub(crate) fn name(index: u32) -> Option<String> {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that the call demands.
    let found = unsafe { libc::if_indextoname(index, name.as_mut_ptr()) };
    (index != 0 && !found.is_null()).then(|| crate::library::text(&name))
}

fn address(socket_address: *const libc::sockaddr) -> Option<IpAddr> {
    // SAFETY: the pointer is null or leads to an address of the list.
    let family = i32::from(unsafe { socket_address.as_ref() }?.sa_family);
    match family {
        libc::AF_INET => {
            // SAFETY: an address of this family is a sockaddr_in.
            let v4 = unsafe { socket_address.cast::<libc::sockaddr_in>().read_unaligned() };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: an address of this family is a sockaddr_in6.
            let v6 = unsafe { socket_address.cast::<libc::sockaddr_in6>().read_unaligned() };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_there() {
        let found = addresses();
        assert_eq!((name(1).as_deref(), name(0), name(u32::MAX)), (Some("lo"), None, None));
        assert!(found.contains(&("lo".to_owned(), Ipv4Addr::LOCALHOST.into())), "{found:?}");
    }
}
