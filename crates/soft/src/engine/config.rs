//! What an engine and its queue pairs are made with.

use std::time::Duration;

use secure_rdma_rdma::{Error, ErrorCode, Result};

use super::defects::Defect;
use super::receive_queue::ReceiveQueueId;

/// How an engine behaves. The defaults are those of the device.
#[derive(Clone, Debug)]
pub struct Config {
    /// Unacknowledged PSNs that a queue pair begins with, from 1.
    pub initial_window: u32,
    /// The most unacknowledged PSNs that a queue pair comes to. A blind response meets an outstanding PSN with a
    /// chance of this in 2^24.
    pub max_window: u32,
    /// At least every how many packets within a message an acknowledgement is asked for.
    pub ack_interval: u32,
    /// Whether requests are repeated as soon as the measured round trip allows, and not only when `timeout` has
    /// passed. When a queue pair gives up is the same either way.
    pub adaptive_timeout: bool,
    /// The shortest adaptive timeout.
    pub min_timeout: Duration,
    /// How long the acknowledgement of a short message that is answered at once may stay behind, so that one stands for
    /// several such messages. Only while a thread looks again and again ([`super::Engine::set_watched`]); 0: never.
    pub ack_hold: Duration,
    /// NAKs for missing packets that a queue pair sends per second at most.
    pub max_nak_rate: u32,
    /// The least time between two CNPs of a queue pair (DCQCN's N).
    pub cnp_interval: Duration,
    /// Whether data packets are marked ECT(0) where the path's traffic class leaves the ECN bits zero.
    pub ecn: bool,
    /// The most segments in one batch, whatever [`super::Engine::poll_transmit`] is asked for. Linux takes 128, older
    /// kernels 64.
    pub max_segments: usize,
    /// Whether batches go out as such. The packets of a long message then take less of a receive buffer.
    pub batches: bool,
    /// Bytes that the own socket's receive buffer holds: what READs of all queue pairs ask for at one time stays
    /// below. `None`: no limit is known.
    pub receive_buffer: Option<u32>,
    /// Queue pairs that can exist.
    pub max_queue_pairs: u32,
    /// Tests only: what this engine gets wrong.
    #[cfg(feature = "defects")]
    pub defect: Option<Defect>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            initial_window: 64,
            max_window: 128,
            ack_interval: 32,
            adaptive_timeout: true,
            min_timeout: Duration::from_millis(2),
            ack_hold: Duration::from_micros(20),
            max_nak_rate: 1000,
            cnp_interval: Duration::from_micros(50),
            ecn: true,
            max_segments: 64,
            batches: true,
            receive_buffer: None,
            max_queue_pairs: 65_536,
            #[cfg(feature = "defects")]
            defect: None,
        }
    }
}

impl Config {
    /// Whether this defect was planted.
    #[cfg(feature = "defects")]
    pub(super) fn planted(&self, defect: Defect) -> bool {
        self.defect == Some(defect)
    }

    /// None can be planted.
    #[cfg(not(feature = "defects"))]
    #[expect(clippy::unused_self, reason = "it has one with the feature")]
    pub(super) const fn planted(&self, _: Defect) -> bool {
        false
    }

    /// # Errors
    /// [`ErrorCode::InvalidArgument`] for values that make no sense.
    pub(super) fn check(&self) -> Result<()> {
        let wrong = if self.initial_window == 0 || self.max_window == 0 {
            "a window of 0"
        } else if self.max_window > MOST_WINDOW {
            "a window of more than 2^16 PSNs"
        } else if self.ack_interval == 0 || self.max_segments == 0 {
            "an interval of acknowledgement or a number of segments of 0"
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorCode::InvalidArgument, format!("the engine's configuration has {wrong}")))
    }
}

/// Far below the 2^23 PSNs at which old and new can no longer be told apart (IBTA 9.7.2).
const MOST_WINDOW: u32 = 1 << 16;

/// What a queue pair is made with.
#[derive(Clone, Copy, Debug)]
pub struct QueuePairCaps {
    /// Send work requests that can be outstanding, including those whose completion was not polled yet.
    pub max_send: u32,
    /// Receive work requests that can be outstanding, likewise: on the queue pair's own receive queue, or those of the
    /// shared one that this queue pair may consume before their completions are polled.
    pub max_receive: u32,
    /// Scatter/gather entries per work request.
    pub max_sge: u32,
    /// The shared receive queue, where there is one.
    pub receive_queue: Option<ReceiveQueueId>,
}
