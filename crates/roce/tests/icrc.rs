//! The ICRC against the brief's words (§5.1), done one after the other and byte by byte; and the ID solver against trying
//! all IDs, and against an elimination over the columns of the map from ID to ICRC.
#![expect(clippy::cast_possible_truncation, reason = "helpers of tests")]

mod random;

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use random::Random;
use secure_rdma_roce::{Endpoints, IcrcCheck, IcrcContext, Ipv4Difference, solve_id};

const V4: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 1, 200, 2), Ipv4Addr::new(192, 168, 7, 255));
const V6: (Ipv6Addr, Ipv6Addr) =
    (Ipv6Addr::new(0xFD00, 1, 2, 3, 4, 5, 6, 7), Ipv6Addr::new(0xFE80, 0, 0, 0, 0xFFFF, 0, 0, 1));
const SOURCE_PORT: u16 = 0xF00D;
const DESTINATION_PORT: u16 = 4791;

fn v4() -> IcrcContext {
    let endpoints = Endpoints::V4 { source: V4.0, destination: V4.1 };
    IcrcContext::new(endpoints, SOURCE_PORT, DESTINATION_PORT)
}

fn v6() -> IcrcContext {
    let endpoints = Endpoints::V6 { source: V6.0, destination: V6.1 };
    IcrcContext::new(endpoints, SOURCE_PORT, DESTINATION_PORT)
}

/// CRC-32 by its definition, a table for the eight steps of a byte.
fn crc32(bytes: &[u8]) -> u32 {
    static TABLE: LazyLock<[u32; 256]> = LazyLock::new(|| {
        let step = |crc: u32| (crc >> 1) ^ if crc & 1 != 0 { 0xEDB8_8320 } else { 0 };
        std::array::from_fn(|byte| (0..8).fold(byte as u32, |crc, _| step(crc)))
    });
    let table = &*TABLE;
    !bytes.iter().fold(u32::MAX, |crc, byte| table[((crc ^ u32::from(*byte)) & 0xFF) as usize] ^ (crc >> 8))
}

fn masked(ip: &[u8], covered: &[u8]) -> Vec<u8> {
    let udp_length = (covered.len() as u16 + 12).to_be_bytes();
    let mut bytes = [&[0xFF; 8][..], ip].concat();
    bytes.extend(SOURCE_PORT.to_be_bytes());
    bytes.extend(DESTINATION_PORT.to_be_bytes());
    bytes.extend(udp_length);
    bytes.extend([0xFF, 0xFF]);
    let bth = bytes.len();
    bytes.extend(covered);
    bytes[bth + 4] = 0xFF;
    bytes
}

fn oracle_v4(id: u16, dont_fragment: bool, covered: &[u8]) -> u32 {
    let mut ip = vec![0x45, 0xFF];
    ip.extend((covered.len() as u16 + 32).to_be_bytes());
    ip.extend(id.to_be_bytes());
    ip.extend([if dont_fragment { 0x40 } else { 0 }, 0, 0xFF, 17, 0xFF, 0xFF]);
    ip.extend(V4.0.octets());
    ip.extend(V4.1.octets());
    crc32(&masked(&ip, covered))
}

fn oracle_v6(covered: &[u8]) -> u32 {
    let mut ip = vec![0x6F, 0xFF, 0xFF, 0xFF];
    ip.extend((covered.len() as u16 + 12).to_be_bytes());
    ip.extend([17, 0xFF]);
    ip.extend(V6.0.octets());
    ip.extend(V6.1.octets());
    crc32(&masked(&ip, covered))
}

#[test]
fn every_length_up_to_the_largest_packet() {
    let mut random = Random(1);
    let bytes: Vec<u8> = random.bytes(65_000);
    for length in (12..4300).chain([9000, 32_767, 32_768, 65_000]) {
        let covered = &bytes[..length];
        let id = random.next() as u16;
        assert_eq!(v4().icrc(id, true, covered), oracle_v4(id, true, covered), "{length} bytes, ID {id}");
        assert_eq!(v6().icrc(id, true, covered), oracle_v6(covered), "{length} bytes, IPv6");
    }
}

#[test]
fn every_id_and_every_masked_byte() {
    let mut covered = Random(2).bytes(28);
    for id in 0..=u16::MAX {
        covered[4] = id as u8;
        for dont_fragment in [true, false] {
            let expected = oracle_v4(id, dont_fragment, &covered);
            assert_eq!(v4().icrc(id, dont_fragment, &covered), expected, "ID {id}, {dont_fragment}");
        }
    }
    let v6s: Vec<u32> =
        (0..=255).map(|byte| v6().icrc(0, true, &[&[4, 0, 0, 0, byte][..], &covered].concat())).collect();
    assert!(v6s.iter().all(|icrc| *icrc == v6s[0]), "FECN, BECN and reserved bits do not count");
}

#[test]
fn no_length_makes_it_panic() {
    for length in (0..16).chain([65_535, 65_536, 70_000]) {
        let bytes = vec![0; length];
        let _ = (v4().icrc(0, true, &bytes), v6().icrc(0, true, &bytes));
        let _ = (v4().check(0, &bytes), v6().check(0, &bytes), solve_id(length, 1));
        let mut packet = bytes.clone();
        let finished = v4().finish(0, &mut packet);
        assert_eq!(finished.is_some(), length >= 16);
        assert!(finished.is_some() || packet == bytes, "nothing is written");
    }
    assert_eq!(v4().finish(0, &mut [0, 0x30, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]), None);
    let _ = solve_id(usize::MAX / 16, 1);
}

