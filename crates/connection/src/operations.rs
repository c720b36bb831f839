//! What applications give to be sent, and what is checked of it first.

use std::borrow::Cow;

use secure_rdma_rdma::{Error, ErrorCode, Result};

use crate::channel::{Channel, Life, State, over};
use crate::outgoing::Body;
use crate::transmit::MESSAGE_COST;

impl Channel {
    pub(crate) fn send(&self, message: &[u8]) -> Result<u64> {
        self.with(|state, after| {
            may_send(&state.life)?;
            let mut waiting = state.transmit.queued_cost();
            self.check_message(state, message, &mut waiting)?;
            let ids =
                self.give_out(state, after, [Body::Message { bytes: Cow::Borrowed(message), sent: 0 }])?;
            Ok(ids.start)
        })
    }

    /// Refuses a message that is too long, or too much with what is `waiting` already.
    fn check_message(&self, state: &State, message: &[u8], waiting: &mut usize) -> Result<()> {
        let most = state.transmit.max_message;
        if message.len() as u64 > most {
            return Err(Error::new(
                ErrorCode::MessageTooLarge,
                format!(
                    "a message of {} bytes is longer than the peer's maxMessageSize of {most} bytes: split it, or raise \
                     maxMessageSize on the peer",
                    message.len(),
                ),
            ));
        }
        // A message that would be posted at once does not count: a single one may be longer than the buffer.
        if *waiting > 0 && *waiting + message.len() > self.options.send_buffer_size {
            return Err(Error::new(
                ErrorCode::SendBufferFull,
                format!(
                    "{waiting} bytes of messages already wait to be sent and sendBufferSize is {} (each message counts 64 \
                     bytes besides its own): await earlier sends first",
                    self.options.send_buffer_size
                ),
            ));
        }
        *waiting += message.len() + MESSAGE_COST;
        Ok(())
    }
}

fn may_send(life: &Life) -> Result<()> {
    match life {
        Life::Open => Ok(()),
        Life::Ended | Life::Closing { .. } => {
            Err(Error::new(ErrorCode::Ended, "nothing can be sent after end() or close() of this connection"))
        }
        life => Err(over(life)),
    }
}
