//! What a requester may send, and what its work requests may end with, as the brief's §7 says it; written apart from the
//! engine.

use std::collections::VecDeque;

use secure_rdma_roce::{NakCode, Opcode, Packet, Syndrome};

use super::drops::Reason;
use super::memory::Shadows;
use super::network::Time;
use super::random::psn;
use super::requests::{Kind, Posted};

/// What was agreed when the queue pair came up.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    pub path_mtu: usize,
    /// Code: 4.096 µs · 2^n.
    pub timeout: u8,
    pub retry_count: u8,
    pub rnr_retry: u8,
    pub max_rd_atomic: u8,
    pub max_window: u32,
    pub ack_interval: u32,
    pub peer_qpn: u32,
    /// Whether it is an engine, which gives up in time.
    pub punctual: bool,
}

impl Terms {
    /// How long without progress until the queue pair gives up.
    pub fn patience(&self) -> Time {
        (4_096 << self.timeout) * (u64::from(self.retry_count) + 1)
    }
}

/// What a response means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// Nothing that memory shows.
    Nothing,
    /// The engine has to place it, from this byte of this request on.
    Place { request: usize, offset: usize },
    /// The engine has to drop it.
    Dropped(Reason),
}

/// The model of a queue pair's requester.
pub struct Requester {
    pub terms: Terms,
    pub sends: VecDeque<Posted>,
    /// The oldest PSN that is not acknowledged.
    pub oldest: u32,
    /// The one after the newest that was sent.
    pub newest: u32,
    /// The PSN of the next request that is posted.
    next: u32,
    /// When something was last acknowledged, or sent where nothing was outstanding.
    pub progress: Time,
    /// When something was last acknowledged, or the end of the wait that an RNR NAK asked for since.
    pub sign: Time,
    /// Packets of the message sent since the last that asked for an ACK.
    unasked: u32,
    /// READs and atomics on the wire: the PSNs that each asks for.
    asked: VecDeque<(u32, u32)>,
    /// The PSN after the one sent last.
    position: u32,
    /// The end of the wait that an RNR NAK asked for.
    waits_until: Option<Time>,
    /// Whether a request has failed.
    pub failed: bool,
    /// In SQD: what was begun goes on, and nothing begins.
    pub drains: bool,
}

impl Requester {
    pub fn new(start: u32, terms: Terms) -> Self {
        Self {
            terms,
            sends: VecDeque::new(),
            oldest: start,
            newest: start,
            next: start,
            progress: 0,
            sign: 0,
            unasked: 0,
            asked: VecDeque::new(),
            position: start,
            waits_until: None,
            failed: false,
            drains: false,
        }
    }

    /// A request was posted.
    pub fn post(&mut self, mut posted: Posted) {
        posted.count = match posted.kind {
            kind if kind.is_local() => 0,
            kind if kind.is_atomic() => 1,
            _ => posted.length.div_ceil(self.terms.path_mtu).max(1) as u32,
        };
        posted.first = self.next;
        self.next = psn::add(self.next, posted.count);
        self.sends.push_back(posted);
    }

    pub fn outstanding(&self) -> bool {
        self.oldest != self.newest
    }

    fn find(&self, number: u32) -> Option<usize> {
        self.sends.iter().position(|posted| {
            let index = psn::minus(number, posted.first);
            index >= 0 && index < posted.count.cast_signed()
        })
    }

