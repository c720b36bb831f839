//! The receiving half of a connection: segments into messages, messages and immediates to whoever asks.

use std::collections::VecDeque;

use secure_rdma_rdma::{Completion, CompletionKind, PathMtu, Result};

use crate::control_messages::ControlMessage;
use crate::credit::Credits;
use crate::framing::{Header, Kind, LENGTH_PREFIX, MESSAGE_COST, Packing, violation};
use crate::pool::Reservation;
use crate::ready::Ready;

/// The most that is allocated on the word of a FIRST segment alone.
const MOST_AHEAD: usize = 1 << 20;

/// What a connection has received.
#[derive(Debug)]
pub(crate) struct Receive {
    ready: Ready,
    /// What WRITEs with immediate have brought.
    immediates: VecDeque<u32>,
    ready_cost: usize,
    /// The begin of a longer message, and its whole length.
    partial: Option<(Vec<u8>, u64)>,
    ended: bool,
    proof_seen: bool,
    /// Segments and immediates of the peer that were taken.
    segments: u64,
    path_mtu: PathMtu,
    max_message: u64,
    most_ready: usize,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// What a segment brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// Nothing that anyone waits for.
    Nothing,
    /// A whole message is ready.
    Message,
    /// The immediate of a WRITE is ready.
    Immediate,
    /// The peer has ended its direction.
    End,
    /// The peer's proof of path.
    Proof,
}

impl Receive {
    pub(crate) fn new(max_message: u64, most_ready: usize) -> Self {
        Self {
            ready: Ready::default(),
            immediates: VecDeque::new(),
            ready_cost: 0,
            partial: None,
            ended: false,
            proof_seen: false,
            segments: 0,
            path_mtu: PathMtu::Bytes256,
            max_message,
            most_ready,
            messages: 0,
            bytes: 0,
        }
    }

    pub(crate) fn adopt(&mut self, path_mtu: PathMtu) {
        self.path_mtu = path_mtu;
    }

    /// Whether the peer has ended its direction; messages may still be ready.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Messages that wait to be read.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Immediates that wait to be read.
    pub(crate) fn immediates(&self) -> usize {
        self.immediates.len()
    }

    /// Bytes that waiting messages hold.
    pub(crate) fn ready_bytes(&self) -> usize {
        self.ready_cost - (self.ready.len() + self.immediates.len()) * MESSAGE_COST
    }

    /// What the peer is told of its segments.
    pub(crate) fn received(&self) -> ControlMessage {
        ControlMessage::Received(self.segments)
    }

    /// Takes the segment of a successful receive completion. The buffer may be posted again afterwards.
    pub(crate) fn segment(
        &mut self,
        completion: &Completion,
        credits: &mut Credits,
        buffers: &Reservation,
    ) -> Result<Arrived> {
        self.segments += 1;
        if completion.invalidated.is_some() {
            return Err(violation("a SEND with invalidate"));
        }
        let Some(immediate) = completion.immediate else {
            return Err(violation("a segment without an immediate"));
        };
        if completion.kind == CompletionKind::ReceiveWriteImmediate {
            return self.write_immediate(immediate, credits);
        }
        let header = Header::from_immediate(immediate)?;
        let length = completion.byte_len as usize;
        credits.peer_used()?;
        credits.receive(header.credits)?;
        if !self.proof_seen && header.kind != Kind::Proof {
            return Err(violation("a segment before its proof of path"));
        }
        if self.ended && header.kind != Kind::Credit {
            return Err(violation("a segment after its end"));
        }
        let arrived = match header.kind {
            Kind::Credit | Kind::End | Kind::Proof => self.control_segment(header.kind, length)?,
            Kind::Only | Kind::First | Kind::Packed if self.partial.is_some() => {
                return Err(violation("a new message before the end of the last"));
            }
            Kind::Only => {
                self.check_length(length as u64)?;
                let mut message = Vec::new();
                buffers.take(completion.id, 0, length, &mut message)?;
                self.finish(message)
            }
            Kind::Packed => self.packed_segment(completion, length, buffers)?,
            Kind::First => {
                self.partial = Some(self.first_segment(completion, length, buffers)?);
                Arrived::Nothing
            }
            Kind::Middle | Kind::Last => {
                self.next_segment(completion, header.kind == Kind::Last, length, buffers)?
            }
        };
        let of_a_message = !matches!(header.kind, Kind::Credit | Kind::End | Kind::Proof);
        credits.buffer_free(of_a_message && self.ready_cost >= self.most_ready);
        Ok(arrived)
    }

    /// A WRITE with immediate has been carried out: the 32 bits are the application's.
    fn write_immediate(&mut self, immediate: u32, credits: &mut Credits) -> Result<Arrived> {
        credits.peer_used()?;
        if !self.proof_seen {
            return Err(violation("a WRITE with immediate before its proof of path"));
        }
        if self.ended {
            return Err(violation("a WRITE with immediate after its end"));
        }
        if self.partial.is_some() {
            return Err(violation("a WRITE with immediate within a message"));
        }
        self.ready_cost += MESSAGE_COST;
        self.immediates.push_back(immediate);
        credits.buffer_free(self.ready_cost >= self.most_ready);
        Ok(Arrived::Immediate)
    }

