//! The decoders and the state machine as functions of bytes: what the fuzz targets call, and what every test run replays
//! with the committed corpus. They panic where an invariant breaks, which is their purpose.
#![allow(clippy::panic, clippy::expect_used)]

use std::time::Duration;

use secure_rdma_rdma::{PathMtu, Psn, Qpn};

use crate::exchange::{Action, Event, Exchange};
use crate::{Frame, FrameDecoder, KeepAlive, Offer, Terms, Told, VERSION};

const OUR_BINDING: [u8; 32] = [1; 32];
const PEER_BINDING: [u8; 32] = [2; 32];

/// A body: what decodes, encodes to something that decodes to the same.
pub fn frame(body: &[u8]) {
    let Ok(frame) = Frame::decode(body) else { return };
    let encoded = frame.encode();
    let again = encoded.get(4..).map(Frame::decode);
    assert_eq!(again, Some(Ok(frame)), "a frame does not survive its own encoding");
}

/// A stream, in pieces: where it is cut does not matter, and little is stored.
pub fn stream(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else { return };
    let pieces = bytes.chunks(usize::from(*piece).max(1));
    let (cut, whole) = (read(pieces), read(std::iter::once(bytes)));
    assert_eq!(cut, whole, "where a stream is cut changes what it says");
}

fn read<'b>(pieces: impl Iterator<Item = &'b [u8]>) -> (Vec<Frame>, Option<String>) {
    let (mut decoder, mut frames) = (FrameDecoder::default(), Vec::new());
    for piece in pieces {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error.to_string())),
            }
        }
    }
    (frames, decoder.end().err().map(|error| error.to_string()))
}

/// An offer's fields behind the kind: every value of what decodes is in range.
pub fn offer(fields: &[u8]) {
    let body = [&[0x82, 0x01][..], fields].concat();
    let Ok(Frame::Offer(offer)) = Frame::decode(&body) else { return };
    assert!((1..=128).contains(&offer.initiator_depth) && (1..=128).contains(&offer.responder_resources));
    assert!(offer.terms.credits >= 4 && offer.terms.segment_size >= 256 && offer.terms.max_message_size >= 1);
    assert!(offer.min_version <= VERSION && VERSION <= offer.version && offer.device_part.len() <= 1024);
    let possible = KeepAlive::MIN_INTERVAL..=KeepAlive::MAX_INTERVAL;
    assert!(offer.keep_alive_interval.is_none_or(|interval| possible.contains(&interval)));
    frame(&body);
}

/// A sequence of what may happen, one per byte; `255` is followed by a frame's body with its length before it.
pub fn exchange(bytes: &[u8]) {
    let own = example_offer(OUR_BINDING);
    let (mut exchange, first) = Exchange::begin(own, PEER_BINDING);
    let mut model = Model::default();
    model.did(&first);
    let mut rest = bytes;
    while let Some((step, tail)) = rest.split_first() {
        rest = tail;
        let event = match step % 16 {
            // Only what the bring-up can tell at this point.
            0 if model.resolving => Event::InRtr,
            1 if model.moving => Event::InRts,
            2 if model.proving => Event::PathProven,
            3 => Event::Frame(Frame::Offer(Box::new(example_offer(PEER_BINDING)))),
            4 => Event::Frame(Frame::Offer(Box::new(example_offer(OUR_BINDING)))),
            5 => Event::Frame(Frame::Ready),
            6 => Event::Frame(Frame::Proven),
            7 => Event::Frame(Frame::KeepAlive),
            8 => Event::Frame(Frame::Close),
            10 => Event::Frame(Frame::Tell(Told(vec![1]))),
            9 => Event::Frame(Frame::error("ERR_RDMA_PATH", "no way")),
            15 => {
                let Some((length, tail)) = rest.split_first() else { return };
                let (body, tail) = tail.split_at(usize::from(*length).min(tail.len()));
                rest = tail;
                let Ok(frame) = Frame::decode(body) else { return };
                Event::Frame(frame)
            }
            _ => continue,
        };
        model.told(&event);
        let Ok((next, actions)) = exchange.handle(event) else { return };
        exchange = next;
        actions.iter().for_each(|action| model.did(action));
    }
}

/// An offer that is good where `binding` is.
fn example_offer(binding: [u8; 32]) -> Offer {
    Offer {
        version: VERSION,
        min_version: VERSION,
        qpn: Qpn::new(0x4711).expect("a QPN"),
        psn: Psn::new(0x12_3456).expect("a PSN"),
        path_mtu: PathMtu::Bytes1024,
        responder_resources: 16,
        initiator_depth: 8,
        terms: Terms { max_message_size: 1 << 20, segment_size: 8192, credits: 64 },
        device_part: vec![0; 16],
        binding,
        keep_alive_interval: Some(Duration::from_secs(1)),
    }
}

