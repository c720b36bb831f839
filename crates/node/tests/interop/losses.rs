//! One packet of each kind lost, and nothing else: what is done about it, and that nothing is done twice.

use std::cell::Cell;
use std::sync::Arc;

use secure_rdma_rdma::{PathMtu, SendOperation, WorkId};
use secure_rdma_roce::Opcode;
use secure_rdma_session::{QueuePairOptions, SessionOptions};
use secure_rdma_soft::engine::Config;
use secure_rdma_soft::{SoftDevice, SoftOptions};

use crate::FAMILIES;
use crate::end::{End, bytes, connected_to, options};
use crate::wire::{Filter, OneByOne, Packet, Wire, alone_with};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Send,
    SendImmediate,
    Write,
    WriteImmediate,
    Read,
    CompareSwap,
    FetchAdd,
}

/// Of one packet at a path MTU of 1024, and of three: First, Middle, Last.
const SHORT: usize = 100;
const LONG: usize = 2500;

/// The packets of which one is lost, by opcode: those that the request is made of, and those that answer it.
const CASES: [(Kind, usize, &[Opcode], &[Opcode]); 14] = [
    (Kind::Send, SHORT, &[Opcode::SendOnly], &[Opcode::Acknowledge]),
    (Kind::Send, LONG, &[Opcode::SendFirst, Opcode::SendMiddle, Opcode::SendLast], &[Opcode::Acknowledge]),
    (Kind::SendImmediate, SHORT, &[Opcode::SendOnlyWithImmediate], &[Opcode::Acknowledge]),
    (Kind::SendImmediate, LONG, &[Opcode::SendLastWithImmediate], &[]),
    (Kind::Write, SHORT, &[Opcode::WriteOnly], &[Opcode::Acknowledge]),
    (
        Kind::Write,
        LONG,
        &[Opcode::WriteFirst, Opcode::WriteMiddle, Opcode::WriteLast],
        &[Opcode::Acknowledge],
    ),
    (Kind::WriteImmediate, SHORT, &[Opcode::WriteOnlyWithImmediate], &[Opcode::Acknowledge]),
    (Kind::WriteImmediate, LONG, &[Opcode::WriteLastWithImmediate], &[]),
    (Kind::Write, 0, &[Opcode::WriteOnly], &[Opcode::Acknowledge]),
    (Kind::Read, 0, &[Opcode::ReadRequest], &[Opcode::ReadResponseOnly]),
    (Kind::Read, SHORT, &[Opcode::ReadRequest], &[Opcode::ReadResponseOnly]),
    (
        Kind::Read,
        LONG,
        &[Opcode::ReadRequest],
        &[Opcode::ReadResponseFirst, Opcode::ReadResponseMiddle, Opcode::ReadResponseLast],
    ),
    (Kind::CompareSwap, 8, &[Opcode::CompareSwap], &[Opcode::AtomicAcknowledge]),
    (Kind::FetchAdd, 8, &[Opcode::FetchAdd], &[Opcode::AtomicAcknowledge]),
];

/// Where things are: in the requester's region, and in the responder's.
const LOCAL: usize = 8;
const INBOX: usize = 100_000;
const TARGET: usize = 200_000;
const BEHIND: usize = 300_000;
/// What an atomic finds.
const FOUND: u64 = 5;

/// A requester and a responder, and how many receives have been used.
struct Way<'a> {
    one: &'a End,
    other: &'a End,
    received: Cell<usize>,
}

impl<'a> Way<'a> {
    fn new(one: &'a End, other: &'a End) -> Self {
        let way = Self { one, other, received: Cell::new(0) };
        way.receive(0);
        way.receive(1);
        way
    }

    /// Two receives are posted at any time, so that what is executed twice has somewhere to go.
    fn receive(&self, number: usize) {
        let at = INBOX + number % 2 * 4096;
        self.other.fill(at, &[0; 4096]);
        self.other.receive(1000 + number as u64, at, 4096);
    }

