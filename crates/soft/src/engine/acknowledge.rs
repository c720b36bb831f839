//! What the responder answers: acknowledgements, NAKs, READ responses and atomics' results, in the order of the requests.

use std::collections::VecDeque;
use std::time::Instant;

use secure_rdma_rdma::Access;
use secure_rdma_roce::{Aeth, AtomicAckEth, Bth, Credits, Extension, Headers, NakCode, Opcode, Syndrome};

use super::defects::Defect;
use super::packetizer::Batch;
use super::queue_pair::{QueuePair, Shared};
use super::resources::{Kind, ResourceId};
use super::responder::Refused;

/// An answer that is still to be sent.
enum Answer {
    /// ACK, NAK or RNR NAK about the request with this PSN.
    Acknowledge { count: u64, syndrome: Syndrome, msn: u32 },
    /// READ responses or an atomic's result.
    Resource(ResourceId),
}

/// An ACK. The credits say "no limit": a sender without them learns of missing receives by RNR NAK.
pub(super) const ACK: Syndrome = Syndrome::Ack(Credits::UNLIMITED);

/// The answers of a queue pair. At most one per entry of the resource table, and between them one ACK each; NAKs come once
/// per gap. The bound below only holds off what a peer breaks rules with.
#[derive(Default)]
pub(super) struct Answers {
    queue: VecDeque<Answer>,
    hold: Hold,
}

/// Whether an ACK may stay behind when requests go out: what answers a message is worth sending before what says that
/// the message came, and one ACK stands for all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hold {
    /// It may.
    #[default]
    Possible,
    /// It stays behind until then.
    Until(Instant),
    /// It may not: it has stayed behind for long enough, or is of a part of a long message, for which a window waits.
    Over,
}

const MOST: usize = 1024;

impl Answers {
    /// Acknowledges everything up to `count`: a message of one packet, or something else that is not to stay behind. Takes
    /// the place of an ACK that was not sent yet; tells whether it did.
    pub(super) fn acknowledge(&mut self, count: u64, msn: u32, short: bool) -> bool {
        if !short {
            self.hold = Hold::Over;
        }
        if let Some(Answer::Acknowledge { count: last, syndrome: Syndrome::Ack(_), msn: last_msn }) =
            self.queue.back_mut()
        {
            (*last, *last_msn) = ((*last).max(count), msn);
            return true;
        }
        self.push(Answer::Acknowledge { count, syndrome: ACK, msn });
        false
    }

    /// Puts an ACK before everything that is due: a planted defect.
    #[cfg(feature = "defects")]
    pub(super) fn overtake(&mut self, count: u64, msn: u32) {
        self.queue.push_front(Answer::Acknowledge { count, syndrome: ACK, msn });
    }

    pub(super) fn refuse(&mut self, count: u64, syndrome: Syndrome, msn: u32) {
        self.push(Answer::Acknowledge { count, syndrome, msn });
    }

    /// Answers the READ or atomic with PSN `first`. Its answer acknowledges everything before it, so an ACK of that which
    /// was not sent yet is not needed any more (IBTA 9.7.5.1.2).
    pub(super) fn resource(&mut self, id: ResourceId, first: u64) {
        if let Some(Answer::Acknowledge { count, syndrome: Syndrome::Ack(_), .. }) = self.queue.back()
            && *count < first
        {
            self.queue.pop_back();
        }
        self.push(Answer::Resource(id));
    }

    fn push(&mut self, answer: Answer) {
        if self.queue.len() < MOST {
            self.queue.push_back(answer);
        }
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.queue.capacity() * size_of::<Answer>()
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.hold = Hold::Possible;
    }

    /// Whether all there is is an ACK that stays behind.
    pub(super) fn are_held(&self) -> bool {
        matches!(self.hold, Hold::Until(_)) && self.is_one_ack()
    }

