//! The responder: what a request does to the queue pair that it meets. The order of the checks is that of the
//! kernel's rxe, since it decides which NAK the peer sees.

use super::region::{Opened, length, scatter, writable};
use super::requester::{Answer, Sender, packets};
use super::state::{QpKey, failed};
use super::world::World;
use crate::{
    Access, AsyncEvent, Completion, CompletionKind, RKey, ReceiveRequest, RemoteSlice, SendOperation,
    SendRequest, WcStatus,
};

/// NAK 0x61 and 0x62, and 0x63, as the requester's statuses.
const INVALID: Answer = Answer::Failed(WcStatus::REM_INV_REQ_ERR);
const ACCESS: Answer = Answer::Failed(WcStatus::REM_ACCESS_ERR);
const OPERATION: Answer = Answer::Failed(WcStatus::REM_OP_ERR);

impl World {
    /// Carries out `request` at `target`.
    pub(super) fn respond(
        &mut self,
        target: QpKey,
        from: &Sender,
        request: &SendRequest,
        payload: &[u8],
    ) -> Answer {
        let Some(state) = self.queue_pairs.get(&target) else { return self.lose() };
        let path = &state.path;
        let points_back = path.address.as_ref().is_some_and(|address| {
            from.ports.iter().any(|(gid, lid)| match &address.global {
                Some(route) => route.destination == *gid,
                None => address.destination_lid.0 == *lid,
            })
        });
        if !state.answers() || path.peer != Some(from.qpn) || !points_back || path.expected_psn != from.psn {
            return self.lose();
        }
        let Some(mtu) = path.mtu else { return self.lose() };

        let long = length(&request.local);
        let first_packet = long.min(from.mtu.bytes());
        let segmented = packets(long, from.mtu) > 1;
        if first_packet > mtu.bytes() || (segmented && from.mtu != mtu) {
            return self.nak(target, INVALID);
        }
        let answer = match &request.operation {
            SendOperation::Send { immediate } => self.receive(target, payload, *immediate, None),
            SendOperation::Write { remote, immediate } => self.write(target, remote, payload, *immediate),
            SendOperation::Read { remote } => self.read(target, remote, long),
            SendOperation::CompareSwap { remote, compare, swap } => {
                self.atomic(target, remote, long, |old| if old == *compare { *swap } else { old })
            }
            SendOperation::FetchAdd { remote, add } => {
                self.atomic(target, remote, long, |old| old.wrapping_add(*add))
            }
            SendOperation::SendInvalidate { rkey } => self.receive(target, payload, None, Some(*rkey)),
            // Never on the wire.
            SendOperation::Bind { .. } | SendOperation::Invalidate { .. } => self.nak(target, INVALID),
        };
        if let Answer::Acknowledged(_) = answer
            && let Some(state) = self.queue_pairs.get_mut(&target)
        {
            let atomic = matches!(
                request.operation,
                SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. }
            );
            let count = if atomic { 1 } else { packets(long, mtu) };
            state.path.expected_psn = (state.path.expected_psn + count) & 0x00FF_FFFF;
        }
        answer
    }

    /// A fatal NAK: the responder's queue pair goes to ERR, and since no completion of its own says why, an event
    /// does.
    fn nak(&mut self, target: QpKey, answer: Answer) -> Answer {
        self.raise(target, AsyncEvent::QueuePairFatal);
        self.move_to_error(target);
        answer
    }

    fn take_receive(&mut self, target: QpKey) -> Result<ReceiveRequest, Answer> {
        let Some(state) = self.queue_pairs.get_mut(&target) else { return Err(Answer::Silence) };
        let code = state.path.min_rnr_timer;
        let queue = match state.shared {
            None => Some(&mut state.receives),
            Some(number) => self.receive_queues.get_mut(&number).map(|shared| &mut shared.requests),
        };
        queue.and_then(std::collections::VecDeque::pop_front).ok_or(Answer::NotReady(code))
    }

    fn receive(
        &mut self,
        target: QpKey,
        payload: &[u8],
        immediate: Option<u32>,
        invalidates: Option<RKey>,
    ) -> Answer {
        let receive = match self.take_receive(target) {
            Ok(receive) => receive,
            Err(answer) => return answer,
        };
        let (status, answer) = if payload.len() > length(&receive.local) {
            (WcStatus::LOC_LEN_ERR, INVALID)
        } else if !payload.is_empty()
            && (!writable(&receive.local) || scatter(&receive.local, payload).is_none())
        {
            (WcStatus::LOC_PROT_ERR, OPERATION)
        } else if invalidates.is_some_and(|rkey| !self.invalidate(target, rkey)) {
            // Not its own key, or no window's. The receive is flushed with the rest.
            let lost = failed(receive.id, CompletionKind::Receive, WcStatus::WR_FLUSH_ERR);
            self.complete(target, lost);
            return self.nak(target, ACCESS);
        } else {
            let news = (immediate, invalidates);
            self.received(target, &receive, CompletionKind::Receive, payload.len(), news);
            return Answer::Acknowledged(Vec::new());
        };
        self.complete(target, failed(receive.id, CompletionKind::Receive, status));
        self.move_to_error(target);
        answer
    }

    fn received(
        &mut self,
        target: QpKey,
        receive: &ReceiveRequest,
        kind: CompletionKind,
        bytes: usize,
        (immediate, invalidated): (Option<u32>, Option<RKey>),
    ) {
        let byte_len = u32::try_from(bytes).unwrap_or(u32::MAX);
        let status = WcStatus::SUCCESS;
        self.complete(
            target,
            Completion { id: receive.id, kind, status, byte_len, immediate, invalidated, vendor_error: 0 },
        );
    }

    fn write(
        &mut self,
        target: QpKey,
        remote: &RemoteSlice,
        payload: &[u8],
        immediate: Option<u32>,
    ) -> Answer {
        if !self.allows(target, Access::REMOTE_WRITE) {
            return self.nak(target, INVALID);
        }
        // The receive is looked for before the key, and kept until the key has been judged.
        let receive = match immediate.map(|_| self.take_receive(target)).transpose() {
            Ok(receive) => receive,
            Err(answer) => return answer,
        };
        // Of a message without bytes neither key nor address is looked at.
        if !payload.is_empty() {
            let place = self.open(target, remote, payload.len(), Access::REMOTE_WRITE);
            if place.is_none_or(|(opened, offset)| opened.memory().write(offset, payload).is_err()) {
                if let Some(receive) = receive {
                    self.complete(
                        target,
                        failed(receive.id, CompletionKind::Receive, WcStatus::WR_FLUSH_ERR),
                    );
                }
                return self.nak(target, ACCESS);
            }
        }
        if let Some(receive) = receive {
            let kind = CompletionKind::ReceiveWriteImmediate;
            self.received(target, &receive, kind, payload.len(), (immediate, None));
        }
        Answer::Acknowledged(Vec::new())
    }

    fn read(&mut self, target: QpKey, remote: &RemoteSlice, long: usize) -> Answer {
        if !self.allows(target, Access::REMOTE_READ) || !self.has_responder_resources(target) {
            return self.nak(target, INVALID);
        }
        let mut bytes = Vec::new();
        if long > 0 {
            let place = self.open(target, remote, long, Access::REMOTE_READ);
            if place
                .is_none_or(|(opened, offset)| opened.memory().append_to(offset, long, &mut bytes).is_err())
            {
                return self.nak(target, ACCESS);
            }
        }
        Answer::Acknowledged(bytes)
    }

    fn atomic(
        &mut self,
        target: QpKey,
        remote: &RemoteSlice,
        long: usize,
        change: impl Fn(u64) -> u64,
    ) -> Answer {
        let well_formed = long == 8 && remote.address.is_multiple_of(8);
        if !self.allows(target, Access::REMOTE_ATOMIC) || !self.has_responder_resources(target) {
            return self.nak(target, INVALID);
        }
        let Some((opened, offset)) = self.open(target, remote, 8, Access::REMOTE_ATOMIC) else {
            return self.nak(target, ACCESS);
        };
        if !well_formed {
            return self.nak(target, INVALID);
        }
        let mut old = [0; 8];
        let read = opened.memory().read(offset, &mut old);
        let new = change(u64::from_ne_bytes(old)).to_ne_bytes();
        match read.and_then(|()| opened.memory().write(offset, &new)) {
            Ok(()) => Answer::Acknowledged(old.to_vec()),
            Err(_) => self.nak(target, ACCESS),
        }
    }

    fn allows(&self, target: QpKey, right: Access) -> bool {
        self.queue_pairs.get(&target).is_some_and(|state| state.path.access.contains(right))
    }

    fn has_responder_resources(&self, target: QpKey) -> bool {
        self.queue_pairs.get(&target).is_some_and(|state| state.path.responder_resources > 0)
    }

    fn open(
        &self,
        target: QpKey,
        remote: &RemoteSlice,
        long: usize,
        right: Access,
    ) -> Option<(Opened, usize)> {
        let domain = self.queue_pairs.get(&target)?.domain;
        let opened = self.devices[target.device].keys.find(remote.rkey, target.qpn, domain)?;
        let offset = opened.offset(remote.address, long, right)?;
        Some((opened, offset))
    }
}
