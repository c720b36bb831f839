//! The decoder and the ID solver as functions of bytes: what the fuzz targets call, and what every test run replays
//! with the committed corpus. They panic where an invariant breaks, which is their purpose.
#![allow(clippy::expect_used)]

use std::net::Ipv4Addr;

use crate::{
    Endpoints, Headers, IcrcCheck, IcrcContext, Ipv4Difference, Malformed, Opcode, Packet, UDP_PORT, bth,
    solve_id,
};

fn flow() -> IcrcContext {
    let (source, destination) = (Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 1));
    IcrcContext::new(Endpoints::V4 { source, destination }, 0xC123, UDP_PORT)
}

/// A UDP payload: what is a packet is written again to the same bytes, but for what is reserved; what is none has the
/// reason that its bytes show.
pub fn packet(bytes: &[u8]) {
    let length = bytes.len();
    let packet = match Packet::new_checked(bytes) {
        Ok(packet) => packet,
        Err(Malformed::TooShort(told)) => return assert!(told == length && length < bth::LENGTH),
        Err(Malformed::TransportVersion(version)) => {
            return assert!(version != 0 && version == bytes[1] & 0x0F);
        }
        Err(Malformed::OtherTransport(code) | Malformed::UnknownOpcode(code)) => {
            return assert!(code == bytes[0] && Opcode::from_code(code).is_none());
        }
        Err(Malformed::CutOff { needed, length: told }) => {
            return assert!(told == length && length < needed && needed <= 12 + 28 + 3 + 4);
        }
    };
    let headers = Headers::parse(&packet);
    assert!(headers.extension.fits(packet.opcode()), "headers of another opcode");
    assert_eq!((packet.dest_qpn(), packet.psn()), (headers.bth.dest_qpn, headers.bth.psn));
    let payload = packet.payload();
    assert_eq!(headers.packet_length(payload.len()), length, "a byte belongs to nothing, or to two");
    let _ = (packet.to_string(), format!("{packet:?}"));

    let mut again = vec![0xEE; length];
    let start = headers.emit(&mut again).expect("room for what was there");
    again[start..start + payload.len()].copy_from_slice(payload);
    flow().finish(7, &mut again).expect("room for padding and ICRC");
    let (covered, icrc) = again.split_last_chunk::<4>().expect("an ICRC");
    assert_eq!(covered, without_reserved(packet.opcode(), start + payload.len(), bytes));
    assert_eq!(flow().check(7, &again), IcrcCheck::Expected);
    let reparsed = Packet::new_checked(&again).expect("a packet again");
    assert_eq!((Headers::parse(&reparsed), reparsed.payload()), (headers, payload));
    assert_eq!(reparsed.icrc(), u32::from_le_bytes(*icrc));
}

/// `bytes` without ICRC, with zeros in reserved bits and in the padding, which begins at `end`.
fn without_reserved(opcode: Opcode, end: usize, bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes[..bytes.len() - 4].to_vec();
    bytes[4] &= 0xC0;
    bytes[8] &= 0x80;
    match opcode {
        Opcode::Cnp => bytes[12..28].fill(0),
        Opcode::Flush => bytes[12..16].fill(0),
        _ => {}
    }
    bytes[end..].fill(0);
    bytes
}

