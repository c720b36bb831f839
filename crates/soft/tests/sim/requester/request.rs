//! What the requests may say: what was posted, in the order of the PSNs, within the window and the wait of an RNR NAK.

use secure_rdma_roce::{Opcode, Packet};

use super::super::memory::Shadows;
use super::super::network::Time;
use super::super::random::psn;
use super::super::requests::{Kind, Posted};
use super::Requester;

impl Requester {
    /// The engine sends a request. An error says what is wrong with it.
    pub fn on_request_sent(
        &mut self,
        packet: &Packet<'_>,
        shadows: &Shadows,
        now: Time,
    ) -> Result<(), String> {
        let bth = packet.bth();
        let number = bth.psn.expose();
        if bth.dest_qpn != self.terms.peer_qpn || bth.pkey != 0xFFFF {
            return Err("a request to another queue pair or partition".to_owned());
        }
        if psn::minus(number, self.oldest) < 0 {
            return Err("a request that was acknowledged is sent again".to_owned());
        }
        if self.waits_until.is_some_and(|until| now < until) {
            return Err("a request is sent before the wait of an RNR NAK is over".to_owned());
        }
        self.waits_until = None;
        let fresh = psn::minus(number, self.newest);
        if fresh > 0 {
            return Err("a request skips PSNs".to_owned());
        }
        let Some(at) = self.find(number) else { return Err("a request that was not posted".to_owned()) };
        let posted = &self.sends[at];
        let index = psn::minus(number, posted.first).cast_unsigned();
        self.check_content(packet, posted, index, shadows)?;
        if psn::minus(number, self.oldest).cast_unsigned() >= self.terms.max_window {
            return Err("more PSNs are outstanding than the window allows".to_owned());
        }
        let ends = index + 1 == posted.count || posted.kind.has_response();
        if ends && !bth.ack_request {
            return Err("the last packet of a message does not ask for an acknowledgement".to_owned());
        }
        let count = match packet.reth().filter(|_| packet.opcode() == Opcode::ReadRequest) {
            Some(reth) => (reth.dma_length as usize).div_ceil(self.terms.path_mtu).max(1) as u32,
            None => 1,
        };
        if number != self.position {
            // Gone back.
            self.unasked = 0;
        }
        self.position = psn::add(number, count);
        self.unasked = if bth.ack_request { 0 } else { self.unasked + 1 };
        if self.unasked >= self.terms.ack_interval {
            return Err(format!("{} packets do not ask for an acknowledgement", self.unasked));
        }
        if fresh == 0 {
            if self.drains && index == 0 {
                return Err("a request begins in SQD".to_owned());
            }
            self.check_order(at)?;
            if !self.outstanding() {
                (self.progress, self.sign) = (now, now);
            }
            self.newest = self.position;
            if self.sends[at].kind.has_response() {
                self.asked.push_back((number, self.newest));
            }
        } else if self.sends[at].kind.has_response() {
            // A part of a READ that is asked for again ends where it did.
            let known = self
                .asked
                .iter()
                .find(|(first, end)| psn::minus(number, *first) >= 0 && psn::minus(number, *end) < 0);
            if known.is_none_or(|(_, end)| *end != self.position) {
                return Err("a READ is asked for again with another end".to_owned());
            }
        }
        Ok(())
    }

    /// FENCE, and the limit of READs and atomics, for a request that begins or goes on.
    fn check_order(&mut self, at: usize) -> Result<(), String> {
        while self.asked.front().is_some_and(|(_, end)| psn::minus(self.oldest, *end) >= 0) {
            self.asked.pop_front();
        }
        let posted = &self.sends[at];
        let open = self.asked.len();
        if posted.fence && posted.first == self.newest && open > 0 {
            return Err("a request with FENCE does not wait for earlier READs and atomics".to_owned());
        }
        if posted.kind.has_response() && open >= usize::from(self.terms.max_rd_atomic) {
            return Err(format!("{} READs and atomics outstanding", open + 1));
        }
        Ok(())
    }

