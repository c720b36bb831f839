//! Addresses and control messages as they lie in memory.
// Two small numbers.
#![allow(clippy::cast_possible_truncation)]

use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Address families, as wide as they lie in an address.
const AF_INET: u16 = libc::AF_INET as u16;
const AF_INET6: u16 = libc::AF_INET6 as u16;

const WORD: usize = mem::size_of::<usize>();
const HEAD: usize = mem::size_of::<libc::cmsghdr>();

/// Room for a `sockaddr_in6`, or the shorter `sockaddr_in`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Name(pub(super) [u8; mem::size_of::<libc::sockaddr_in6>()]);

/// Room for the control messages of one call: what we ask for, and some to spare.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Control(pub(super) [u8; 128]);

/// A control message as it lies in the buffer.
pub(super) struct ControlBytes<'a> {
    pub(super) level: i32,
    pub(super) kind: i32,
    pub(super) data: &'a [u8],
}

impl Control {
    pub(super) const EMPTY: Self = Self([0; 128]);

    /// Puts a control message behind the `length` bytes of those before, by the layout of cmsg(3): length, level, type, data,
    /// each aligned to a word. Tells how long they are now; one that has no room is left out.
    pub(super) fn push(&mut self, length: usize, level: i32, kind: i32, data: &[u8]) -> usize {
        let end = length + (HEAD + data.len()).next_multiple_of(WORD);
        let Some(place) = self.0.get_mut(length..end) else { return length };
        let parts = [&(HEAD + data.len()).to_ne_bytes()[..], &level.to_ne_bytes(), &kind.to_ne_bytes(), data];
        put(place, parts);
        end
    }
}

/// The first control message and what follows it, in the layout of [`Control::push`].
pub(super) fn split_control(bytes: &[u8]) -> Option<(ControlBytes<'_>, &[u8])> {
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
pub(super) fn source(name: &Name) -> Option<SocketAddr> {
    let (family, rest) = name.0.split_first_chunk::<2>()?;
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

impl Name {
    pub(super) const EMPTY: Self = Self([0; 28]);

    /// An address in the same layout, and its length.
    pub(super) fn of(address: &SocketAddr) -> (Self, usize) {
        let mut name = Self::EMPTY;
        let port = address.port().to_be_bytes();
        let length = match address {
            SocketAddr::V4(v4) => {
                let family = AF_INET.to_ne_bytes();
                put(&mut name.0, [&family, &port, &v4.ip().octets()]);
                mem::size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(v6) => {
                let family = AF_INET6.to_ne_bytes();
                let (flow, scope) = (v6.flowinfo().to_be_bytes(), v6.scope_id().to_ne_bytes());
                put(&mut name.0, [&family, &port, &flow, &v6.ip().octets(), &scope]);
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        (name, length)
    }
}

/// Puts parts one behind the other, where there is room for all of them.
fn put<const PARTS: usize>(mut place: &mut [u8], parts: [&[u8]; PARTS]) {
    for part in parts {
        let Some((to, behind)) = place.split_at_mut_checked(part.len()) else { return };
        to.copy_from_slice(part);
        place = behind;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_lie_one_behind_the_other_and_one_too_many_is_left_out() {
        let mut control = Control::EMPTY;
        let mut length = 0;
        for (kind, size) in (1..).zip([12, 2, 1, 4, 2]) {
            length = control.push(length, 7, kind, &[9; 20][..size]);
        }
        assert_eq!((length, length % WORD), (128, 0), "five messages in all the room that there is");
        assert_eq!(control.push(length, 7, 6, &[]), length);
        let mut rest = &control.0[..length];
        for (kind, size) in (1..).zip([12, 2, 1, 4, 2]) {
            let (message, behind) = split_control(rest).unwrap();
            assert_eq!((message.level, message.kind, message.data), (7, kind, &[9; 20][..size]));
            rest = behind;
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn an_address_comes_back_as_it_was() {
        for address in ["192.0.2.7:4791", "[2001:db8::7]:49152", "[fe80::1%3]:65535"] {
            let address: SocketAddr = address.parse().unwrap();
            let (name, length) = Name::of(&address);
            assert_eq!((source(&name), length), (Some(address), if address.is_ipv4() { 16 } else { 28 }));
        }
        assert_eq!(source(&Name::EMPTY), None);
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
