//! What a responder must do with each packet, as the brief's §6 says it; written apart from the engine.
//!
//! The model sees every packet that reaches the engine, and every packet that the engine sends. What a request does to
//! memory and to the receive queue is decided by the requests alone, so the model knows it exactly. When answers are
//! sent is up to the engine; what they may say is not.

mod execute;
mod response;

use std::collections::{HashMap, VecDeque};

use secure_rdma_rdma::Access;
use secure_rdma_roce::{Opcode, Packet};

use super::memory::{Piece, Shadows};
use super::network::Time;
use super::random::psn;
use super::requests::{Receive, Received};

/// Any status but success will do.
pub const ANY_ERROR: u32 = u32::MAX;

/// What an R_Key opens at a host.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    pub region: usize,
    pub offset: usize,
    pub length: usize,
    pub access: Access,
    /// Of a window: the queue pair that it is bound on.
    pub bound: Option<usize>,
    /// Of a window: which.
    pub window: Option<usize>,
}

/// What of a host a responder works with.
pub struct Hosted<'a> {
    pub shadows: &'a mut Shadows,
    pub openings: &'a mut HashMap<u32, Opening>,
    pub receives: &'a mut VecDeque<Receive>,
    pub endpoint: usize,
}

impl Hosted<'_> {
    /// The bytes that a key opens for a request (§6 step 6).
    fn look_up(&self, rkey: u32, address: u64, length: usize, needed: Access) -> Option<Piece> {
        let opening = self.openings.get(&rkey)?;
        if opening.bound.is_some_and(|bound| bound != self.endpoint) || !opening.access.contains(needed) {
            return None;
        }
        let shadow = &self.shadows.regions[opening.region];
        let first = i128::from(shadow.address) + opening.offset as i128;
        let from = i128::from(address) - first;
        let inside = from >= 0 && from + length as i128 <= opening.length as i128;
        inside.then(|| Piece { region: opening.region, offset: opening.offset + from as usize, length })
    }
}

enum Message {
    None,
    Send { receive: Receive, offset: usize },
    Write { rkey: u32, address: u64, left: usize, total: usize },
}

/// A READ or atomic that was executed.
#[derive(Clone, Copy, Debug)]
struct Served {
    first: u32,
    count: u32,
    answered: u32,
    /// Whether it may be that an answer waits to be sent.
    pending: bool,
    kind: ServedKind,
}

#[derive(Clone, Copy, Debug)]
enum ServedKind {
    Read { rkey: u32, address: u64, length: usize },
    Atomic { original: u64 },
}

/// What a packet did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Executed,
    Duplicate,
    Gap,
    NotReady,
    Refused(u8),
    /// All entries of the resource table had answers to send: as if it had been lost.
    Dropped,
}

/// The model of a queue pair's responder.
pub struct Responder {
    pub expected: u32,
    pub msn: u32,
    pub path_mtu: usize,
    pub access: Access,
    pub resources: usize,
    pub rnr_timer: u8,
    message: Message,
    /// The receive that a WRITE with immediate has taken.
    immediate: Option<Receive>,
    served: VecDeque<Served>,
    /// Expected PSNs for which a NAK 0x60 may be sent, once each.
    gaps: Vec<u32>,
    /// Whether that of the present gap is among them, or was sent.
    gap_open: bool,
    /// RNR NAKs that may be sent, by PSN.
    not_ready: Vec<u32>,
    /// The NAK with which the queue pair ended.
    fatal: Option<(u32, u8)>,
    /// A duplicate of a READ whose key is gone may end the queue pair.
    pub may_fail: bool,
    /// A message was longer than the receive that it met.
    too_long: bool,
    /// With which NAK, and which status of the receive, that ends: rxe has its own.
    pub too_long_answer: (u8, u32),
    newest_msn: u32,
    /// NAKs 0x60 in a second at most, and when the last were sent.
    pub max_nak_rate: u32,
    naks: VecDeque<Time>,
    /// The response sent last: PSN.
    last_response: Option<u32>,
    /// Completions that the engine has to give, in order.
    pub received: VecDeque<Received>,
    pub executed: u64,
}