    /// The engine sends a request. An error says what is wrong with it.
    pub fn on_request_sent(
        &mut self,
        packet: &Packet<'_>,
        shadows: &Shadows,
        now: Time,
    ) -> Result<(), String> {
        let bth = packet.bth();
        let number = bth.psn.expose();
        if bth.dest_qpn != self.terms.peer_qpn || bth.pkey != 0xFFFF {
            return Err("a request to another queue pair or partition".to_owned());
        }
        if psn::minus(number, self.oldest) < 0 {
            return Err("a request that was acknowledged is sent again".to_owned());
        }
        if self.waits_until.is_some_and(|until| now < until) {
            return Err("a request is sent before the wait of an RNR NAK is over".to_owned());
        }
        self.waits_until = None;
        let fresh = psn::minus(number, self.newest);
        if fresh > 0 {
            return Err("a request skips PSNs".to_owned());
        }
        let Some(at) = self.find(number) else { return Err("a request that was not posted".to_owned()) };
        let posted = &self.sends[at];
        let index = psn::minus(number, posted.first).cast_unsigned();
        self.check_content(packet, posted, index, shadows)?;
        if psn::minus(number, self.oldest).cast_unsigned() >= self.terms.max_window {
            return Err("more PSNs are outstanding than the window allows".to_owned());
        }
        let ends = index + 1 == posted.count || posted.kind.has_response();
        if ends && !bth.ack_request {
            return Err("the last packet of a message does not ask for an acknowledgement".to_owned());
        }
        let count = match packet.reth().filter(|_| packet.opcode() == Opcode::ReadRequest) {
            Some(reth) => (reth.dma_length as usize).div_ceil(self.terms.path_mtu).max(1) as u32,
            None => 1,
        };
        if number != self.position {
            // Gone back.
            self.unasked = 0;
        }
        self.position = psn::add(number, count);
        self.unasked = if bth.ack_request { 0 } else { self.unasked + 1 };
        if self.unasked >= self.terms.ack_interval {
            return Err(format!("{} packets do not ask for an acknowledgement", self.unasked));
        }
        if fresh == 0 {
            if self.drains && index == 0 {
                return Err("a request begins in SQD".to_owned());
            }
            self.check_order(at)?;
            if !self.outstanding() {
                (self.progress, self.sign) = (now, now);
            }
            self.newest = self.position;
            if self.sends[at].kind.has_response() {
                self.asked.push_back((number, self.newest));
            }
        } else if self.sends[at].kind.has_response() {
            // A part of a READ that is asked for again ends where it did.
            let known = self
                .asked
                .iter()
                .find(|(first, end)| psn::minus(number, *first) >= 0 && psn::minus(number, *end) < 0);
            if known.is_none_or(|(_, end)| *end != self.position) {
                return Err("a READ is asked for again with another end".to_owned());
            }
        }
        Ok(())
    }

    /// FENCE, and the limit of READs and atomics, for a request that begins or goes on.
    fn check_order(&mut self, at: usize) -> Result<(), String> {
        while self.asked.front().is_some_and(|(_, end)| psn::minus(self.oldest, *end) >= 0) {
            self.asked.pop_front();
        }
        let posted = &self.sends[at];
        let open = self.asked.len();
        if posted.fence && posted.first == self.newest && open > 0 {
            return Err("a request with FENCE does not wait for earlier READs and atomics".to_owned());
        }
        if posted.kind.has_response() && open >= usize::from(self.terms.max_rd_atomic) {
            return Err(format!("{} READs and atomics outstanding", open + 1));
        }
        Ok(())
    }

