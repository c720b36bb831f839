//! A capture of the device's own packets: a pcapng file that Wireshark reads.
//!
//! A socket does not show IP headers, so they are made up here from what it does show: addresses, ports, traffic class.
//! The IPv4 ID is the one that our own packets carry, and of received ones the one that a peer of our kind gives.
//!
//! The format is draft-ietf-opsawg-pcapng. The crate for it, `pcap-file`, had its last release in 2023; three kinds of block
//! are all that is needed.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Packets begin with an IP header, of version 4 or 6 (LINKTYPE_RAW).
const LINKTYPE_RAW: u16 = 101;

const UDP: u8 = 17;

/// A file that is being written.
#[derive(Debug)]
pub(crate) struct Capture {
    path: PathBuf,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    /// None after a failure to write: the packets matter more than the capture.
    file: Option<File>,
    block: Vec<u8>,
}

/// Which way a packet went; the numbers are those of pcapng's `epb_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Received.
    In = 1,
    /// Sent.
    Out = 2,
}

/// What the headers of a batch of packets say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Headers {
    pub(crate) direction: Direction,
    pub(crate) source: SocketAddr,
    pub(crate) destination: SocketAddr,
    pub(crate) traffic_class: u8,
    pub(crate) hop_limit: u8,
}

impl Capture {
    /// Makes the file, for its owner's eyes only: keys and data are in it. A file that is there is overwritten, a
    /// symbolic link is not followed.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        let mut block = section();
        block.extend(interface());
        let mut writer = Writer { file: Some(file), block };
        writer.write_out()?;
        Ok(Self { path: path.to_owned(), writer: Mutex::new(writer) })
    }

    /// Where it is written.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a batch: UDP payloads of `segment_size` bytes, the last maybe shorter; `first_id` is the IPv4 ID of the
    /// first.
    pub(crate) fn write(&self, headers: &Headers, first_id: u16, segment_size: usize, bytes: &[u8]) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if writer.file.is_none() {
            return;
        }
        for (payload, index) in bytes.chunks(segment_size.max(1)).zip(0_u16..) {
            packet_block(&mut writer.block, nanoseconds, headers, first_id.wrapping_add(index), payload);
        }
        if writer.write_out().is_err() {
            writer.file = None;
        }
    }
}

impl Writer {
    /// At once, so that a process that is killed leaves what it has seen.
    fn write_out(&mut self) -> io::Result<()> {
        let written = self.file.as_mut().map_or(Ok(()), |file| file.write_all(&self.block));
        self.block.clear();
        written
    }
}

/// Section header block: version 1.0 in this host's byte order, of unknown length.
fn section() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(0x1A2B_3C4D_u32.to_ne_bytes());
    body.extend(1_u16.to_ne_bytes());
    body.extend(0_u16.to_ne_bytes());
    body.extend(u64::MAX.to_ne_bytes());
    let mut out = Vec::new();
    block(&mut out, 0x0A0D_0D0A, &body);
    out
}

/// Interface description block: raw IP, no limit of length, times in nanoseconds.
fn interface() -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(LINKTYPE_RAW.to_ne_bytes());
    body.extend(0_u16.to_ne_bytes());
    body.extend(0_u32.to_ne_bytes());
    option(&mut body, 2, b"soft");
    option(&mut body, 9, &[9]);
    option(&mut body, 0, &[]);
    let mut out = Vec::new();
    block(&mut out, 1, &body);
    out
}

/// Enhanced packet block.
fn packet_block(out: &mut Vec<u8>, nanoseconds: u64, headers: &Headers, id: u16, payload: &[u8]) {
    let packet = packet(headers, id, payload);
    let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
    let mut body = Vec::with_capacity(packet.len() + 40);
    body.extend(0_u32.to_ne_bytes());
    body.extend(u32::try_from(nanoseconds >> 32).unwrap_or(0).to_ne_bytes());
    body.extend(u32::try_from(nanoseconds & 0xFFFF_FFFF).unwrap_or(0).to_ne_bytes());
    body.extend(length.to_ne_bytes());
    body.extend(length.to_ne_bytes());
    body.extend(&packet);
    body.resize(body.len().next_multiple_of(4), 0);
    option(&mut body, 2, &(headers.direction as u32).to_ne_bytes());
    option(&mut body, 0, &[]);
    block(out, 6, &body);
}