impl Responder {
    pub fn new(expected: u32, path_mtu: usize, access: Access, resources: u8, rnr_timer: u8) -> Self {
        Self {
            expected,
            msn: 0,
            path_mtu,
            access,
            resources: usize::from(resources),
            rnr_timer,
            message: Message::None,
            immediate: None,
            served: VecDeque::new(),
            gaps: Vec::new(),
            gap_open: false,
            not_ready: Vec::new(),
            fatal: None,
            may_fail: false,
            too_long: false,
            too_long_answer: (0x61, 1),
            newest_msn: 0,
            max_nak_rate: u32::MAX,
            naks: VecDeque::new(),
            last_response: None,
            received: VecDeque::new(),
            executed: 0,
        }
    }

    /// The receive that a SEND in progress has taken.
    pub fn taken(&mut self) -> Option<Receive> {
        match std::mem::replace(&mut self.message, Message::None) {
            Message::Send { receive, .. } => Some(receive),
            _ => self.immediate.take(),
        }
    }

    /// A valid request has arrived. `served` tells whether the engine has counted a READ or an atomic as executed.
    pub fn on_request(&mut self, packet: &Packet<'_>, served: bool, host: &mut Hosted<'_>) -> Outcome {
        let number = packet.psn().expose();
        let distance = psn::minus(number, self.expected);
        if distance > 0 {
            if !self.gap_open {
                self.gap_open = true;
                self.gaps.push(self.expected);
            }
            return Outcome::Gap;
        }
        if distance < 0 {
            self.on_duplicate(packet, host);
            return Outcome::Duplicate;
        }
        self.gap_open = false;
        let outcome = self.execute(packet, served, host);
        match outcome {
            Outcome::Executed => self.executed += 1,
            Outcome::NotReady => self.not_ready.push(number),
            Outcome::Refused(code) => {
                self.fatal = Some((number, code));
                if let Some(receive) = self.taken() {
                    let status = if self.too_long { self.too_long_answer.1 } else { ANY_ERROR };
                    self.complete(host, receive, status, 0, None, None, false);
                }
            }
            Outcome::Duplicate | Outcome::Gap | Outcome::Dropped => {}
        }
        outcome
    }

    #[expect(clippy::too_many_arguments)]
    fn complete(
        &mut self,
        host: &mut Hosted<'_>,
        receive: Receive,
        status: u32,
        byte_len: usize,
        immediate: Option<u32>,
        invalidated: Option<u32>,
        by_write: bool,
    ) {
        host.shadows.finished(&receive.local);
        let byte_len = byte_len as u32;
        self.received.push_back(Received {
            id: receive.id,
            status,
            byte_len,
            immediate,
            invalidated,
            by_write,
        });
    }

    fn on_duplicate(&mut self, packet: &Packet<'_>, host: &Hosted<'_>) {
        let number = packet.psn().expose();
        for served in &mut self.served {
            let index = psn::minus(number, served.first);
            served.pending |= index >= 0 && index < served.count.cast_signed();
        }
        if packet.opcode() == Opcode::ReadRequest
            && let Some(reth) = packet.reth()
            && reth.dma_length > 0
        {
            let length = reth.dma_length as usize;
            let open = host.look_up(reth.rkey.expose(), reth.virtual_address, length, Access::REMOTE_READ);
            self.may_fail |= open.is_none();
        }
    }

    /// Whether a READ that may still have to be answered has lost its key.
    pub fn has_lost_key(&self, openings: &HashMap<u32, Opening>) -> bool {
        self.served.iter().any(|served| match served.kind {
            ServedKind::Read { rkey, length, .. } => {
                served.pending && length > 0 && !openings.contains_key(&rkey)
            }
            ServedKind::Atomic { .. } => false,
        })
    }
}