/// Lengths of whole packets, those of wrong padding among them, within the solver's table and beyond.
const LENGTHS: [usize; 11] = [16, 17, 18, 19, 32, 96, 1052, 4128, 4223, 4224, 9004];

/// Errors of all IDs, by trying each.
fn errors(length: usize) -> HashMap<u32, u16> {
    let covered = Random(length as u64).bytes(length - 4);
    let zero = oracle_v4(0, true, &covered);
    let flow = v4();
    assert_eq!(flow.icrc(0, true, &covered), zero);
    (0..=u16::MAX).map(|id| (flow.icrc(id, true, &covered) ^ zero, id)).collect()
}

#[test]
fn every_id_is_found_at_every_kind_of_length() {
    for length in LENGTHS {
        let errors = errors(length);
        assert_eq!(errors.len(), 1 << 16, "no two IDs have one ICRC");
        for (error, id) in errors {
            let found = Some(Ipv4Difference { id, dont_fragment: false });
            assert_eq!(solve_id(length, error), found, "{length} bytes");
        }
    }
}

/// Whether there is a solution is the same as when all IDs are tried, near solvable errors and far from them.
#[test]
fn what_has_no_id_is_refused() {
    for length in LENGTHS {
        let (errors, mut random) = (errors(length), Random(3));
        let clear = {
            let covered = vec![0; length - 4];
            oracle_v4(0, true, &covered) ^ oracle_v4(0, false, &covered)
        };
        let solvable: Vec<u32> = errors.keys().copied().collect();
        for _ in 0..20_000 {
            let near = solvable[random.below(solvable.len())] ^ 1 << random.below(32);
            for error in [random.next() as u32, near, near ^ clear] {
                let tried = [(error, false), (error ^ clear, true)];
                let expected = tried.into_iter().find_map(|(error, dont_fragment)| {
                    errors.get(&error).map(|id| Ipv4Difference { id: *id, dont_fragment })
                });
                assert_eq!(solve_id(length, error), expected, "{length} bytes, error {error:08x}");
            }
        }
    }
}

/// Another way to solve: elimination over the 16 columns L(2^k), as the brief has it.
fn eliminate(columns: &[u32; 16], error: u32) -> Option<u16> {
    let mut rows: Vec<(u32, u16)> = columns.iter().enumerate().map(|(k, column)| (*column, 1 << k)).collect();
    let (mut rest, mut id) = (error, 0);
    for bit in (0..32).rev() {
        let Some(at) = rows.iter().position(|(column, _)| column >> bit & 1 != 0) else { continue };
        let (pivot, combined) = rows.swap_remove(at);
        for (column, id) in &mut rows {
            if *column >> bit & 1 != 0 {
                *column ^= pivot;
                *id ^= combined;
            }
        }
        if rest >> bit & 1 != 0 {
            rest ^= pivot;
            id ^= combined;
        }
    }
    (rest == 0).then_some(id)
}

#[test]
fn elimination_finds_the_same() {
    let mut random = Random(4);
    for length in LENGTHS {
        let covered = vec![0; length - 4];
        let zero = oracle_v4(0, true, &covered);
        let columns = std::array::from_fn(|k| oracle_v4(1 << k, true, &covered) ^ zero);
        for round in 0..500 {
            let error = match round % 2 {
                0 => random.next() as u32,
                _ => oracle_v4(random.next() as u16, true, &covered) ^ zero,
            };
            let found = solve_id(length, error).filter(|found| !found.dont_fragment).map(|found| found.id);
            assert_eq!(found, eliminate(&columns, error));
            assert!(round % 2 == 0 || found.is_some());
        }
    }
}

/// 2^20 corrupt packets: about 16 pass for those of another ID, about 16 more for those with DF clear.
#[test]
fn a_corrupt_packet_passes_once_in_2_to_the_16() {
    let mut random = Random(5);
    let (mut other, mut clear) = (0, 0);
    for _ in 0..1 << 20 {
        let packet: [u8; 20] = std::array::from_fn(|_| random.next() as u8);
        match v4().check(0, &packet) {
            IcrcCheck::OtherId { dont_fragment: true, .. } => other += 1,
            IcrcCheck::OtherId { dont_fragment: false, .. } => clear += 1,
            IcrcCheck::Expected => unreachable!("one in 4096 runs; the seed is fixed"),
            IcrcCheck::Wrong => {}
        }
        assert_eq!(v6().check(0, &packet), IcrcCheck::Wrong);
    }
    assert!((6..=32).contains(&other) && (6..=32).contains(&clear), "{other} and {clear}");
}

#[test]
fn what_is_found_makes_the_icrc_right() {
    let mut random = Random(6);
    for _ in 0..10_000 {
        let length = 12 + random.below(200);
        let covered = random.bytes(length);
        let (id, dont_fragment) = (random.next() as u16, random.below(2) == 0);
        let packet = [&covered[..], &oracle_v4(id, dont_fragment, &covered).to_le_bytes()].concat();
        let expected = random.next() as u16;
        let answer = match dont_fragment && expected == id {
            true => IcrcCheck::Expected,
            false => IcrcCheck::OtherId { id, dont_fragment },
        };
        assert_eq!(v4().check(expected, &packet), answer);
        let own: [u8; 4] = packet[packet.len() - 4..].try_into().unwrap();
        assert_eq!(v4().icrc(id, dont_fragment, &covered), u32::from_le_bytes(own));
    }
}
