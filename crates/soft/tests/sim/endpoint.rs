//! One queue pair of a simulated connection, and what the model knows of it.

use std::collections::VecDeque;

use secure_rdma_rdma::{Access, Qpn};

use super::network::Time;
use super::random::psn;
use super::requester::{Requester, Terms};
use super::requests::{Receive, Received};
use super::responder::Responder;

/// Where a queue pair stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Connected: RTS.
    Up,
    /// In ERR.
    Error,
    /// Between two lives.
    Down,
}

/// One end of a connection.
pub struct Endpoint {
    pub host: usize,
    /// The endpoint at the other end.
    pub peer: usize,
    pub qpn: Qpn,
    pub stage: Stage,
    /// UDP source ports: of what it sends, and of what it accepts if it looks.
    pub source_port: u16,
    pub expects_port: Option<u16>,
    /// Whether only IPv4 IDs of a batch are accepted.
    pub sequential_ids: bool,
    pub requester: Requester,
    pub responder: Responder,
    /// The own receive queue.
    pub receives: VecDeque<Receive>,
    /// Whether the application or a fatal refusal has moved it to ERR, so that flushes are due without a failure.
    pub flushing: bool,
    pub in_error_since: Time,
    pub plan: Plan,
    /// What this endpoint may use of the peer's memory: granted by it, and not taken back.
    pub grants: Vec<Grant>,
    /// Address and key of grants that were ended.
    pub ended: Vec<(u64, u32)>,
    /// Whether a queue pair exists.
    pub exists: bool,
    /// Whether an [`super::world::Action::Receives`] is due.
    pub receives_due: bool,
    /// Whether it was connected before.
    pub lived: bool,
}

/// What all lives of an endpoint have in common.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub terms: Terms,
    pub access: Access,
    pub resources: u8,
    pub rnr_timer: u8,
    pub max_send: usize,
    pub max_receive: usize,
    pub receive_buffer: Option<u32>,
}

/// A right to a range of the peer's memory.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    pub rkey: u32,
    pub address: u64,
    pub length: usize,
    pub write: bool,
    pub read: bool,
    pub atomic: bool,
    /// Whether it is that of a window, which can be invalidated.
    pub window: bool,
}

impl Endpoint {
    /// How many send requests can be posted.
    pub fn room(&self) -> usize {
        self.plan.max_send - self.requester.sends.len()
    }

    /// What a queue pair in RESET knows.
    pub fn forget(&mut self) {
        self.stage = Stage::Down;
        self.flushing = false;
        self.receives.clear();
        self.grants.clear();
        self.ended.clear();
        self.requester.sends.clear();
        self.responder.received.clear();
    }

    /// Whether a PSN is far from all that this life uses.
    pub fn is_far(&self, number: u32) -> bool {
        let far = |from: u32| psn::minus(number, from).unsigned_abs() > 1 << 20;
        far(self.requester.oldest) && far(self.responder.expected)
    }

    /// Checks that a completion of the receive queue is the one that is due.
    pub fn check_received(&mut self, due: Option<Received>, got: Received) -> Result<(), String> {
        let Some(due) = due else {
            return Err(format!("a receive completes ({}) that is not due", got.status));
        };
        if due.id != got.id {
            return Err(format!("receive {} completes instead of {}", got.id, due.id));
        }
        if due.status != 0 {
            let fits =
                got.status == due.status || due.status == super::responder::ANY_ERROR && got.status != 0;
            return fits
                .then_some(())
                .ok_or_else(|| format!("a receive ends with {} instead of {}", got.status, due.status));
        }
        if got != due {
            return Err(format!("a receive completes as {got:?} instead of {due:?}"));
        }
        Ok(())
    }
}
