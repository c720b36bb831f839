//! The other make's requester: one window, go-back-N from the oldest.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{CompletionKind, QpAttr, SendFlags, SendOperation, SendRequest};
use secure_rdma_roce::{
    AtomicEth, Extension, Ieth, ImmDt, NakCode, Opcode, Packet, PacketKey, Reth, Syndrome,
};

use super::super::random::psn;
use super::super::requester::opcode_of;
use super::super::requests::Kind;
use super::{Connection, Habits, Outbox, gather, header, scatter, timeout_of};

pub(super) struct Work {
    pub(super) request: SendRequest,
    length: usize,
    first: u32,
    count: u32,
    done: bool,
    begun: bool,
}

impl Work {
    fn has_response(&self) -> bool {
        matches!(
            self.request.operation,
            SendOperation::Read { .. } | SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. }
        )
    }
}

#[derive(Default)]
pub(super) struct Requester {
    pub(super) works: VecDeque<Work>,
    oldest: u32,
    /// The next PSN to send.
    next: u32,
    /// One past the newest that was sent.
    newest: u32,
    posted: u32,
    timeout: Option<Duration>,
    retry_count: u8,
    rnr_retry: u8,
    max_rd_atomic: u8,
    retries: u32,
    rnr_naks: u32,
    unasked: u32,
    /// A NAK has made it go back, and nothing has progressed since.
    retrying: bool,
    pub(super) deadline: Option<Instant>,
    pub(super) waits_until: Option<Instant>,
}

impl Requester {
    pub(super) fn set(&mut self, attr: &QpAttr) {
        if let Some(start) = attr.sq_psn {
            let start = start.expose();
            (self.oldest, self.next, self.newest, self.posted) = (start, start, start, start);
        }
        if let Some(code) = attr.timeout {
            self.timeout = timeout_of(code);
        }
        self.retry_count = attr.retry_count.unwrap_or(self.retry_count);
        self.rnr_retry = attr.rnr_retry.unwrap_or(self.rnr_retry);
        self.max_rd_atomic = attr.max_rd_atomic.unwrap_or(self.max_rd_atomic);
    }

