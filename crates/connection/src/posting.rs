//! The send queue of a queue pair: work requests that are made, posted in lists, and complete in order.

use std::sync::{Arc, Weak};

use secure_rdma_rdma::{
    Completion, PathMtu, QueuePair, RKey, Region, RemoteSlice, Result, SendFlags, SendOperation, SendRequest,
    Slice, WorkId,
};
use smallvec::SmallVec;

use crate::credit::Credits;
use crate::framing::{Header, Kind, LENGTH_PREFIX, Packing};
use crate::outgoing::{Atomic, Body, Direction, Outgoing};
use crate::outstanding::{Done, LocalId, Outstanding, Shown, What};
use crate::pool::{SendPool, Slot, Waiting};

/// The send queue.
#[derive(Debug)]
pub(crate) struct Posting {
    outstanding: Outstanding,
    /// Work requests that are made and not posted, the last of `outstanding`. Kept for its room.
    list: Vec<SendRequest>,
    /// The messages in the last one of `list`, where more may join them.
    packing: Option<Packing>,
    /// Buffers of requests that the device refused, and the first message or operation that lost one. The connection
    /// ends with it.
    unposted: Vec<Slot>,
    refused: Option<u64>,
    /// Work requests that may be outstanding. Two of the queue's are kept free: a probe and the drain marker.
    most_in_flight: usize,
    /// Slices that a work request takes.
    max_sge: usize,
    /// Send buffers that may be outstanding: a peer that grants many credits and acknowledges nothing must not hold
    /// what others need.
    most_slots: usize,
    slots: usize,
    /// Bytes per segment: what both the peer's receive buffers and our send buffers hold.
    segment: usize,
    /// Whether the pool knows that a buffer is wanted here.
    asked_for_buffer: bool,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counters {
    pub(crate) segments: u64,
    pub(crate) waits_for_credit: u64,
    pub(crate) waits_for_buffer: u64,
    pub(crate) probes: u64,
}

/// What sending takes from.
pub(crate) struct Outlet<'a> {
    pub(crate) credits: &'a mut Credits,
    pub(crate) pool: &'a SendPool,
    /// Who is told when a send buffer is free.
    pub(crate) waiting: &'a dyn Fn() -> Weak<dyn Waiting>,
}

impl Posting {
    /// `max_send` is the depth of the send queue, `most_slots` the share of the send buffers.
    pub(crate) fn new(max_send: u32, max_sge: u32, most_slots: u16) -> Self {
        Self {
            outstanding: Outstanding::default(),
            list: Vec::new(),
            packing: None,
            unposted: Vec::new(),
            refused: None,
            most_in_flight: (max_send as usize).saturating_sub(2).max(1),
            max_sge: (max_sge as usize).max(1),
            most_slots: usize::from(most_slots).max(1),
            slots: 0,
            segment: 0,
            asked_for_buffer: false,
            counters: Counters::default(),
        }
    }

    /// Takes over the peer's terms.
    pub(crate) fn adopt(&mut self, segment: usize) {
        self.segment = segment;
    }

    pub(crate) fn outstanding(&self) -> &Outstanding {
        &self.outstanding
    }

    /// For what is learned of those that are outstanding.
    pub(crate) fn outstanding_mut(&mut self) -> &mut Outstanding {
        &mut self.outstanding
    }

    /// The first message or operation of which something is outstanding.
    pub(crate) fn first_id(&self) -> Option<u64> {
        self.outstanding.first_id().or(self.refused)
    }

    pub(crate) fn has_room(&self) -> bool {
        self.outstanding.len() < self.most_in_flight
    }

    /// Makes the next work request of `out`, if credits and buffers allow. `Some(true)`: it was the last.
    pub(crate) fn next(&mut self, out: &mut Outgoing<'_>, outlet: &mut Outlet<'_>) -> Result<Option<bool>> {
        let grant = out.grant();
        let made = match &mut out.body {
            Body::Message { bytes, sent } => self.message(out.id, out.begun, bytes, sent, outlet)?,
            Body::End => {
                if !self.may_send(outlet.credits) {
                    return Ok(None);
                }
                let header = Header { kind: Kind::End, credits: outlet.credits.spend() };
                self.segment(header, None, SmallVec::new(), What::Last, Some(out.id))?;
                Some(true)
            }
            Body::Transfer(transfer) => {
                if transfer.is_at_last(self.max_sge)
                    && matches!(transfer.direction, Direction::Write { immediate: Some(_) })
                {
                    if !self.may_send(outlet.credits) {
                        return Ok(None);
                    }
                    // Its immediate is the application's: no credits ride along.
                    outlet.credits.spend_alone();
                }
                let piece = transfer.next(self.max_sge);
                let what = if piece.last { What::Last } else { What::Part };
                let shown = match piece.operation {
                    SendOperation::Write { immediate: Some(_), .. } => Shown::Receive,
                    SendOperation::Write { .. } => Shown::LaterReceive,
                    _ => Shown::Answer,
                };
                let id = self.track(what, None, (Some(out.id), grant), shown)?;
                let (operation, local, flags) = (piece.operation, piece.local, piece.flags);
                self.list.push(SendRequest { id, operation, local, flags });
                Some(piece.last)
            }
            Body::Atomic(atomic) => self.atomic(out.id, atomic, outlet)?,
        };
        out.begun |= made.is_some();
        Ok(made)
    }