    /// Opens the window of the embedded device again after a loss. It asks for a READ in parts that fit half of it, and
    /// three responses shall be one part: 27 packets make of a window of 2 one of 8.
    fn widen(&self) {
        let remote = self.other.remote(BEHIND);
        self.one.post(3, SendOperation::Write { remote, immediate: None }, BEHIND, 32 * 1024);
        assert_eq!(self.one.done().id, WorkId(3));
    }

    /// One message, or two where a short WRITE is to follow it; what they do is done once.
    fn message(&self, kind: Kind, length: usize, followed: bool, seed: u8) {
        let Self { one, other, .. } = self;
        let sent = bytes(length, seed);
        let remote = other.remote(TARGET);
        let immediate = Some(u32::from(seed) << 8 | 0xA1);
        let operation = match kind {
            Kind::Send => SendOperation::Send { immediate: None },
            Kind::SendImmediate => SendOperation::Send { immediate },
            Kind::Write => SendOperation::Write { remote, immediate: None },
            Kind::WriteImmediate => SendOperation::Write { remote, immediate },
            Kind::Read => SendOperation::Read { remote },
            Kind::CompareSwap => SendOperation::CompareSwap { remote, compare: FOUND, swap: 77 },
            Kind::FetchAdd => SendOperation::FetchAdd { remote, add: 9 },
        };
        other.fill(TARGET, &[0; 4096]);
        other.fill(BEHIND, &[0; 4]);
        one.fill(LOCAL, &sent);
        match kind {
            Kind::Read => {
                other.fill(TARGET, &sent);
                one.fill(LOCAL, &vec![0; length]);
            }
            Kind::CompareSwap | Kind::FetchAdd => other.fill(TARGET, &FOUND.to_ne_bytes()),
            _ => {}
        }
        let receives = matches!(kind, Kind::Send | Kind::SendImmediate | Kind::WriteImmediate);
        let number = self.received.get();

        one.fill(BEHIND, &[seed | 1; 4]);
        one.post(1, operation, LOCAL, length);
        if followed {
            one.post(2, SendOperation::Write { remote: other.remote(BEHIND), immediate: None }, BEHIND, 4);
        }
        assert_eq!(one.done().id, WorkId(1));
        if followed {
            assert_eq!(one.done().id, WorkId(2));
            assert_eq!(other.read_back(BEHIND, 4), [seed | 1; 4]);
        }
        if receives {
            let received = other.done();
            assert_eq!((received.id.0, received.byte_len as usize), (1000 + number as u64, length));
            assert_eq!(received.immediate, if kind == Kind::Send { None } else { immediate });
        }
        let spare = INBOX + (number + usize::from(receives)) % 2 * 4096;
        assert_eq!(other.read_back(spare, 4096), [0; 4096], "the spare receive is untouched");
        let found = FOUND.to_ne_bytes().to_vec();
        let (here, there) = (one.read_back(LOCAL, length), other.read_back(TARGET, length));
        match kind {
            Kind::Send | Kind::SendImmediate => {
                assert!(other.read_back(INBOX + number % 2 * 4096, length) == sent);
            }
            Kind::Write | Kind::WriteImmediate => assert!(there == sent),
            Kind::Read => assert!(here == sent),
            Kind::CompareSwap => assert_eq!((here, there), (found, 77_u64.to_ne_bytes().to_vec())),
            Kind::FetchAdd => assert_eq!((here, there), (found, (FOUND + 9).to_ne_bytes().to_vec())),
        }
        if receives {
            self.received.set(number + 1);
            self.receive(number + 2);
        }
    }
}

/// What is lost, and of which message.
fn losses() -> Vec<(Kind, usize, Opcode, bool)> {
    let of = |(kind, length, requests, answers): (Kind, usize, &'static [Opcode], &'static [Opcode])| {
        let requests = requests.iter().map(move |opcode| (kind, length, *opcode, false));
        requests.chain(answers.iter().map(move |opcode| (kind, length, *opcode, true)))
    };
    CASES.into_iter().flat_map(of).collect()
}

