//! What the ICRC and the codec cost per packet. Run: `cargo bench -p secure-rdma-roce`.
#![expect(clippy::print_stdout, clippy::cast_precision_loss, reason = "a benchmark reports")]

use std::hint::black_box;
use std::time::Instant;

use secure_rdma_roce::{
    Bth, Endpoints, Extension, Headers, IcrcContext, Opcode, Packet, PacketKey, PacketPsn, Reth, solve_id,
};

/// The least of several runs, in nanoseconds per call: what the machine's other work adds is not ours.
fn nanoseconds<T>(mut call: impl FnMut() -> T) -> f64 {
    const CALLS: u32 = 200_000;
    let run = |_| {
        let start = Instant::now();
        for _ in 0..CALLS {
            black_box(call());
        }
        start.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    (0..20).map(run).fold(f64::INFINITY, f64::min)
}

fn main() {
    let endpoints = Endpoints::V4 { source: [10, 0, 0, 2].into(), destination: [10, 0, 0, 1].into() };
    let flow = IcrcContext::new(endpoints, 0xC123, secure_rdma_roce::UDP_PORT);
    println!("context: {:.1} ns", nanoseconds(|| IcrcContext::new(black_box(endpoints), 0xC123, 4791)));

    // A BTH and 64 B, 96 bytes of UDP payload, a BTH and 1 KiB, a BTH and 4 KiB.
    for length in [80, 96, 1040, 4112] {
        let bytes = vec![0x5A; length];
        let covered = &bytes[..length - 4];
        let icrc = nanoseconds(|| flow.icrc(black_box(5), true, black_box(covered)));
        let crc = nanoseconds(|| crc32fast::hash(black_box(covered)));
        let rate = covered.len() as f64 / icrc;
        println!("ICRC of {length} B: {icrc:.1} ns, {rate:.1} GB/s (crc32fast alone {crc:.1} ns)");
    }

    let reth = Reth { virtual_address: 0x7F00, rkey: PacketKey::new(0x1234), dma_length: 64 };
    let bth = Bth { ack_request: true, ..Bth::new(Opcode::WriteOnly, 0x11, PacketPsn::new(8)) };
    let headers = Headers::new(bth, Extension::Reth(reth), 64);
    let mut packet = vec![0; headers.packet_length(64)];
    println!("emit: {:.1} ns", nanoseconds(|| black_box(&headers).emit(black_box(&mut packet))));
    let finish = nanoseconds(|| {
        let start = black_box(&headers).emit(black_box(&mut packet));
        (start, flow.finish(black_box(3), black_box(&mut packet)))
    });
    println!("emit and finish, 64 B WRITE ({} B): {finish:.1} ns", packet.len());
    let parse = nanoseconds(|| {
        let packet = Packet::new_checked(black_box(&packet));
        packet.map(|packet| (packet.bth(), packet.reth(), packet.payload().len()))
    });
    println!("parse, BTH and RETH: {parse:.1} ns");
    let check = nanoseconds(|| flow.check(black_box(3), black_box(&packet)));
    println!("check of the expected ID: {check:.1} ns");
    let other = nanoseconds(|| flow.check(black_box(20_234), black_box(&packet)));
    println!("check that finds another ID: {other:.1} ns");
    let solve = nanoseconds(|| solve_id(black_box(96), black_box(0x1234_5678)));
    println!("solver alone: {solve:.1} ns");
}
