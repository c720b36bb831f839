//! What two connections tell each other over the control channel: of grants, and what has arrived.
//!
//! ```text
//! RECEIVED 4  segments (8)
//! ```
//!
//! Big-endian, and exactly its length; the messages of grants are in [`crate::grant_messages`]. RECEIVED counts the
//! segments and immediates of the peer that this side has taken, from the first of the connection on. It goes before CLOSE:
//! acknowledgements that are on their way, or lost, when the queue pairs end are then not missed.

use secure_rdma_rdma::Result;

use crate::framing::violation;
use crate::grant_messages::GrantMessage;

const RECEIVED: u8 = 4;

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ControlMessage {
    Grant(GrantMessage),
    /// How many of its receives the teller has seen used.
    Received(u64),
}

impl ControlMessage {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Grant(message) => message.encode(),
            Self::Received(count) => [&[RECEIVED][..], &count.to_be_bytes()].concat(),
        }
    }

    /// # Errors
    /// `ERR_RDMA_PEER_VIOLATION` for anything but what [`ControlMessage::encode`] gives.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let Some((&RECEIVED, count)) = bytes.split_first() else {
            return GrantMessage::decode(bytes).map(Self::Grant);
        };
        let count =
            count.try_into().map_err(|_| violation("a count of segments that is not 8 bytes long"))?;
        Ok(Self::Received(u64::from_be_bytes(count)))
    }
}

#[cfg(test)]
mod tests {
    use secure_rdma_rdma::ErrorCode;

    use super::*;

    #[test]
    fn every_message_survives_its_encoding() {
        assert_eq!(ControlMessage::Received(0x0102).encode(), [4, 0, 0, 0, 0, 0, 0, 1, 2]);
        for message in [
            ControlMessage::Received(0),
            ControlMessage::Received(u64::MAX),
            ControlMessage::Grant(GrantMessage::Revoke(7)),
        ] {
            assert_eq!(ControlMessage::decode(&message.encode()).unwrap(), message);
        }
    }

    #[test]
    fn whatever_else_comes_is_a_violation() {
        for bytes in
            [&[][..], &[4], &[4, 0, 0, 0, 0, 0, 0, 0], &[4, 0, 0, 0, 0, 0, 0, 0, 1, 2], &[5, 0, 0, 0, 1]]
        {
            assert_eq!(ControlMessage::decode(bytes).unwrap_err().code(), ErrorCode::PeerViolation);
        }
    }
}
