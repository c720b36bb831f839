//! The requester: puts requests on the wire, one at a time, and makes completions of the answers.

use std::time::{Duration, Instant};

use super::region::{gather, length, scatter, writable};
use super::state::{QpKey, State, failed};
use super::world::World;
use crate::{
    Completion, CompletionKind, Gid, LinkLayer, PathMtu, PortInfo, QpState, Qpn, SendOperation, SendRequest,
    WcStatus,
};

/// How many requests of one queue pair go before another has its turn.
const TURN: usize = 32;
/// How often a request is put on the wire within its retry budget.
const TRIES: u32 = 8;
/// The wait that each code of an RNR NAK asks for, in microseconds (IBTA table 45).
const RNR_WAIT: [u32; 32] = [
    655_360, 10, 20, 30, 40, 60, 80, 120, 160, 240, 320, 480, 640, 960, 1280, 1920, 2560, 3840, 5120, 7680,
    10_240, 15_360, 20_480, 30_720, 40_960, 61_440, 81_920, 122_880, 163_840, 245_760, 327_680, 491_520,
];

/// What became of a request on the wire.
pub(super) enum Answer {
    /// Carried out. For READs and atomics with what came back.
    Acknowledged(Vec<u8>),
    /// Nothing came back.
    Silence,
    /// RNR NAK: no receive was there. The code of the wait that the responder asks for.
    NotReady(u8),
    /// Another NAK, as the status that it becomes, or a failure of our own.
    Failed(WcStatus),
}

/// What a responder sees of where a request comes from.
pub(super) struct Sender {
    pub(super) qpn: Qpn,
    pub(super) ports: Vec<(Gid, u16)>,
    pub(super) psn: u32,
    pub(super) mtu: PathMtu,
}

/// How many packets, and so PSNs, a message takes.
pub(super) fn packets(bytes: usize, mtu: PathMtu) -> u32 {
    u32::try_from(bytes.div_ceil(mtu.bytes()).max(1)).unwrap_or(u32::MAX)
}

impl World {
    /// Sends requests of one queue pair until it has none, must wait, or has had its turn.
    pub(super) fn send_some(&mut self, key: QpKey, now: Instant) {
        for _ in 0..TURN {
            let Some(state) = self.queue_pairs.get_mut(&key) else { return };
            if state.wait_until.is_some() || !state.has_something_to_send() {
                return;
            }
            let Some(request) = state.sends.pop_front() else { return };
            if request.operation.is_local() {
                self.work_locally(key, &request);
                continue;
            }
            match self.ask(key, &request) {
                Answer::Acknowledged(_) | Answer::Failed(_) if self.devices[key.device].unacknowledged => {
                    self.held(key, request);
                }
                Answer::Acknowledged(back) => self.acknowledged(key, &request, &back),
                Answer::Silence => self.unanswered(key, request, now),
                Answer::NotReady(code) => self.not_ready(key, request, code, now),
                Answer::Failed(status) => self.request_failed(key, &request, status),
            }
        }
    }

    /// Binds or invalidates. Everything earlier has been answered: one request is on the wire at a time.
    fn work_locally(&mut self, key: QpKey, request: &SendRequest) {
        let status = match &request.operation {
            SendOperation::Bind { window, rkey, target, access } => {
                self.bind(key, window, *rkey, target, *access).err()
            }
            SendOperation::Invalidate { rkey } => {
                (!self.invalidate(key, *rkey)).then_some(WcStatus::LOC_QP_OP_ERR)
            }
            _ => None,
        };
        match status {
            Some(status) => self.request_failed(key, request, status),
            None => {
                self.complete(key, failed(request.id, CompletionKind::Send, WcStatus::SUCCESS));
            }
        }
    }

