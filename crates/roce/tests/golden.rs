//! Every vector of the brief, both ways: read and judged, and written again to the same bytes.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod vectors;

use secure_rdma_roce::{Headers, IcrcCheck, Malformed, Packet};

/// The emitted packet, with the vector's transport.
fn emit(vector: &vectors::Vector) -> Vec<u8> {
    let (headers, payload) = (&vector.headers, &vector.payload);
    let mut packet = vec![0xEE; headers.packet_length(payload.len())];
    let start = headers.emit(&mut packet).unwrap();
    packet[start..start + payload.len()].copy_from_slice(payload);
    packet[0] |= vector.transport;
    vector.flow.finish(vector.ipv4_id.unwrap_or(0), &mut packet).unwrap();
    packet
}

#[test]
fn every_vector_is_written_to_the_byte() {
    let all = vectors::all();
    assert_eq!(all.len(), 26, "one of §5.2, and of §5.3 eighteen short and seven long");
    for vector in &all {
        assert_eq!(emit(vector), vector.bytes, "{}", vector.name);
    }
}

#[test]
fn every_vector_is_read_as_what_it_says() {
    for vector in vectors::all() {
        let mut bytes = vector.bytes.clone();
        if vector.transport != 0 {
            let refused = Packet::new_checked(&bytes).map(|_| ());
            assert_eq!(refused, Err(Malformed::OtherTransport(bytes[0])), "{}", vector.name);
            bytes[0] ^= vector.transport;
        }
        let packet = Packet::new_checked(&bytes).unwrap();
        assert_eq!(Headers::parse(&packet), vector.headers, "{}", vector.name);
        assert_eq!(packet.payload(), vector.payload, "{}", vector.name);
        assert_eq!(packet.to_string(), vector.line, "{}", vector.name);
        assert_eq!(packet.dest_qpn(), vector.headers.bth.dest_qpn);
        assert_eq!(packet.psn(), vector.headers.bth.psn);
        let wire: [u8; 4] = bytes[bytes.len() - 4..].try_into().unwrap();
        assert_eq!(packet.icrc(), u32::from_le_bytes(wire));
    }
}

#[test]
fn every_icrc_is_judged_and_every_id_found() {
    for vector in vectors::all() {
        let name = vector.name;
        let id = vector.ipv4_id.unwrap_or(0);
        assert_eq!(vector.flow.check(id, &vector.bytes), IcrcCheck::Expected, "{name}");
        // From any other expectation the ID is found, on IPv6 there is none to be wrong about.
        for expected in [0, 1, 5, 127, 0x8000, 0xFFFF, id ^ 1, id ^ 0x100].into_iter().filter(|e| *e != id) {
            let found = match vector.ipv4_id {
                Some(id) => IcrcCheck::OtherId { id, dont_fragment: true },
                None => IcrcCheck::Expected,
            };
            assert_eq!(vector.flow.check(expected, &vector.bytes), found, "{name} from {expected}");
        }
    }
}

#[test]
fn clear_dont_fragment_is_told() {
    for vector in vectors::all() {
        let (covered, _) = vector.bytes.split_last_chunk::<4>().unwrap();
        for (id, expected) in [(0, 0), (7, 7), (0xABCD, 0)] {
            let icrc = vector.flow.icrc(id, false, covered);
            let bytes = [covered, &icrc.to_le_bytes()].concat();
            let told = match vector.ipv4_id {
                Some(_) => IcrcCheck::OtherId { id, dont_fragment: false },
                None => IcrcCheck::Expected,
            };
            assert_eq!(vector.flow.check(expected, &bytes), told, "{}", vector.name);
        }
    }
}

#[test]
fn a_wrong_address_or_port_shows() {
    for vector in vectors::all() {
        let others = [
            vectors::flow("10.0.0.2", 0xC124, "10.0.0.1"),
            vectors::flow("10.0.0.1", 0xC123, "10.0.0.2"),
            vectors::flow("fd00::2", 0xC123, "fd00::3"),
            vectors::flow("fd00::3", 0xC123, "fd00::1"),
        ];
        for other in others {
            let id = vector.ipv4_id.unwrap_or(0);
            assert_eq!(other.check(id, &vector.bytes), IcrcCheck::Wrong, "{}", vector.name);
        }
    }
}

#[test]
fn nothing_secret_shows() {
    for vector in vectors::all().iter().filter(|vector| vector.transport == 0) {
        let packet = Packet::new_checked(&vector.bytes).unwrap();
        let debug = format!("{packet:?} {:?} {:?}", vector.headers, vector.flow);
        let psn = vector.headers.bth.psn.expose();
        if psn > 100 {
            for secret in [psn.to_string(), format!("{psn:x}"), format!("{psn:X}")] {
                assert!(!debug.contains(&secret), "{debug}");
            }
            assert!(vector.line.contains(&psn.to_string()), "only Display shows it");
        }
        if let Some(reth) = packet.reth() {
            let rkey = reth.rkey.expose();
            for secret in [format!("{rkey}"), format!("{rkey:x}"), format!("{rkey:X}")] {
                assert!(!debug.contains(&secret) && !vector.line.contains(&secret), "{debug}");
            }
        }
    }
}