    pub(super) fn post(&mut self, request: SendRequest, path_mtu: usize) {
        let length = request.local.iter().map(|slice| slice.length).sum::<usize>();
        let atomic =
            matches!(request.operation, SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. });
        let count = if atomic { 1 } else { length.div_ceil(path_mtu).max(1) as u32 };
        self.works.push_back(Work { request, length, first: self.posted, count, done: false, begun: false });
        self.posted = psn::add(self.posted, count);
    }

    /// Sends as far as the window allows.
    pub(super) fn run(&mut self, habits: Habits, connection: &Connection, out: &mut Outbox, now: Instant) {
        if self.waits_until.is_some() {
            return;
        }
        while psn::minus(self.next, self.oldest) < Habits::WINDOW.cast_signed() {
            let next = self.next;
            let found = self.works.iter().position(|work| {
                let index = psn::minus(next, work.first);
                index >= 0 && index < work.count.cast_signed()
            });
            let Some(at) = found else { break };
            let open = self.works.iter().take(at).filter(|work| work.has_response() && !work.done).count();
            let work = &self.works[at];
            let fenced = work.request.flags.contains(SendFlags::FENCE) && open > 0;
            let full = work.has_response() && open >= usize::from(self.max_rd_atomic);
            if !work.begun && (fenced || full) {
                break;
            }
            self.send(at, habits, connection, out);
        }
        if self.oldest == self.newest {
            self.deadline = None;
        } else if self.deadline.is_none() {
            self.deadline = self.timeout.map(|timeout| now + timeout);
        }
    }

    fn send(&mut self, at: usize, habits: Habits, connection: &Connection, out: &mut Outbox) {
        let work = &mut self.works[at];
        work.begun = true;
        let number = self.next;
        let index = psn::minus(number, work.first).cast_unsigned();
        let offset = index as usize * connection.path_mtu;
        let last = index + 1 == work.count;
        let kind = kind_of(&work.request.operation);
        let opcode = opcode_of(kind, index == 0, last);
        let reth = |address: u64, rkey: u32, length: usize| Reth {
            virtual_address: address,
            rkey: PacketKey::new(rkey),
            dma_length: length as u32,
        };
        let mut taken = 1;
        let extension = match kind {
            Kind::Read { address, rkey } => {
                taken = work.count - index;
                Extension::Reth(reth(address + offset as u64, rkey, work.length - offset))
            }
            Kind::CompareSwap { address, rkey, compare, swap } => {
                let rkey = PacketKey::new(rkey);
                Extension::Atomic(AtomicEth { virtual_address: address, rkey, swap_or_add: swap, compare })
            }
            Kind::FetchAdd { address, rkey, add } => {
                // Whatever was in that memory: rxe 6.12 sends eight bytes that nobody has set.
                let compare = add.rotate_left(17) ^ 0x5A5A;
                let rkey = PacketKey::new(rkey);
                Extension::Atomic(AtomicEth { virtual_address: address, rkey, swap_or_add: add, compare })
            }
            Kind::Write { address, rkey, immediate } => {
                let reth = reth(address, rkey, work.length);
                let immediate = ImmDt { value: immediate.unwrap_or_default() };
                match (opcode.has_reth(), opcode.has_immediate()) {
                    (true, true) => Extension::RethImmediate(reth, immediate),
                    (true, false) => Extension::Reth(reth),
                    (false, true) => Extension::Immediate(immediate),
                    (false, false) => Extension::None,
                }
            }
            Kind::Send { immediate } if opcode.has_immediate() => {
                Extension::Immediate(ImmDt { value: immediate.unwrap_or_default() })
            }
            Kind::SendInvalidate { rkey } if last => {
                Extension::Invalidate(Ieth { rkey: PacketKey::new(rkey) })
            }
            _ => Extension::None,
        };
        let payload = if work.has_response() {
            Vec::new()
        } else {
            let length = (work.length - offset).min(connection.path_mtu);
            gather(&work.request.local, offset, length)
        };
        let asks = last || work.has_response() || self.unasked + 1 >= Habits::ACK_INTERVAL - 1;
        self.unasked = if asks { 0 } else { self.unasked + 1 };
        out.send(habits, connection, header(opcode, number, asks), extension, &payload);
        self.next = psn::add(number, taken);
        if psn::minus(self.next, self.newest) > 0 {
            self.newest = self.next;
        }
    }

    fn go_back(&mut self) {
        self.next = self.oldest;
        self.unasked = 0;
        self.deadline = None;
    }

    fn progressed(&mut self) {
        self.retries = 0;
        self.rnr_naks = 0;
        self.retrying = false;
        self.deadline = None;
        self.waits_until = None;
        if psn::minus(self.next, self.oldest) < 0 {
            self.next = self.oldest;
        }
    }

    /// A response has arrived. Answers with what the oldest request fails.
    pub(super) fn on_response(
        &mut self,
        habits: Habits,
        connection: &Connection,
        packet: &Packet<'_>,
        out: &mut Outbox,
        _now: Instant,
    ) -> Option<u32> {
        let number = packet.psn().expose();
        // rxe takes what lies ahead (brief §8.1); here nobody forges any, and the model needs the window's rule.
        if psn::minus(number, self.oldest) < 0 || psn::minus(number, self.newest) >= 0 {
            return None;
        }
        let qpn = connection.qpn;
        if packet.opcode() != Opcode::Acknowledge {
            return self.on_answer(connection, packet, number, out);
        }
        match packet.aeth()?.syndrome {
            Syndrome::Ack(_) => {
                if self.acknowledge(psn::add(number, 1), qpn, out) {
                    self.retry();
                }
            }
            Syndrome::RnrNak(timer) => {
                if self.acknowledge(number, qpn, out) {
                    self.retry();
                } else if self.waits_until.is_none() {
                    self.rnr_naks += 1;
                    if self.rnr_retry < 7 && self.rnr_naks > u32::from(self.rnr_retry) {
                        return Some(13);
                    }
                    self.go_back();
                    // Rounded up to a jiffy.
                    let jiffy = if habits == Habits::Rxe { Duration::from_millis(4) } else { Duration::ZERO };
                    self.waits_until = Some(_now + timer.duration() + jiffy);
                }
            }
            Syndrome::Nak(NakCode::PsnSequenceError) => {
                self.acknowledge(number, qpn, out);
                if self.waits_until.is_none() {
                    self.retry();
                }
            }
            Syndrome::Nak(code) => {
                self.acknowledge(number, qpn, out);
                return Some(match code {
                    NakCode::InvalidRequest => 9,
                    NakCode::RemoteAccessError => 10,
                    _ => 11,
                });
            }
            Syndrome::Reserved(_) => {}
        }
        None
    }

    /// One NAK-driven retry at a time.
    fn retry(&mut self) {
        if !self.retrying && self.waits_until.is_none() {
            self.retrying = true;
            self.go_back();
        }
    }

    fn on_answer(
        &mut self,
        connection: &Connection,
        packet: &Packet<'_>,
        number: u32,
        out: &mut Outbox,
    ) -> Option<u32> {
        let at = self.works.iter().position(|work| {
            let index = psn::minus(number, work.first);
            index >= 0 && index < work.count.cast_signed()
        })?;
        let first = self.works[at].first;
        let is_read = matches!(self.works[at].request.operation, SendOperation::Read { .. });
        let fits = if is_read {
            packet.opcode().is_read_response()
        } else {
            self.works[at].has_response() && packet.opcode() == Opcode::AtomicAcknowledge
        };
        if !fits {
            return None;
        }
        if self.acknowledge(first, connection.qpn, out) || self.oldest != number {
            self.retry();
            return None;
        }
        let work = self.works.front_mut()?;
        let index = psn::minus(number, first).cast_unsigned();
        if let Some(answer) = packet.atomic_ack_eth() {
            scatter(&work.request.local, 0, &answer.original.to_ne_bytes());
        } else {
            let offset = index as usize * connection.path_mtu;
            let due = (work.length - offset).min(connection.path_mtu);
            let last = index + 1 == work.count;
            if last != (packet.opcode().is_last() || packet.opcode().is_only()) {
                return Some(7);
            }
            if packet.payload().len() != due {
                return Some(1);
            }
            scatter(&work.request.local, offset, packet.payload());
        }
        self.oldest = psn::add(number, 1);
        if index + 1 == work.count {
            work.done = true;
            let id = work.request.id;
            self.works.pop_front();
            out.complete(connection.qpn, id, CompletionKind::Send, 0);
        }
        self.progressed();
        None
    }

    /// Completes everything before `end`. True: a READ or atomic before it lacks its answer.
    fn acknowledge(&mut self, end: u32, qpn: u32, out: &mut Outbox) -> bool {
        let before = self.oldest;
        let mut unanswered = false;
        while psn::minus(end, self.oldest) > 0 {
            let Some(work) = self.works.front() else { break };
            if work.has_response() {
                unanswered = true;
                break;
            }
            let whole = psn::add(work.first, work.count);
            if psn::minus(end, whole) < 0 {
                self.oldest = end;
                break;
            }
            self.oldest = whole;
            out.complete(qpn, work.request.id, CompletionKind::Send, 0);
            self.works.pop_front();
        }
        if self.oldest != before {
            self.progressed();
        }
        unanswered
    }

    /// Answers with what the oldest request fails.
    pub(super) fn on_time(&mut self, habits: Habits, now: Instant) -> Option<u32> {
        if self.waits_until.is_some_and(|until| until <= now) {
            self.waits_until = None;
        }
        if self.waits_until.is_some() || self.deadline.is_none_or(|deadline| deadline > now) {
            return None;
        }
        self.retries += 1;
        let for_ever = habits == Habits::Rxe && self.retry_count == 7;
        if !for_ever && self.retries > u32::from(self.retry_count) {
            return Some(12);
        }
        self.retrying = false;
        self.go_back();
        None
    }
}

fn kind_of(operation: &SendOperation) -> Kind {
    match operation {
        SendOperation::Send { immediate } => Kind::Send { immediate: *immediate },
        SendOperation::SendInvalidate { rkey } => Kind::SendInvalidate { rkey: rkey.expose() },
        SendOperation::Write { remote, immediate } => {
            Kind::Write { address: remote.address, rkey: remote.rkey.expose(), immediate: *immediate }
        }
        SendOperation::Read { remote } => Kind::Read { address: remote.address, rkey: remote.rkey.expose() },
        SendOperation::CompareSwap { remote, compare, swap } => Kind::CompareSwap {
            address: remote.address,
            rkey: remote.rkey.expose(),
            compare: *compare,
            swap: *swap,
        },
        SendOperation::FetchAdd { remote, add } => {
            Kind::FetchAdd { address: remote.address, rkey: remote.rkey.expose(), add: *add }
        }
        SendOperation::Bind { .. } | SendOperation::Invalidate { .. } => unreachable!("it has no windows"),
    }
}
