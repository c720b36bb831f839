//! Two engines and the wire between them.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use secure_rdma_rdma::{
    Access, AddressVector, Completion, Entropy, Memory, PathMtu, Psn, QpAttr, QpState, Qpn, ReceiveRequest,
    Region, Registration, RemoteSlice, Result, SendFlags, SendOperation, SendRequest, Slice, WorkId,
};
use secure_rdma_roce::{Bth, Endpoints, Extension, Headers, IcrcContext, Opcode, Packet, PacketPsn};

use crate::engine::{Arrival, Config, Engine, Path, QueuePairCaps, Retired};

/// SplitMix64: the same bytes for the same seed.
pub(super) struct Seeded(Mutex<u64>);

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        let mut state = self.0.lock().unwrap();
        for byte in bytes {
            *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (*state ^ *state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            *byte = ((mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB) >> 40).to_le_bytes()[0];
        }
        Ok(())
    }
}

pub(super) fn seeded(seed: u64) -> Arc<Seeded> {
    Arc::new(Seeded(Mutex::new(seed)))
}

struct Registered;
impl Registration for Registered {}

pub(super) const ALL: Access = Access::LOCAL_WRITE
    .union(Access::REMOTE_WRITE)
    .union(Access::REMOTE_READ)
    .union(Access::REMOTE_ATOMIC)
    .union(Access::MEMORY_WINDOW_BIND);

/// One engine with one queue pair.
pub(super) struct Side {
    pub(super) engine: Engine,
    pub(super) qpn: Qpn,
    pub(super) address: SocketAddr,
    pub(super) completions: Vec<Completion>,
    pub(super) next_id: u64,
}

impl Side {
    pub(super) fn region(&mut self, length: usize, access: Access) -> Arc<Region> {
        let memory = Arc::new(Memory::allocate(length).unwrap());
        let keys = self.engine.register(Arc::clone(&memory), access).unwrap();
        Arc::new(Region::new(Box::new(Registered), memory, keys.address, keys.lkey, keys.rkey))
    }

    pub(super) fn request(
        &mut self,
        operation: SendOperation,
        local: &[(&Arc<Region>, usize, usize)],
    ) -> SendRequest {
        self.next_id += 1;
        SendRequest {
            id: WorkId(self.next_id),
            operation,
            local: local
                .iter()
                .map(|(region, offset, length)| Slice::new(region, *offset, *length))
                .collect(),
            flags: SendFlags::empty(),
        }
    }

    /// Completions so far, as numbers and statuses.
    pub(super) fn statuses(&self) -> Vec<(u64, u32)> {
        self.completions.iter().map(|completion| (completion.id.0, completion.status.0)).collect()
    }
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Pass,
    Drop,
    Twice,
    /// Later than what is sent meanwhile.
    Late(Duration),
    /// With one bit flipped.
    Flip(usize),
}

/// A packet that was sent.
pub(super) struct Sent {
    pub(super) from: usize,
    pub(super) at: Instant,
    pub(super) opcode: Opcode,
    pub(super) psn: u32,
    /// Of what has an AETH, its syndrome.
    pub(super) syndrome: Option<u8>,
}

type Filter = Box<dyn FnMut(&Sent) -> Fate>;

type OnTheWire = (usize, Arrival, Vec<u8>);

pub(super) struct Pair {
    pub(super) sides: [Side; 2],
    pub(super) now: Instant,
    pub(super) log: Vec<Sent>,
    pub(super) filter: Filter,
    options: Options,
    wire: VecDeque<OnTheWire>,
    late: Vec<(Instant, OnTheWire)>,
    /// GSO batches as the number of their segments.
    pub(super) batches: Vec<usize>,
}

#[derive(Clone)]
pub(super) struct Options {
    pub(super) mtu: PathMtu,
    pub(super) psn: u32,
    pub(super) timeout: u8,
    pub(super) retry_count: u8,
    pub(super) rnr_retry: u8,
    pub(super) depth: u8,
    pub(super) v6: bool,
    pub(super) sequential_ids: bool,
    pub(super) receive_buffer: Option<u32>,
    pub(super) config: Config,
    pub(super) access: Access,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mtu: PathMtu::Bytes1024,
            psn: 0xFF_FFFE,
            timeout: 14,
            retry_count: 7,
            rnr_retry: 7,
            depth: 4,
            v6: false,
            sequential_ids: true,
            receive_buffer: None,
            config: Config::default(),
            access: ALL,
        }
    }
}

