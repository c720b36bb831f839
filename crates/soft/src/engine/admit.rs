//! What a packet must pass before a queue pair acts on it. Whatever fails here is dropped in silence, with one count per
//! reason, as by the kernel's rxe (`rxe_recv.c`, `rxe_rcv`).

use std::time::Instant;

use secure_rdma_roce::{IcrcCheck, Malformed, Opcode, Packet};

use super::congestion::CONGESTION_EXPERIENCED;
use super::counters::Counters;
use super::defects::Defect;
use super::path::Arrival;
use super::queue_pair::{QueuePair, Shared};

/// The highest IPv4 ID within a batch: Linux cuts at most 128 segments (`UDP_MAX_SEGMENTS`).
const LAST_SEQUENTIAL_ID: u16 = 127;

/// Bits of a P_Key without that for full membership: partners in one partition have them in common (IBTA 10.9.3).
const PARTITION: u16 = 0x7FFF;

/// Counts why bytes are no packet.
pub(super) fn count_malformed(counters: &mut Counters, malformed: Malformed) {
    match malformed {
        Malformed::TooShort(_) | Malformed::CutOff { .. } => counters.dropped_length += 1,
        Malformed::TransportVersion(_) => counters.dropped_version += 1,
        Malformed::OtherTransport(_) => counters.dropped_transport += 1,
        Malformed::UnknownOpcode(_) => counters.dropped_opcode += 1,
    }
}

impl QueuePair {
    /// Takes a packet with this queue pair's number.
    pub(super) fn handle_packet(
        &mut self,
        shared: &mut Shared,
        now: Instant,
        arrival: &Arrival,
        packet: &Packet<'_>,
        bytes: &[u8],
    ) {
        if !self.admits(shared, arrival, packet, bytes) {
            return;
        }
        shared.counters.rcvd_pkts += 1;
        let opcode = packet.opcode();
        if opcode == Opcode::Cnp {
            return self.handle_notice(shared);
        }
        if arrival.ecn & CONGESTION_EXPERIENCED == CONGESTION_EXPERIENCED {
            shared.counters.rcvd_ecn_marked += 1;
            self.notices.marked(now, shared.config.cnp_interval);
        }
        if opcode.is_request() {
            self.handle_request(shared, now, packet);
        } else {
            self.handle_response(shared, now, packet);
        }
    }

    fn admits(&mut self, shared: &mut Shared, arrival: &Arrival, packet: &Packet<'_>, bytes: &[u8]) -> bool {
        let counters = &mut shared.counters;
        let opcode = packet.opcode();
        // Not ours to answer: a peer that uses them has negotiated nothing.
        if matches!(opcode, Opcode::Flush | Opcode::AtomicWrite) {
            counters.dropped_opcode += 1;
            return false;
        }
        let takes = match opcode {
            Opcode::Cnp => self.answers_requests(),
            _ if opcode.is_request() => self.answers_requests(),
            _ => self.takes_responses(),
        };
        let Some(flows) = self.flows.as_mut().filter(|_| takes) else {
            counters.dropped_state += 1;
            return false;
        };
        let path = &flows.path;
        if arrival.source.ip() != path.peer.ip() || arrival.destination != path.local {
            counters.dropped_address += 1;
            return false;
        }
        // NICs send CNPs from port 0.
        if opcode != Opcode::Cnp
            && path.expected_source_port.is_some_and(|port| port != arrival.source.port())
        {
            counters.dropped_source_port += 1;
            return false;
        }
        if packet.pkey() & PARTITION != PARTITION {
            counters.dropped_pkey += 1;
            return false;
        }
        let sequential = path.sequential_ids;
        let right =
            flows.incoming(arrival).is_some_and(|context| match context.check(arrival.segment, bytes) {
                IcrcCheck::Expected => true,
                IcrcCheck::OtherId { id, dont_fragment } => {
                    !sequential || (dont_fragment && id <= LAST_SEQUENTIAL_ID)
                }
                IcrcCheck::Wrong => false,
            });
        let right = right || shared.config.planted(Defect::IcrcUnchecked);
        if !right {
            counters.dropped_icrc += 1;
        }
        right
    }
}
