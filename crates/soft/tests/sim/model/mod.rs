//! Peers of another make: reliable connections with the habits of the kernel's rxe (brief §8), or with those of hfi1. Plain
//! and slow, and nothing of the engine is in them.

mod requester;
mod responder;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    Access, Completion, CompletionKind, LKey, Memory, QpAttr, QpState, Qpn, RKey, ReceiveRequest,
    SendRequest, Slice, WcStatus, WorkId,
};
use secure_rdma_roce::{Bth, Endpoints, Extension, Headers, IcrcContext, Opcode, Packet, PacketPsn};
use secure_rdma_soft::engine::{Keys, Path, QueuePairCaps, Transmit};
use std::net::IpAddr;

use super::random::Random;
use requester::Requester;
use responder::Responder;

/// Whose habits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habits {
    /// M clear, an ACK at once and none where A is clear, NAK 0x60 behind an RNR NAK, 0x63 for a message that is too long,
    /// one NAK-driven retry at a time, 7 retries mean "for ever".
    Rxe,
    /// Delayed ACKs, silence behind an RNR NAK, 0x61 for a message that is too long.
    Hfi1,
}

impl Habits {
    /// At least every how many packets within a message the requester asks for an ACK.
    pub const ACK_INTERVAL: u32 = 67;
    /// The most unacknowledged PSNs.
    pub const WINDOW: u32 = 128;
}

struct Registered {
    memory: Arc<Memory>,
    address: u64,
    access: Access,
}

impl Registered {
    fn offset(&self, address: u64, length: usize, right: Access) -> Option<usize> {
        let from = i128::from(address) - i128::from(self.address);
        let inside = from >= 0 && from + length as i128 <= self.memory.len() as i128;
        (inside && self.access.contains(right)).then_some(from as usize)
    }
}

/// What the halves of a queue pair share.
struct Connection {
    qpn: u32,
    state: QpState,
    access: Access,
    path: Option<Path>,
    peer_qpn: u32,
    path_mtu: usize,
}

struct QueuePair {
    connection: Connection,
    requester: Requester,
    responder: Responder,
}

/// What is on its way out, and what is done.
#[derive(Default)]
struct Outbox {
    packets: VecDeque<(u32, Vec<u8>)>,
    completions: VecDeque<(u32, Completion)>,
}

impl Outbox {
    fn complete(&mut self, qpn: u32, id: WorkId, kind: CompletionKind, status: u32) {
        self.completions.push_back((qpn, completion(id, kind, status)));
    }

    /// Puts a packet in line. The ICRC is made when it leaves, with the IPv4 ID that it gets then.
    fn send(
        &mut self,
        habits: Habits,
        connection: &Connection,
        bth: Bth,
        extension: Extension,
        payload: &[u8],
    ) {
        let bth = Bth { migration_request: habits != Habits::Rxe, dest_qpn: connection.peer_qpn, ..bth };
        let headers = Headers::new(bth, extension, payload.len());
        let mut bytes = vec![0; headers.packet_length(payload.len())];
        let start = headers.emit(&mut bytes).unwrap();
        bytes[start..start + payload.len()].copy_from_slice(payload);
        self.packets.push_back((connection.qpn, bytes));
    }
}

fn completion(id: WorkId, kind: CompletionKind, status: u32) -> Completion {
    let status = WcStatus(status);
    Completion { id, kind, status, byte_len: 0, immediate: None, invalidated: None, vendor_error: 0 }
}

/// A host of another make.
pub struct Model {
    pub habits: Habits,
    queue_pairs: HashMap<u32, QueuePair>,
    /// By R_Key.
    regions: HashMap<u32, Registered>,
    next_qpn: u32,
    next_key: u32,
    out: Outbox,
    /// The IPv4 ID: a counter, which leaps at times.
    id: u16,
    random: Random,
}

impl Model {
    pub fn new(habits: Habits, mut random: Random) -> Self {
        Self {
            habits,
            queue_pairs: HashMap::new(),
            regions: HashMap::new(),
            next_qpn: 17,
            next_key: 1,
            out: Outbox::default(),
            id: random.u64() as u16,
            random,
        }
    }

    pub fn register(&mut self, memory: Arc<Memory>, access: Access) -> Keys {
        let key = self.next_key << 8 | self.random.below(256) as u32;
        self.next_key += 1;
        let address = 0x5500_0000_0000 + u64::from(self.next_key) * 0x1000_0000;
        self.regions.insert(key, Registered { memory, address, access });
        Keys { address, lkey: LKey(key), rkey: RKey::new(key) }
    }