    /// Puts a request on the wire and gives the answer.
    fn ask(&mut self, key: QpKey, request: &SendRequest) -> Answer {
        let Some(state) = self.queue_pairs.get(&key) else { return Answer::Silence };
        let path = &state.path;
        let (Some(address), Some(peer), Some(mtu)) = (&path.address, path.peer, path.mtu) else {
            return Answer::Failed(WcStatus::LOC_QP_OP_ERR);
        };
        let reads = matches!(
            request.operation,
            SendOperation::Read { .. } | SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. }
        );
        if reads && path.initiator_depth == 0 {
            return Answer::Failed(WcStatus::LOC_QP_OP_ERR);
        }
        if reads && !writable(&request.local) {
            return Answer::Failed(WcStatus::LOC_PROT_ERR);
        }
        let device = &self.devices[key.device];
        let Some(port) = device.port(address.port).filter(|port| device.carries(port)) else {
            return self.lose();
        };
        let Some(payload) = (if reads { Some(Vec::new()) } else { gather(&request.local) }) else {
            return Answer::Failed(WcStatus::LOC_PROT_ERR);
        };
        let longest = length(&request.local).min(mtu.bytes());
        if self.blackhole || self.largest_payload.is_some_and(|limit| longest > limit) {
            return self.lose();
        }
        let sender = Sender { qpn: key.qpn, ports: names_of(port, address), psn: path.next_psn, mtu };
        let to = (address.global.as_ref().map(|route| route.destination), address.destination_lid.0);
        match self.find_target(to, peer) {
            Some(target) => self.respond(target, &sender, request, &payload),
            None => self.lose(),
        }
    }

    /// The queue pair of that number on a device with an active port of that GID (InfiniBand without GRH: LID).
    fn find_target(&self, (gid, lid): (Option<Gid>, u16), qpn: Qpn) -> Option<QpKey> {
        let names = |port: &PortInfo| match gid {
            Some(gid) => port.gids.iter().any(|entry| entry.gid == gid),
            None => port.link_layer == LinkLayer::Infiniband && port.lid.0 == lid,
        };
        self.devices
            .iter()
            .enumerate()
            .filter(|(_, device)| device.info.ports.iter().any(|port| device.carries(port) && names(port)))
            .map(|(device, _)| QpKey { device, qpn })
            .find(|key| self.queue_pairs.contains_key(key))
    }

    pub(super) fn lose(&mut self) -> Answer {
        self.tally.lost += 1;
        Answer::Silence
    }

    /// Keeps a request outstanding whose answer is lost.
    fn held(&mut self, key: QpKey, request: SendRequest) {
        if let Some(state) = self.queue_pairs.get_mut(&key) {
            state.pass_psns_of(&request);
            state.unanswered.push_back(request);
        }
    }

    fn acknowledged(&mut self, key: QpKey, request: &SendRequest, back: &[u8]) {
        self.tally.acknowledged += 1;
        let reads = matches!(
            request.operation,
            SendOperation::Read { .. } | SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. }
        );
        if reads && scatter(&request.local, back).is_none() {
            return self.request_failed(key, request, WcStatus::LOC_LEN_ERR);
        }
        let Some(state) = self.queue_pairs.get_mut(&key) else { return };
        state.silences = 0;
        state.rnr_naks = 0;
        state.pass_psns_of(request);
        let byte_len = u32::try_from(back.len()).unwrap_or(u32::MAX);
        self.complete(
            key,
            Completion {
                id: request.id,
                kind: CompletionKind::Send,
                status: WcStatus::SUCCESS,
                byte_len,
                immediate: None,
                invalidated: None,
                vendor_error: 0,
            },
        );
    }

    fn unanswered(&mut self, key: QpKey, request: SendRequest, now: Instant) {
        let budget = self.retry_budget;
        let Some(state) = self.queue_pairs.get_mut(&key) else { return };
        state.silences += 1;
        let (tries, interval) = match (budget, state.path.timeout) {
            (Some(budget), _) => (TRIES, budget / (TRIES - 1)),
            // Never repeated by a real device. Here it is, or nothing would find out that the wire is whole again.
            (None, 0) => (u32::MAX, Duration::from_millis(50)),
            (None, code) => {
                (u32::from(state.path.retry_count) + 1, Duration::from_nanos(4096_u64 << code.min(31)))
            }
        };
        if state.silences >= tries {
            return self.request_failed(key, &request, WcStatus::RETRY_EXC_ERR);
        }
        state.sends.push_front(request);
        self.wait(key, now + interval);
    }

    fn not_ready(&mut self, key: QpKey, request: SendRequest, code: u8, now: Instant) {
        self.tally.rnr_naks += 1;
        let Some(state) = self.queue_pairs.get_mut(&key) else { return };
        state.silences = 0;
        state.rnr_naks += 1;
        if state.path.rnr_retry < 7 && state.rnr_naks > u32::from(state.path.rnr_retry) {
            return self.request_failed(key, &request, WcStatus::RNR_RETRY_EXC_ERR);
        }
        state.sends.push_front(request);
        let pause = RNR_WAIT[usize::from(code & 31)];
        self.wait(key, now + Duration::from_micros(u64::from(pause)));
    }

    /// The failed request completes first, then all later ones flush.
    fn request_failed(&mut self, key: QpKey, request: &SendRequest, status: WcStatus) {
        if let Some(state) = self.queue_pairs.get_mut(&key) {
            // A queue pair that is connected to itself may be in ERR, and flushed, by now.
            let status = if state.state == QpState::Err { WcStatus::WR_FLUSH_ERR } else { status };
            self.complete(key, failed(request.id, CompletionKind::Send, status));
            self.move_to_error(key);
        }
    }
}

impl State {
    /// The next request's PSN lies behind those of this one.
    fn pass_psns_of(&mut self, request: &SendRequest) {
        let count = match (self.path.mtu, &request.operation) {
            (_, SendOperation::CompareSwap { .. } | SendOperation::FetchAdd { .. }) | (None, _) => 1,
            (Some(mtu), _) => packets(length(&request.local), mtu),
        };
        self.path.next_psn = (self.path.next_psn + count) & 0x00FF_FFFF;
    }
}

/// By which names the peer's address vector may point to this port: the GID that was chosen, and the LID.
fn names_of(port: &PortInfo, address: &crate::AddressVector) -> Vec<(Gid, u16)> {
    let index = address.global.as_ref().map(|route| route.source_gid_index);
    port.gids
        .iter()
        .filter(|entry| index.is_none_or(|index| index == entry.index))
        .map(|entry| (entry.gid, port.lid.0))
        .collect()
}