pub(super) const CAPS: QueuePairCaps =
    QueuePairCaps { max_send: 256, max_receive: 256, max_sge: 8, receive_queue: None };

impl Pair {
    pub(super) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(super) fn with(options: impl std::borrow::Borrow<Options>) -> Self {
        let options = options.borrow();
        let now = Instant::now();
        let side = |number: u8| {
            let mut engine = Engine::new(options.config.clone(), seeded(u64::from(number) + 1)).unwrap();
            let qpn = engine.create_queue_pair(now, CAPS).unwrap();
            let ip: IpAddr = if options.v6 {
                format!("fd00::{}", number + 1).parse().unwrap()
            } else {
                format!("10.0.0.{}", number + 1).parse().unwrap()
            };
            let address = SocketAddr::new(ip, 4791 + u16::from(number));
            Side { engine, qpn, address, completions: Vec::new(), next_id: 0 }
        };
        let mut pair = Self {
            sides: [side(0), side(1)],
            now,
            log: Vec::new(),
            filter: Box::new(|_| Fate::Pass),
            options: options.clone(),
            wire: VecDeque::new(),
            late: Vec::new(),
            batches: Vec::new(),
        };
        for index in 0..2 {
            pair.bring_up(index, options);
        }
        pair
    }

    /// One more queue pair on each side, connected. Gives that of side 0.
    pub(super) fn another(&mut self) -> Qpn {
        self.another_with(CAPS)
    }

    /// The same with other limits on side 1. The new ones are the `qpn` of their sides while they are brought up.
    pub(super) fn another_with(&mut self, caps: QueuePairCaps) -> Qpn {
        let before = [self.sides[0].qpn, self.sides[1].qpn];
        self.sides[0].qpn = self.sides[0].engine.create_queue_pair(self.now, CAPS).unwrap();
        self.sides[1].qpn = self.sides[1].engine.create_queue_pair(self.now, caps).unwrap();
        let options = self.options.clone();
        (0..2).for_each(|index| self.bring_up(index, &options));
        let new = self.sides[0].qpn;
        [self.sides[0].qpn, self.sides[1].qpn] = before;
        new
    }

    /// Takes a side's queue pair to a state, by whichever way leads there.
    pub(super) fn move_to_state(&mut self, index: usize, state: QpState) {
        let options = self.options.clone();
        let side = &mut self.sides[index];
        let mut to = |state| side.engine.modify(self.now, side.qpn, &QpAttr::to(state), None).unwrap();
        match state {
            QpState::Rts => {}
            QpState::Sqd | QpState::Err | QpState::Reset => drop(to(state)),
            _ => {
                to(QpState::Reset);
                self.bring_up_to(index, &options, state);
            }
        }
    }

    pub(super) fn back_to_rts(&mut self, index: usize) {
        let side = &mut self.sides[index];
        side.engine.modify(self.now, side.qpn, &QpAttr::to(QpState::Rts), None).unwrap();
    }

    pub(super) fn bring_up(&mut self, index: usize, options: &Options) {
        self.bring_up_to(index, options, QpState::Rts);
    }

    fn bring_up_to(&mut self, index: usize, options: &Options, state: QpState) {
        let (peer, peer_address) = (self.sides[1 - index].qpn, self.sides[1 - index].address);
        let side = &mut self.sides[index];
        let init = QpAttr {
            access: Some(options.access),
            pkey_index: Some(0),
            port: Some(1),
            ..QpAttr::to(QpState::Init)
        };
        side.engine.modify(self.now, side.qpn, &init, None).unwrap();
        if state == QpState::Init {
            return;
        }
        let rtr = QpAttr {
            address: Some(AddressVector::default()),
            path_mtu: Some(options.mtu),
            dest_qpn: Some(peer),
            rq_psn: Psn::new(options.psn),
            max_dest_rd_atomic: Some(options.depth),
            min_rnr_timer: Some(12),
            ..QpAttr::to(QpState::Rtr)
        };
        let path = Path {
            local: side.address.ip(),
            peer: peer_address,
            source_port: 0xC000 + u16::try_from(index).unwrap(),
            expected_source_port: Some(0xC000 + u16::try_from(1 - index).unwrap()),
            receive_buffer: options.receive_buffer,
            sequential_ids: options.sequential_ids,
            hop_limit: 64,
            traffic_class: 0,
        };
        side.engine.modify(self.now, side.qpn, &rtr, Some(path)).unwrap();
        if state == QpState::Rtr {
            return;
        }
        let rts = QpAttr {
            timeout: Some(options.timeout),
            retry_count: Some(options.retry_count),
            rnr_retry: Some(options.rnr_retry),
            sq_psn: Psn::new(options.psn),
            max_rd_atomic: Some(options.depth),
            ..QpAttr::to(QpState::Rts)
        };
        side.engine.modify(self.now, side.qpn, &rts, None).unwrap();
    }

