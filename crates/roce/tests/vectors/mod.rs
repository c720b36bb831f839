//! Packets that a real `rdma_rxe` or a ConnectX made, or that a real `rdma_rxe` accepted (brief §5.2, §5.3), each with
//! what it says written out by hand.
#![allow(dead_code, clippy::unwrap_used, reason = "helpers of tests, of which each uses its part")]

use std::net::IpAddr;

use secure_rdma_roce::{
    Aeth, AtomicAckEth, AtomicEth, Bth, Credits, Endpoints, Extension, Headers, IcrcContext, ImmDt, NakCode,
    Opcode, PacketKey, PacketPsn, Reth, RnrTimer, Syndrome, UDP_PORT,
};

pub(crate) struct Vector {
    pub(crate) name: &'static str,
    pub(crate) flow: IcrcContext,
    /// `None` on IPv6.
    pub(crate) ipv4_id: Option<u16>,
    pub(crate) bytes: Vec<u8>,
    /// Bits 7..5 of the opcode: the vectors of unreliable connections differ in nothing else.
    pub(crate) transport: u8,
    pub(crate) headers: Headers,
    pub(crate) payload: Vec<u8>,
    pub(crate) line: &'static str,
}

pub(crate) fn flow(source: &str, port: u16, destination: &str) -> IcrcContext {
    let endpoints = match (source.parse().unwrap(), destination.parse().unwrap()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Endpoints::V4 { source, destination },
        (IpAddr::V6(source), IpAddr::V6(destination)) => Endpoints::V6 { source, destination },
        _ => unreachable!("one family"),
    };
    IcrcContext::new(endpoints, port, UDP_PORT)
}

pub(crate) fn hex(digits: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(digit).collect()
}

/// The bytes `from..to` of a message of the long packets.
pub(crate) fn pattern(from: usize, to: usize) -> Vec<u8> {
    (from..to).map(|i| u8::try_from((7 * i + 3) % 256).unwrap()).collect()
}

/// A BTH as rxe sends it: M = 0.
fn rxe(opcode: Opcode, psn: u32) -> Bth {
    Bth { migration_request: false, ..Bth::new(opcode, 0xABCD, PacketPsn::new(psn)) }
}

/// A BTH as we send it; A = `ack_request`.
fn ours(opcode: Opcode, dest_qpn: u32, psn: u32, ack_request: bool) -> Bth {
    Bth { ack_request, ..Bth::new(opcode, dest_qpn, PacketPsn::new(psn)) }
}

fn ack(msn: u32) -> Aeth {
    Aeth { syndrome: Syndrome::Ack(Credits::UNLIMITED), msn }
}

fn nak(code: NakCode, msn: u32) -> Extension {
    Extension::Aeth(Aeth { syndrome: Syndrome::Nak(code), msn })
}

fn reth(virtual_address: u64, rkey: u32, dma_length: u32) -> Reth {
    Reth { virtual_address, rkey: PacketKey::new(rkey), dma_length }
}

