//! What the responses may say: ACKs, NAKs, READ responses and atomics' answers, in the order of the requests.

use std::collections::HashMap;

use secure_rdma_roce::{Aeth, NakCode, Opcode, Packet, Syndrome};

use super::super::memory::Shadows;
use super::super::network::{MILLISECOND, SECOND, Time};
use super::super::random::psn;
use super::{Opening, Responder, Served, ServedKind};

impl Responder {
    /// The first READ or atomic whose answer has not wholly been sent.
    fn first_unanswered(&self) -> Option<&Served> {
        self.served.iter().find(|served| served.answered < served.count)
    }

    /// The engine sends a response. An error says which invariant it breaks.
    pub fn on_response_sent(
        &mut self,
        packet: &Packet<'_>,
        shadows: &Shadows,
        openings: &HashMap<u32, Opening>,
        now: Time,
    ) -> Result<(), String> {
        let number = packet.psn().expose();
        if let Some(aeth) = packet.aeth() {
            let again = packet.opcode() != Opcode::Acknowledge && self.is_replay(number);
            self.check_msn(aeth, again)?;
        }
        match packet.opcode() {
            Opcode::Acknowledge => self.on_acknowledge_sent(number, packet.aeth(), openings, now),
            Opcode::AtomicAcknowledge => {
                let value = packet.atomic_ack_eth().map(|ack| ack.original);
                let served = self.answer(number)?;
                let ServedKind::Atomic { original } = served.kind else {
                    return Err("an atomic's answer for a READ".to_owned());
                };
                if value != Some(original) {
                    return Err("an atomic's answer is not what memory held".to_owned());
                }
                Ok(())
            }
            _ => self.on_read_response_sent(packet, number, shadows, openings),
        }
    }

    /// Whether a response with this PSN was sent before.
    fn is_replay(&self, number: u32) -> bool {
        self.served.iter().any(|served| {
            let index = psn::minus(number, served.first);
            index >= 0 && index < served.answered.cast_signed()
        })
    }

    /// The MSN only grows, and tells no more than was executed. An answer that is sent again may carry its first one.
    fn check_msn(&mut self, aeth: Aeth, again: bool) -> Result<(), String> {
        if again && psn::minus(self.msn, aeth.msn) >= 0 {
            return Ok(());
        }
        if psn::minus(aeth.msn, self.newest_msn) < 0 || psn::minus(self.msn, aeth.msn) < 0 {
            let known = (self.newest_msn, self.msn);
            return Err(format!("MSN {} is not between {} and {}", aeth.msn, known.0, known.1));
        }
        self.newest_msn = aeth.msn;
        Ok(())
    }

    fn on_acknowledge_sent(
        &mut self,
        number: u32,
        aeth: Option<Aeth>,
        openings: &HashMap<u32, Opening>,
        now: Time,
    ) -> Result<(), String> {
        let Some(aeth) = aeth else { return Err("an Acknowledge without an AETH".to_owned()) };
        match aeth.syndrome {
            Syndrome::Ack(_) => {
                if psn::minus(number, self.expected) >= 0 {
                    return Err("an ACK of what has not been executed".to_owned());
                }
                if let Some(served) = self.first_unanswered()
                    && psn::minus(number, served.first) >= 0
                {
                    return Err("an ACK overtakes a READ response or an atomic's answer".to_owned());
                }
                Ok(())
            }
            Syndrome::RnrNak(timer) => {
                let Some(at) = self.not_ready.iter().position(|psn| *psn == number) else {
                    return Err("an RNR NAK for a packet that was not refused, or a second one".to_owned());
                };
                self.not_ready.remove(at);
                if timer.code() != self.rnr_timer {
                    return Err(format!("RNR timer {} instead of {}", timer.code(), self.rnr_timer));
                }
                Ok(())
            }
            Syndrome::Nak(NakCode::PsnSequenceError) => {
                let Some(at) = self.gaps.iter().position(|psn| *psn == number) else {
                    return Err("a NAK 0x60 without a gap, or a second one for it".to_owned());
                };
                self.gaps.remove(at);
                self.check_nak_rate(now)
            }
            Syndrome::Nak(code) => {
                let code = 0x60 | code.code();
                match self.fatal.take() {
                    Some(due) if due == (number, code) => Ok(()),
                    _ if code == 0x62 && (self.may_fail || self.has_lost_key(openings)) => Ok(()),
                    due => Err(format!("a NAK {code:#x} where {:?} was due", due.map(|(_, code)| code))),
                }
            }
            Syndrome::Reserved(byte) => Err(format!("a reserved syndrome {byte:#x}")),
        }
    }

