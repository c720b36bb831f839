//! Bytes that are no frame, and offers that cannot be: each refused, and each for its own reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::time::Duration;

use secure_rdma_rdma::{Error, ErrorCode, PathMtu, Psn, Qpn};
use secure_rdma_session::{Frame, FrameDecoder, MAX_TOLD, Offer, Terms, Told, VERSION};

fn offer() -> Offer {
    Offer {
        version: VERSION,
        min_version: VERSION,
        qpn: Qpn::new(0x12_3456).unwrap(),
        psn: Psn::new(0xABCDEF).unwrap(),
        path_mtu: PathMtu::Bytes1024,
        responder_resources: 16,
        initiator_depth: 16,
        terms: Terms { max_message_size: 1 << 20, segment_size: 8192, credits: 64 },
        device_part: vec![1, 2, 3],
        binding: [7; 32],
        keep_alive_interval: Some(Duration::from_millis(2500)),
    }
}

/// The shortest head of a major type.
fn head(major: u8, argument: u64) -> Vec<u8> {
    let first = major << 5;
    let bytes = argument.to_be_bytes();
    match argument {
        0..=23 => vec![first | bytes[7]],
        24..=0xFF => vec![first | 24, bytes[7]],
        0x100..=0xFFFF => [&[first | 25], &bytes[6..]].concat(),
        0x1_0000..=0xFFFF_FFFF => [&[first | 26], &bytes[4..]].concat(),
        _ => [&[first | 27], &bytes[..]].concat(),
    }
}

fn uint(value: u64) -> Vec<u8> {
    head(0, value)
}

fn bytes(value: &[u8]) -> Vec<u8> {
    [head(2, value.len() as u64), value.to_vec()].concat()
}

fn text(value: &str) -> Vec<u8> {
    [head(3, value.len() as u64), value.as_bytes().to_vec()].concat()
}

/// `[kind, {key: value, …}]` in the order given.
fn body(kind: u64, fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut body = [head(4, 2), uint(kind), head(5, fields.len() as u64)].concat();
    for (key, value) in fields {
        body.extend_from_slice(key);
        body.extend_from_slice(value);
    }
    body
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body].concat()
}

fn offer_fields() -> Vec<(Vec<u8>, Vec<u8>)> {
    let values = [
        uint(1),
        uint(1),
        uint(0x12_3456),
        uint(0xABCDEF),
        uint(3),
        uint(16),
        uint(16),
        uint(1 << 20),
        uint(8192),
        uint(64),
        bytes(&[1, 2, 3]),
        bytes(&[7; 32]),
        uint(2500),
    ];
    (1..).map(uint).zip(values).collect()
}

/// An offer with one field replaced.
fn offer_with(key: usize, value: Vec<u8>) -> Vec<u8> {
    let mut fields = offer_fields();
    fields[key - 1].1 = value;
    framed(&body(1, &fields))
}

fn offer_without(key: usize) -> Vec<u8> {
    let mut fields = offer_fields();
    fields.remove(key - 1);
    framed(&body(1, &fields))
}

fn offer_and(key: Vec<u8>, value: Vec<u8>) -> Vec<u8> {
    let mut fields = offer_fields();
    fields.push((key, value));
    framed(&body(1, &fields))
}

/// What a decoder makes of a whole stream.
fn read(stream: &[u8]) -> Result<Vec<Frame>, Error> {
    let mut decoder = FrameDecoder::default();
    let mut frames = Vec::new();
    // Byte by byte: where the network cuts must not matter.
    for byte in stream {
        decoder.push(&[*byte]);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
    }
    decoder.end()?;
    Ok(frames)
}