/// A block: type, length, body, length again.
fn block(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX);
    out.extend(kind.to_ne_bytes());
    out.extend(length.to_ne_bytes());
    out.extend(body);
    out.extend(length.to_ne_bytes());
}

/// An option: code, length, value, padded to four bytes.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_ne_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(0).to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The packet with the headers that the wire has, checksums included.
fn packet(headers: &Headers, id: u16, payload: &[u8]) -> Vec<u8> {
    let short = |length: usize| u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    let mut udp = Vec::with_capacity(8 + payload.len());
    udp.extend(headers.source.port().to_be_bytes());
    udp.extend(headers.destination.port().to_be_bytes());
    udp.extend(short(8 + payload.len()));
    udp.extend([0, 0]);
    udp.extend(payload);
    let mut pseudo = Vec::new();
    let mut ip = Vec::with_capacity(40 + udp.len());
    match (headers.source.ip(), headers.destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            ip.extend([0x45, headers.traffic_class]);
            ip.extend(short(20 + udp.len()));
            ip.extend(id.to_be_bytes());
            ip.extend([0x40, 0, headers.hop_limit, UDP, 0, 0]);
            ip.extend(source.octets());
            ip.extend(destination.octets());
            let sum = checksum(&[&ip]);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            pseudo.extend(&ip[12..20]);
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            ip.extend([0x60 | headers.traffic_class >> 4, headers.traffic_class << 4, 0, 0]);
            ip.extend(short(udp.len()));
            ip.extend([UDP, headers.hop_limit]);
            ip.extend(octets(source));
            ip.extend(octets(destination));
            pseudo.extend(&ip[8..40]);
        }
    }
    pseudo.extend([0, UDP]);
    pseudo.extend(short(udp.len()));
    // A sum of zero is sent as its other form: zero means "none" (RFC 768).
    let sum = match checksum(&[&pseudo, &udp]) {
        0 => 0xFFFF,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    ip.extend(udp);
    ip
}

/// The Internet checksum (RFC 1071) of parts of which all but the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum = words
        .map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or(0)))
        .fold(0_u64, u64::wrapping_add);
    let folded = (0..4).fold(sum, |sum, _| (sum >> 16) + (sum & 0xFFFF));
    !u16::try_from(folded).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(source: &str, destination: &str) -> Headers {
        Headers {
            direction: Direction::Out,
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            traffic_class: 0x6A,
            hop_limit: 64,
        }
    }

    #[test]
    fn checksums_add_up() {
        for (headers, header) in [
            (headers("10.0.0.1:50000", "10.0.0.2:4791"), 20),
            (headers("[fd00::1]:50000", "[fd00::2]:4791"), 40),
        ] {
            for payload in [&[][..], &[1], &[1, 2, 3, 0xFF], &[0xAB; 1001]] {
                let packet = packet(&headers, 7, payload);
                assert_eq!(packet.len(), header + 8 + payload.len());
                let (ip, udp) = packet.split_at(header);
                let addresses = if header == 20 {
                    // Over a header with its own checksum in it, the sum is zero.
                    assert_eq!(checksum(&[ip]), 0);
                    assert_eq!((ip[1], ip[4..8].to_vec()), (0x6A, vec![0, 7, 0x40, 0]));
                    &ip[12..20]
                } else {
                    assert_eq!(ip[..2], [0x66, 0xA0]);
                    &ip[8..40]
                };
                let length = u16::try_from(udp.len()).unwrap().to_be_bytes();
                assert_eq!(checksum(&[addresses, &[0, UDP], &length, udp]), 0);
            }
        }
    }

    #[test]
    fn blocks_say_their_length_twice() {
        let path = std::env::temp_dir().join(format!("secure-rdma-capture-{}", std::process::id()));
        let capture = Capture::create(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        capture.write(&headers("10.0.0.1:50000", "10.0.0.2:4791"), 0, 10, &[5; 25]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (mut rest, mut kinds) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let number = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
            let length = number(4) as usize;
            assert_eq!((length % 4, number(length - 4) as usize), (0, length));
            kinds.push(number(0));
            if number(0) == 6 {
                assert!([20 + 8 + 10, 20 + 8 + 5].contains(&number(20)));
            }
            rest = &rest[length..];
        }
        assert_eq!(kinds, [0x0A0D_0D0A, 1, 6, 6, 6]);
    }
}
