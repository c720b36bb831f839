//! Requests that were executed before: never executed again, but answered again (IBTA 9.7.5.1.4).

use secure_rdma_rdma::{Access, RKey};
use secure_rdma_roce::{Opcode, Packet};

use super::defects::Defect;
use super::queue_pair::{QueuePair, Shared};
use super::resources::Kind;

impl QueuePair {
    /// A request that was executed before (IBTA 9.7.5.1.4).
    pub(super) fn handle_duplicate(&mut self, shared: &mut Shared, packet: &Packet<'_>, count: Option<u64>) {
        shared.counters.duplicate_request += 1;
        let opcode = packet.opcode();
        if shared.config.planted(Defect::SendDeliveredTwice) && opcode == Opcode::SendOnly {
            self.responder.receive = self.take_receive(shared);
            let _ = self.execute_send(shared, packet, self.responder.expected.saturating_sub(1));
        }
        if shared.config.planted(Defect::MsnOnDuplicate) {
            self.responder.msn += 1;
        }
        let responder = &mut self.responder;
        if opcode.is_send() || opcode.is_write() {
            // One ACK for the newest that can be acknowledged, whichever it is a duplicate of.
            if let Some(newest) = responder.acknowledgeable.filter(|_| count.is_some()) {
                responder.answers.acknowledge(newest, responder.msn, false);
                shared.counters.replayed_acks += 1;
                return;
            }
        } else if let Some(count) = count
            && self.replay(shared, packet, count)
        {
            return;
        }
        shared.counters.dropped_duplicate += 1;
    }

    /// Answers a READ or an atomic again from the resource table. Tells whether that holds it.
    fn replay(&mut self, shared: &mut Shared, packet: &Packet<'_>, count: u64) -> bool {
        let mtu = self.flows.as_ref().map_or(0, |flows| flows.mtu) as u64;
        let Some((id, resource)) = self.responder.resources.find(count) else { return false };
        let first = resource.first;
        match &mut resource.kind {
            Kind::Atomic { original } if packet.opcode().is_atomic() => {
                shared.counters.replayed_atomics += 1;
                if shared.config.planted(Defect::AtomicExecutedTwice)
                    && let Some(again) = packet.atomic_eth()
                    && let rkey = RKey::new(again.rkey.expose())
                    && let right = Access::REMOTE_ATOMIC
                    && let Ok((memory, at)) =
                        shared.regions.remote(self.qpn, rkey, again.virtual_address, 8, right)
                {
                    *original = memory.fetch_add(at, again.swap_or_add).unwrap_or(*original);
                }
            }
            Kind::Read(read) if packet.opcode() == Opcode::ReadRequest => {
                // Within what was asked for, from the start of a response on.
                let Some(reth) = packet.reth() else { return false };
                let skipped = (count - first).saturating_mul(mtu);
                let packets = u64::from(reth.dma_length).div_ceil(mtu.max(1)).max(1);
                let until = count.saturating_add(packets);
                let inside = reth.rkey.expose() == read.rkey.expose()
                    && reth.virtual_address == read.address.wrapping_add(skipped)
                    && skipped.saturating_add(u64::from(reth.dma_length)) <= u64::from(read.length)
                    && until <= resource.end;
                if !inside {
                    return false;
                }
                shared.counters.replayed_reads += 1;
                if resource.pending && count >= read.next && until <= read.until {
                    return true;
                }
                (read.start, read.next, read.until) = (count, count, until);
            }
            _ => return false,
        }
        if !std::mem::replace(&mut resource.pending, true) {
            self.responder.answers.resource(id, first);
        }
        true
    }
}