fn bad_inputs() -> Vec<(&'static str, Vec<u8>, ErrorCode, &'static str)> {
    use ErrorCode::{Offer as O, Protocol as P, Version as V};
    let ready = body(2, &[]);
    let raw = |body: &[u8]| framed(body);
    let nested = |depth: usize| {
        let inner = [vec![0x81; depth], vec![0x00]].concat();
        framed(&body(2, &[(uint(9), inner)]))
    };
    let error =
        |code: &str, message: &str| framed(&body(4, &[(uint(1), text(code)), (uint(2), text(message))]));
    vec![
        // -- length
        ("length 0", vec![0, 0, 0, 0], P, "length 0"),
        ("length 4097", 4097_u32.to_be_bytes().to_vec(), P, "4097, above 4096"),
        ("length 2^31", (1_u32 << 31).to_be_bytes().to_vec(), P, "2147483648, above"),
        ("length 2^32-1", vec![0xFF; 4], P, "4294967295, above"),
        ("HTTP", b"GET / HTTP/1.1\r\n".to_vec(), P, "above 4096"),
        ("truncated header", vec![0, 0], P, "ended inside a frame"),
        ("truncated body", framed(&ready)[..5].to_vec(), P, "ended inside a frame"),
        ("nothing behind the header", vec![0, 0, 0, 3], P, "ended inside a frame"),
        // -- encoding
        ("trailing byte", raw(&[&ready[..], &[0]].concat()), P, "bytes behind the value"),
        ("two values", raw(&[&ready[..], &ready[..]].concat()), P, "bytes behind the value"),
        ("value cut off", raw(&ready[..2]), P, "in the middle of a value"),
        ("byte string cut off", raw(&[0x82, 0x02, 0x58, 0x20, 1]), P, "in the middle of a value"),
        (
            "string of 2^64-1 bytes",
            raw(&[[0x5B].as_slice(), &[0xFF; 8]].concat()),
            P,
            "in the middle of a value",
        ),
        ("array of 2^64-1", raw(&[[0x9B].as_slice(), &[0xFF; 8]].concat()), P, "in the middle of a value"),
        ("map of 2^64-1", raw(&[[0xBB].as_slice(), &[0xFF; 8]].concat()), P, "in the middle of a value"),
        ("number in 2 bytes for 1", raw(&[0x82, 0x18, 0x02, 0xA0]), P, "shortest form"),
        ("number in 3 bytes for 2", raw(&[0x82, 0x19, 0x00, 0xFF, 0xA0]), P, "shortest form"),
        ("number in 5 bytes for 3", raw(&[0x82, 0x1A, 0, 0, 0xFF, 0xFF, 0xA0]), P, "shortest form"),
        (
            "number in 9 bytes for 5",
            raw(&[0x82, 0x1B, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xA0]),
            P,
            "shortest form",
        ),
        ("length of an array not shortest", raw(&[0x98, 2, 2, 0xA0]), P, "shortest form"),
        ("negative number not shortest", raw(&[0x82, 0x02, 0xA1, 0x38, 0x00, 0x00]), P, "shortest form"),
        ("reserved head", raw(&[0x82, 0x1C, 0xA0]), P, "reserved head"),
        ("indefinite array", raw(&[0x9F, 0x02, 0xA0, 0xFF]), P, "indefinite length"),
        ("indefinite map", raw(&[0x82, 0x02, 0xBF, 0xFF]), P, "indefinite length"),
        ("indefinite bytes", raw(&[0x82, 0x02, 0xA1, 0x01, 0x5F, 0x41, 0x00, 0xFF]), P, "indefinite length"),
        ("indefinite text", raw(&[0x82, 0x02, 0xA1, 0x01, 0x7F, 0x61, b'a', 0xFF]), P, "indefinite length"),
        ("stray break", raw(&[0xFF]), P, "a break"),
        ("float", raw(&[0x82, 0xF9, 0x3C, 0x00, 0xA0]), P, "floating-point"),
        ("double", raw(&[[0xFB].as_slice(), &[0; 8]].concat()), P, "floating-point"),
        ("undefined", raw(&[0x82, 0x02, 0xA1, 0x01, 0xF7]), P, "simple value"),
        ("simple value", raw(&[0x82, 0x02, 0xA1, 0x01, 0xF8, 0x20]), P, "simple value"),
        ("tag", raw(&[0xC1, 0x02]), P, "a tag"),
        ("not UTF-8", framed(&body(2, &[(uint(9), vec![0x62, 0xC3, 0x28])])), P, "not UTF-8"),
        ("surrogate in UTF-8", framed(&body(2, &[(uint(9), vec![0x63, 0xED, 0xA0, 0x80])])), P, "not UTF-8"),
        ("nested 3 deep in a field", nested(3), P, "nested too deeply"),
        ("nested 1000 deep", nested(1000), P, "nested too deeply"),
        (
            "number below -2^63",
            raw(&[[0x82, 0x3B].as_slice(), &[0xFF; 8], &[0xA0]].concat()),
            P,
            "below -2^63",
        ),
        ("key twice", framed(&body(2, &[(uint(9), uint(1)), (uint(9), uint(1))])), P, "a key twice"),
        ("keys descending", framed(&body(2, &[(uint(9), uint(1)), (uint(8), uint(1))])), P, "not ascending"),
        (
            "negative before positive",
            framed(&body(2, &[(vec![0x20], uint(1)), (uint(8), uint(1))])),
            P,
            "not ascending",
        ),
        // -- shape
        ("a number", raw(&[0x02]), P, "no array of kind and fields"),
        ("a text", raw(&text("READY")), P, "no array of kind and fields"),
        ("a map", raw(&[0xA0]), P, "no array of kind and fields"),
        ("empty array", raw(&[0x80]), P, "no array of kind and fields"),
        ("array of 1", raw(&[0x81, 0x02]), P, "no array of kind and fields"),
        ("array of 3", raw(&[0x83, 0x02, 0xA0, 0xA0]), P, "no array of kind and fields"),
        ("kind is a text", raw(&[0x82, 0x61, b'a', 0xA0]), P, "kind is no number"),
        ("kind is negative", raw(&[0x82, 0x20, 0xA0]), P, "kind is no number"),
        ("fields are an array", raw(&[0x82, 0x02, 0x80]), P, "fields are no map"),
        ("fields are null", raw(&[0x82, 0x02, 0xF6]), P, "fields are no map"),
        ("key is a text", framed(&body(2, &[(text("a"), uint(1))])), P, "key is no number"),
        ("key above 2^63", framed(&body(2, &[(uint(1 << 63), uint(1))])), P, "key is no number"),
        ("kind 0", framed(&body(0, &[])), P, "unknown kind 0"),
        ("kind 8", framed(&body(8, &[])), P, "unknown kind 8"),
        ("kind 2^64-1", framed(&body(u64::MAX, &[])), P, "unknown kind 18446744073709551615"),
        ("critical field in READY", framed(&body(2, &[(vec![0x20], uint(1))])), P, "critical field -1"),
        ("critical field in OFFER", offer_and(vec![0x38, 0x63], uint(1)), P, "critical field -100"),
        // -- TELL
        ("TELL without fields", framed(&body(7, &[])), P, "field 1 (bytes) is missing"),
        (
            "TELL of a text",
            framed(&body(7, &[(uint(1), text("abc"))])),
            P,
            "field 1 (bytes) is no byte string",
        ),
        ("TELL of nothing", framed(&body(7, &[(uint(1), bytes(&[]))])), P, "has 0 bytes"),
        ("TELL of 2049 bytes", framed(&body(7, &[(uint(1), bytes(&[1; 2049]))])), P, "has 2049 bytes"),
        (
            "critical field in TELL",
            framed(&body(7, &[(uint(1), bytes(&[1])), (vec![0x20], uint(1))])),
            P,
            "critical field -1",
        ),
        // -- ERROR
        ("ERROR without fields", framed(&body(4, &[])), P, "field 1 (code) is missing"),
        (
            "ERROR without message",
            framed(&body(4, &[(uint(1), text("ERR_RDMA_PATH"))])),
            P,
            "(message) is missing",
        ),
        (
            "ERROR code is a number",
            framed(&body(4, &[(uint(1), uint(1)), (uint(2), text(""))])),
            P,
            "(code) is no text",
        ),
        ("ERROR code of another kind", error("EINVAL", "x"), P, "no ERR_RDMA_"),
        ("ERROR code with a newline", error("ERR_RDMA_A\nB", "x"), P, "no ERR_RDMA_"),
        ("ERROR code too long", error(&format!("ERR_RDMA_{}", "A".repeat(56)), "x"), P, "no ERR_RDMA_"),
        ("ERROR message too long", error("ERR_RDMA_PATH", &"ä".repeat(257)), P, "over 256 characters"),
        // -- versions
        ("version 0", offer_with(1, uint(0)), O, "version is 0"),
        ("version 2^32", offer_with(1, uint(1 << 32)), O, "version is 4294967296"),
        ("minimum version 0", offer_with(2, uint(0)), O, "minimum version is 0"),
        ("minimum above version", offer_with(2, uint(2)), O, "minimum version is 2"),
        (
            "version too new",
            {
                let mut f = offer_fields();
                f[0].1 = uint(3);
                f[1].1 = uint(2);
                framed(&body(1, &f))
            },
            V,
            "2 to 3 do not meet ours, 1 to 1",
        ),
        // -- offer: values
        ("QPN 0", offer_with(3, uint(0)), O, "QPN is 0"),
        ("QPN 1", offer_with(3, uint(1)), O, "QPN is 1:"),
        ("QPN multicast", offer_with(3, uint(0xFF_FFFF)), O, "QPN is 16777215"),
        ("QPN over 24 bits", offer_with(3, uint(1 << 24)), O, "QPN is 16777216"),
        ("QPN over 32 bits", offer_with(3, uint((1 << 32) + 2)), O, "QPN is 4294967298"),
        ("PSN over 24 bits", offer_with(4, uint(1 << 24)), O, "PSN is out of range: at most 24 bits"),
        ("PSN over 32 bits", offer_with(4, uint(1 << 32)), O, "PSN is out of range"),
        ("path MTU 0", offer_with(5, uint(0)), O, "path MTU code is 0"),
        ("path MTU 6", offer_with(5, uint(6)), O, "path MTU code is 6"),
        ("path MTU 9", offer_with(5, uint(9)), O, "path MTU code is 9"),
        ("path MTU 257", offer_with(5, uint(257)), O, "path MTU code is 257"),
        ("responder resources 0", offer_with(6, uint(0)), O, "responder resources is 0"),
        ("responder resources 129", offer_with(6, uint(129)), O, "responder resources is 129"),
        ("responder resources 255", offer_with(6, uint(255)), O, "responder resources is 255"),
        ("initiator depth 0", offer_with(7, uint(0)), O, "initiator depth is 0"),
        ("initiator depth 255", offer_with(7, uint(255)), O, "initiator depth is 255"),
        ("initiator depth 256", offer_with(7, uint(256)), O, "initiator depth is 256"),
        ("message size 0", offer_with(8, uint(0)), O, "max message size is 0"),
        ("message size 2^53", offer_with(8, uint(1 << 53)), O, "max message size is 9007199254740992"),
        ("segment size 0", offer_with(9, uint(0)), O, "segment size is 0"),
        ("segment size over 2^30", offer_with(9, uint((1 << 30) + 1)), O, "segment size is 1073741825"),
        ("segment size 2^32", offer_with(9, uint(1 << 32)), O, "segment size is 4294967296"),
        ("credits 0", offer_with(10, uint(0)), O, "credits is 0"),
        ("credits 3", offer_with(10, uint(3)), O, "credits is 3"),
        ("segment size 1", offer_with(9, uint(1)), O, "segment size is 1"),
        ("segment size 7", offer_with(9, uint(7)), O, "segment size is 7"),
        ("segment size 8", offer_with(9, uint(8)), O, "segment size is 8"),
        ("segment size 255", offer_with(9, uint(255)), O, "segment size is 255"),
        ("credits 65536", offer_with(10, uint(65536)), O, "credits is 65536"),
        ("device part of 1025 bytes", offer_with(11, bytes(&[0; 1025])), O, "device part's length is 1025"),
        ("binding of 31 bytes", offer_with(12, bytes(&[7; 31])), O, "binding's length is 31"),
        ("binding of 33 bytes", offer_with(12, bytes(&[7; 33])), O, "binding's length is 33"),
        ("binding empty", offer_with(12, bytes(&[])), O, "binding's length is 0"),
        ("keep-alive interval 0", offer_with(13, uint(0)), O, "keep-alive interval is 0"),
        ("keep-alive interval 9 ms", offer_with(13, uint(9)), O, "keep-alive interval is 9"),
        (
            "keep-alive interval over 60 s",
            offer_with(13, uint(60_001)),
            O,
            "is 60001: 10 to 60000 milliseconds",
        ),
        (
            "keep-alive interval 2^64-1",
            offer_with(13, uint(u64::MAX)),
            O,
            "keep-alive interval is 18446744073709551615",
        ),
        // -- offer: types
        ("QPN is negative", offer_with(3, vec![0x21]), P, "field 3 (QPN) is no unsigned number"),
        ("PSN is a text", offer_with(4, text("1")), P, "field 4 (PSN) is no unsigned number"),
        ("path MTU is bytes", offer_with(5, bytes(&[3])), P, "field 5 (path MTU) is no unsigned number"),
        ("credits is true", offer_with(10, vec![0xF5]), P, "field 10 (credits) is no unsigned number"),
        ("device part is a text", offer_with(11, text("abc")), P, "field 11 (device part) is no byte string"),
        ("binding is null", offer_with(12, vec![0xF6]), P, "field 12 (binding) is no byte string"),
        (
            "keep-alive interval is a text",
            offer_with(13, text("1 s")),
            P,
            "field 13 (keep-alive interval) is no unsigned number",
        ),
        ("OFFER without fields", framed(&body(1, &[])), P, "field 1 (version) is missing"),
        ("OFFER without a QPN", offer_without(3), P, "field 3 (QPN) is missing"),
        ("OFFER without a PSN", offer_without(4), P, "field 4 (PSN) is missing"),
        ("OFFER without a binding", offer_without(12), P, "field 12 (binding) is missing"),
    ]
}

