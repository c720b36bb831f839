//! A capture of RoCEv2 packets on a network interface, enough to tell QPN, opcode and PSN.

use std::ffi::CString;
use std::time::Duration;

/// What of a packet the tests look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    pub opcode: u8,
    pub dest_qpn: u32,
    pub psn: u32,
    pub source_port: u16,
}

/// A packet socket on one interface; it hears packets of both directions.
pub struct Capture(i32);

impl Capture {
    pub fn on(interface: &str) -> Self {
        let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        // SAFETY: socket takes three numbers.
        let fd =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
        assert!(fd >= 0, "a packet socket: {}", std::io::Error::last_os_error());
        let name = CString::new(interface).unwrap();
        // SAFETY: the structure holds numbers only, for which zero is a value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = all;
        // SAFETY: `name` is a C string.
        address.sll_ifindex = i32::try_from(unsafe { libc::if_nametoindex(name.as_ptr()) }).unwrap();
        let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: the address is a valid sockaddr_ll of that length.
        let answer = unsafe { libc::bind(fd, (&raw const address).cast(), length) };
        assert_eq!(answer, 0, "bind to {interface}: {}", std::io::Error::last_os_error());
        Self(fd)
    }

    /// All RoCEv2 packets until none has come for `quiet`.
    pub fn packets(&self, quiet: Duration) -> Vec<Packet> {
        let mut found = Vec::new();
        let mut frame = [0_u8; 9000];
        let milliseconds = i32::try_from(quiet.as_millis()).unwrap();
        loop {
            let mut descriptor = libc::pollfd { fd: self.0, events: libc::POLLIN, revents: 0 };
            // SAFETY: there is one descriptor.
            if unsafe { libc::poll(&raw mut descriptor, 1, milliseconds) } <= 0 {
                return found;
            }
            // SAFETY: the buffer has that length.
            let length = unsafe { libc::recv(self.0, frame.as_mut_ptr().cast(), frame.len(), 0) };
            let length = usize::try_from(length).unwrap_or(0);
            found.extend(parse(&frame[..length]));
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and closed once.
        unsafe { libc::close(self.0) };
    }
}

fn parse(frame: &[u8]) -> Option<Packet> {
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let (protocol, udp) = match word(12)? {
        0x0800 => (*frame.get(23)?, 14 + usize::from(frame.get(14)? & 0xF) * 4),
        0x86DD => (*frame.get(20)?, 54),
        _ => return None,
    };
    if protocol != 17 || word(udp + 2)? != 4791 {
        return None;
    }
    let bth = frame.get(udp + 8..udp + 20)?;
    let long = |at: usize| u32::from_be_bytes([0, bth[at], bth[at + 1], bth[at + 2]]);
    Some(Packet { opcode: bth[0], dest_qpn: long(5), psn: long(9), source_port: word(udp)? })
}