    fn check_content(
        &self,
        packet: &Packet<'_>,
        posted: &Posted,
        index: u32,
        shadows: &Shadows,
    ) -> Result<(), String> {
        let offset = index as usize * self.terms.path_mtu;
        let (first, last) = (index == 0, index + 1 == posted.count);
        let due = opcode_of(posted.kind, first, last);
        if packet.opcode() != due {
            return Err(format!("{} instead of {}", packet.opcode().name(), due.name()));
        }
        let payload = packet.payload();
        match posted.kind {
            Kind::Read { address, rkey } => {
                let reth = packet.reth().ok_or("no RETH")?;
                let asked = reth.dma_length as usize;
                let left = posted.length - offset;
                // A long one may be asked for in parts.
                let whole =
                    asked == left || asked < left && asked > 0 && asked.is_multiple_of(self.terms.path_mtu);
                // What has no bytes and is last may name none when it goes again.
                let last_again = psn::add(packet.psn().expose(), 1) == self.newest;
                let keyless = posted.length == 0 && last_again && reth.rkey.expose() == 0;
                let rkey = if keyless { 0 } else { rkey };
                if (reth.virtual_address, reth.rkey.expose()) != (address.wrapping_add(offset as u64), rkey)
                    || !whole
                {
                    return Err("a READ asks for something else than was posted".to_owned());
                }
            }
            Kind::CompareSwap { address, rkey, compare, swap } => {
                let atomic = packet.atomic_eth().ok_or("no AtomicETH")?;
                let asked =
                    (atomic.virtual_address, atomic.rkey.expose(), atomic.compare, atomic.swap_or_add);
                if asked != (address, rkey, compare, swap) {
                    return Err("an atomic asks for something else than was posted".to_owned());
                }
            }
            Kind::FetchAdd { address, rkey, add } => {
                let atomic = packet.atomic_eth().ok_or("no AtomicETH")?;
                if (atomic.virtual_address, atomic.rkey.expose(), atomic.swap_or_add) != (address, rkey, add)
                {
                    return Err("an atomic asks for something else than was posted".to_owned());
                }
            }
            _ => {
                if payload.len() != (posted.length - offset).min(self.terms.path_mtu) {
                    return Err(format!(
                        "{} bytes of payload at {offset} of {}",
                        payload.len(),
                        posted.length
                    ));
                }
                if !shadows.holds(&posted.local, offset, payload) {
                    return Err("a request carries other bytes than memory holds".to_owned());
                }
            }
        }
        let (immediate, invalidated) = match posted.kind {
            Kind::Send { immediate } | Kind::Write { immediate, .. } => (immediate.filter(|_| last), None),
            Kind::SendInvalidate { rkey } => (None, Some(rkey).filter(|_| last)),
            _ => (None, None),
        };
        if packet.immediate().map(|immediate| immediate.value) != immediate
            || packet.invalidate_key().map(|key| key.expose()) != invalidated
        {
            return Err("another immediate or key than was posted".to_owned());
        }
        if let (Kind::Write { address, rkey, .. }, Some(reth)) = (posted.kind, packet.reth())
            && (reth.virtual_address, reth.rkey.expose(), reth.dma_length as usize)
                != (address, rkey, posted.length)
        {
            return Err("a WRITE goes elsewhere than was posted".to_owned());
        }
        Ok(())
    }
}

/// The opcode of a packet of a request, by its place.
pub fn opcode_of(kind: Kind, first: bool, last: bool) -> Opcode {
    match (kind, first, last) {
        (Kind::Send { immediate: None }, true, true) => Opcode::SendOnly,
        (Kind::Send { .. }, true, true) => Opcode::SendOnlyWithImmediate,
        (Kind::SendInvalidate { .. }, true, true) => Opcode::SendOnlyWithInvalidate,
        (Kind::Send { .. } | Kind::SendInvalidate { .. }, true, false) => Opcode::SendFirst,
        (Kind::Send { .. } | Kind::SendInvalidate { .. }, false, false) => Opcode::SendMiddle,
        (Kind::Send { immediate: None }, false, true) => Opcode::SendLast,
        (Kind::Send { .. }, false, true) => Opcode::SendLastWithImmediate,
        (Kind::SendInvalidate { .. }, false, true) => Opcode::SendLastWithInvalidate,
        (Kind::Write { immediate: None, .. }, true, true) => Opcode::WriteOnly,
        (Kind::Write { .. }, true, true) => Opcode::WriteOnlyWithImmediate,
        (Kind::Write { .. }, true, false) => Opcode::WriteFirst,
        (Kind::Write { .. }, false, false) => Opcode::WriteMiddle,
        (Kind::Write { immediate: None, .. }, false, true) => Opcode::WriteLast,
        (Kind::Write { .. }, false, true) => Opcode::WriteLastWithImmediate,
        (Kind::CompareSwap { .. }, ..) => Opcode::CompareSwap,
        (Kind::FetchAdd { .. }, ..) => Opcode::FetchAdd,
        (Kind::Read { .. } | Kind::Bind { .. } | Kind::Invalidate { .. }, ..) => Opcode::ReadRequest,
    }
}