#[test]
fn every_bad_input_is_refused_with_its_own_reason() {
    let inputs = bad_inputs();
    let names: BTreeSet<_> = inputs.iter().map(|(name, ..)| *name).collect();
    assert_eq!(names.len(), inputs.len(), "each once");
    for (name, stream, code, reason) in &inputs {
        let error = read(stream).expect_err(name);
        assert_eq!(error.code(), *code, "{name}: {error}");
        assert!(error.message().contains(reason), "{name}: {error}");
        // What follows cannot be read either.
        assert!(read(&[stream, &Frame::Ready.encode()[..]].concat()).is_err(), "{name}");
    }
    let reasons: BTreeSet<_> = inputs.iter().map(|(.., reason)| *reason).collect();
    println!("{} bad inputs, {} reasons", inputs.len(), reasons.len());
    assert!(inputs.len() >= 60 && reasons.len() >= 40);
}

#[test]
fn no_secret_is_in_a_reason() {
    let error = read(&offer_with(4, uint(0x0123_4567))).unwrap_err();
    assert!(!error.message().contains("19088743"), "{error}");
}

#[test]
fn every_frame_survives_the_way() {
    let frames = vec![
        Frame::Offer(Box::new(offer())),
        Frame::Ready,
        Frame::Proven,
        Frame::error("ERR_RDMA_PATH", "no way"),
        Frame::KeepAlive,
        Frame::Close,
        Frame::Tell(Told(vec![1])),
        Frame::Tell(Told(vec![0xA5; MAX_TOLD])),
    ];
    let stream: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
    assert_eq!(read(&stream).unwrap(), frames);
    // The table's own encoder agrees, so that its bad inputs are bad for the reason given.
    assert_eq!(read(&framed(&body(1, &offer_fields()))).unwrap(), [Frame::Offer(Box::new(offer()))]);
}

