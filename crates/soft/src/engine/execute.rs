//! Executing a request that has passed the responder's checks up to its length: key, memory, completion (IBTA 9.7.4).

use secure_rdma_rdma::{Access, CompletionKind, RKey, WcStatus};
use secure_rdma_roce::{Opcode, Packet, Reth};

use super::defects::Defect;
use super::local;
use super::queue_pair::{QueuePair, Shared, received};
use super::resources::{Kind, Read, Resource};
use super::responder::{Message, Refused};

impl QueuePair {
    pub(super) fn execute_send(
        &mut self,
        shared: &mut Shared,
        packet: &Packet<'_>,
        count: u64,
    ) -> Result<(), Refused> {
        let opcode = packet.opcode();
        let payload = packet.payload();
        let placed = match self.responder.message {
            Message::Send { placed } => placed,
            _ => 0,
        };
        let Some(receive) = &self.responder.receive else { return Err(Refused::operational(count)) };
        let after = u32::try_from(payload.len()).ok().and_then(|length| placed.checked_add(length));
        let Some(after) = after.filter(|after| *after <= receive.length) else {
            // IBTA 9.7.4.1.7: longer than the receive. (rxe answers 0x63.)
            return Err(Refused::invalid(count).ending_receive(WcStatus::LOC_LEN_ERR));
        };
        let fits = payload.is_empty()
            || (receive.writable && local::scatter(&receive.local, placed as usize, payload));
        if !fits {
            return Err(Refused::operational(count).ending_receive(WcStatus::LOC_PROT_ERR));
        }
        let invalidated = packet.invalidate_key().map(|key| RKey::new(key.expose()));
        if let Some(rkey) = invalidated {
            // Only a window bound to this queue pair can be ended by its peer (IBTA 9.7.4.1.8).
            if !shared.config.planted(Defect::InvalidationIgnored) {
                shared.regions.invalidate(self.qpn, rkey).map_err(|why| Refused::access(count, why))?;
            }
            shared.counters.invalidates += 1;
        }
        shared.counters.rcvd_bytes += payload.len() as u64;
        self.accept(count, 1);
        self.responder.acknowledgeable = Some(count);
        if opcode.is_first() || opcode.is_middle() {
            self.responder.message = Message::Send { placed: after };
            return Ok(());
        }
        self.end_message();
        shared.counters.rdma_recvs += 1;
        let immediate = packet.immediate().map(|immediate| immediate.value);
        self.deliver(shared, CompletionKind::Receive, after, immediate, invalidated);
        Ok(())
    }

    pub(super) fn execute_write(
        &mut self,
        shared: &mut Shared,
        packet: &Packet<'_>,
        count: u64,
        mtu: usize,
    ) -> Result<(), Refused> {
        let opcode = packet.opcode();
        let payload = packet.payload();
        let (address, rkey, left, total) = match (packet.reth(), self.responder.message) {
            (Some(Reth { virtual_address, rkey, dma_length }), _) => {
                (virtual_address, RKey::new(rkey.expose()), dma_length, dma_length)
            }
            (None, Message::Write { address, rkey, left, total }) => (address, rkey, left, total),
            (None, _) => return Err(Refused::invalid(count)),
        };
        // All that is still to come is judged, so that the first packet meets a range that is too long. A message of 0
        // bytes may have any key and address (IBTA 9.7.4.1.4).
        if left > 0 {
            let qpn = self.qpn;
            #[cfg(feature = "defects")]
            let any = shared.config.planted(Defect::KeyOnAnyQueuePair);
            #[cfg(feature = "defects")]
            let qpn = shared.regions.owner(rkey).filter(|_| any).unwrap_or(qpn);
            let remote = shared.regions.remote(qpn, rkey, address, u64::from(left), Access::REMOTE_WRITE);
            let (memory, offset) = remote.map_err(|why| Refused::access(count, why))?;
            // More than a packet is left: a whole path MTU. Otherwise exactly what is left.
            if payload.len() != mtu.min(left as usize)
                || (opcode.is_first() || opcode.is_middle()) != (left as usize > mtu)
            {
                return Err(Refused::invalid(count));
            }
            memory.write(offset, payload).map_err(|_| Refused::operational(count))?;
        } else if !payload.is_empty() || !opcode.is_only() {
            return Err(Refused::invalid(count));
        }
        shared.counters.rcvd_bytes += payload.len() as u64;
        self.accept(count, 1);
        self.responder.acknowledgeable = Some(count);
        if opcode.is_first() || opcode.is_middle() {
            let length = payload.len();
            let left = left.saturating_sub(u32::try_from(length).unwrap_or(u32::MAX));
            let address = address.wrapping_add(length as u64);
            self.responder.message = Message::Write { address, rkey, left, total };
            return Ok(());
        }
        self.end_message();
        if let Some(immediate) = packet.immediate() {
            let kind = CompletionKind::ReceiveWriteImmediate;
            self.deliver(shared, kind, total, Some(immediate.value), None);
        }
        Ok(())
    }