    fn is_one_ack(&self) -> bool {
        self.queue.len() == 1
            && matches!(self.queue.front(), Some(Answer::Acknowledge { syndrome: Syndrome::Ack(_), .. }))
    }

    /// What stays behind has done so for long enough.
    fn release(&mut self) {
        self.hold = Hold::Over;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether the next is READ responses, or an atomic's result.
    pub(super) fn begins_with_resource(&self) -> bool {
        matches!(self.queue.front(), Some(Answer::Resource(_)))
    }
}

impl QueuePair {
    /// Whether the answers stay behind, now that `requests` go out or not.
    pub(super) fn holds_answers(&mut self, shared: &mut Shared, now: Instant, requests: bool) -> bool {
        let wait = shared.ack_hold;
        let answers = &mut self.responder.answers;
        if wait.is_zero() || !answers.is_one_ack() {
            return false;
        }
        if requests
            && answers.hold == Hold::Possible
            && let Some(until) = now.checked_add(wait)
        {
            answers.hold = Hold::Until(until);
            shared.schedule.hold(self.qpn, until, &mut self.standing);
            shared.counters.ack_held += 1;
        }
        matches!(answers.hold, Hold::Until(until) if now < until)
    }

    /// Acknowledgements that may stay behind until `end` or earlier go out.
    pub(super) fn release_answers(&mut self, shared: &mut Shared, now: Instant, end: Instant) {
        match self.responder.answers.hold {
            Hold::Until(until) if until > end => shared.schedule.hold(self.qpn, until, &mut self.standing),
            Hold::Until(_) => {
                self.responder.answers.release();
                self.settle(shared, now);
            }
            Hold::Possible | Hold::Over => {}
        }
    }

    /// Appends answers.
    pub(super) fn send_answers(&mut self, shared: &mut Shared, batch: &mut Batch<'_>) {
        let mut gone = None;
        while let Some(answer) = self.responder.answers.queue.front() {
            let sent = match *answer {
                Answer::Acknowledge { count, syndrome, msn } => {
                    self.send_acknowledge(shared, batch, count, syndrome, msn)
                }
                Answer::Resource(id) => self.send_resource(shared, batch, id),
            };
            match sent {
                Sent::Whole => drop(self.responder.answers.queue.pop_front()),
                Sent::Part => {}
                Sent::NoRoom => break,
                Sent::Stale(count) => {
                    // At the end, since MSNs only grow.
                    let responder = &mut self.responder;
                    responder.answers.queue.pop_front();
                    let syndrome = Syndrome::Nak(NakCode::RemoteAccessError);
                    responder.answers.refuse(count, syndrome, responder.msn);
                }
                Sent::Gone(refused) => {
                    gone = Some(refused);
                    break;
                }
            }
        }
        if self.responder.answers.queue.is_empty() {
            self.responder.answers.hold = Hold::Possible;
        }
        // A region that is gone when its bytes are to be read: NAK 0x62 in place of the response.
        if let Some(refused) = gone {
            self.responder.answers.clear();
            self.refuse(shared, &refused);
        }
    }

    fn send_acknowledge(
        &mut self,
        shared: &mut Shared,
        batch: &mut Batch<'_>,
        count: u64,
        syndrome: Syndrome,
        msn: u32,
    ) -> Sent {
        let Some(flows) = &self.flows else { return Sent::Whole };
        let bth = Bth::new(Opcode::Acknowledge, flows.peer.get(), self.responder.sequence.psn(count));
        let headers = Headers::new(bth, Extension::Aeth(Aeth { syndrome, msn }), 0);
        if !batch.fits(headers.packet_length(0)) {
            return Sent::NoRoom;
        }
        batch.push(&flows.out, &headers, 0, |_| true);
        let counters = &mut shared.counters;
        match syndrome {
            Syndrome::Ack(_) => counters.sent_acks += 1,
            Syndrome::RnrNak(_) => counters.send_rnr_err += 1,
            Syndrome::Nak(NakCode::PsnSequenceError) => counters.sent_seq_err += 1,
            Syndrome::Nak(NakCode::InvalidRequest) => counters.sent_invalid_request += 1,
            Syndrome::Nak(NakCode::RemoteAccessError) => counters.sent_access_err += 1,
            Syndrome::Nak(_) | Syndrome::Reserved(_) => counters.sent_operational_err += 1,
        }
        Sent::Whole
    }

