//! Where a queue pair's packets go, and what comes from there.

use std::net::{IpAddr, SocketAddr};

use secure_rdma_rdma::Qpn;
use secure_rdma_roce::{Endpoints, IcrcContext};

use super::packetizer::Batch;
use super::window::BudgetId;

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

impl Transmit {
    /// How many packets they are.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.length.div_ceil(self.segment_size.max(1))
    }
}

/// A queue pair's path in use: the two directions, and how packets are made for them.
pub(super) struct Flows {
    pub(super) path: Path,
    pub(super) peer: Qpn,
    /// Bytes of payload per packet.
    pub(super) mtu: usize,
    /// The peer's receive buffer.
    pub(super) budget: BudgetId,
    /// ICRCs of packets sent.
    pub(super) out: IcrcContext,
    /// ICRCs of packets received, for the UDP ports of the last one.
    incoming: Option<(u16, u16, IcrcContext)>,
}

impl Flows {
    pub(super) fn new(path: Path, peer: Qpn, mtu: usize) -> Option<Self> {
        let endpoints = endpoints(path.local, path.peer.ip())?;
        let out = IcrcContext::new(endpoints, path.source_port, path.peer.port());
        Some(Self { path, peer, mtu, budget: BudgetId::Unknown, out, incoming: None })
    }

    /// The context for a packet received.
    pub(super) fn incoming(&mut self, arrival: &Arrival) -> Option<IcrcContext> {
        let ports = (arrival.source.port(), arrival.destination_port);
        match self.incoming {
            Some((source, destination, context)) if (source, destination) == ports => Some(context),
            _ => {
                let endpoints = endpoints(arrival.source.ip(), arrival.destination)?;
                let context = IcrcContext::new(endpoints, ports.0, ports.1);
                self.incoming = Some((ports.0, ports.1, context));
                Some(context)
            }
        }
    }

    /// How a batch is to be sent.
    pub(super) fn transmit(&self, qpn: Qpn, batch: &Batch<'_>, notice: bool, ecn: bool) -> Transmit {
        let mut traffic_class = self.path.traffic_class;
        if notice {
            traffic_class = CNP_TRAFFIC_CLASS;
        } else if ecn && traffic_class & ECN_BITS == 0 {
            traffic_class |= ECT_0;
        }
        Transmit {
            qpn,
            source: self.path.local,
            source_port: self.path.source_port,
            destination: self.path.peer,
            traffic_class,
            hop_limit: self.path.hop_limit,
            segment_size: batch.segment_size(),
            length: batch.length(),
        }
    }
}

/// DSCP 48: the priority of its own that congestion notices usually have (NVIDIA's default).
const CNP_TRAFFIC_CLASS: u8 = 48 << 2;

/// Of the traffic class: the ECN bits (RFC 3168), and the value that says "marking is understood here".
const ECN_BITS: u8 = 0b11;
const ECT_0: u8 = 0b10;

/// The two addresses, in the order source, destination; `None` where they are of two families.
fn endpoints(source: IpAddr, destination: IpAddr) -> Option<Endpoints> {
    match (source.to_canonical(), destination.to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Some(Endpoints::V4 { source, destination }),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Some(Endpoints::V6 { source, destination }),
        _ => None,
    }
}