#[test]
fn limits_themselves_are_allowed() {
    let good: Vec<(usize, Vec<u8>)> = vec![
        (3, uint(2)),
        (3, uint(0xFF_FFFE)),
        (4, uint(0)),
        (4, uint(0xFF_FFFF)),
        (5, uint(1)),
        (5, uint(5)),
        (6, uint(1)),
        (6, uint(128)),
        (7, uint(128)),
        (8, uint((1 << 53) - 1)),
        (9, uint(256)),
        (9, uint(1 << 30)),
        (10, uint(4)),
        (10, uint(65535)),
        (11, bytes(&[])),
        (11, bytes(&[9; 1024])),
        (13, uint(10)),
        (13, uint(60_000)),
    ];
    for (key, value) in good {
        assert!(read(&offer_with(key, value.clone())).is_ok(), "field {key}: {value:?}");
    }
}

#[test]
fn versions_are_negotiated_and_unknown_optional_fields_ignored() {
    // (newest, oldest) of the peer, and what comes of it.
    for (newest, oldest, expected) in
        [(1, 1, Some(1)), (2, 1, Some(1)), (9, 1, Some(1)), (2, 2, None), (9, 3, None)]
    {
        let mut fields = offer_fields();
        fields[0].1 = uint(newest);
        fields[1].1 = uint(oldest);
        // A later version brings fields of its own, and may have dropped others.
        fields.push((uint(100), text("later")));
        let frames = read(&framed(&body(1, &fields)));
        match (frames, expected) {
            (Ok(frames), Some(version)) => {
                let [Frame::Offer(offer)] = &frames[..] else { panic!("{frames:?}") };
                assert_eq!(offer.common_version(), version);
            }
            (Err(error), None) => assert_eq!(error.code(), ErrorCode::Version, "{error}"),
            (result, _) => panic!("{newest}, {oldest}: {result:?}"),
        }
    }
    let mut later = offer_fields();
    later.truncate(2);
    later[0].1 = uint(3);
    later[1].1 = uint(3);
    let error = read(&framed(&body(1, &later))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::Version, "judged before the fields that it lacks: {error}");
    assert!(read(&offer_and(uint(500), vec![0x82, 0x01, 0x61, b'a'])).is_ok());
}