    pub(super) fn send(
        &mut self,
        index: usize,
        operation: SendOperation,
        local: &[(&Arc<Region>, usize, usize)],
    ) -> u64 {
        let side = &mut self.sides[index];
        let request = side.request(operation, local);
        side.engine.post_send(self.now, side.qpn, &[request]).unwrap();
        side.next_id
    }

    pub(super) fn receive(
        &mut self,
        index: usize,
        region: &Arc<Region>,
        offset: usize,
        length: usize,
    ) -> u64 {
        let side = &mut self.sides[index];
        side.next_id += 1;
        let request = ReceiveRequest::new(WorkId(side.next_id), region, offset, length);
        side.engine.post_receive(side.qpn, &[request]).unwrap();
        side.next_id
    }

    /// Sends and delivers until nothing is left to send now.
    pub(super) fn exchange(&mut self) {
        for turn in 0.. {
            assert!(turn < 100_000, "the two go on for ever");
            let mut idle = true;
            for index in 0..2 {
                idle &= !self.transmit(index);
            }
            while let Some((to, arrival, bytes)) = self.wire.pop_front() {
                idle = false;
                self.sides[to].engine.handle_packet(self.now, &arrival, &bytes);
            }
            self.collect();
            if idle {
                return;
            }
        }
    }

    fn transmit(&mut self, index: usize) -> bool {
        let mut buffer = Vec::new();
        let mut any = false;
        while let Some(transmit) = {
            buffer.clear();
            self.sides[index].engine.poll_transmit(self.now, 64, &mut buffer)
        } {
            any = true;
            assert_eq!(transmit.length, buffer.len());
            assert!(buffer.len() <= 65_507);
            assert_eq!(transmit.destination, self.sides[1 - index].address);
            let segments: Vec<_> = buffer.chunks(transmit.segment_size).collect();
            self.batches.push(segments.len());
            for (segment, bytes) in segments.iter().enumerate() {
                let packet = Packet::new_checked(bytes).unwrap();
                let sent = Sent {
                    from: index,
                    at: self.now,
                    opcode: packet.opcode(),
                    psn: packet.psn().expose(),
                    syndrome: packet.aeth().map(|aeth| aeth.syndrome.to_byte()),
                };
                let fate = (self.filter)(&sent);
                self.log.push(sent);
                if fate != Fate::Drop {
                    let arrival = Arrival {
                        source: SocketAddr::new(transmit.source, transmit.source_port),
                        destination: transmit.destination.ip(),
                        destination_port: transmit.destination.port(),
                        ecn: transmit.traffic_class & 3,
                        segment: u16::try_from(segment).unwrap(),
                    };
                    let mut bytes = bytes.to_vec();
                    if let Fate::Flip(bit) = fate {
                        let bit = bit % (bytes.len() * 8);
                        bytes[bit / 8] ^= 1 << (bit % 8);
                    }
                    let packet = (1 - index, arrival, bytes);
                    if let Fate::Late(by) = fate {
                        self.late.push((self.now + by, packet));
                        continue;
                    }
                    if fate == Fate::Twice {
                        self.wire.push_back(packet.clone());
                    }
                    self.wire.push_back(packet);
                }
            }
        }
        any
    }

    pub(super) fn collect(&mut self) {
        for side in &mut self.sides {
            while side.engine.poll_completions(&mut side.completions).is_some() {}
            side.engine.take_retired(&mut Retired::default());
        }
    }