    fn may_send(&mut self, credits: &Credits) -> bool {
        self.counters.waits_for_credit += u64::from(!credits.may_send_data());
        credits.may_send_data()
    }

    fn message(
        &mut self,
        id: u64,
        begun: bool,
        bytes: &[u8],
        sent: &mut usize,
        outlet: &mut Outlet<'_>,
    ) -> Result<Option<bool>> {
        // With others it needs no credit of its own.
        if !begun && self.pack(bytes)? {
            return Ok(Some(true));
        }
        if !self.may_send(outlet.credits) {
            return Ok(None);
        }
        let left = bytes.len() - *sent;
        let (kind, prefix) = match begun {
            false if left <= self.segment => (Kind::Only, 0),
            false => (Kind::First, LENGTH_PREFIX),
            true if left <= self.segment => (Kind::Last, 0),
            true => (Kind::Middle, 0),
        };
        let payload = left.min(self.segment.saturating_sub(prefix));
        let slot = if prefix + payload == 0 {
            None
        } else {
            let Some(slot) = self.slot(outlet) else { return Ok(None) };
            if prefix > 0 {
                slot.write(0, &(bytes.len() as u64).to_le_bytes())?;
            }
            slot.write(prefix, &bytes[*sent..*sent + payload])?;
            Some(slot)
        };
        *sent += payload;
        let last = matches!(kind, Kind::Only | Kind::Last);
        let header = Header { kind, credits: outlet.credits.spend() };
        let local = slot.iter().map(|slot| Slice::new(&slot.region, slot.offset, prefix + payload)).collect();
        self.segment(header, slot, local, if last { What::Last } else { What::Part }, Some(id))?;
        if kind == Kind::Only && payload > 0 {
            let mut packing = Packing::default();
            self.packing = packing.add(payload, self.segment).map(|_| packing);
        }
        Ok(Some(last))
    }

    /// Adds a message to those of the last segment, if there is one that is not posted and has room.
    fn pack(&mut self, message: &[u8]) -> Result<bool> {
        let Some(packing) = &mut self.packing else { return Ok(false) };
        let Some(slot) = self.outstanding.last_slot() else { return Ok(false) };
        let Some(place) = packing.add(message.len(), self.segment) else { return Ok(false) };
        slot.write(place, message)?;
        Ok(true)
    }

    /// No more messages join those of the last segment.
    fn seal(&mut self) -> Result<()> {
        let trailer = self.packing.take().and_then(|packing| packing.trailer());
        if let Some((place, trailer)) = trailer
            && let Some(request) = self.list.last_mut()
            && let Some(slot) = self.outstanding.last_slot()
            && let SendOperation::Send { immediate: Some(immediate) } = &mut request.operation
        {
            slot.write(place, &trailer)?;
            let header = Header::from_immediate(*immediate)?;
            *immediate = Header { kind: Kind::Packed, ..header }.to_immediate();
            for slice in &mut request.local {
                slice.length = place + trailer.len();
            }
        }
        Ok(())
    }

    fn atomic(&mut self, id: u64, atomic: &Atomic, outlet: &mut Outlet<'_>) -> Result<Option<bool>> {
        let Some(slot) = self.slot(outlet) else { return Ok(None) };
        let local = smallvec::smallvec![Slice::new(&slot.region, slot.offset, size_of::<u64>())];
        let what = What::Atomic { wanted: true };
        let work = self.track(what, Some(slot), (Some(id), Some(atomic.grant)), Shown::Answer)?;
        let operation = atomic.operation.clone();
        self.list.push(SendRequest { id: work, operation, local, flags: atomic.flags });
        Ok(Some(true))
    }

    fn slot(&mut self, outlet: &Outlet<'_>) -> Option<Slot> {
        if self.slots >= self.most_slots {
            // One of its own will come back.
            return None;
        }
        let wanted = (!self.asked_for_buffer).then(outlet.waiting);
        let slot = outlet.pool.take_or_wait(wanted);
        if slot.is_some() {
            self.slots += 1;
        } else {
            self.counters.waits_for_buffer += u64::from(!self.asked_for_buffer);
            self.asked_for_buffer = true;
        }
        slot
    }

