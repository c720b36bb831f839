//! The opcodes against the brief's table (§2.3), which is parsed here: it has another shape than the code.
#![expect(clippy::unwrap_used, reason = "the oracle is part of the test: a wrong table ends it")]

use secure_rdma_roce::{Malformed, Opcode, Packet, PayloadRule};

/// Code, name, headers behind the BTH, payload, class.
const TABLE: &str = "
| 0x00 | SEND First | – | = PMTU | request |
| 0x01 | SEND Middle | – | = PMTU | request |
| 0x02 | SEND Last | – | 1..PMTU | request |
| 0x03 | SEND Last with Immediate | ImmDt | 1..PMTU | request |
| 0x04 | SEND Only | – | 0..PMTU | request |
| 0x05 | SEND Only with Immediate | ImmDt | 0..PMTU | request |
| 0x06 | RDMA WRITE First | RETH | = PMTU | request |
| 0x07 | RDMA WRITE Middle | – | = PMTU | request |
| 0x08 | RDMA WRITE Last | – | 1..PMTU | request |
| 0x09 | RDMA WRITE Last with Immediate | ImmDt | 1..PMTU | request |
| 0x0A | RDMA WRITE Only | RETH | 0..PMTU | request |
| 0x0B | RDMA WRITE Only with Immediate | RETH, ImmDt | 0..PMTU | request |
| 0x0C | RDMA READ Request | RETH | none | request |
| 0x0D | RDMA READ Response First | AETH | = PMTU | response |
| 0x0E | RDMA READ Response Middle | – | = PMTU | response |
| 0x0F | RDMA READ Response Last | AETH | 1..PMTU | response |
| 0x10 | RDMA READ Response Only | AETH | 0..PMTU | response |
| 0x11 | Acknowledge | AETH | none | response |
| 0x12 | ATOMIC Acknowledge | AETH, AtomicAckETH | none | response |
| 0x13 | CmpSwap | AtomicETH | none | request |
| 0x14 | FetchAdd | AtomicETH | none | request |
| 0x16 | SEND Last with Invalidate | IETH | 1..PMTU | request |
| 0x17 | SEND Only with Invalidate | IETH | 0..PMTU | request |
| 0x1C | FLUSH | FETH, RETH | none | request |
| 0x1D | ATOMIC WRITE | RETH | 8 | request |
| 0x81 | CNP | 16 zero bytes | none | notice |
";

struct Row<'t> {
    code: u8,
    name: &'t str,
    headers: Vec<&'t str>,
    payload: &'t str,
    class: &'t str,
}

fn rows() -> Vec<Row<'static>> {
    let row = |line: &'static str| {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [code, name, headers, payload, class] = cells.try_into().unwrap();
        let code = u8::from_str_radix(&code[2..], 16).unwrap();
        let headers = headers.split(", ").filter(|header| *header != "–").collect();
        Row { code, name, headers, payload, class }
    };
    TABLE.trim().lines().map(row).collect()
}

fn length(header: &str) -> usize {
    match header {
        "AtomicETH" => 28,
        "RETH" | "16 zero bytes" => 16,
        "AtomicAckETH" => 8,
        other => {
            assert!(matches!(other, "ImmDt" | "IETH" | "AETH" | "FETH"), "{other}");
            4
        }
    }
}

#[test]
fn exactly_these_codes_are_opcodes() {
    let rows = rows();
    for code in 0..=u8::MAX {
        let known = rows.iter().find(|row| row.code == code);
        let opcode = Opcode::from_code(code);
        assert_eq!(opcode.map(Opcode::name), known.map(|row| row.name), "0x{code:02x}");
        assert!(opcode.is_none_or(|opcode| opcode.code() == code && Opcode::ALL.contains(&opcode)));
    }
    assert_eq!(rows.len(), Opcode::ALL.len());
}