    pub fn deregister(&mut self, lkey: LKey) {
        self.regions.remove(&lkey.0);
    }

    pub fn create_queue_pair(&mut self, _caps: QueuePairCaps) -> Qpn {
        let qpn = self.next_qpn;
        self.next_qpn += 1;
        let connection = Connection {
            qpn,
            state: QpState::Reset,
            access: Access::empty(),
            path: None,
            peer_qpn: 0,
            path_mtu: 256,
        };
        let pair = QueuePair { connection, requester: Requester::default(), responder: Responder::default() };
        self.queue_pairs.insert(qpn, pair);
        Qpn::new(qpn).unwrap()
    }

    pub fn destroy_queue_pair(&mut self, qpn: Qpn) {
        self.queue_pairs.remove(&qpn.get());
        self.out.packets.retain(|(number, _)| *number != qpn.get());
        self.out.completions.retain(|(number, _)| *number != qpn.get());
    }

    pub fn state(&self, qpn: Qpn) -> Option<QpState> {
        self.queue_pairs.get(&qpn.get()).map(|pair| pair.connection.state)
    }

    pub fn modify(&mut self, qpn: Qpn, attr: &QpAttr, path: Option<Path>) -> Option<QpState> {
        let pair = self.queue_pairs.get_mut(&qpn.get())?;
        let connection = &mut pair.connection;
        connection.access = attr.access.unwrap_or(connection.access);
        connection.path = path.or(connection.path);
        if let Some(peer) = attr.dest_qpn {
            connection.peer_qpn = peer.get();
        }
        if let Some(path_mtu) = attr.path_mtu {
            connection.path_mtu = path_mtu.bytes();
        }
        pair.responder.set(attr);
        pair.requester.set(attr);
        let to = attr.state?;
        if to == QpState::Err {
            pair.fail(&mut self.out, None);
        }
        pair.connection.state = to;
        Some(to)
    }

    pub fn post_send(&mut self, now: Instant, qpn: Qpn, requests: &[SendRequest]) {
        let Some(pair) = self.queue_pairs.get_mut(&qpn.get()) else { return };
        for request in requests {
            if pair.connection.state == QpState::Err {
                self.out.complete(qpn.get(), request.id, CompletionKind::Send, 5);
            } else {
                pair.requester.post(request.clone(), pair.connection.path_mtu);
            }
        }
        pair.requester.run(self.habits, &pair.connection, &mut self.out, now);
    }

    pub fn post_receive(&mut self, qpn: Qpn, requests: &[ReceiveRequest]) {
        let Some(pair) = self.queue_pairs.get_mut(&qpn.get()) else { return };
        pair.responder.receives.extend(requests.iter().cloned());
    }

