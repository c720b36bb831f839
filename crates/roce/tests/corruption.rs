//! Every bit of some 60 packets flipped, and every packet cut at every length (reliability F.1, 4): no packet with a
//! wrong byte has the ICRC that is expected, and nothing panics.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod random;
mod vectors;

use random::Random;
use secure_rdma_roce::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Credits, Extension, Headers, IcrcCheck, IcrcContext, Ieth, ImmDt,
    Malformed, Opcode, Packet, PacketKey, PacketPsn, PayloadRule, Reth, Syndrome,
};

const PATH_MTU: usize = 256;

fn extension(opcode: Opcode) -> Extension {
    let rkey = PacketKey::new(0x1234_5678);
    let reth = Reth { virtual_address: 0x7F00_1234_5678_9AB0, rkey, dma_length: 1000 };
    let aeth = Aeth { syndrome: Syndrome::Ack(Credits::UNLIMITED), msn: 77 };
    let immediate = ImmDt { value: 0xCAFE_F00D };
    let atomic = AtomicEth { virtual_address: 0x7F08, rkey, swap_or_add: 3, compare: 9 };
    let all = [
        Extension::None,
        Extension::Reth(reth),
        Extension::RethImmediate(reth, immediate),
        Extension::Immediate(immediate),
        Extension::Invalidate(Ieth { rkey }),
        Extension::Aeth(aeth),
        Extension::AtomicAck(aeth, AtomicAckEth { original: 0x0123_4567_89AB_CDEF }),
        Extension::Atomic(atomic),
        Extension::Cnp,
        Extension::Flush(reth),
    ];
    let mut fitting = all.into_iter().filter(|extension| extension.fits(opcode));
    let found = fitting.next().expect("each opcode has its headers");
    assert!(fitting.next().is_none(), "and no others");
    assert_eq!(found.length(), opcode.extension_length());
    found
}

/// Each opcode with each length of padding that it may have, on both families.
fn packets() -> Vec<(IcrcContext, bool, Vec<u8>)> {
    let mut packets = Vec::new();
    let mut random = Random(11);
    for v4 in [true, false] {
        let flow = match v4 {
            true => vectors::flow("10.0.0.2", 0xC123, "10.0.0.1"),
            false => vectors::flow("fd00::2", 0xC123, "fd00::1"),
        };
        for opcode in Opcode::ALL {
            let lengths: &[usize] = match opcode.payload_rule() {
                PayloadRule::PathMtu => &[PATH_MTU],
                PayloadRule::NotEmpty => &[1, 30],
                PayloadRule::Any => &[0, 61, 64],
                PayloadRule::None => &[0],
                PayloadRule::Eight => &[8],
            };
            for length in lengths {
                assert!(opcode.payload_rule().allows(*length, PATH_MTU));
                let bth = Bth {
                    ack_request: opcode.is_request(),
                    ..Bth::new(opcode, 0xABCDEF, PacketPsn::new(0x12_3456))
                };
                let headers = Headers::new(bth, extension(opcode), *length);
                let mut packet = Vec::new();
                headers.append_to(&mut packet);
                packet.extend(random.bytes(*length));
                packet.resize(headers.packet_length(*length), 0xEE);
                flow.finish(0, &mut packet).unwrap();
                assert_eq!(Headers::parse(&Packet::new_checked(&packet).unwrap()), headers);
                packets.push((flow, v4, packet));
            }
        }
    }
    packets
}

#[test]
fn every_flipped_bit_shows_unless_it_is_masked() {
    let (mut cases, mut other_ids) = (0_u32, 0_u32);
    let packets = packets();
    assert!(packets.len() >= 60, "{}", packets.len());
    for (flow, v4, packet) in &packets {
        let before = Headers::parse(&Packet::new_checked(packet).unwrap());
        for at in 0..packet.len() {
            for bit in 0..8 {
                cases += 1;
                let mut flipped = packet.clone();
                flipped[at] ^= 1 << bit;
                // Whatever it is now, looking at it is safe.
                let parsed =
                    Packet::new_checked(&flipped).map(|p| (Headers::parse(&p), p.payload(), p.to_string()));
                let name = format!("{} byte {at} bit {bit}", before.bth.opcode);
                match flow.check(0, &flipped) {
                    IcrcCheck::Expected => {
                        assert_eq!(at, 4, "{name}: FECN, BECN and six reserved bits are outside the ICRC");
                        let Ok((mut headers, ..)) = parsed else { unreachable!("{name}") };
                        assert_eq!(headers.bth.fecn, before.bth.fecn ^ (bit == 7), "{name}");
                        assert_eq!(headers.bth.becn, before.bth.becn ^ (bit == 6), "{name}");
                        (headers.bth.fecn, headers.bth.becn) = (before.bth.fecn, before.bth.becn);
                        assert_eq!(headers, before, "{name}: nothing else changes");
                    }
                    IcrcCheck::OtherId { id, dont_fragment } => {
                        // What 16 bits of check let through is no more than what they must.
                        other_ids += 1;
                        let (covered, icrc) = flipped.split_last_chunk().unwrap();
                        assert!(*v4 && at != 4, "{name}");
                        assert_eq!(
                            flow.icrc(id, dont_fragment, covered),
                            u32::from_le_bytes(*icrc),
                            "{name}"
                        );
                    }
                    IcrcCheck::Wrong => assert_ne!(at, 4, "{name}"),
                }
            }
        }
    }
    assert!(cases >= 50_000, "{cases}");
    // Half of the cases are IPv4's, and 2^-15 of those pass by chance.
    assert!(other_ids < 10, "{other_ids} of {cases}");
}

#[test]
fn every_cut_shows() {
    for (flow, _, packet) in packets() {
        let opcode = Packet::new_checked(&packet).unwrap().opcode();
        let pad = usize::from(packet[1] >> 4 & 3);
        let needed = opcode.header_length() + pad + 4;
        for length in 0..packet.len() {
            let cut = &packet[..length];
            match Packet::new_checked(cut) {
                Err(Malformed::TooShort(told)) => assert!(told == length && length < 12, "{opcode}"),
                Err(reason) => {
                    assert_eq!(reason, Malformed::CutOff { needed, length }, "{opcode}");
                    assert!((12..needed).contains(&length), "{opcode} {length}");
                }
                Ok(short) => {
                    assert_eq!(short.payload().len(), length - needed, "{opcode}");
                    assert_ne!(flow.check(0, cut), IcrcCheck::Expected, "{opcode} {length}");
                }
            }
        }
    }
}

#[test]
fn emit_needs_exactly_its_room() {
    for opcode in Opcode::ALL {
        let headers = Headers::new(Bth::new(opcode, 2, PacketPsn::new(0)), extension(opcode), 0);
        assert_eq!(headers.length(), opcode.header_length());
        for room in 0..64 {
            let mut out = vec![0xEE; room];
            let written = headers.emit(&mut out);
            assert_eq!(written, (room >= headers.length()).then_some(headers.length()), "{opcode} in {room}");
            assert!(out[written.unwrap_or(0)..].iter().all(|byte| *byte == 0xEE), "{opcode} in {room}");
        }
    }
}
