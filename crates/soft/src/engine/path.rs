//! Where a queue pair's packets go, and what comes from there.

use std::net::{IpAddr, SocketAddr};

use secure_rdma_rdma::Qpn;

/// What INIT→RTR needs besides the attributes. The device layer makes it of the address vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The own GID as an address. Packets to another address are dropped.
    pub local: IpAddr,
    /// The peer's GID as an address, and the UDP port that it receives on. Packets from another address are dropped.
    pub peer: SocketAddr,
    /// The UDP source port of the packets sent. The ICRC covers it, so that it must be the socket's own.
    pub source_port: u16,
    /// The UDP source port of the packets received, where the peer announced it. Never checked of CNPs, which NICs send
    /// from port 0.
    pub expected_source_port: Option<u16>,
    /// Bytes that the peer's receive buffer holds, where it told (a `soft` peer): what all queue pairs with this `peer`
    /// have in flight stays below.
    pub receive_buffer: Option<u32>,
    /// Whether the peer numbers its packets as this engine does: the IPv4 ID is the index in the batch, 0 to 127. Else
    /// (rxe, NICs) it is solved for.
    pub sequential_ids: bool,
    /// TTL or hop limit, from 1.
    pub hop_limit: u8,
    /// DSCP and ECN bits.
    pub traffic_class: u8,
}

/// What the socket knows of a packet beside its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Address and UDP port that it comes from.
    pub source: SocketAddr,
    /// The address that it was sent to.
    pub destination: IpAddr,
    /// The UDP port that it was sent to: the one the socket is bound to.
    pub destination_port: u16,
    /// The ECN bits of the IP header, 0 to 3.
    pub ecn: u8,
    /// Its index in the batch that the kernel put together (GRO): of a `soft` peer that is likely the IPv4 ID.
    pub segment: u16,
}

/// One batch to be sent: with `UDP_SEGMENT` in one call, or one segment after the other, which is the same on the wire
/// as long as the IPv4 ID counts from 0 (in a call for each segment it is always 0: then ask for one segment per batch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Whose packets they are.
    pub qpn: Qpn,
    /// The address that they come from.
    pub source: IpAddr,
    /// The UDP port that they come from.
    pub source_port: u16,
    /// Where to.
    pub destination: SocketAddr,
    /// The whole byte of traffic class or TOS.
    pub traffic_class: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Bytes of each segment; the last may be shorter.
    pub segment_size: usize,
    /// Bytes of all segments: what was appended to the buffer.
    pub length: usize,
}