    pub fn handle_packet(
        &mut self,
        now: Instant,
        source: IpAddr,
        destination: IpAddr,
        id: u16,
        bytes: &[u8],
        ports: (u16, u16),
    ) {
        let Ok(packet) = Packet::new_checked(bytes) else { return };
        let Some(pair) = self.queue_pairs.get_mut(&packet.dest_qpn()) else { return };
        let Some(path) = pair.connection.path else { return };
        if pair.connection.state != QpState::Rts
            || path.peer.ip() != source
            || path.local != destination
            || packet.bth().pkey & 0x7FFF != 0x7FFF
        {
            return;
        }
        let context = flow(source, destination, ports.0, ports.1);
        // A kernel sees the ID: one that does not fit shows as well.
        if !matches!(context.check(id, bytes), secure_rdma_roce::IcrcCheck::Expected) {
            return;
        }
        if packet.opcode() == Opcode::Cnp || matches!(packet.opcode(), Opcode::Flush | Opcode::AtomicWrite) {
            return;
        }
        if packet.opcode().is_request() {
            let failed = pair.responder.on_request(
                self.habits,
                &pair.connection,
                &self.regions,
                &mut self.out,
                now,
                &packet,
            );
            if failed {
                pair.fail(&mut self.out, None);
            }
        } else {
            let failed =
                pair.requester.on_response(self.habits, &pair.connection, &packet, &mut self.out, now);
            if let Some(status) = failed {
                pair.fail(&mut self.out, Some(status));
            }
        }
        if pair.connection.state == QpState::Rts {
            pair.requester.run(self.habits, &pair.connection, &mut self.out, now);
        }
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        // In the order of the numbers: a map's own order would differ from run to run.
        let mut numbers: Vec<u32> = self.queue_pairs.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            let Some(pair) = self.queue_pairs.get_mut(&number) else { continue };
            if pair.connection.state != QpState::Rts {
                continue;
            }
            pair.responder.on_time(self.habits, &pair.connection, &mut self.out, now);
            if let Some(status) = pair.requester.on_time(self.habits, now) {
                pair.fail(&mut self.out, Some(status));
            } else {
                pair.requester.run(self.habits, &pair.connection, &mut self.out, now);
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.queue_pairs
            .values()
            .filter(|pair| pair.connection.state == QpState::Rts)
            .flat_map(|pair| [pair.requester.deadline, pair.requester.waits_until, pair.responder.deadline])
            .flatten()
            .min()
    }

    /// The next packet, and its IPv4 ID.
    pub fn poll_transmit(&mut self, buffer: &mut Vec<u8>) -> Option<(Transmit, u16)> {
        let (number, mut bytes) = self.out.packets.pop_front()?;
        let path = self.queue_pairs.get(&number)?.connection.path?;
        // Others on the host send too.
        let leap = if self.random.chance(50_000) { self.random.below(5) as u16 } else { 0 };
        self.id = self.id.wrapping_add(1 + leap);
        let context = flow(path.local, path.peer.ip(), path.source_port, path.peer.port());
        context.finish(self.id, &mut bytes);
        buffer.extend_from_slice(&bytes);
        let transmit = Transmit {
            qpn: Qpn::new(number)?,
            source: path.local,
            source_port: path.source_port,
            destination: path.peer,
            traffic_class: 0,
            hop_limit: 64,
            segment_size: bytes.len(),
            length: bytes.len(),
        };
        Some((transmit, self.id))
    }

    pub fn poll_completions(&mut self, into: &mut Vec<Completion>) -> Option<Qpn> {
        let (number, completion) = self.out.completions.pop_front()?;
        into.push(completion);
        while self.out.completions.front().is_some_and(|(next, _)| *next == number) {
            into.extend(self.out.completions.pop_front().map(|(_, completion)| completion));
        }
        Qpn::new(number)
    }
}

impl QueuePair {
    /// To ERR: the oldest send ends with `status` if there is one, the rest is flushed.
    fn fail(&mut self, out: &mut Outbox, status: Option<u32>) {
        self.connection.state = QpState::Err;
        let qpn = self.connection.qpn;
        let mut status = status.unwrap_or(5);
        for work in self.requester.works.drain(..) {
            out.complete(qpn, work.request.id, CompletionKind::Send, status);
            status = 5;
        }
        let taken = self.responder.taken();
        for receive in taken.into_iter().chain(self.responder.receives.drain(..)) {
            out.complete(qpn, receive.id, CompletionKind::Receive, 5);
        }
    }
}

fn flow(source: IpAddr, destination: IpAddr, source_port: u16, destination_port: u16) -> IcrcContext {
    let endpoints = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Endpoints::V4 { source, destination },
        (IpAddr::V6(source), IpAddr::V6(destination)) => Endpoints::V6 { source, destination },
        _ => unreachable!("one family"),
    };
    IcrcContext::new(endpoints, source_port, destination_port)
}

/// Where byte `offset` of a message is, and how many of its bytes follow there.
fn place(slices: &[Slice], mut offset: usize) -> Option<(&Slice, usize)> {
    for slice in slices {
        if offset < slice.length {
            return Some((slice, offset));
        }
        offset -= slice.length;
    }
    None
}

fn gather(slices: &[Slice], offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let (slice, at) = place(slices, offset + bytes.len()).unwrap();
        let part = (slice.length - at).min(length - bytes.len());
        slice.region.memory().append_to(slice.offset + at, part, &mut bytes).unwrap();
    }
    bytes
}

fn scatter(slices: &[Slice], offset: usize, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let (slice, at) = place(slices, offset + done).unwrap();
        let part = (slice.length - at).min(bytes.len() - done);
        slice.region.memory().write(slice.offset + at, &bytes[done..done + part]).unwrap();
        done += part;
    }
}

fn header(opcode: Opcode, number: u32, asks: bool) -> Bth {
    Bth { ack_request: asks, ..Bth::new(opcode, 2, PacketPsn::new(number)) }
}

fn timeout_of(code: u8) -> Option<Duration> {
    (code > 0).then(|| Duration::from_nanos(4096 << code))
}
