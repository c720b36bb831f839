//! All news of a connection in one look, for who must ask for each of them at a price: a language on the other side of FFI.

use crate::channel::{Channel, Life};

/// What [`crate::Connection::look`] finds. All of it is of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// As [`crate::Connection::done`] tells.
    pub done: u64,
    /// Whether [`crate::Connection::outcomes`] has any.
    pub has_outcomes: bool,
    /// Whether [`crate::Connection::receive`] would give something else than `Pending`: a message that was declined, the end
    /// of the peer's direction, or the failure of the connection.
    pub receives: bool,
    /// Whether the connection is over; [`crate::Connection::closed`] then tells how.
    pub is_over: bool,
}

impl Channel {
    pub(crate) fn look(&self, mut take: impl FnMut(&[u8]) -> bool) -> Look {
        self.with(|state, after| {
            while state.receive.next().is_some_and(&mut take) {
                state.receive.skip(&mut state.credits);
            }
            if state.credits.should_return() {
                self.pump(state, after);
            }
            let is_over = matches!(state.life, Life::Over(_));
            Look {
                done: state.transmit.done(),
                has_outcomes: state.transmit.has_outcomes(),
                receives: state.receive.ready() > 0 || state.receive.ended() || is_over,
                is_over,
            }
        })
    }
}