    fn check_content(
        &self,
        packet: &Packet<'_>,
        posted: &Posted,
        index: u32,
        shadows: &Shadows,
    ) -> Result<(), String> {
        let offset = index as usize * self.terms.path_mtu;
        let (first, last) = (index == 0, index + 1 == posted.count);
        let due = opcode_of(posted.kind, first, last);
        if packet.opcode() != due {
            return Err(format!("{} instead of {}", packet.opcode().name(), due.name()));
        }
        let payload = packet.payload();
        match posted.kind {
            Kind::Read { address, rkey } => {
                let reth = packet.reth().ok_or("no RETH")?;
                let asked = reth.dma_length as usize;
                let left = posted.length - offset;
                // A long one may be asked for in parts.
                let whole =
                    asked == left || asked < left && asked > 0 && asked.is_multiple_of(self.terms.path_mtu);
                if (reth.virtual_address, reth.rkey.expose()) != (address.wrapping_add(offset as u64), rkey)
                    || !whole
                {
                    return Err("a READ asks for something else than was posted".to_owned());
                }
            }
            Kind::CompareSwap { address, rkey, compare, swap } => {
                let atomic = packet.atomic_eth().ok_or("no AtomicETH")?;
                let asked =
                    (atomic.virtual_address, atomic.rkey.expose(), atomic.compare, atomic.swap_or_add);
                if asked != (address, rkey, compare, swap) {
                    return Err("an atomic asks for something else than was posted".to_owned());
                }
            }
            Kind::FetchAdd { address, rkey, add } => {
                let atomic = packet.atomic_eth().ok_or("no AtomicETH")?;
                if (atomic.virtual_address, atomic.rkey.expose(), atomic.swap_or_add) != (address, rkey, add)
                {
                    return Err("an atomic asks for something else than was posted".to_owned());
                }
            }
            _ => {
                if payload.len() != (posted.length - offset).min(self.terms.path_mtu) {
                    return Err(format!(
                        "{} bytes of payload at {offset} of {}",
                        payload.len(),
                        posted.length
                    ));
                }
                if !shadows.holds(&posted.local, offset, payload) {
                    return Err("a request carries other bytes than memory holds".to_owned());
                }
            }
        }
        let (immediate, invalidated) = match posted.kind {
            Kind::Send { immediate } | Kind::Write { immediate, .. } => (immediate.filter(|_| last), None),
            Kind::SendInvalidate { rkey } => (None, Some(rkey).filter(|_| last)),
            _ => (None, None),
        };
        if packet.immediate().map(|immediate| immediate.value) != immediate
            || packet.invalidate_key().map(|key| key.expose()) != invalidated
        {
            return Err("another immediate or key than was posted".to_owned());
        }
        if let (Kind::Write { address, rkey, .. }, Some(reth)) = (posted.kind, packet.reth())
            && (reth.virtual_address, reth.rkey.expose(), reth.dma_length as usize)
                != (address, rkey, posted.length)
        {
            return Err("a WRITE goes elsewhere than was posted".to_owned());
        }
        Ok(())
    }

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
            if posted.kind.has_response() {
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

    /// The engine ends the oldest request with `status`, at `now`. An error says why it may not.
    pub fn check_completion(
        &mut self,
        posted: &Posted,
        status: u32,
        now: Time,
        flushing: bool,
    ) -> Result<(), String> {
        match status {
            0 if self.failed => Err("a success behind a failure".to_owned()),
            0 if posted.kind.is_local() || posted.done => Ok(()),
            0 => Err("a success that the peer has not acknowledged".to_owned()),
            5 if self.failed || flushing => Ok(()),
            5 => Err("a flush without a failure before it".to_owned()),
            _ if self.failed => Err(format!("a second failure ({status}) instead of a flush")),
            1 | 7 | 9..=11 if posted.refused == Some(status) => Ok(()),
            12 => {
                let silent = now.saturating_sub(self.progress);
                let due = self.terms.patience();
                if self.terms.timeout == 0 || silent < due {
                    return Err(format!("RETRY_EXC after {silent} ns without progress; {due} ns are due"));
                }
                let signless = now.saturating_sub(self.sign);
                if self.terms.punctual && signless > due + due / 4 + 20_000_000 {
                    return Err(format!("RETRY_EXC only after {signless} ns; {due} ns are due"));
                }
                Ok(())
            }
            13 if self.terms.rnr_retry < 7 && posted.not_ready > u32::from(self.terms.rnr_retry) => Ok(()),
            _ => Err(format!("a failure ({status}) for which there is no reason")),
        }
    }
}

/// The opcode of a packet of a request, by its place.
pub fn opcode_of(kind: Kind, first: bool, last: bool) -> Opcode {
    match (kind, first, last) {
        (Kind::Send { immediate: None }, true, true) => Opcode::SendOnly,
        (Kind::Send { .. }, true, true) => Opcode::SendOnlyWithImmediate,
        (Kind::SendInvalidate { .. }, true, true) => Opcode::SendOnlyWithInvalidate,
        (Kind::Send { .. } | Kind::SendInvalidate { .. }, true, false) => Opcode::SendFirst,
        (Kind::Send { .. } | Kind::SendInvalidate { .. }, false, false) => Opcode::SendMiddle,
        (Kind::Send { immediate: None }, false, true) => Opcode::SendLast,
        (Kind::Send { .. }, false, true) => Opcode::SendLastWithImmediate,
        (Kind::SendInvalidate { .. }, false, true) => Opcode::SendLastWithInvalidate,
        (Kind::Write { immediate: None, .. }, true, true) => Opcode::WriteOnly,
        (Kind::Write { .. }, true, true) => Opcode::WriteOnlyWithImmediate,
        (Kind::Write { .. }, true, false) => Opcode::WriteFirst,
        (Kind::Write { .. }, false, false) => Opcode::WriteMiddle,
        (Kind::Write { immediate: None, .. }, false, true) => Opcode::WriteLast,
        (Kind::Write { .. }, false, true) => Opcode::WriteLastWithImmediate,
        (Kind::CompareSwap { .. }, ..) => Opcode::CompareSwap,
        (Kind::FetchAdd { .. }, ..) => Opcode::FetchAdd,
        (Kind::Read { .. } | Kind::Bind { .. } | Kind::Invalidate { .. }, ..) => Opcode::ReadRequest,
    }
}