#[test]
fn a_side_that_states_no_keep_alive_interval_is_understood() {
    let without = Offer { keep_alive_interval: None, ..offer() };
    assert_eq!(read(&offer_without(13)).unwrap(), [Frame::Offer(Box::new(without.clone()))]);
    assert_eq!(Frame::Offer(Box::new(without)).encode(), offer_without(13), "and says so itself");
    // What is between two milliseconds is stated as the longer one.
    let odd = Offer { keep_alive_interval: Some(Duration::from_micros(2_499_001)), ..offer() };
    assert_eq!(Frame::Offer(Box::new(odd)).encode(), framed(&body(1, &offer_fields())));
}

#[test]
fn an_error_frame_is_cut_and_made_printable() {
    let Frame::Error { code, message } = Frame::error("nonsense", &"\u{1b}[2Jä".repeat(200)) else {
        panic!()
    };
    assert_eq!(code, "ERR_RDMA_INTERNAL");
    assert_eq!(message.chars().count(), 256);
    assert!(!message.contains('\u{1b}'));
    let hostile = framed(&body(4, &[(uint(1), text("ERR_RDMA_PATH")), (uint(2), text("a\u{1b}\u{202E}b"))]));
    assert_eq!(
        read(&hostile).unwrap(),
        [Frame::Error { code: "ERR_RDMA_PATH".into(), message: "a\u{FFFD}\u{FFFD}b".into() }]
    );
}

#[test]
fn debug_hides_what_is_told() {
    let shown = format!("{:?}", Frame::Tell(Told(vec![171, 205])));
    assert!(shown.contains("2 bytes") && !shown.contains("171"), "{shown}");
}

#[test]
fn debug_hides_the_offers_secrets() {
    let shown = format!("{:?}", Frame::Offer(Box::new(offer())));
    assert!(
        !shown.contains("psn") && !shown.contains("binding") && !shown.contains(&0xABCDEF.to_string()),
        "{shown}"
    );
}