#[allow(clippy::too_many_lines)] // a table
pub(crate) fn all() -> Vec<Vector> {
    let us_to_rxe = flow("10.0.0.2", 0xC123, "10.0.0.1");
    let rxe_to_us = flow("10.0.0.1", 0xE8B0, "10.0.0.2");
    let us_to_rxe_6 = flow("fd00::2", 0xC123, "fd00::1");
    let rxe_to_us_6 = flow("fd00::1", 0xF635, "fd00::2");
    let atomic = |swap_or_add, compare| {
        let (virtual_address, rkey) = (0x319E_C000, PacketKey::new(0x230));
        Extension::Atomic(AtomicEth { virtual_address, rkey, swap_or_add, compare })
    };
    let uc_payload = || hex("4630818be28935d90e9a95505401be885e50");
    let rxe_payload = || hex("030a11181f262d343b42495057");
    let uc = || Bth::new(Opcode::SendOnly, 0xD3, PacketPsn::new(0xCF_1710));
    let vector = |name, flow, id, bytes: String, bth, extension, payload: Vec<u8>, line| Vector {
        name,
        flow,
        ipv4_id: id,
        bytes: hex(&bytes),
        transport: 0,
        headers: Headers::new(bth, extension, payload.len()),
        payload,
        line,
    };
    let short = |name, flow, id, bytes: &str, bth, extension, payload, line| {
        vector(name, flow, id, bytes.to_owned(), bth, extension, payload, line)
    };
    let long = |name, flow, id, headers: &str, bth, extension, payload: Vec<u8>, icrc: &str, line| {
        let digits: String = payload.iter().map(|byte| format!("{byte:02x}")).collect();
        vector(name, flow, id, format!("{headers}{digits}{icrc}"), bth, extension, payload, line)
    };
    let mut vectors = vec![
        short(
            "accepted: SEND Only",
            us_to_rxe,
            Some(0),
            "0470ffff0000001180fffffe68656c6c6f2c20776f726c64210000002c20a83a",
            ours(Opcode::SendOnly, 0x11, 0xFF_FFFE, true),
            Extension::None,
            b"hello, world!".to_vec(),
            "RC SEND Only, QP 0x000011, PSN 16777214, A, 13 B",
        ),
        Vector {
            transport: 0x20,
            ..short(
                "scapy: UC SEND Only",
                flow("192.168.0.7", 49152, "192.168.0.7"),
                Some(1144),
                "2460ffff000000d300cf17104630818be28935d90e9a95505401be885e50000078f353f3",
                uc(),
                Extension::None,
                uc_payload(),
                "RC SEND Only, QP 0x0000d3, PSN 13571856, 18 B",
            )
        },
        short(
            "ConnectX-4 Lx: CNP",
            flow("10.0.17.1", 0, "10.0.18.1"),
            Some(0x718C),
            "8100ffff40000118000000000000000000000000000000000000000082fd002a",
            Bth { migration_request: false, ..Bth::new(Opcode::Cnp, 0x118, PacketPsn::new(0)) },
            Extension::Cnp,
            vec![],
            "CNP, QP 0x000118, PSN 0, BECN",
        ),
        Vector {
            transport: 0x20,
            ..short(
                "scapy: UC SEND Only, IPv6",
                flow("2022::1023", 49152, "2023::1024"),
                None,
                "2460ffff000000d300cf17104630818be28935d90e9a95505401be885e5000003e5b743b",
                uc(),
                Extension::None,
                uc_payload(),
                "RC SEND Only, QP 0x0000d3, PSN 13571856, 18 B",
            )
        },
        short(
            "rxe: SEND Only",
            rxe_to_us,
            Some(20234),
            "04b0ffff0000abcd80123456030a11181f262d343b42495057000000b5074eb8",
            Bth { solicited: true, ack_request: true, ..rxe(Opcode::SendOnly, 0x12_3456) },
            Extension::None,
            rxe_payload(),
            "RC SEND Only, QP 0x00abcd, PSN 1193046, SE, A, 13 B",
        ),
        short(
            "rxe: Atomic ACK",
            rxe_to_us,
            Some(20197),
            "1200ffff0000abcd000000061f000005000000000000000572a64fd5",
            rxe(Opcode::AtomicAcknowledge, 6),
            Extension::AtomicAck(ack(5), AtomicAckEth { original: 5 }),
            vec![],
            "RC ATOMIC Acknowledge, QP 0x00abcd, PSN 6, ACK, MSN 5, 8 B original",
        ),
        short(
            "rxe: NAK 0x60",
            rxe_to_us,
            Some(20203),
            "1100ffff0000abcd0000000b6000000965081d92",
            rxe(Opcode::Acknowledge, 11),
            nak(NakCode::PsnSequenceError, 9),
            vec![],
            "RC Acknowledge, QP 0x00abcd, PSN 11, NAK PSN sequence error, MSN 9",
        ),
        short(
            "rxe: RNR NAK",
            rxe_to_us,
            Some(20232),
            "1100ffff0000abcd0000000b2c000009d9fd73d0",
            rxe(Opcode::Acknowledge, 11),
            Extension::Aeth(Aeth { syndrome: Syndrome::RnrNak(RnrTimer::from_code(12)), msn: 9 }),
            vec![],
            "RC Acknowledge, QP 0x00abcd, PSN 11, RNR NAK 640µs, MSN 9",
        ),
        short(
            "rxe: NAK 0x62",
            flow("10.0.0.1", 0xD45A, "10.0.0.2"),
            Some(22116),
            "1100ffff0000abcd00fffffe620000005f4d898f",
            rxe(Opcode::Acknowledge, 0xFF_FFFE),
            nak(NakCode::RemoteAccessError, 0),
            vec![],
            "RC Acknowledge, QP 0x00abcd, PSN 16777214, NAK remote access error, MSN 0",
        ),
        short(
            "accepted: READ Request",
            us_to_rxe,
            Some(0),
            "0c40ffff000000118000000300000000319ec00000000230000009c408d23389",
            ours(Opcode::ReadRequest, 0x11, 3, true),
            Extension::Reth(reth(0x319E_C000, 0x230, 2500)),
            vec![],
            "RC RDMA READ Request, QP 0x000011, PSN 3, A, VA 0x319ec000, length 2500",
        ),
        short(
            "accepted: FetchAdd",
            us_to_rxe,
            Some(0),
            "1440ffff000000118000000600000000319ec00000000230000000000000000a00000000000000009da8ab98",
            ours(Opcode::FetchAdd, 0x11, 6, true),
            atomic(10, 0),
            vec![],
            "RC FetchAdd, QP 0x000011, PSN 6, A, VA 0x319ec000",
        ),
        short(
            "accepted: CmpSwap",
            us_to_rxe,
            Some(0),
            "1340ffff000000118000000700000000319ec000000002300000000000000099000000000000000f84e13662",
            ours(Opcode::CompareSwap, 0x11, 7, true),
            atomic(0x99, 15),
            vec![],
            "RC CmpSwap, QP 0x000011, PSN 7, A, VA 0x319ec000",
        ),
        short(
            "accepted: WRITE Only with Immediate",
            us_to_rxe,
            Some(0),
            "0bc0ffff000000118000000800000000319ec0000000023000000008deadbeef41424344454647488a667cad",
            Bth { solicited: true, ..ours(Opcode::WriteOnlyWithImmediate, 0x11, 8, true) },
            Extension::RethImmediate(reth(0x319E_C000, 0x230, 8), ImmDt { value: 0xDEAD_BEEF }),
            b"ABCDEFGH".to_vec(),
            "RC RDMA WRITE Only with Immediate, QP 0x000011, PSN 8, SE, A, VA 0x319ec000, length 8, \
             immediate 0xdeadbeef, 8 B",
        ),
        short(
            "accepted: ATOMIC WRITE",
            us_to_rxe,
            Some(0),
            "1d40ffff0000003780fffffe0000000006dde008000010980000000841424344454647489dd7cd07",
            ours(Opcode::AtomicWrite, 0x37, 0xFF_FFFE, true),
            Extension::Reth(reth(0x06DD_E008, 0x1098, 8)),
            b"ABCDEFGH".to_vec(),
            "RC ATOMIC WRITE, QP 0x000037, PSN 16777214, A, VA 0x6dde008, length 8, 8 B",
        ),
        short(
            "rxe: READ Response Only, empty",
            flow("10.0.0.1", 0xE91A, "10.0.0.2"),
            Some(3577),
            "1000ffff0000abcd00fffffe1f0000017b5fc973",
            rxe(Opcode::ReadResponseOnly, 0xFF_FFFE),
            Extension::Aeth(ack(1)),
            vec![],
            "RC RDMA READ Response Only, QP 0x00abcd, PSN 16777214, ACK, MSN 1",
        ),
        short(
            "accepted: SEND Only, IPv6",
            us_to_rxe_6,
            None,
            "0470ffff0000001d80fffffe68656c6c6f2c20776f726c6421000000294d5642",
            ours(Opcode::SendOnly, 0x1D, 0xFF_FFFE, true),
            Extension::None,
            b"hello, world!".to_vec(),
            "RC SEND Only, QP 0x00001d, PSN 16777214, A, 13 B",
        ),
        short(
            "accepted: READ Request, IPv6",
            us_to_rxe_6,
            None,
            "0c40ffff0000001d80000003000000003aa1b000000005fe000009c44347a486",
            ours(Opcode::ReadRequest, 0x1D, 3, true),
            Extension::Reth(reth(0x3AA1_B000, 0x5FE, 2500)),
            vec![],
            "RC RDMA READ Request, QP 0x00001d, PSN 3, A, VA 0x3aa1b000, length 2500",
        ),
        short(
            "rxe: SEND Only, IPv6",
            rxe_to_us_6,
            None,
            "04b0ffff0000abcd80123456030a11181f262d343b42495057000000054ac8a5",
            Bth { solicited: true, ack_request: true, ..rxe(Opcode::SendOnly, 0x12_3456) },
            Extension::None,
            rxe_payload(),
            "RC SEND Only, QP 0x00abcd, PSN 1193046, SE, A, 13 B",
        ),
        short(
            "rxe: NAK 0x60, IPv6",
            rxe_to_us_6,
            None,
            "1100ffff0000abcd0000000b60000009c691d1d7",
            rxe(Opcode::Acknowledge, 11),
            nak(NakCode::PsnSequenceError, 9),
            vec![],
            "RC Acknowledge, QP 0x00abcd, PSN 11, NAK PSN sequence error, MSN 9",
        ),
    ];
    vectors.extend([
        long(
            "accepted: WRITE First",
            us_to_rxe,
            Some(0),
            "0640ffff000000110000000000000000319ec00000000230000009c4",
            ours(Opcode::WriteFirst, 0x11, 0, false),
            Extension::Reth(reth(0x319E_C000, 0x230, 2500)),
            pattern(0, 1024),
            "d3f7b3d5",
            "RC RDMA WRITE First, QP 0x000011, PSN 0, VA 0x319ec000, length 2500, 1024 B",
        ),
        long(
            "accepted: WRITE Middle",
            us_to_rxe,
            Some(0),
            "0740ffff0000001100000001",
            ours(Opcode::WriteMiddle, 0x11, 1, false),
            Extension::None,
            pattern(1024, 2048),
            "09f28c66",
            "RC RDMA WRITE Middle, QP 0x000011, PSN 1, 1024 B",
        ),
        long(
            "accepted: WRITE Last",
            us_to_rxe,
            Some(0),
            "0840ffff0000001180000002",
            ours(Opcode::WriteLast, 0x11, 2, true),
            Extension::None,
            pattern(2048, 2500),
            "1c11eae9",
            "RC RDMA WRITE Last, QP 0x000011, PSN 2, A, 452 B",
        ),
        long(
            "rxe: READ Response First",
            rxe_to_us,
            Some(20189),
            "0d00ffff0000abcd000000031f000004",
            rxe(Opcode::ReadResponseFirst, 3),
            Extension::Aeth(ack(4)),
            pattern(0, 1024),
            "d83e0ba7",
            "RC RDMA READ Response First, QP 0x00abcd, PSN 3, ACK, MSN 4, 1024 B",
        ),
        long(
            "rxe: READ Response Last",
            rxe_to_us,
            Some(20191),
            "0f00ffff0000abcd000000051f000004",
            rxe(Opcode::ReadResponseLast, 5),
            Extension::Aeth(ack(4)),
            pattern(2048, 2500),
            "11564e22",
            "RC RDMA READ Response Last, QP 0x00abcd, PSN 5, ACK, MSN 4, 452 B",
        ),
        long(
            "accepted: WRITE First, IPv6",
            us_to_rxe_6,
            None,
            "0640ffff0000001d00000000000000003aa1b000000005fe000009c4",
            ours(Opcode::WriteFirst, 0x1D, 0, false),
            Extension::Reth(reth(0x3AA1_B000, 0x5FE, 2500)),
            pattern(0, 1024),
            "a73d28a6",
            "RC RDMA WRITE First, QP 0x00001d, PSN 0, VA 0x3aa1b000, length 2500, 1024 B",
        ),
        long(
            "rxe: READ Response First, IPv6",
            rxe_to_us_6,
            None,
            "0d00ffff0000abcd000000031f000004",
            rxe(Opcode::ReadResponseFirst, 3),
            Extension::Aeth(ack(4)),
            pattern(0, 1024),
            "aa4c92cc",
            "RC RDMA READ Response First, QP 0x00abcd, PSN 3, ACK, MSN 4, 1024 B",
        ),
    ]);
    vectors
}
