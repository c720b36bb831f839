//! The transport: a RoCEv2 reliable connection engine without socket, clock or thread.
//!
//! Everything that it knows comes in by a call, and nothing happens between calls. A caller
//!
//! 1. hands in what arrived ([`Engine::handle_packet`]) and the time when it has come to [`Engine::poll_timeout`]
//!    ([`Engine::handle_timeout`]),
//! 2. then asks for what is to be sent ([`Engine::poll_transmit`]) until there is no more,
//! 3. and for what is done ([`Engine::poll_completions`], [`Engine::poll_event`]),
//! 4. and lets go of what finished requests held ([`Engine::take_retired`]) where no lock is held.
//!
//! The same calls with the same entropy give the same answers.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use secure_rdma_rdma::{Entropy, Error, ErrorCode, Qpn, Result};

mod acknowledge;
mod admit;
mod batching;
mod completer;
mod config;
mod congestion;
mod control_path;
mod counters;
mod data_path;
mod defects;
mod duplicates;
mod execute;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod keys;
mod local;
mod local_operations;
mod numbers;
mod packetizer;
mod path;
mod posting;
mod queue_pair;
mod receive_queue;
mod regions;
mod requester;
mod requests;
mod resources;
mod responder;
mod retired;
mod retransmission;
mod schedule;
mod sequence;
mod states;
#[cfg(test)]
mod tests;
mod timers;
mod window;
mod work;

pub use config::{Config, QueuePairCaps};
pub use counters::Counters;
#[cfg(feature = "defects")]
pub use defects::Defect;
pub use path::{Arrival, Path, Transmit};
pub use receive_queue::ReceiveQueueId;
pub use regions::{Keys, WindowId};
pub use retired::Retired;

use numbers::QueuePairNumbers;
use queue_pair::{QueuePair, Shared};
use receive_queue::ReceiveQueues;
use regions::Regions;
use schedule::Schedule;
use timers::Timers;
use window::{BudgetId, Budgets};

/// One device's transport.
pub struct Engine {
    entropy: Arc<dyn Entropy>,
    numbers: QueuePairNumbers,
    queue_pairs: FxHashMap<Qpn, Box<QueuePair>>,
    shared: Shared,
    /// The latest time that was told.
    now: Option<Instant>,
}

impl Engine {
    /// An engine without queue pairs.
    ///
    /// # Errors
    /// [`ErrorCode::Entropy`]; [`ErrorCode::InvalidArgument`] for a configuration that makes no sense.
    pub fn new(config: Config, entropy: Arc<dyn Entropy>) -> Result<Self> {
        config.check()?;
        let shared = Shared {
            counters: Counters::default(),
            regions: Regions::new(Arc::clone(&entropy))?,
            receive_queues: ReceiveQueues::default(),
            budgets: Budgets::new(config.receive_buffer),
            unpaced: 0,
            backlog: false,
            gaps: Vec::new(),
            schedule: Schedule::default(),
            timers: Timers::default(),
            events: VecDeque::new(),
            retired: Retired::default(),
            ack_hold: Duration::ZERO,
            config,
        };
        let queue_pairs = FxHashMap::default();
        Ok(Self { entropy, numbers: QueuePairNumbers::new(), queue_pairs, shared, now: None })
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn told(&mut self, now: Instant) {
        self.now = Some(self.now.map_or(now, |latest| latest.max(now)));
    }

    /// Gives a queue pair that waits for room in a receive buffer its turn, where there is room again.
    #[inline]
    fn let_in(&mut self, peer: Option<BudgetId>) {
        if self.shared.budgets.is_waited_for() {
            self.let_one_in(peer);
        }
    }

    #[cold]
    fn let_one_in(&mut self, peer: Option<BudgetId>) {
        for id in peer.into_iter().chain([BudgetId::Own]) {
            while let Some(qpn) = self.shared.budgets.next_waiting(id) {
                if let Some(queue_pair) = self.queue_pairs.get_mut(&qpn) {
                    queue_pair.standing.waiting = false;
                    self.shared.schedule.ready(qpn, &mut queue_pair.standing);
                    break;
                }
            }
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("queue_pairs", &self.queue_pairs.len()).finish_non_exhaustive()
    }
}

fn unknown() -> Error {
    Error::new(ErrorCode::InvalidArgument, "the queue pair has been destroyed")
}
