//! The states of a queue pair.

use std::fmt;

/// The state of a queue pair. The numbers are those of `enum ibv_qp_state`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum QpState {
    /// Just created: nothing can be posted.
    Reset = 0,
    /// Receives can be posted; packets are dropped in silence.
    Init = 1,
    /// Ready to receive: answers requests, sends none of its own.
    Rtr = 2,
    /// Ready to send: the working state.
    Rts = 3,
    /// Send queue drained: finishes what it began, begins nothing.
    Sqd = 4,
    /// Send queue error. A reliable connection never enters it.
    Sqe = 5,
    /// Error: everything posted completes with a flush error.
    Err = 6,
}

impl QpState {
    /// All seven, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Reset, Self::Init, Self::Rtr, Self::Rts, Self::Sqd, Self::Sqe, Self::Err];

    /// From the number of `enum ibv_qp_state`.
    #[must_use]
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| u32::from(*state as u8) == code)
    }
}

impl fmt::Display for QpState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reset => "RESET",
            Self::Init => "INIT",
            Self::Rtr => "RTR",
            Self::Rts => "RTS",
            Self::Sqd => "SQD",
            Self::Sqe => "SQE",
            Self::Err => "ERR",
        })
    }
}