/// Length (2), ID (2), flags (1), an error (4), and what the packet is filled with: the solver finds what trying all
/// 2^16 IDs finds, and the check finds the ID that a packet was sent with.
pub fn id_solver(bytes: &[u8]) {
    let Some((&[l0, l1, id_high, id_low, flags, e0, e1, e2, e3], fill)) = bytes.split_first_chunk() else {
        return;
    };
    // Up to 9000 bytes, mostly those of a packet.
    let length = 16 + usize::from(u16::from_be_bytes([l0, l1])) % 9000;
    let (id, dont_fragment) = (u16::from_be_bytes([id_high, id_low]), flags & 1 == 0);
    let covered: Vec<u8> =
        fill.iter().copied().cycle().chain(std::iter::repeat(0)).take(length - 4).collect();
    let covered = if fill.is_empty() { vec![0; length - 4] } else { covered };

    let flow = flow();
    let assumed = flow.icrc(0, true, &covered);
    let sent = flow.icrc(id, dont_fragment, &covered);
    let packet = [&covered[..], &sent.to_le_bytes()].concat();
    let answer = match dont_fragment && id == 0 {
        true => IcrcCheck::Expected,
        false => IcrcCheck::OtherId { id, dont_fragment },
    };
    assert_eq!(flow.check(0, &packet), answer);

    let columns: [u32; 16] = std::array::from_fn(|bit| flow.icrc(1 << bit, true, &covered) ^ assumed);
    let clear = flow.icrc(0, false, &covered) ^ assumed;
    let error = u32::from_be_bytes([e0, e1, e2, e3]);
    for error in [error, sent ^ assumed, sent ^ assumed ^ (error & error.wrapping_neg())] {
        assert_eq!(solve_id(length, error), brute_force(&columns, clear, error), "{length} bytes");
    }
}

