//! The engine as functions of bytes: what the fuzz targets call, and what each test run replays with the committed corpus.
//! They panic where the model disagrees, which is their purpose.

use secure_rdma_roce::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Extension, Headers, Ieth, ImmDt, Opcode, PacketKey, PacketPsn, Reth,
    Syndrome,
};
use std::net::SocketAddr;

use super::endpoint::Stage;
use super::network::{Datagram, MICROSECOND, Origin};
use super::random::psn;
use super::scenario::{Fault, Faults, Scenario};
use super::world::{Action, World, context};

/// Bytes, taken one after the other; zeros behind the last.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes([0; 8].map(|_: u8| self.byte()))
    }
}

/// Two hosts, one connection that is up, and nobody who posts anything unless told to.
fn world(faults: &[Fault], script: Option<Vec<u8>>) -> World {
    let faults = Faults(faults.iter().fold(0, |bits, fault| bits | 1 << (*fault as u8)));
    let scenario = Scenario { faults, path_mtu: 1, packets: u64::MAX, idle: true, ..Scenario::new(1) };
    let mut world = World::new(scenario);
    // Whatever the bytes do, a transfer may die of.
    world.gentle = false;
    world.network.script = script.map(Vec::into_iter);
    while world.endpoints[0].stage != Stage::Up {
        world.step().unwrap();
    }
    world
}

fn judge<T>(result: super::world::Checked<T>) -> T {
    result.unwrap_or_else(|violation| panic!("{violation}"))
}

/// Makes a packet to endpoint 0 of its headers, and hands it in.
fn hand_in(world: &mut World, bth: Bth, extension: Extension, length: usize, wrong_pad: bool, fill: u8) {
    let mut headers = Headers::new(bth, extension, length);
    if wrong_pad {
        headers.bth.pad_count = (headers.bth.pad_count + 1) & 3;
    }
    let endpoint = &world.endpoints[0];
    let peer = &world.endpoints[endpoint.peer];
    let mut bytes = vec![fill; headers.packet_length(length)];
    headers.emit(&mut bytes).unwrap();
    let mut datagram = Datagram {
        bytes,
        source: SocketAddr::new(world.hosts[peer.host].address, peer.source_port),
        destination: SocketAddr::new(world.hosts[endpoint.host].address, 4791),
        ecn: 0,
        id: 0,
        segment: (endpoint.host as u16) << 8,
        origin: Origin::Forged,
        original: None,
    };
    context(&datagram).finish(0, &mut datagram.bytes).unwrap();
    let host = world.endpoints[0].host;
    judge(world.deliver(host, datagram));
}

/// A length near something that matters.
fn length(input: &mut Input<'_>, path_mtu: usize) -> usize {
    match input.byte() {
        byte @ 0..128 => usize::from(byte),
        byte => (path_mtu + usize::from(byte & 15)).saturating_sub(8),
    }
}

/// Target 4: any sequence of requests with a valid ICRC. Each byte begins a step.
pub fn responder(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut world = world(&[Fault::Windows, Fault::Gather], None);
    while let Some(step) = input.next() {
        if world.endpoints[0].stage != Stage::Up {
            break;
        }
        match step % 16 {
            14 => {
                judge(world.flush(0));
            }
            15 => {
                judge(world.step());
            }
            _ => request(&mut world, &mut input, step),
        }
    }
    judge(world.flush(0));
    judge(world.finish());
}

fn request(world: &mut World, input: &mut Input<'_>, step: u8) {
    const OPCODES: [Opcode; 18] = [
        Opcode::SendFirst,
        Opcode::SendMiddle,
        Opcode::SendLast,
        Opcode::SendLastWithImmediate,
        Opcode::SendOnly,
        Opcode::SendOnlyWithImmediate,
        Opcode::SendLastWithInvalidate,
        Opcode::SendOnlyWithInvalidate,
        Opcode::WriteFirst,
        Opcode::WriteMiddle,
        Opcode::WriteLast,
        Opcode::WriteLastWithImmediate,
        Opcode::WriteOnly,
        Opcode::WriteOnlyWithImmediate,
        Opcode::ReadRequest,
        Opcode::CompareSwap,
        Opcode::FetchAdd,
        Opcode::AtomicWrite,
    ];
    let opcode = OPCODES[usize::from(input.byte()) % OPCODES.len()];
    let path_mtu = world.endpoints[0].plan.terms.path_mtu;
    let distance = match input.byte() {
        byte @ 0..200 => i32::from(byte == 199),
        byte => i32::from(byte) - 228,
    };
    let number = world.endpoints[0].responder.expected.wrapping_add_signed(distance) & psn::MASK;
    let whole = opcode.is_first() || opcode.is_middle();
    let mut bytes = if whole && step < 240 { path_mtu } else { length(input, path_mtu) };
    if !opcode.is_send() && !opcode.is_write() && step < 240 {
        bytes = 0;
    }
    let choice = input.byte();
    let open = &world.hosts[0].shadows.regions[usize::from(choice % 3)];
    let rkey = PacketKey::new(if choice < 250 { open.rkey } else { input.u64() as u32 });
    let offset = match input.byte() {
        byte @ 0..200 => u64::from(byte) * 8,
        byte @ 200..230 => (open.bytes.len() as u64).wrapping_add(u64::from(byte)).wrapping_sub(215),
        _ => input.u64(),
    };
    let address = open.address.wrapping_add(offset);
    let asked = match input.byte() {
        byte @ 0..128 if whole => (path_mtu + usize::from(byte)) as u32,
        0..128 => bytes as u32,
        byte => u32::from(byte & 31) << ((byte >> 3 & 3) * 8),
    };
    let reth = Reth { virtual_address: address, rkey, dma_length: asked };
    let immediate = ImmDt { value: u32::from(choice) };
    let atomic = AtomicEth { virtual_address: address, rkey, swap_or_add: 1, compare: 0 };
    let extension = match opcode {
        _ if opcode.has_atomic_eth() => Extension::Atomic(atomic),
        _ if opcode.has_reth() && opcode.has_immediate() => Extension::RethImmediate(reth, immediate),
        _ if opcode.has_reth() => Extension::Reth(reth),
        _ if opcode.has_immediate() => Extension::Immediate(immediate),
        _ if opcode.has_invalidate() => Extension::Invalidate(Ieth { rkey }),
        _ => Extension::None,
    };
    let qpn = world.endpoints[0].qpn.get();
    let bth = Bth { ack_request: choice & 1 == 0, ..Bth::new(opcode, qpn, PacketPsn::new(number)) };
    hand_in(world, bth, extension, bytes, step == 255, choice);
}

