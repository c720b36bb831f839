//! Forged requests with everything right but the key, the range or the right, ten million of each: what an authenticated
//! peer, or who has guessed QPN and PSN, can try (reliability §D.1, §F.4). Each meets a queue pair in RTR with the PSN
//! that it expects. A model with integers that cannot overflow says what each must do; after each, all memory is
//! compared.
#![allow(
    clippy::print_stdout,
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss
)]

#[path = "sim/random.rs"]
#[allow(dead_code, unreachable_pub)]
mod random;

use std::any::Any;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use random::{Random, Seeded, psn};
use secure_rdma_rdma::{
    Access, AddressVector, Gid, GlobalRoute, Memory, MemoryWindow, PathMtu, Psn, QpAttr, QpState, Qpn, RKey,
    Region, Registration, SendFlags, SendOperation, SendRequest, Slice, WorkId,
};
use secure_rdma_roce::{
    AtomicEth, Bth, Endpoints, Extension, Headers, IcrcContext, NakCode, Opcode, Packet, PacketKey,
    PacketPsn, Reth, Syndrome,
};
use secure_rdma_soft::engine::{Arrival, Config, Engine, Keys, Path, QueuePairCaps, WindowId};

const LENGTH: usize = 192;
const ADDRESSES: [[u8; 4]; 2] = [[10, 0, 0, 1], [10, 0, 0, 2]];
const PORTS: [u16; 2] = [0xC001, 0xC002];

/// What is wrong with the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    Region,
    Bounds,
    Rights,
}

/// Why the model refuses a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    UnknownKey,
    OtherQueuePair,
    Rights,
    Bounds,
    Misaligned,
}

/// A range that a key opens.
#[derive(Clone, Copy)]
struct Opening {
    key: u32,
    memory: usize,
    first: u64,
    offset: usize,
    length: usize,
    access: Access,
    elsewhere: bool,
}

struct Nothing;
impl Registration for Nothing {}

#[derive(Debug)]
struct Window(WindowId);
impl MemoryWindow for Window {
    fn next_key(&self) -> RKey {
        unreachable!("keys come from the engine")
    }
    fn as_any(&self) -> &dyn Any {
        &self.0
    }
}

struct Victim {
    engine: Engine,
    now: Instant,
    qpn: Qpn,
    expected: u32,
    memories: Vec<Arc<Memory>>,
    bytes: Vec<Vec<u8>>,
    openings: Vec<Opening>,
    lkeys: Vec<u32>,
    flow: IcrcContext,
    arrival: Arrival,
    scratch: Vec<u8>,
    buffer: Vec<u8>,
    packet: Vec<u8>,
}

const RIGHTS: [Access; 4] = [
    Access::LOCAL_WRITE.union(Access::REMOTE_WRITE).union(Access::REMOTE_READ).union(Access::REMOTE_ATOMIC),
    Access::LOCAL_WRITE.union(Access::MEMORY_WINDOW_BIND),
    Access::REMOTE_READ,
    Access::LOCAL_WRITE.union(Access::REMOTE_WRITE),
];

