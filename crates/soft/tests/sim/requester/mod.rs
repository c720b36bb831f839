//! What a requester may send, and what its work requests may end with, as the brief's §7 says it; written apart from the
//! engine.

mod request;
mod response;

use std::collections::VecDeque;

use super::drops::Reason;
use super::network::Time;
use super::random::psn;
use super::requests::Posted;

pub use request::opcode_of;

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
