//! What responses mean for the requests: acknowledged, answered, refused, or to be waited for.

use secure_rdma_roce::{NakCode, Opcode, Packet, Syndrome};

use super::super::drops::Reason;
use super::super::network::Time;
use super::super::random::psn;
use super::super::requests::Kind;
use super::{Requester, Response};

impl Requester {
    /// A valid response has arrived.
    pub fn on_response(&mut self, packet: &Packet<'_>, now: Time) -> Response {
        let number = packet.psn().expose();
        if psn::minus(number, self.oldest) < 0 || psn::minus(number, self.newest) >= 0 {
            return Response::Dropped(Reason::ResponsePsn);
        }
        if packet.opcode() != Opcode::Acknowledge {
            return self.on_answer(packet, number, now);
        }
        match packet.aeth().map(|aeth| aeth.syndrome) {
            Some(Syndrome::Ack(_)) => self.acknowledge(psn::add(number, 1), now),
            Some(Syndrome::RnrNak(timer)) => {
                self.acknowledge(number, now);
                // While it waits nothing is sent, so another is about the same copy: it neither counts nor moves the end.
                let waits = self.waits_until.is_some_and(|until| now < until);
                if let Some(at) = self.find(number).filter(|_| self.oldest == number && !waits) {
                    let until = now + timer.duration().as_nanos() as Time;
                    self.sends[at].not_ready += 1;
                    self.sign = until;
                    // Where the last wait is over and nothing was sent yet, its timer may not have come up.
                    self.waits_until = self.waits_until.or(Some(until));
                }
            }
            // No progress: the end comes no later for it.
            Some(Syndrome::Nak(NakCode::PsnSequenceError)) => self.acknowledge(number, now),
            Some(Syndrome::Nak(code)) => {
                self.acknowledge(number, now);
                // Where a READ before it was not answered, it never will be: the peer is in ERR.
                if let Some(first) = self.sends.iter_mut().find(|posted| !posted.done && posted.count > 0) {
                    let status = match code {
                        NakCode::InvalidRequest => 9,
                        NakCode::RemoteAccessError => 10,
                        _ => 11,
                    };
                    first.refused = Some(status);
                }
            }
            _ => return Response::Dropped(Reason::Syndrome),
        }
        Response::Nothing
    }

    /// A READ response or an atomic's answer.
    fn on_answer(&mut self, packet: &Packet<'_>, number: u32, now: Time) -> Response {
        let Some(at) = self.find(number) else { return Response::Nothing };
        let first = self.sends[at].first;
        let is_answer = match self.sends[at].kind {
            Kind::Read { .. } => packet.opcode().is_read_response(),
            kind => kind.is_atomic() && packet.opcode() == Opcode::AtomicAcknowledge,
        };
        let acknowledges = packet.aeth().is_none_or(|aeth| matches!(aeth.syndrome, Syndrome::Ack(_)));
        if !is_answer || !acknowledges {
            return Response::Dropped(Reason::ResponseKind);
        }
        self.acknowledge(first, now);
        let posted = &mut self.sends[at];
        let index = psn::minus(number, first).cast_unsigned();
        if self.oldest != number || index != posted.placed {
            return Response::Nothing;
        }
        if packet.opcode().is_read_response() {
            // A response that the request does not allow ends the connection.
            let asked = self.asked.iter().find(|(_, end)| psn::minus(*end, number) > 0);
            let last = asked.is_some_and(|(_, end)| *end == psn::add(number, 1));
            let offset = index as usize * self.terms.path_mtu;
            let due = (posted.length - offset).min(self.terms.path_mtu);
            if last != (packet.opcode().is_last() || packet.opcode().is_only()) {
                posted.refused = Some(7);
                return Response::Nothing;
            }
            if packet.payload().len() != due {
                posted.refused = Some(1);
                return Response::Nothing;
            }
        }
        posted.placed += 1;
        posted.original = packet.atomic_ack_eth().map(|ack| ack.original);
        self.oldest = psn::add(number, 1);
        (self.progress, self.sign) = (now, now);
        self.waits_until = None;
        if posted.placed == posted.count {
            posted.done = true;
        }
        Response::Place { request: at, offset: index as usize * self.terms.path_mtu }
    }

    /// Everything before `end` is acknowledged, as far as no READ or atomic before it lacks its answer.
    fn acknowledge(&mut self, end: u32, now: Time) {
        let before = self.oldest;
        for posted in &mut self.sends {
            if posted.done || posted.count == 0 {
                continue;
            }
            let covered = psn::minus(end, posted.first);
            if covered <= 0 {
                break;
            }
            // An engine needs no answer without bytes.
            let needless = self.terms.punctual && posted.length == 0 && !posted.kind.is_atomic();
            if posted.kind.has_response() && !needless {
                self.oldest = psn::add(posted.first, posted.placed);
                break;
            }
            let covered = covered.min(posted.count.cast_signed()).cast_unsigned();
            let reached = psn::add(posted.first, covered);
            if psn::minus(reached, self.oldest) > 0 {
                self.oldest = reached;
            }
            posted.done = covered == posted.count;
            if !posted.done {
                break;
            }
        }
        if self.oldest != before {
            (self.progress, self.sign) = (now, now);
            self.waits_until = None;
            // Only what has not progressed counts its RNR NAKs.
            for posted in &mut self.sends {
                posted.not_ready = 0;
            }
        }
    }
}