/// Tries all IDs, in an order in which each differs from the one before in a single bit.
fn brute_force(columns: &[u32; 16], clear: u32, error: u32) -> Option<Ipv4Difference> {
    let (mut id, mut tried) = (0_u16, 0_u32);
    for step in 1..=1_u32 << 16 {
        for (dont_fragment, tried) in [(false, tried), (true, tried ^ clear)] {
            if tried == error {
                return Some(Ipv4Difference { id, dont_fragment });
            }
        }
        let bit = step.trailing_zeros() as usize % 16;
        id ^= 1 << bit;
        tried ^= columns[bit];
    }
    None
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::{Aeth, Bth, Extension, ImmDt, PacketKey, PacketPsn, Reth, Syndrome};

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target, u32); 2] = [("packet", packet, 20_000), ("id_solver", id_solver, 200)];

    fn corpus(target: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target)
    }

    fn files(target: &str) -> Vec<Vec<u8>> {
        let mut paths: Vec<_> =
            std::fs::read_dir(corpus(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
    }

    #[test]
    fn the_corpus_is_replayed() {
        for (name, target, _) in TARGETS {
            let inputs = files(name);
            assert!(inputs.len() >= 8, "{name} has a corpus");
            inputs.iter().for_each(|input| target(input));
        }
    }

    #[test]
    fn the_corpus_reaches_every_opcode_and_every_reason() {
        let inputs = files("packet");
        let results: Vec<_> = inputs.iter().map(|input| Packet::new_checked(input)).collect();
        for opcode in Opcode::ALL {
            assert!(results.iter().flatten().any(|packet| packet.opcode() == opcode), "{opcode}");
        }
        let reasons: HashSet<_> = results
            .iter()
            .filter_map(|result| result.err())
            .map(|reason| std::mem::discriminant(&reason))
            .collect();
        assert_eq!(reasons.len(), 5);
    }

    /// A short fuzzing run of our own, the same each time: the corpus, mutated.
    #[test]
    fn mutations_of_the_corpus_break_nothing() {
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap() % below.max(1)
        };
        for (name, target, rounds) in TARGETS {
            let inputs = files(name);
            for _ in 0..rounds {
                let mut input = inputs[random(inputs.len())].clone();
                for _ in 0..=random(3) {
                    let at = random(input.len() + 1).min(input.len());
                    match random(3) {
                        0 if at < input.len() => input[at] ^= 1 << random(8),
                        1 => input.insert(at, u8::try_from(random(256)).unwrap()),
                        _ => input.truncate(at),
                    }
                }
                target(&input);
            }
        }
    }

    /// A target that could not fail would be none: what it compares does differ where the packet does.
    #[test]
    fn the_oracles_tell_apart() {
        let columns: [u32; 16] = std::array::from_fn(|bit| 1 << bit);
        let found = |error| brute_force(&columns, 1 << 31, error);
        assert_eq!(found(0xABCD), Some(Ipv4Difference { id: 0xABCD, dont_fragment: false }));
        assert_eq!(found(0x8000_FFFF), Some(Ipv4Difference { id: 0xFFFF, dont_fragment: true }));
        assert_eq!(found(0x4000_0001), None);
        let bytes = [0xFF; 40];
        assert_eq!(without_reserved(Opcode::Cnp, 33, &bytes)[12..28], [0; 16]);
        assert_eq!(without_reserved(Opcode::SendOnly, 33, &bytes)[9..], [&[0xFF; 24][..], &[0; 3]].concat());
    }

    #[test]
    #[ignore = "writes fuzz/corpus anew"]
    fn write_corpus() {
        let mut packets: Vec<Vec<u8>> = Vec::new();
        for (index, opcode) in Opcode::ALL.into_iter().enumerate() {
            let payload = match opcode.payload_rule() {
                crate::PayloadRule::None => 0,
                crate::PayloadRule::Eight => 8,
                _ => index,
            };
            let pad_count = bth::pad_count_for(payload);
            let bth = Bth { pad_count, ..Bth::new(opcode, 0x11, PacketPsn::new(0xFF_FFFE)) };
            let mut bytes = bth.to_bytes().to_vec();
            bytes.extend((0_u8..).take(opcode.extension_length() + payload));
            bytes.resize(bytes.len() + usize::from(pad_count) + 4, 0);
            flow().finish(0, &mut bytes).unwrap();
            packets.push(bytes);
        }
        let whole = |headers: Headers, payload: &[u8]| {
            let mut bytes = vec![0; headers.packet_length(payload.len())];
            let start = headers.emit(&mut bytes).unwrap();
            bytes[start..start + payload.len()].copy_from_slice(payload);
            flow().finish(0, &mut bytes).unwrap();
            bytes
        };
        let reth = Reth { virtual_address: 0x319E_C000, rkey: PacketKey::new(0x230), dma_length: 8 };
        let bth =
            |opcode| Bth { ack_request: true, solicited: true, ..Bth::new(opcode, 0x11, PacketPsn::new(8)) };
        let with_immediate = Extension::RethImmediate(reth, ImmDt { value: 0xDEAD_BEEF });
        packets
            .push(whole(Headers::new(bth(Opcode::WriteOnlyWithImmediate), with_immediate, 8), b"ABCDEFGH"));
        for byte in [0x05, 0x2C, 0x60, 0x7F, 0x40, 0xFF] {
            let aeth = Aeth { syndrome: Syndrome::from_byte(byte), msn: 9 };
            packets.push(whole(Headers::new(bth(Opcode::Acknowledge), Extension::Aeth(aeth), 0), &[]));
        }
        let good = packets[4].clone();
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            bytes
        };
        packets.push(good[..11].to_vec());
        packets.push(changed(1, 0x41));
        packets.push(changed(0, 0x24));
        packets.push(changed(0, 0x15));
        packets.push(changed(0, 0x13)[..20].to_vec());
        packets.push(changed(4, 0xFF));
        packets.push(changed(8, 0xFF));
        packets.push(vec![]);

        let solver = |length: u16, id: u16, flags: u8, error: u32, fill: &[u8]| {
            let length = (length - 16).to_be_bytes();
            [&length[..], &id.to_be_bytes(), &[flags], &error.to_be_bytes(), fill].concat()
        };
        let solvers = vec![
            solver(16, 0, 0, 0, &[]),
            solver(20, 1, 0, 1, &[0xFF]),
            solver(32, 20_234, 0, 0xDEAD_BEEF, b"rxe"),
            solver(96, 0xFFFF, 1, 0x8000_0000, &[1, 2, 3]),
            solver(1052, 0x718C, 0, 0x0001_0000, b"ConnectX"),
            solver(4128, 127, 1, u32::MAX, &[0]),
            solver(4224, 0x8000, 0, 7, b"beyond the table"),
            solver(9000, 0x00FF, 1, 0x1234_5678, &[0xA5]),
            solver(17, 3, 0, 9, b"odd"),
            vec![1, 2, 3],
        ];
        for (target, inputs) in [("packet", packets), ("id_solver", solvers)] {
            std::fs::create_dir_all(corpus(target)).unwrap();
            for (index, input) in inputs.iter().enumerate() {
                std::fs::write(corpus(target).join(format!("seed-{index:02}")), input).unwrap();
            }
        }
    }
}