/// Target 5: any sequence of responses with a valid ICRC to what is outstanding. The real peer hears nothing.
pub fn requester(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut world = world(&[Fault::Reads, Fault::Atomics, Fault::Gather], None);
    world.trusted = false;
    world.network.silence();
    while let Some(step) = input.next() {
        if world.endpoints[0].stage != Stage::Up {
            break;
        }
        match step % 16 {
            12..14 => judge(world.act(Action::Work(0))),
            14 => judge(world.flush(0)),
            15 => {
                judge(world.step());
            }
            _ => response(&mut world, &mut input, step),
        }
    }
    judge(world.flush(0));
    judge(world.finish());
}

fn response(world: &mut World, input: &mut Input<'_>, step: u8) {
    const OPCODES: [Opcode; 6] = [
        Opcode::Acknowledge,
        Opcode::AtomicAcknowledge,
        Opcode::ReadResponseFirst,
        Opcode::ReadResponseMiddle,
        Opcode::ReadResponseLast,
        Opcode::ReadResponseOnly,
    ];
    let opcode = OPCODES[usize::from(input.byte()) % OPCODES.len()];
    let path_mtu = world.endpoints[0].plan.terms.path_mtu;
    let requester = &world.endpoints[0].requester;
    let span = psn::minus(requester.newest, requester.oldest);
    let distance = match input.byte() {
        0..100 => 0,
        byte @ 100..200 => i32::from(byte - 100),
        byte @ 200..228 => span - i32::from(byte - 200),
        byte => i32::from(byte) - 242,
    };
    let number = requester.oldest.wrapping_add_signed(distance) & psn::MASK;
    let syndrome = match input.byte() {
        0..128 => Syndrome::from_byte(0x1F),
        byte @ 128..160 => Syndrome::from_byte(0x20 | byte & 0x1F),
        byte @ 160..192 => Syndrome::from_byte(0x60 | byte & 0x07),
        byte => Syndrome::from_byte(byte),
    };
    let mut bytes = match opcode {
        Opcode::ReadResponseFirst | Opcode::ReadResponseMiddle => path_mtu,
        _ => 0,
    };
    if opcode.is_read_response() && (opcode.is_last() || opcode.is_only() || step > 250) {
        // The right length, if the byte says nothing else.
        let at = requester.sends.iter().find(|posted| {
            let index = psn::minus(number, posted.first);
            index >= 0 && index < posted.count.cast_signed()
        });
        let due = at.map_or(0, |posted| {
            let offset = psn::minus(number, posted.first).cast_unsigned() as usize * path_mtu;
            posted.length.saturating_sub(offset).min(path_mtu)
        });
        bytes = if input.byte() < 200 { due } else { length(input, path_mtu) };
    }
    let aeth = Aeth { syndrome, msn: u32::from(input.byte()) };
    let extension = match opcode {
        Opcode::AtomicAcknowledge => {
            Extension::AtomicAck(aeth, AtomicAckEth { original: u64::from(input.byte()) })
        }
        _ if opcode.has_aeth() => Extension::Aeth(aeth),
        _ => Extension::None,
    };
    let qpn = world.endpoints[0].qpn.get();
    let bth = Bth::new(opcode, qpn, PacketPsn::new(number));
    hand_in(world, bth, extension, bytes, step == 255, step);
}

/// Target 8: two engines, and a network that does with each packet what the next byte says.
pub fn network(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (kinds, work) = (input.byte(), input.byte());
    let mut faults = vec![Fault::Reads, Fault::Atomics];
    for (bit, fault) in [
        Fault::Windows,
        Fault::Gather,
        Fault::Fences,
        Fault::LongMessages,
        Fault::Wrap,
        Fault::Ipv6,
        Fault::Batches,
        Fault::LateReceives,
    ]
    .into_iter()
    .enumerate()
    {
        if kinds >> bit & 1 == 1 {
            faults.push(fault);
        }
    }
    let mut world = world(&faults, Some(input.0.to_vec()));
    for turn in 0..work % 16 {
        judge(world.act(Action::Work(usize::from(turn & 1))));
        let until = world.now + 200 * MICROSECOND;
        while world.now < until && world.network.in_flight() > 0 {
            judge(world.step());
        }
    }
    judge(world.finish());
}