    /// Lets time pass to the next deadline of either engine, at most `limit` away. Tells whether there was one.
    pub(super) fn wait(&mut self, limit: Duration) -> bool {
        let late = self.late.iter().map(|(at, _)| *at);
        let next = self.sides.iter().filter_map(|side| side.engine.poll_timeout()).chain(late).min();
        let Some(next) = next.filter(|next| *next <= self.now + limit) else { return false };
        self.now = self.now.max(next);
        let mut index = 0;
        while let Some((at, _)) = self.late.get(index) {
            if *at <= self.now {
                self.wire.push_back(self.late.remove(index).1);
            } else {
                index += 1;
            }
        }
        for side in &mut self.sides {
            side.engine.handle_timeout(self.now);
        }
        true
    }

    /// Runs until nothing happens any more.
    pub(super) fn run(&mut self) {
        for _ in 0..100_000 {
            self.exchange();
            if !self.wait(Duration::from_secs(3600)) {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    /// How packets from the peer come to a side.
    pub(super) fn arrival(&self, to: usize) -> Arrival {
        Arrival {
            source: SocketAddr::new(self.sides[1 - to].address.ip(), 0xC000 + u16::try_from(1 - to).unwrap()),
            destination: self.sides[to].address.ip(),
            destination_port: self.sides[to].address.port(),
            ecn: 2,
            segment: 0,
        }
    }

    /// A packet as the peer would send it.
    pub(super) fn packet(&self, to: usize, bth: Bth, extension: Extension, payload: &[u8]) -> Vec<u8> {
        let headers = Headers::new(bth, extension, payload.len());
        let mut bytes = Vec::new();
        headers.append_to(&mut bytes);
        bytes.extend_from_slice(payload);
        bytes.resize(headers.packet_length(payload.len()), 0);
        self.seal(to, &mut bytes);
        bytes
    }

    /// Puts a right ICRC to a packet.
    pub(super) fn seal(&self, to: usize, bytes: &mut [u8]) {
        let arrival = self.arrival(to);
        let endpoints = match (arrival.source.ip(), arrival.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Endpoints::V4 { source, destination },
            (IpAddr::V6(source), IpAddr::V6(destination)) => Endpoints::V6 { source, destination },
            _ => panic!("one family"),
        };
        let context = IcrcContext::new(endpoints, arrival.source.port(), arrival.destination_port);
        context.finish(0, bytes).unwrap();
    }

    /// Has a side receive a packet that the peer has not sent.
    pub(super) fn forge(
        &mut self,
        to: usize,
        opcode: Opcode,
        psn: u32,
        extension: Extension,
        payload: &[u8],
    ) {
        let bth =
            Bth { ack_request: true, ..Bth::new(opcode, self.sides[to].qpn.get(), PacketPsn::new(psn)) };
        let bytes = self.packet(to, bth, extension, payload);
        let arrival = self.arrival(to);
        self.sides[to].engine.handle_packet(self.now, &arrival, &bytes);
        self.collect();
    }

    /// What a side wants to send now, without sending it.
    pub(super) fn take(&mut self, index: usize) -> Vec<Headers> {
        let mut buffer = Vec::new();
        let mut taken = Vec::new();
        while let Some(transmit) = self.sides[index].engine.poll_transmit(self.now, 64, &mut buffer) {
            taken.extend(
                buffer
                    .chunks(transmit.segment_size)
                    .map(|b| Headers::parse(&Packet::new_checked(b).unwrap())),
            );
            buffer.clear();
        }
        taken
    }

    pub(super) fn state(&self, index: usize) -> QpState {
        self.sides[index].engine.state(self.sides[index].qpn).unwrap()
    }

    pub(super) fn opcodes(&self, from: usize) -> Vec<Opcode> {
        self.log.iter().filter(|sent| sent.from == from).map(|sent| sent.opcode).collect()
    }
}

/// A pattern in which each place has its own byte.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 256 * 13 + 3).to_le_bytes()[0]).collect()
}

pub(super) fn bytes_of(region: &Region) -> Vec<u8> {
    let mut bytes = Vec::new();
    region.memory().append_to(0, region.memory().len(), &mut bytes).unwrap();
    bytes
}

pub(super) fn remote(region: &Region, offset: usize) -> RemoteSlice {
    RemoteSlice { address: region.address() + offset as u64, rkey: region.rkey() }
}