    fn send_resource(&mut self, shared: &mut Shared, batch: &mut Batch<'_>, id: ResourceId) -> Sent {
        let (Some(flows), Some(resource)) = (&self.flows, self.responder.resources.get(id)) else {
            return Sent::Whole;
        };
        if !resource.pending {
            return Sent::Whole;
        }
        let aeth = Aeth { syndrome: ACK, msn: resource.msn };
        let read = match &mut resource.kind {
            Kind::Read(read) => read,
            Kind::Atomic { original } => {
                let psn = self.responder.sequence.psn(resource.first);
                let bth = Bth::new(Opcode::AtomicAcknowledge, flows.peer.get(), psn);
                let extension = Extension::AtomicAck(aeth, AtomicAckEth { original: *original });
                let headers = Headers::new(bth, extension, 0);
                if !batch.fits(headers.packet_length(0)) {
                    return Sent::NoRoom;
                }
                batch.push(&flows.out, &headers, 0, |_| true);
                resource.pending = false;
                return Sent::Whole;
            }
        };

        let (first, last) = (read.next == read.start, read.next.wrapping_add(1) == read.until);
        let opcode = match (first, last) {
            (true, true) => Opcode::ReadResponseOnly,
            (true, false) => Opcode::ReadResponseFirst,
            (false, true) => Opcode::ReadResponseLast,
            (false, false) => Opcode::ReadResponseMiddle,
        };
        let extension = if opcode.has_aeth() { Extension::Aeth(aeth) } else { Extension::None };
        let offset = read.next.saturating_sub(resource.first).saturating_mul(flows.mtu as u64);
        let beyond = shared.config.planted(Defect::ReplayBeyondRange) && read.start > resource.first;
        let left = u64::from(read.length).saturating_sub(offset);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(flows.mtu);
        let bth = Bth::new(opcode, flows.peer.get(), self.responder.sequence.psn(read.next));
        let headers = Headers::new(bth, extension, length);
        if !batch.fits(headers.packet_length(length)) {
            return Sent::NoRoom;
        }
        let pushed = if length == 0 {
            batch.push(&flows.out, &headers, 0, |_| true)
        } else {
            // Judged anew for each packet: the region may have gone since the request.
            let address = read.address.wrapping_add(offset).wrapping_add(u64::from(beyond));
            match shared.regions.remote(self.qpn, read.rkey, address, length as u64, Access::REMOTE_READ) {
                Ok((memory, from)) => batch.push(&flows.out, &headers, length, |buffer| {
                    memory.append_to(from, length, buffer).is_ok()
                }),
                // A READ that was answered whole, and whose region has gone since: who waits for a response still is refused,
                // but who has them had every right to. A late copy of the request must not end the connection.
                Err(refusal) if read.sent >= resource.end => {
                    shared.counters.count_refusal(refusal);
                    resource.pending = false;
                    return Sent::Stale(read.next);
                }
                Err(refusal) => return Sent::Gone(Refused::access(read.next, refusal)),
            }
        };
        if !pushed {
            return Sent::Gone(Refused::operational(read.next));
        }
        shared.counters.sent_bytes += length as u64;
        read.next = read.next.wrapping_add(1);
        read.sent = read.sent.max(read.next);
        if last {
            resource.pending = false;
            return Sent::Whole;
        }
        Sent::Part
    }
}

/// How far an answer came.
enum Sent {
    Whole,
    Part,
    NoRoom,
    /// It cannot be repeated: a NAK for this response takes its place.
    Stale(u64),
    Gone(Refused),
}