    /// Gives credits back in a segment of their own.
    pub(crate) fn credit_segment(&mut self, credits: &mut Credits) -> Result<()> {
        let header = Header { kind: Kind::Credit, credits: credits.spend() };
        self.segment(header, None, SmallVec::new(), What::Credit, None)
    }

    fn segment(
        &mut self,
        header: Header,
        slot: Option<Slot>,
        local: SmallVec<[Slice; 1]>,
        what: What,
        message: Option<u64>,
    ) -> Result<()> {
        self.counters.segments += 1;
        let id = self.track(what, slot, (message, None), Shown::Receive)?;
        let operation = SendOperation::Send { immediate: Some(header.to_immediate()) };
        self.list.push(SendRequest { id, operation, local, flags: SendFlags::empty() });
        Ok(())
    }

    fn track(
        &mut self,
        what: What,
        slot: Option<Slot>,
        of: (Option<u64>, Option<u32>),
        shown: Shown,
    ) -> Result<WorkId> {
        self.seal()?;
        Ok(self.outstanding.push(what, slot, of, shown))
    }

    /// Makes work of the own device alone.
    pub(crate) fn local(&mut self, id: LocalId, operation: SendOperation) -> Result<()> {
        self.bare(What::Local(id), operation)
    }

    /// Sends the proof of path: one message, the first bytes of `pattern`, that fills a packet of the path MTU.
    pub(crate) fn prove(
        &mut self,
        queue_pair: &dyn QueuePair,
        credits: &mut Credits,
        pattern: &Arc<Region>,
        path_mtu: PathMtu,
    ) -> Result<()> {
        let header = Header { kind: Kind::Proof, credits: credits.spend() };
        let local = smallvec::smallvec![Slice::new(pattern, 0, path_mtu.bytes())];
        self.segment(header, None, local, What::Proof, None)?;
        self.post(queue_pair)
    }

    /// A buffer came back: the pool must be asked anew.
    pub(crate) fn buffer_came(&mut self) {
        self.asked_for_buffer = false;
    }

    /// Sends a WRITE of no bytes, which the peer's device acknowledges by itself: neither key nor address of such a
    /// WRITE are looked at (IBTA C9-88; rxe alike).
    pub(crate) fn probe(&mut self, queue_pair: &dyn QueuePair) -> Result<()> {
        self.counters.probes += 1;
        let remote = RemoteSlice { address: 0, rkey: RKey::new(0) };
        self.bare(What::Probe, SendOperation::Write { remote, immediate: None })?;
        self.post(queue_pair)
    }

    /// Posts a request behind everything else to a queue pair in ERR: its flush says that all else has been flushed.
    pub(crate) fn mark_drain(&mut self, queue_pair: &dyn QueuePair) -> Result<()> {
        self.bare(What::DrainMarker, SendOperation::Send { immediate: None })?;
        self.post(queue_pair)
    }

    /// A work request without bytes.
    fn bare(&mut self, what: What, operation: SendOperation) -> Result<()> {
        let id = self.track(what, None, (None, None), Shown::Answer)?;
        self.list.push(SendRequest { id, operation, local: SmallVec::new(), flags: SendFlags::empty() });
        Ok(())
    }

    /// Posts what has been made, in one list.
    pub(crate) fn post(&mut self, queue_pair: &dyn QueuePair) -> Result<()> {
        self.seal()?;
        if self.list.is_empty() {
            return Ok(());
        }
        let posted = queue_pair.post_send(&self.list).map_err(|refused| {
            // What was not posted will not complete. Its buffers come back with the next completion.
            let lost = self.list.len() - refused.posted;
            let unposted = self.outstanding.refused(lost);
            self.refused = self.refused.or(unposted.iter().find_map(|request| request.id));
            self.unposted.extend(unposted.into_iter().filter_map(|request| request.slot));
            refused.error
        });
        self.list.clear();
        posted
    }

    /// Takes a send completion. Answers also the message or operation that has failed with it.
    pub(crate) fn complete(
        &mut self,
        completion: &Completion,
        free: &mut Vec<Slot>,
    ) -> Result<(Done, Option<u64>)> {
        let (done, failed, request) = self.outstanding.complete(completion)?;
        let before = free.len();
        free.extend(request.slot);
        free.append(&mut self.unposted);
        self.slots -= free.len() - before;
        Ok((done, request.id.filter(|_| failed)))
    }
}
