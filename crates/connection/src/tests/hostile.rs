//! A peer that is authenticated and does what it likes with its queue pair.

use std::future::poll_fn;
use std::sync::Arc;

use secure_rdma_rdma::fake::{self, FakeDevice};
use secure_rdma_rdma::{
    Access, AsyncEvent, Completion, Device, ErrorCode, Memory, PathMtu, QpState, QueuePair, QueuePairConfig,
    QueuePairHandler, RKey, ReceiveRequest, Region, RemoteSlice, SendFlags, SendOperation, SendRequest,
    Slice, WorkId,
};
use secure_rdma_session::{Terms, UpperLayer};

use super::{End, World, until, wait};
use crate::channel::Life;
use crate::framing::{Header, Kind};
use crate::grant_messages::GrantMessage;
use crate::options::ConnectionOptions;
use crate::regions::SharedRegion;

struct Deaf;

impl QueuePairHandler for Deaf {
    fn completed(&self, _batch: &[Completion]) {}
    fn happened(&self, _event: AsyncEvent) {}
}

/// A bare queue pair that is connected to an honest end.
struct Hostile {
    queue_pair: Arc<dyn QueuePair>,
    region: Arc<Region>,
    _handler: Arc<dyn QueuePairHandler>,
}

impl Hostile {
    fn new(device: &FakeDevice) -> Self {
        let handler: Arc<dyn QueuePairHandler> = Arc::new(Deaf);
        let config = QueuePairConfig {
            max_send: 256,
            max_receive: 256,
            max_sge: 1,
            receive_queue: None,
            handler: Arc::downgrade(&handler),
        };
        let queue_pair = device.create_queue_pair(config).unwrap();
        let region =
            device.register(Arc::new(Memory::allocate(1 << 20).unwrap()), Access::LOCAL_WRITE).unwrap();
        Self { queue_pair, region, _handler: handler }
    }

    fn send(&self, immediate: Option<u32>, bytes: &[u8]) {
        self.region.memory().write(0, bytes).unwrap();
        let request = SendRequest {
            id: WorkId(7),
            operation: SendOperation::Send { immediate },
            local: smallvec::smallvec![Slice::new(&self.region, 0, bytes.len())],
            flags: SendFlags::empty(),
        };
        // It may be in ERR already; then there is nothing left to do wrong.
        let _ = self.queue_pair.post_send(&[request]);
    }

    /// A WRITE of no bytes, for which no key is looked at, with an immediate.
    fn write_immediate(&self, immediate: u32) {
        let remote = RemoteSlice { address: 0, rkey: RKey::new(0) };
        let request = SendRequest {
            id: WorkId(9),
            operation: SendOperation::Write { remote, immediate: Some(immediate) },
            local: smallvec::smallvec![],
            flags: SendFlags::empty(),
        };
        let _ = self.queue_pair.post_send(&[request]);
    }

    /// SEND with invalidate of one of the other side's keys.
    fn invalidate(&self, rkey: RKey) {
        let request = SendRequest {
            id: WorkId(8),
            operation: SendOperation::SendInvalidate { rkey },
            local: smallvec::smallvec![Slice::new(&self.region, 0, 10)],
            flags: SendFlags::empty(),
        };
        self.queue_pair.post_send(&[request]).unwrap();
    }

    fn segment(&self, kind: Kind, credits: u16, bytes: &[u8]) {
        self.send(Some(Header { kind, credits }.to_immediate()), bytes);
    }
}

/// What a hostile peer does after its proof of path.
type Attack<'a> = &'a dyn Fn(&Hostile);

/// An honest end whose connection is up and whose peer may do its worst.
fn victim(world: &World) -> (End, Hostile) {
    let (end, hostile) = proving(world);
    end.channel.open(None, "to a hostile peer".to_owned());
    (end, hostile)
}

/// An honest end whose peer can send and whose own path is not proven.
fn proving(world: &World) -> (End, Hostile) {
    let options = ConnectionOptions { max_message_size: 50_000, ..Default::default() };
    let prepared = world.prepare(0, &options).unwrap();
    let hostile = Hostile::new(&world.devices[1]);
    fake::init(prepared.queue_pair.as_ref()).unwrap();
    fake::init(hostile.queue_pair.as_ref()).unwrap();
    let receives: Vec<_> =
        (0..64).map(|i| ReceiveRequest::new(WorkId(i), &hostile.region, 524_288, 4096)).collect();
    hostile.queue_pair.post_receive(&receives).unwrap();
    let terms = Terms { max_message_size: 50_000, segment_size: 4096, credits: 16 };
    prepared.upper.adopt(&terms, PathMtu::Bytes1024).unwrap();
    world.connect(&[Arc::clone(&prepared.queue_pair), Arc::clone(&hostile.queue_pair)]);
    let end = End { channel: Arc::clone(&prepared.upper.0), upper: prepared.upper };
    (end, hostile)
}