    /// A NAK 0x60 is sent. Any second has parts of two of those that the engine counts in; a batch may hold one back a bit.
    fn check_nak_rate(&mut self, now: Time) -> Result<(), String> {
        self.naks.push_back(now);
        if self.naks.len() as u64 <= 2 * u64::from(self.max_nak_rate) {
            return Ok(());
        }
        match self.naks.pop_front() {
            Some(first) if now - first < SECOND - MILLISECOND => {
                Err(format!("more than twice {} NAKs 0x60 within a second", self.max_nak_rate))
            }
            _ => Ok(()),
        }
    }

    /// Notes that the response with this PSN is sent: a new one in the order of the requests, or one again.
    fn answer(&mut self, number: u32) -> Result<Served, String> {
        let mut earlier_answered = true;
        for served in &mut self.served {
            let index = psn::minus(number, served.first);
            if index >= 0 && index < served.count.cast_signed() {
                let index = index.cast_unsigned();
                if index > served.answered || index == served.answered && !earlier_answered {
                    return Err("a response before one that is due earlier".to_owned());
                }
                served.answered = served.answered.max(index + 1);
                served.pending &= index + 1 != served.count;
                return Ok(*served);
            }
            earlier_answered &= served.answered == served.count;
        }
        Err("a response that nobody asked for".to_owned())
    }

    fn on_read_response_sent(
        &mut self,
        packet: &Packet<'_>,
        number: u32,
        shadows: &Shadows,
        openings: &HashMap<u32, Opening>,
    ) -> Result<(), String> {
        let served = self.answer(number)?;
        let ServedKind::Read { rkey, address, length } = served.kind else {
            return Err("a READ response for an atomic".to_owned());
        };
        let index = psn::minus(number, served.first).cast_unsigned();
        let opcode = packet.opcode();
        let ends = index + 1 == served.count;
        let begins = opcode.is_first() || opcode.is_only();
        if !begins && self.last_response != Some(psn::add(number, psn::MASK)) {
            return Err(format!("{} does not follow the response before it", opcode.name()));
        }
        if index == 0 && !begins || ends && !(opcode.is_last() || opcode.is_only()) {
            return Err(format!("{} as response {index} of {}", opcode.name(), served.count));
        }
        self.last_response = Some(number);
        let payload = packet.payload();
        let offset = index as usize * self.path_mtu;
        let due = (length - offset).min(self.path_mtu);
        if payload.len() > due || payload.len() < due && index + 1 == served.answered && !ends {
            return Err(format!("a READ response of {} bytes instead of {due}", payload.len()));
        }
        if payload.is_empty() {
            return Ok(());
        }
        let Some(opening) = openings.get(&rkey) else {
            return Err("a READ response after its key ended".to_owned());
        };
        let region = &shadows.regions[opening.region];
        let start = address.wrapping_sub(region.address) as usize + offset;
        let inside = start >= opening.offset && start + payload.len() <= opening.offset + opening.length;
        if !inside {
            return Err("a READ response from outside of what the key opens".to_owned());
        }
        if region.bytes[start..start + payload.len()] != *payload {
            return Err("a READ response that is not what memory holds".to_owned());
        }
        Ok(())
    }
}