#[test]
fn each_opcode_is_what_its_row_says() {
    for row in rows() {
        let opcode = Opcode::from_code(row.code).unwrap();
        let has = |header| row.headers.contains(&header);
        let headers: usize = row.headers.iter().copied().map(length).sum();
        assert_eq!(opcode.header_length(), 12 + headers, "{opcode}");
        assert_eq!(opcode.extension_length(), headers, "{opcode}");
        assert_eq!(opcode.has_reth(), has("RETH"), "{opcode}");
        assert_eq!(opcode.has_aeth(), has("AETH"), "{opcode}");
        assert_eq!(opcode.has_immediate(), has("ImmDt"), "{opcode}");
        assert_eq!(opcode.has_invalidate(), has("IETH"), "{opcode}");
        assert_eq!(opcode.has_atomic_eth(), has("AtomicETH"), "{opcode}");
        assert_eq!(opcode.is_atomic(), has("AtomicETH"), "{opcode}");
        assert_eq!(opcode.has_atomic_ack(), has("AtomicAckETH"), "{opcode}");
        assert_eq!(opcode.is_request(), row.class == "request", "{opcode}");
        assert_eq!(opcode.is_response(), row.class == "response", "{opcode}");
        assert_eq!(opcode.is_send(), row.name.starts_with("SEND"), "{opcode}");
        assert_eq!(opcode.is_write(), row.name.starts_with("RDMA WRITE"), "{opcode}");
        assert_eq!(opcode.is_read_response(), row.name.starts_with("RDMA READ Response"), "{opcode}");
        let word = |word| row.name.split(' ').any(|other| other == word);
        assert_eq!(opcode.is_first(), word("First"), "{opcode}");
        assert_eq!(opcode.is_middle(), word("Middle"), "{opcode}");
        assert_eq!(opcode.is_last(), word("Last"), "{opcode}");
        assert_eq!(opcode.is_only(), !(word("First") || word("Middle") || word("Last")), "{opcode}");
        assert_eq!(opcode.to_string(), row.name);
        let rule = match row.payload {
            "= PMTU" => PayloadRule::PathMtu,
            "1..PMTU" => PayloadRule::NotEmpty,
            "0..PMTU" => PayloadRule::Any,
            "none" => PayloadRule::None,
            other => {
                assert_eq!(other, "8");
                PayloadRule::Eight
            }
        };
        assert_eq!(opcode.payload_rule(), rule, "{opcode}");
    }
}

#[test]
fn payload_rules_are_exact_around_their_ends() {
    for path_mtu in [256, 512, 1024, 2048, 4096] {
        for length in [0, 1, 7, 8, 9, path_mtu - 1, path_mtu, path_mtu + 1] {
            let allowed = |rule: PayloadRule| rule.allows(length, path_mtu);
            assert_eq!(allowed(PayloadRule::PathMtu), length == path_mtu);
            assert_eq!(allowed(PayloadRule::NotEmpty), (1..=path_mtu).contains(&length));
            assert_eq!(allowed(PayloadRule::Any), (0..=path_mtu).contains(&length));
            assert_eq!(allowed(PayloadRule::None), length == 0);
            assert_eq!(allowed(PayloadRule::Eight), length == 8);
        }
    }
}

/// All codes, versions and lengths: the reason is the first that applies.
#[test]
fn every_code_at_every_length_is_judged() {
    let rows = rows();
    for code in 0..=u8::MAX {
        let row = rows.iter().find(|row| row.code == code);
        let headers = row.map(|row| 12 + row.headers.iter().copied().map(length).sum::<usize>());
        for flags in [0x00, 0x10, 0x20, 0x30, 0xF0, 0x01, 0x0F, 0xCF] {
            let (version, pad) = (flags & 0x0F, usize::from(flags >> 4 & 3));
            for length in 0..64 {
                let mut bytes = vec![0; length];
                bytes.iter_mut().zip([code, flags]).for_each(|(byte, value)| *byte = value);
                let judged = Packet::new_checked(&bytes).map(|packet| packet.payload().len());
                let expected = match (headers, code >> 5) {
                    _ if length < 12 => Err(Malformed::TooShort(length)),
                    _ if version != 0 => Err(Malformed::TransportVersion(version)),
                    (None, 1 | 2 | 3 | 5) => Err(Malformed::OtherTransport(code)),
                    (None, _) => Err(Malformed::UnknownOpcode(code)),
                    (Some(headers), _) => {
                        let needed = headers + pad + 4;
                        length.checked_sub(needed).ok_or(Malformed::CutOff { needed, length })
                    }
                };
                assert_eq!(judged, expected, "0x{code:02x}, flags 0x{flags:02x}, {length} bytes");
            }
        }
    }
}