fn must_be_refused(what: &str, attack: impl Fn(&Hostile)) {
    let world = World::new();
    let (end, hostile) = victim(&world);
    hostile.segment(Kind::Proof, 0, &[0; 1024]);
    attack(&hostile);
    end.until(what, |end| matches!(end.lock().life, Life::Over(_)));
    let Life::Over(closed) = end.channel.lock().life.clone() else { unreachable!() };
    assert_eq!(closed.error.unwrap().code(), ErrorCode::PeerViolation, "{what}");
    drop((end, hostile));
    until("everything to be unmade", || world.fabric.counters().all_unmade());
}

#[test]
fn every_broken_rule_ends_the_connection() {
    let first = |whole: u64, bytes: usize| {
        let mut segment = whole.to_le_bytes().to_vec();
        segment.resize(8 + bytes, 1);
        segment
    };
    let attacks: &[(&str, Attack<'_>)] = &[
        ("no immediate", &|h| h.send(None, b"x")),
        ("kind 0", &|h| h.send(Some(0), b"x")),
        ("PACKED within a message", &|h| {
            h.segment(Kind::First, 0, &first(9000, 4000));
            h.segment(Kind::Packed, 0, &[1, 0, 0, 0, 2, 0]);
        }),
        ("an empty PACKED", &|h| h.segment(Kind::Packed, 0, &[])),
        ("PACKED of a byte", &|h| h.segment(Kind::Packed, 0, &[0])),
        ("PACKED of no messages", &|h| h.segment(Kind::Packed, 0, &[0, 0])),
        ("PACKED of one message", &|h| h.segment(Kind::Packed, 0, &[7, 1, 0, 1, 0])),
        ("PACKED without lengths", &|h| h.segment(Kind::Packed, 0, &[0, 0, 2, 0])),
        ("PACKED with too many lengths", &|h| h.segment(Kind::Packed, 0, &[1, 1, 0, 0, 0, 255, 255])),
        ("PACKED with bytes over", &|h| h.segment(Kind::Packed, 0, &[7, 7, 1, 0, 0, 0, 2, 0])),
        ("PACKED with bytes missing", &|h| h.segment(Kind::Packed, 0, &[7, 1, 0, 1, 0, 2, 0])),
        ("PACKED of more than a buffer's worth", &|h| {
            let mut segment = vec![0; 2 * 65];
            segment.extend(65_u16.to_le_bytes());
            h.segment(Kind::Packed, 0, &segment);
        }),
        ("kind 9", &|h| h.send(Some(9 << 28), b"x")),
        ("reserved bits", &|h| h.send(Some(1 << 28 | 1 << 20), b"x")),
        ("a second proof", &|h| h.segment(Kind::Proof, 0, &[0; 1024])),
        ("bytes in CREDIT", &|h| h.segment(Kind::Credit, 1, b"x")),
        ("bytes in END", &|h| h.segment(Kind::End, 0, b"x")),
        ("MIDDLE without FIRST", &|h| h.segment(Kind::Middle, 0, b"x")),
        ("LAST without FIRST", &|h| h.segment(Kind::Last, 0, b"x")),
        ("FIRST without a length", &|h| h.segment(Kind::First, 0, b"1234567")),
        ("FIRST with nothing but a length", &|h| h.segment(Kind::First, 0, &first(5000, 0))),
        ("FIRST that holds all", &|h| h.segment(Kind::First, 0, &first(100, 100))),
        ("FIRST that holds more", &|h| h.segment(Kind::First, 0, &first(100, 200))),
        ("a message too long", &|h| h.segment(Kind::First, 0, &first(50_001, 4000))),
        ("a message of 2^64 - 1", &|h| h.segment(Kind::First, 0, &first(u64::MAX, 4000))),
        ("ONLY within a message", &|h| {
            h.segment(Kind::First, 0, &first(9000, 4000));
            h.segment(Kind::Only, 0, b"x");
        }),
        ("FIRST within a message", &|h| {
            h.segment(Kind::First, 0, &first(9000, 4000));
            h.segment(Kind::First, 0, &first(9000, 4000));
        }),
        ("END within a message", &|h| {
            h.segment(Kind::First, 0, &first(9000, 4000));
            h.segment(Kind::End, 0, &[]);
        }),
        ("LAST too early", &|h| {
            h.segment(Kind::First, 0, &first(9000, 4000));
            h.segment(Kind::Last, 0, &[0; 4000]);
        }),
        ("LAST too long", &|h| {
            h.segment(Kind::First, 0, &first(5000, 4000));
            h.segment(Kind::Last, 0, &[0; 1001]);
        }),
        ("MIDDLE that completes", &|h| {
            h.segment(Kind::First, 0, &first(5000, 4000));
            h.segment(Kind::Middle, 0, &[0; 1000]);
        }),
        ("an empty MIDDLE", &|h| {
            h.segment(Kind::First, 0, &first(5000, 4000));
            h.segment(Kind::Middle, 0, &[]);
        }),
        ("a message after END", &|h| {
            h.segment(Kind::End, 0, &[]);
            h.segment(Kind::Only, 0, b"x");
        }),
        ("END twice", &|h| {
            h.segment(Kind::End, 0, &[]);
            h.segment(Kind::End, 0, &[]);
        }),
        ("credits without end", &|h| {
            for _ in 0..40 {
                h.segment(Kind::Credit, u16::MAX, &[]);
            }
        }),
        // Good messages: nothing else is wrong with them. The victim gives credits back as long as it has some itself.
        ("more segments than credits", &|h| {
            for _ in 0..200 {
                h.segment(Kind::Only, 0, b"x");
            }
        }),
        ("more WRITEs with immediate than credits", &|h| {
            for i in 0..200 {
                h.write_immediate(i);
            }
        }),
        ("a WRITE with immediate within a message", &|h| {
            h.segment(Kind::First, 0, &first(9000, 4000));
            h.write_immediate(7);
        }),
        ("a WRITE with immediate after END", &|h| {
            h.segment(Kind::End, 0, &[]);
            h.write_immediate(7);
        }),
    ];
    for (what, attack) in attacks {
        must_be_refused(what, attack);
    }
}

/// §F.4 #40: a peer may end only what was granted to it, and not even that: taking back is the publisher's.
#[test]
fn a_key_that_the_peer_invalidates_ends_its_own_connection() {
    for own in [true, false] {
        let world = World::new();
        let others = world.pair(&ConnectionOptions::default());
        let (end, hostile) = victim(&world);
        hostile.segment(Kind::Proof, 0, &[0; 1024]);
        let region = SharedRegion::allocate(64).unwrap();
        let mut rkeys = Vec::new();
        for channel in [&end.channel, &others[0].channel] {
            channel.publish("page", &region.whole().unwrap(), Access::REMOTE_WRITE).unwrap();
            world.fabric.settle();
            match channel.lock().grants.next_told() {
                Some(GrantMessage::Grant(grant)) => rkeys.push(grant.rkey),
                told => panic!("{told:?}"),
            }
        }
        hostile.invalidate(rkeys[usize::from(!own)]);
        if own {
            end.until("the end", |end| matches!(end.lock().life, Life::Over(_)));
            let Life::Over(closed) = end.channel.lock().life.clone() else { unreachable!() };
            assert_eq!(closed.error.unwrap().code(), ErrorCode::PeerViolation);
        } else {
            until("the attacker's queue pair to be in ERR", || hostile.queue_pair.state() == QpState::Err);
        }
        assert!(
            matches!(others[0].channel.lock().life, Life::Open),
            "another connection's window is untouched"
        );
        let bound = world.fabric.counters().bound_windows;
        assert!(bound >= 1, "{bound} windows are bound");
    }
}

#[test]
fn nothing_is_taken_before_the_proof_of_path() {
    let attacks: [Attack<'_>; 2] = [&|h| h.segment(Kind::Only, 0, b"x"), &|h| h.write_immediate(7)];
    for attack in attacks {
        let world = World::new();
        let (end, hostile) = victim(&world);
        attack(&hostile);
        end.until("the end", |end| matches!(end.lock().life, Life::Over(_)));
        let Life::Over(closed) = end.channel.lock().life.clone() else { unreachable!() };
        assert_eq!(closed.error.unwrap().code(), ErrorCode::PeerViolation);
    }
}

#[test]
fn what_a_peer_breaks_before_our_own_proof_is_what_the_bring_up_is_told() {
    let world = World::new();
    let (end, hostile) = proving(&world);
    hostile.segment(Kind::Only, 0, b"x");
    let error = wait(poll_fn(|cx| end.upper.poll_path_proven(cx))).unwrap_err();
    assert_eq!(error.code(), ErrorCode::PeerViolation, "{error}");
    assert_eq!(
        end.upper.prove_path().unwrap_err().code(),
        ErrorCode::PeerViolation,
        "it sends nothing any more"
    );
}

#[test]
fn a_proof_of_the_wrong_length_is_refused() {
    for length in [0, 1023, 1025] {
        let world = World::new();
        let (end, hostile) = victim(&world);
        hostile.segment(Kind::Proof, 0, &vec![0; length]);
        end.until("the end", |end| matches!(end.lock().life, Life::Over(_)));
    }
}

#[test]
fn receive_buffers_too_small_for_a_packet_are_refused_before_anything_is_sent() {
    let world = World::new();
    for segment_size in [0, 1, 7, 8, 9, 255, 1023] {
        let prepared = world.prepare(0, &ConnectionOptions::default()).unwrap();
        let terms = Terms { max_message_size: 50_000, segment_size, credits: 16 };
        let error = prepared.upper.adopt(&terms, PathMtu::Bytes1024).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Offer, "{segment_size}");
    }
}