/// A wire that loses nothing by itself, and connections over it on which either side asks, one over each family.
fn each_way(test: impl Fn(bool, &Way<'_>)) {
    let alone = alone_with(|| {
        // No copies are sent before their time, just because the guest stands still: exactly one packet is made good.
        let engine = Config { adaptive_timeout: false, ..Config::default() };
        SoftDevice::open(&SoftOptions { engine, port: Some(4791), ..SoftOptions::default() })
    });
    let wire = Wire::new(0);
    let _cut = OneByOne::new();
    // 0.27 s: more than the guest ever stands still, little enough for all these waits.
    let queue_pair = QueuePairOptions { timeout: 16, ..QueuePairOptions::default() };
    for ((outside, inside), asker_is_soft) in FAMILIES.into_iter().zip([false, true]) {
        let options = SessionOptions { queue_pair, ..options(PathMtu::Bytes1024) };
        let soft = Arc::new(alone.soft.clone());
        let (rxe, soft) = connected_to(soft, outside, inside, asker_is_soft, options);
        let (one, other) = if asker_is_soft { (&soft, &rxe) } else { (&rxe, &soft) };
        test(asker_is_soft, &Way::new(one, other));
        one.close();
        other.close();
    }
    wire.check();
}

fn asked_by(asker_is_soft: bool) -> &'static str {
    if asker_is_soft { "soft" } else { "rxe" }
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn a_lost_packet_of_each_kind_is_recovered_each_way() {
    each_way(|asker_is_soft, way| {
        for (number, (kind, length, opcode, is_answer)) in losses().into_iter().enumerate() {
            for followed in [false, true] {
                let what = format!("{opcode:?} of {kind:?}, {length} B, followed: {followed}");
                println!("{what}, asked for by {}", asked_by(asker_is_soft));
                let to_soft = asker_is_soft == is_answer;
                way.widen();
                let filter = Filter::first_of(&[Packet { to_soft, opcode, syndrome: None }]);
                way.message(kind, length, followed, u8::try_from(2 * number).unwrap());
                assert_eq!(filter.met(to_soft), [1], "{what}");
            }
        }
    });
}

/// The gap behind a lost packet is reported once: where the report is lost too, the timer is what helps.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn a_lost_packet_and_its_lost_nak_are_recovered_each_way() {
    each_way(|asker_is_soft, way| {
        for followed in [false, true] {
            let lost = Packet { to_soft: !asker_is_soft, opcode: Opcode::WriteMiddle, syndrome: None };
            let nak = Packet {
                to_soft: asker_is_soft,
                opcode: Opcode::Acknowledge,
                syndrome: Some(SEQUENCE_ERROR),
            };
            way.widen();
            let filter = Filter::first_of(&[lost, nak]);
            way.message(Kind::Write, LONG, followed, 3);
            assert_eq!((filter.met(true), filter.met(false)), (vec![1], vec![1]));
        }
    });
}

/// Nothing but what is sent again tells that a READ of no bytes was answered, where the acknowledgement behind it is lost too.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn a_lost_answer_without_bytes_and_the_lost_ack_behind_it_are_recovered_each_way() {
    each_way(|asker_is_soft, way| {
        way.widen();
        let lost = [Opcode::ReadResponseOnly, Opcode::Acknowledge];
        let filter =
            Filter::first_of(&lost.map(|opcode| Packet { to_soft: asker_is_soft, opcode, syndrome: None }));
        way.message(Kind::Read, 0, true, 5);
        assert_eq!(filter.met(asker_is_soft), [1, 1]);
    });
}

/// The syndrome of a NAK for a PSN sequence error.
const SEQUENCE_ERROR: u8 = 0x60;