impl Victim {
    fn new(random: &mut Random, seed: u64) -> Self {
        let mut engine = Engine::new(Config::default(), Arc::new(Seeded::new(seed, 9))).unwrap();
        let now = Instant::now();
        let (mut memories, mut bytes, mut openings, mut lkeys) = (vec![], vec![], vec![], vec![]);
        let mut all_keys: Vec<Keys> = Vec::new();
        for (index, access) in RIGHTS.into_iter().enumerate() {
            let memory = Arc::new(Memory::allocate(LENGTH).unwrap());
            let pattern: Vec<u8> = (0..LENGTH).map(|_| random.u64() as u8).collect();
            memory.write(0, &pattern).unwrap();
            let keys = engine.register(Arc::clone(&memory), access).unwrap();
            if access.intersects(Access::REMOTE_WRITE | Access::REMOTE_READ) {
                openings.push(Opening {
                    key: keys.rkey.expose(),
                    memory: index,
                    first: keys.address,
                    offset: 0,
                    length: LENGTH,
                    access,
                    elsewhere: false,
                });
            }
            lkeys.push(keys.lkey.0);
            lkeys.push(keys.rkey.expose());
            memories.push(memory);
            bytes.push(pattern);
            all_keys.push(keys);
        }
        let caps = QueuePairCaps { max_send: 4, max_receive: 4, max_sge: 1, receive_queue: None };
        // A window of another connection, on the region without rights.
        let other = engine.create_queue_pair(now, caps).unwrap();
        bring_up(&mut engine, now, other, 7);
        let rts = QpAttr {
            timeout: Some(14),
            retry_count: Some(7),
            rnr_retry: Some(7),
            sq_psn: Psn::new(1),
            max_rd_atomic: Some(1),
            ..QpAttr::to(QpState::Rts)
        };
        engine.modify(now, other, &rts, None).unwrap();
        let window = engine.create_window();
        let rkey = engine.next_window_key(window).unwrap();
        let keys = all_keys[1];
        let region =
            Region::new(Box::new(Nothing), Arc::clone(&memories[1]), keys.address, keys.lkey, keys.rkey);
        let access = Access::REMOTE_WRITE | Access::REMOTE_READ | Access::REMOTE_ATOMIC;
        let target = Slice::new(&Arc::new(region), 64, 64);
        let bind = SendOperation::Bind { window: Arc::new(Window(window)), rkey, target, access };
        let request = SendRequest {
            id: WorkId(1),
            operation: bind,
            local: smallvec::SmallVec::new(),
            flags: SendFlags::empty(),
        };
        engine.post_send(now, other, &[request]).unwrap();
        let mut completions = Vec::new();
        assert_eq!(engine.poll_completions(&mut completions), Some(other));
        assert!(completions[0].status.is_success());
        openings.push(Opening {
            key: rkey.expose(),
            memory: 1,
            first: keys.address + 64,
            offset: 64,
            length: 64,
            access,
            elsewhere: true,
        });
        let qpn = engine.create_queue_pair(now, caps).unwrap();
        let endpoints = Endpoints::V4 { source: ADDRESSES[1].into(), destination: ADDRESSES[0].into() };
        let mut victim = Self {
            engine,
            now,
            qpn,
            expected: 0,
            memories,
            bytes,
            openings,
            lkeys,
            flow: IcrcContext::new(endpoints, PORTS[1], 4791),
            arrival: Arrival {
                source: SocketAddr::new(IpAddr::from(ADDRESSES[1]), PORTS[1]),
                destination: IpAddr::from(ADDRESSES[0]),
                destination_port: 4791,
                ecn: 0,
                segment: 0,
            },
            scratch: Vec::new(),
            buffer: Vec::new(),
            packet: Vec::new(),
        };
        victim.renew(random);
        victim
    }

    /// The queue pair in RTR again, with another PSN.
    fn renew(&mut self, random: &mut Random) {
        self.expected = random.below(1 << 24) as u32;
        if self.engine.state(self.qpn) != Some(QpState::Reset) {
            self.engine.modify(self.now, self.qpn, &QpAttr::to(QpState::Reset), None).unwrap();
        }
        bring_up(&mut self.engine, self.now, self.qpn, self.expected);
    }

    /// What a request must do: the bytes that it may touch.
    fn judge(
        &self,
        opcode: Opcode,
        key: u32,
        address: u64,
        length: usize,
    ) -> Result<Option<(usize, usize)>, Refused> {
        let needed = match opcode {
            Opcode::WriteOnly => Access::REMOTE_WRITE,
            Opcode::ReadRequest => Access::REMOTE_READ,
            _ => Access::REMOTE_ATOMIC,
        };
        if length == 0 {
            return Ok(None);
        }
        let opening = self.openings.iter().find(|opening| opening.key == key).ok_or(Refused::UnknownKey)?;
        if opening.elsewhere {
            return Err(Refused::OtherQueuePair);
        }
        if !opening.access.contains(needed) {
            return Err(Refused::Rights);
        }
        let from = i128::from(address) - i128::from(opening.first);
        if from < 0 || from + length as i128 > opening.length as i128 {
            return Err(Refused::Bounds);
        }
        if opcode == Opcode::FetchAdd && !address.is_multiple_of(8) {
            return Err(Refused::Misaligned);
        }
        Ok(Some((opening.memory, opening.offset + from as usize)))
    }

