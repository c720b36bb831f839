//! Why packets are dropped, as the model judges it: the engine's counters must say the same.

use secure_rdma_roce::Malformed;
use secure_rdma_soft::engine::Counters;

/// A reason, and the counter that stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    Length,
    Version,
    Opcode,
    Transport,
    QueuePair,
    State,
    Address,
    SourcePort,
    PKey,
    Icrc,
    ResponsePsn,
    ResponseKind,
    Syndrome,
    // Not dropped, but counted alike.
    OutOfSequence,
    Duplicate,
}

/// How many packets met each reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reasons([u64; 15]);

impl Reasons {
    pub fn count(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let mut sum = self.0;
        sum.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
        Self(sum)
    }

    /// What an engine has counted.
    pub fn counted(counters: &Counters) -> Self {
        Self([
            counters.dropped_length,
            counters.dropped_version,
            counters.dropped_opcode,
            counters.dropped_transport,
            counters.dropped_qpn,
            counters.dropped_state,
            counters.dropped_address,
            counters.dropped_source_port,
            counters.dropped_pkey,
            counters.dropped_icrc,
            counters.dropped_response_psn,
            counters.dropped_response_kind,
            counters.dropped_syndrome,
            counters.out_of_seq_request,
            counters.duplicate_request,
        ])
    }
}

impl From<Malformed> for Reason {
    fn from(malformed: Malformed) -> Self {
        match malformed {
            Malformed::TooShort(_) | Malformed::CutOff { .. } => Self::Length,
            Malformed::TransportVersion(_) => Self::Version,
            Malformed::OtherTransport(_) => Self::Transport,
            Malformed::UnknownOpcode(_) => Self::Opcode,
        }
    }
}