    pub(super) fn execute_read(
        &mut self,
        shared: &mut Shared,
        packet: &Packet<'_>,
        count: u64,
        mtu: usize,
    ) -> Result<(), Refused> {
        let Some(reth) = packet.reth() else { return Err(Refused::invalid(count)) };
        let rkey = RKey::new(reth.rkey.expose());
        let (address, length) = (reth.virtual_address, reth.dma_length);
        if length > 0 {
            shared
                .regions
                .remote(self.qpn, rkey, address, u64::from(length), Access::REMOTE_READ)
                .map_err(|why| Refused::access(count, why))?;
        }
        let packets = u64::from(length).div_ceil(mtu.max(1) as u64).max(1);
        self.accept(count, packets);
        self.end_message();
        let end = count.saturating_add(packets);
        let read = Read { address, rkey, length, start: count, next: count, until: end, sent: count };
        let responder = &mut self.responder;
        let kind = Kind::Read(read);
        let resource = Resource { first: count, end, msn: responder.msn, kind, pending: true };
        let id = responder.resources.push(resource);
        responder.answers.resource(id, count);
        shared.counters.responded_reads += 1;
        Ok(())
    }

    pub(super) fn execute_atomic(
        &mut self,
        shared: &mut Shared,
        packet: &Packet<'_>,
        count: u64,
    ) -> Result<(), Refused> {
        let Some(request) = packet.atomic_eth() else { return Err(Refused::invalid(count)) };
        let rkey = RKey::new(request.rkey.expose());
        let remote = shared.regions.remote(self.qpn, rkey, request.virtual_address, 8, Access::REMOTE_ATOMIC);
        let (memory, offset) = remote.map_err(|why| Refused::access(count, why))?;
        // IBTA 9.4.5: 8 aligned bytes. Judged after the key, as by rxe.
        if request.virtual_address % 8 != 0 {
            return Err(Refused::invalid(count));
        }
        let result = if packet.opcode() == Opcode::CompareSwap {
            memory.compare_swap(offset, request.compare, request.swap_or_add)
        } else {
            memory.fetch_add(offset, request.swap_or_add)
        };
        // A window may begin at an odd place of its region, where no atomic instruction reaches.
        let original = result.map_err(|_| Refused::invalid(count))?;
        self.accept(count, 1);
        self.end_message();
        let responder = &mut self.responder;
        responder.acknowledgeable = Some(count);
        let kind = Kind::Atomic { original };
        let end = count.saturating_add(1);
        let resource = Resource { first: count, end, msn: responder.msn, kind, pending: true };
        let id = responder.resources.push(resource);
        responder.answers.resource(id, count);
        shared.counters.responded_atomics += 1;
        Ok(())
    }

    /// The request is executed: the next PSN is expected.
    fn accept(&mut self, count: u64, packets: u64) {
        self.responder.expected = count.saturating_add(packets);
    }

    fn end_message(&mut self) {
        self.responder.message = Message::None;
        self.responder.msn = self.responder.msn.wrapping_add(1) & 0x00FF_FFFF;
    }

    fn deliver(
        &mut self,
        shared: &mut Shared,
        kind: CompletionKind,
        length: u32,
        immediate: Option<u32>,
        invalidated: Option<RKey>,
    ) {
        if let Some(receive) = self.responder.receive.take() {
            self.complete_receive(shared, receive, received(kind, length, immediate, invalidated));
        }
    }
}