    /// Hands a request in, and compares everything with the model. Tells whether it was executed.
    fn attack(&mut self, opcode: Opcode, key: u32, address: u64, length: usize, random: &mut Random) -> bool {
        let verdict = self.judge(opcode, key, address, length);
        let rkey = PacketKey::new(key);
        let fill = random.u64();
        let payload_length = if opcode == Opcode::WriteOnly { length } else { 0 };
        let extension = if opcode == Opcode::FetchAdd {
            Extension::Atomic(AtomicEth { virtual_address: address, rkey, swap_or_add: fill, compare: 0 })
        } else {
            Extension::Reth(Reth { virtual_address: address, rkey, dma_length: length as u32 })
        };
        let bth =
            Bth { ack_request: true, ..Bth::new(opcode, self.qpn.get(), PacketPsn::new(self.expected)) };
        let headers = Headers::new(bth, extension, payload_length);
        self.packet.clear();
        self.packet.resize(headers.packet_length(payload_length), fill as u8);
        headers.emit(&mut self.packet).unwrap();
        self.flow.finish(0, &mut self.packet).unwrap();

        let before = *self.engine.counters();
        self.engine.handle_packet(self.now, &self.arrival, &self.packet);
        let after = self.engine.counters();
        let counted = [
            after.refused_unknown_key - before.refused_unknown_key,
            after.refused_other_qp - before.refused_other_qp,
            after.refused_rights - before.refused_rights,
            after.refused_bounds - before.refused_bounds,
            after.rcvd_pkts - before.rcvd_pkts,
        ];
        let expected = match verdict {
            Err(Refused::UnknownKey) => [1, 0, 0, 0, 1],
            Err(Refused::OtherQueuePair) => [0, 1, 0, 0, 1],
            Err(Refused::Rights) => [0, 0, 1, 0, 1],
            Err(Refused::Bounds) => [0, 0, 0, 1, 1],
            Err(Refused::Misaligned) | Ok(_) => [0, 0, 0, 0, 1],
        };
        let what = || format!("{opcode} of {length} bytes at {address:#x} with key {key:#x}: {verdict:?}");
        assert_eq!(counted, expected, "{}", what());

        if let Ok(Some((memory, at))) = verdict {
            match opcode {
                Opcode::WriteOnly => self.bytes[memory][at..at + length].fill(fill as u8),
                Opcode::FetchAdd => {
                    let held: [u8; 8] = self.bytes[memory][at..at + 8].try_into().unwrap();
                    let sum = u64::from_ne_bytes(held).wrapping_add(fill);
                    self.bytes[memory][at..at + 8].copy_from_slice(&sum.to_ne_bytes());
                }
                _ => {}
            }
        }
        for (memory, bytes) in self.memories.iter().zip(&self.bytes) {
            self.scratch.clear();
            memory.append_to(0, LENGTH, &mut self.scratch).unwrap();
            assert_eq!(&self.scratch, bytes, "memory after {}", what());
        }
        // The answer: of a refusal the NAK, and nothing else.
        self.buffer.clear();
        let transmit = self.engine.poll_transmit(self.now, 8, &mut self.buffer).unwrap();
        let answer = Packet::new_checked(&self.buffer[..transmit.segment_size]).unwrap();
        let syndrome = answer.aeth().map(|aeth| aeth.syndrome);
        let nak = match verdict {
            Ok(_) => None,
            Err(Refused::Misaligned) => Some(Syndrome::Nak(NakCode::InvalidRequest)),
            Err(_) => Some(Syndrome::Nak(NakCode::RemoteAccessError)),
        };
        assert_eq!(answer.psn().expose(), self.expected, "{}", what());
        if nak.is_some() {
            assert_eq!((syndrome, self.buffer.len()), (nak, transmit.segment_size), "{}", what());
            assert_eq!(self.engine.state(self.qpn), Some(QpState::Err), "{}", what());
            while self.engine.poll_event().is_some() {}
            self.renew(random);
        } else {
            assert!(matches!(syndrome, Some(Syndrome::Ack(_))), "{}", what());
            let taken = if opcode == Opcode::ReadRequest { length.div_ceil(256).max(1) as u32 } else { 1 };
            self.expected = psn::add(self.expected, taken);
        }
        verdict.is_ok()
    }
}

