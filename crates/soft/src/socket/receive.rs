//! Receiving what has come, several datagrams at one time.
#![allow(unsafe_code)]
// Lengths of structures and of arrays, which the system call takes as 32 bits.
#![allow(clippy::cast_possible_truncation)]

use std::io::IoSliceMut;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;

use super::layout::{Control, ControlBytes, Name, source, split_control};

/// Datagrams per call at the most.
pub(crate) const BATCH: usize = 16;

/// Bytes that one datagram, or a batch that the kernel put together, can have.
const LONGEST: usize = 1 << 16;

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

impl Default for Receiver {
    fn default() -> Self {
        Self {
            // Zeroed pages: memory is taken when a datagram first comes to lie there.
            bytes: vec![0; BATCH * LONGEST].into_boxed_slice(),
            names: [Name::EMPTY; BATCH],
            controls: [Control::EMPTY; BATCH],
            lengths: [(0, 0); BATCH],
        }
    }
}

impl Receiver {
    /// Receives what is there, up to `most` datagrams (at the most [`BATCH`]). 0 when there is none.
    pub(super) fn receive(&mut self, descriptor: i32, most: usize) -> Result<usize, Errno> {
        // Most come alone, and to fill in what the kernel reads takes time with each look in vain, too.
        match most {
            0..=1 => self.receive_some::<1>(descriptor, 1),
            2..=4 => self.receive_some::<4>(descriptor, most),
            _ => self.receive_some::<BATCH>(descriptor, most.min(BATCH)),
        }
    }

    fn receive_some<const PLACES: usize>(&mut self, descriptor: i32, most: usize) -> Result<usize, Errno> {
        // SAFETY: the structures hold numbers and pointers, for which zero is a value.
        let mut headers: [libc::mmsghdr; PLACES] = unsafe { mem::zeroed() };
        let mut slices: [IoSliceMut<'_>; PLACES] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
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
        // SAFETY: the first `most` headers point to places of the lengths that they say, which outlive the call.
        let answer = unsafe { receive_into(descriptor, headers.get_mut(..most).unwrap_or_default()) };
        let count = match answer {
            Ok(count) => count,
            Err(Errno::EAGAIN | Errno::EINTR) => 0,
            Err(errno) => return Err(errno),
        };
        for (length, header) in self.lengths.iter_mut().zip(&headers).take(count) {
            *length = (header.msg_len as usize, header.msg_hdr.msg_controllen);
        }
        Ok(count)
    }

    /// What lies at `index`, below the number that was received. `None` for what says too little of itself.
    pub(crate) fn get(&self, index: usize) -> Option<Datagrams<'_>> {
        let (length, control_length) = *self.lengths.get(index)?;
        let bytes = self.bytes.get(index * LONGEST..)?.get(..length)?;
        let source = source(self.names.get(index)?)?;
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

/// recvmmsg(2), or for one recvmsg(2), which is a little quicker.
///
/// # Safety
/// The headers point to places of the lengths that they say.
unsafe fn receive_into(descriptor: i32, headers: &mut [libc::mmsghdr]) -> Result<usize, Errno> {
    let flags = libc::MSG_DONTWAIT;
    if let [one] = headers {
        // SAFETY: the caller says that the headers point to such places.
        let answer = unsafe { libc::syscall(libc::SYS_recvmsg, descriptor, &raw mut one.msg_hdr, flags) };
        one.msg_len = libc::c_uint::try_from(Errno::result(answer)?).unwrap_or(0);
        return Ok(1);
    }
    let none = std::ptr::null_mut::<libc::timespec>();
    // SAFETY: the caller says that the headers point to such places.
    let answer = unsafe {
        libc::syscall(libc::SYS_recvmmsg, descriptor, headers.as_mut_ptr(), headers.len(), flags, none)
    };
    Errno::result(answer).map(|count| usize::try_from(count).unwrap_or(0))
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