    fn control_segment(&mut self, kind: Kind, length: usize) -> Result<Arrived> {
        match kind {
            Kind::Proof if self.proof_seen => Err(violation("a second proof of path")),
            Kind::Proof if length != self.path_mtu.bytes() => Err(violation(format!(
                "a proof of path of {length} bytes where the path MTU is {}",
                self.path_mtu
            ))),
            Kind::Proof => {
                self.proof_seen = true;
                Ok(Arrived::Proof)
            }
            _ if length != 0 => Err(violation("bytes where none belong")),
            Kind::End if self.partial.is_some() => Err(violation("its end within a message")),
            Kind::End => {
                self.ended = true;
                Ok(Arrived::End)
            }
            _ => Ok(Arrived::Nothing),
        }
    }

    fn packed_segment(
        &mut self,
        completion: &Completion,
        length: usize,
        buffers: &Reservation,
    ) -> Result<Arrived> {
        let mut bytes = Vec::new();
        buffers.take(completion.id, 0, length, &mut bytes)?;
        let lengths = Packing::lengths(&bytes, buffers.buffer_size() as usize)?;
        for message in &lengths {
            self.check_length((*message).into())?;
            self.count((*message).into());
        }
        self.ready.push_packed(bytes, lengths);
        Ok(Arrived::Message)
    }

    fn first_segment(
        &self,
        completion: &Completion,
        length: usize,
        buffers: &Reservation,
    ) -> Result<(Vec<u8>, u64)> {
        let mut prefix = Vec::with_capacity(LENGTH_PREFIX);
        if length > LENGTH_PREFIX {
            buffers.take(completion.id, 0, LENGTH_PREFIX, &mut prefix)?;
        }
        let Ok(prefix) = <[u8; LENGTH_PREFIX]>::try_from(prefix) else {
            return Err(violation("the begin of a message without its length"));
        };
        let whole = u64::from_le_bytes(prefix);
        self.check_length(whole)?;
        if (length - LENGTH_PREFIX) as u64 >= whole {
            return Err(violation("the begin of a message that holds all of it"));
        }
        let mut message = Vec::with_capacity(usize::try_from(whole).unwrap_or(usize::MAX).min(MOST_AHEAD));
        buffers.take(completion.id, LENGTH_PREFIX, length, &mut message)?;
        Ok((message, whole))
    }

    fn next_segment(
        &mut self,
        completion: &Completion,
        last: bool,
        length: usize,
        buffers: &Reservation,
    ) -> Result<Arrived> {
        let Some((mut message, whole)) = self.partial.take() else {
            return Err(violation("the rest of a message that has not begun"));
        };
        if length == 0 {
            return Err(violation("a part of a message that holds nothing"));
        }
        buffers.take(completion.id, 0, length, &mut message)?;
        let so_far = message.len() as u64;
        match (so_far.cmp(&whole), last) {
            (std::cmp::Ordering::Equal, true) => Ok(self.finish(message)),
            (std::cmp::Ordering::Less, false) => {
                self.partial = Some((message, whole));
                Ok(Arrived::Nothing)
            }
            _ => Err(violation(format!(
                "a message of another length than the {whole} bytes that it announced"
            ))),
        }
    }

    fn check_length(&self, length: u64) -> Result<()> {
        if length > self.max_message {
            return Err(violation(format!(
                "a message of {length} bytes where maxMessageSize is {}",
                self.max_message
            )));
        }
        Ok(())
    }

    fn finish(&mut self, message: Vec<u8>) -> Arrived {
        self.count(message.len());
        self.ready.push(message);
        Arrived::Message
    }

    fn count(&mut self, length: usize) {
        self.messages += 1;
        self.bytes += length as u64;
        self.ready_cost += length + MESSAGE_COST;
    }

    /// The next message, if one is ready.
    pub(crate) fn next(&self) -> Option<&[u8]> {
        self.ready.front()
    }

    /// Takes the next message, if one is ready. Gives withheld credits free when enough has been read.
    pub(crate) fn take(&mut self, credits: &mut Credits) -> Option<Vec<u8>> {
        let message = self.ready.pop()?;
        self.taken(message.len(), credits);
        Some(message)
    }

    /// The same for who has copied it.
    pub(crate) fn skip(&mut self, credits: &mut Credits) {
        if let Some(length) = self.ready.skip() {
            self.taken(length, credits);
        }
    }

    /// The next immediate, if one is ready.
    pub(crate) fn take_immediate(&mut self, credits: &mut Credits) -> Option<u32> {
        let immediate = self.immediates.pop_front()?;
        self.taken(0, credits);
        Some(immediate)
    }

    fn taken(&mut self, bytes: usize, credits: &mut Credits) {
        self.ready_cost -= bytes + MESSAGE_COST;
        if self.ready_cost <= self.most_ready / 2 {
            credits.release_withheld();
        }
    }
}