fn bring_up(engine: &mut Engine, now: Instant, qpn: Qpn, expected: u32) {
    let init =
        QpAttr { access: Some(RIGHTS[0]), pkey_index: Some(0), port: Some(1), ..QpAttr::to(QpState::Init) };
    let destination = Gid::from_ip(IpAddr::from(ADDRESSES[1]));
    let global =
        GlobalRoute { destination, source_gid_index: 0, flow_label: 0, hop_limit: 64, traffic_class: 0 };
    let rtr = QpAttr {
        address: Some(AddressVector { port: 1, global: Some(global), ..AddressVector::default() }),
        path_mtu: Some(PathMtu::Bytes256),
        dest_qpn: Qpn::new(0x1234),
        rq_psn: Psn::new(expected),
        max_dest_rd_atomic: Some(4),
        min_rnr_timer: Some(12),
        ..QpAttr::to(QpState::Rtr)
    };
    let path = Path {
        local: IpAddr::from(ADDRESSES[0]),
        peer: SocketAddr::new(IpAddr::from(ADDRESSES[1]), 4791),
        source_port: PORTS[0],
        expected_source_port: Some(PORTS[1]),
        receive_buffer: None,
        sequential_ids: true,
        hop_limit: 64,
        traffic_class: 0,
    };
    engine.modify(now, qpn, &init, None).unwrap();
    engine.modify(now, qpn, &rtr, Some(path)).unwrap();
}

fn packets() -> u64 {
    std::env::var("SIM_FORGED").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000_000)
}

fn attack_all(wrong: Wrong) {
    let (count, started) = (packets(), Instant::now());
    let mut random = Random::new(wrong as u64, 77);
    let mut victim = Victim::new(&mut random, wrong as u64);
    let mut executed = 0_u64;
    for _ in 0..count {
        let opcode =
            random.pick(&[Opcode::WriteOnly, Opcode::WriteOnly, Opcode::ReadRequest, Opcode::FetchAdd]);
        let valid = random.below(16) == 0;
        let open = victim.openings[0];
        let (mut key, mut length) = (open.key, random.index(40));
        let mut address = open.first + random.below(LENGTH as u64 - 40);
        if opcode == Opcode::FetchAdd {
            (address, length) = (address & !7, 8);
        }
        match wrong {
            _ if valid => {}
            Wrong::Region => {
                let (other, any) = (random.pick(&victim.lkeys), random.u64() as u32);
                let window = victim.openings[victim.openings.len() - 1];
                key = random.pick(&[
                    other,
                    window.key,
                    0,
                    u32::MAX,
                    open.key ^ 1,
                    open.key.wrapping_add(256),
                    any,
                ]);
                if key == window.key {
                    address = window.first + (address & 15);
                }
            }
            Wrong::Bounds => {
                let end = open.first + LENGTH as u64;
                let edges =
                    [open.first, end, 0, u64::MAX, 1 << 63, open.first ^ 1 << 63, end - length as u64];
                address = random.pick(&edges).wrapping_add(random.below(17)).wrapping_sub(8);
                if opcode == Opcode::ReadRequest && random.below(4) == 0 {
                    // Longer than the region, up to all that 32 bits can say.
                    length = random.pick(&[LENGTH + 1, 1 << 20, 1 << 31]) - random.index(3);
                }
            }
            Wrong::Rights => {
                let other = victim.openings[1 + random.index(2)];
                key = other.key;
                address = other.first + (address - open.first);
            }
        }
        executed += u64::from(victim.attack(opcode, key, address, length, &mut random));
    }
    let seconds = started.elapsed().as_secs_f64();
    say(&format!("{wrong:?}: {count} packets, {executed} executed, in {seconds:.1} s"));
    assert!(executed > count / 40 && executed < count * 3 / 4, "both happen: {executed} of {count}");
}

#[test]
fn requests_for_a_wrong_region() {
    attack_all(Wrong::Region);
}

#[test]
fn requests_beyond_the_bounds() {
    attack_all(Wrong::Bounds);
}

#[test]
fn requests_without_the_right() {
    attack_all(Wrong::Rights);
}

/// Says something even where a passing test's output is kept back.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