/// What must hold, written apart from the state machine: each step once, and none before what it rests on.
#[derive(Default)]
struct Model {
    offered: bool,
    peer_offered: bool,
    resolving: bool,
    in_rtr: bool,
    ready: bool,
    peer_ready: bool,
    moving: bool,
    in_rts: bool,
    proving: bool,
    path_proven: bool,
    proven: bool,
    peer_proven: bool,
    finished: bool,
}

impl Model {
    fn told(&mut self, event: &Event) {
        match event {
            Event::InRtr => self.in_rtr = true,
            Event::InRts => self.in_rts = true,
            Event::PathProven => self.path_proven = true,
            Event::Frame(Frame::Offer(_)) => self.peer_offered = true,
            Event::Frame(Frame::Ready) => self.peer_ready = true,
            Event::Frame(Frame::Proven) => self.peer_proven = true,
            Event::Frame(_) => {}
        }
        match event {
            Event::InRtr => self.resolving = false,
            Event::InRts => self.moving = false,
            Event::PathProven => self.proving = false,
            Event::Frame(_) => {}
        }
    }

    fn did(&mut self, action: &Action) {
        assert!(!self.finished, "something happens after the end");
        let (done, rests_on) = match action {
            Action::Send(Frame::Offer(_)) => (&mut self.offered, true),
            Action::Resolve(_) => {
                assert!(!self.in_rtr);
                (&mut self.resolving, self.peer_offered)
            }
            Action::Send(Frame::Ready) => (&mut self.ready, self.in_rtr),
            Action::MoveToRts => {
                assert!(!self.in_rts);
                (&mut self.moving, self.ready && self.peer_ready)
            }
            Action::ProvePath => (&mut self.proving, self.in_rts),
            Action::Send(Frame::Proven) => (&mut self.proven, self.path_proven),
            Action::Finish => (&mut self.finished, self.proven && self.peer_proven),
            Action::Send(other) => panic!("the exchange sends {}", other.name()),
        };
        assert!(rests_on, "a step too early");
        assert!(!std::mem::replace(done, true), "a step twice");
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 4] =
        [("frame", frame), ("stream", stream), ("offer", offer), ("exchange", exchange)];

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
        for (name, target) in TARGETS {
            let inputs = files(name);
            assert!(inputs.len() >= 8, "{name} has a corpus");
            inputs.iter().for_each(|input| target(input));
        }
    }

    #[test]
    fn the_corpus_reaches_both_ends() {
        let decodes = files("frame").iter().filter(|body| Frame::decode(body).is_ok()).count();
        assert!(decodes >= 6 && decodes < files("frame").len(), "good and bad: {decodes}");
        let finishes = |input: &Vec<u8>| {
            let mut model = Model::default();
            let (mut exchange, _) = Exchange::begin(example_offer(OUR_BINDING), PEER_BINDING);
            for step in input {
                let event = match step {
                    0 => Event::InRtr,
                    1 => Event::InRts,
                    2 => Event::PathProven,
                    3 => Event::Frame(Frame::Offer(Box::new(example_offer(PEER_BINDING)))),
                    5 => Event::Frame(Frame::Ready),
                    6 => Event::Frame(Frame::Proven),
                    _ => return false,
                };
                let Ok((next, actions)) = exchange.handle(event) else { return false };
                exchange = next;
                model.finished |= actions.iter().any(|action| matches!(action, Action::Finish));
            }
            model.finished
        };
        assert!(files("exchange").iter().filter(|input| finishes(input)).count() >= 3);
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
        for (name, target) in TARGETS {
            let inputs = files(name);
            for _ in 0..20_000 {
                let mut input = inputs[random(inputs.len())].clone();
                for _ in 0..=random(3) {
                    let at = random(input.len() + 1).min(input.len());
                    match random(4) {
                        0 if at < input.len() => input[at] ^= 1 << random(8),
                        1 => input.insert(at, u8::try_from(random(256)).unwrap()),
                        2 => input.truncate(at),
                        _ => {
                            let other = &inputs[random(inputs.len())];
                            let from = random(other.len() + 1);
                            input.splice(at.., other[from..].iter().copied());
                        }
                    }
                }
                target(&input);
            }
        }
    }

    /// Every order of the seven things that happen, of which only those may finish that the order of the design allows.
    #[test]
    fn all_orders_of_a_whole_exchange() {
        fn permute(rest: &mut Vec<u8>, done: &mut Vec<u8>, count: &mut usize) {
            if rest.is_empty() {
                exchange(done);
                *count += 1;
            }
            for index in 0..rest.len() {
                let step = rest.remove(index);
                done.push(step);
                permute(rest, done, count);
                done.pop();
                rest.insert(index, step);
            }
        }
        let mut count = 0;
        permute(&mut vec![0, 1, 2, 3, 5, 6, 6], &mut Vec::new(), &mut count);
        assert_eq!(count, 5040);
    }

    #[test]
    #[ignore = "writes fuzz/corpus anew"]
    fn write_corpus() {
        let bodies: Vec<Vec<u8>> = [
            Frame::Offer(Box::new(example_offer(PEER_BINDING))),
            Frame::Ready,
            Frame::Proven,
            Frame::error("ERR_RDMA_PATH", "no way"),
            Frame::error("ERR_RDMA_INTERNAL", &"ä".repeat(256)),
            Frame::KeepAlive,
            Frame::Close,
        ]
        .iter()
        .map(|frame| frame.encode()[4..].to_vec())
        .collect();
        let bad: [&[u8]; 8] = [
            &[0x82, 0x02, 0xA1, 0x20, 0x00],
            &[0x82, 0x18, 0x02, 0xA0],
            &[0x82, 0x02, 0xA0, 0x00],
            &[0x82, 0x02, 0xA2, 0x09, 0x01, 0x08, 0x01],
            &[0x82, 0x02, 0xA1, 0x09, 0x81, 0x81, 0x81, 0x00],
            &[0x9F, 0x02, 0xA0, 0xFF],
            &[0x82, 0x02, 0xA1, 0x09, 0x62, 0xC3, 0x28],
            &[0xBB, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF],
        ];
        let stream_of = |bodies: &[Vec<u8>], piece: u8| {
            let mut stream = vec![piece];
            for body in bodies {
                stream.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
                stream.extend_from_slice(body);
            }
            stream
        };
        let offers: Vec<Vec<u8>> = (0..15)
            .map(|field| {
                let mut offer = example_offer(PEER_BINDING);
                match field {
                    0 => offer.version = 9,
                    1 => offer.qpn = Qpn::new(2).unwrap(),
                    2 => offer.qpn = Qpn::new(0xFF_FFFE).unwrap(),
                    3 => offer.psn = Psn::new(0).unwrap(),
                    4 => offer.psn = Psn::new(0xFF_FFFF).unwrap(),
                    5 => offer.path_mtu = PathMtu::Bytes4096,
                    6 => offer.initiator_depth = 128,
                    7 => offer.terms.max_message_size = (1 << 53) - 1,
                    8 => offer.terms.segment_size = 1 << 30,
                    9 => offer.terms.credits = u16::MAX,
                    10 => offer.device_part = vec![7; 1024],
                    12 => offer.keep_alive_interval = None,
                    13 => offer.keep_alive_interval = Some(KeepAlive::MIN_INTERVAL),
                    14 => offer.keep_alive_interval = Some(KeepAlive::MAX_INTERVAL),
                    _ => {}
                }
                Frame::Offer(Box::new(offer)).encode()[6..].to_vec()
            })
            .collect();
        let with_frame =
            [&[3, 0, 15, u8::try_from(bodies[1].len()).unwrap()], &bodies[1][..], &[1, 2, 6]].concat();
        let exchanges: Vec<Vec<u8>> = vec![
            vec![3, 0, 5, 1, 2, 6],
            vec![3, 5, 0, 1, 6, 2],
            vec![3, 5, 0, 6, 1, 2],
            vec![3, 0, 5, 1, 6, 2],
            vec![4],
            vec![5],
            vec![3, 3],
            vec![3, 5, 5],
            vec![3, 9],
            vec![3, 0, 7],
            vec![3, 0, 5, 1, 8],
            with_frame,
        ];
        let all: [(&str, Vec<Vec<u8>>); 4] = [
            ("frame", bodies.iter().cloned().chain(bad.iter().map(|b| b.to_vec())).collect()),
            (
                "stream",
                vec![
                    stream_of(&bodies, 1),
                    stream_of(&bodies, 7),
                    stream_of(&bodies, 255),
                    vec![1, 0, 0, 0, 0],
                    vec![3, 255, 255, 255, 255],
                    vec![2, 0, 0, 16, 1],
                    stream_of(&bodies[1..2], 2)[..6].to_vec(),
                    stream_of(&[bad[0].to_vec(), bodies[1].clone()], 4),
                ],
            ),
            ("offer", offers),
            ("exchange", exchanges),
        ];
        for (target, inputs) in all {
            std::fs::create_dir_all(corpus(target)).unwrap();
            for (index, input) in inputs.iter().enumerate() {
                std::fs::write(corpus(target).join(format!("seed-{index:02}")), input).unwrap();
            }
        }
    }
}
