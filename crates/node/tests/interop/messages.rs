//! PSNs around the wrap, the lengths of a READ, and messages without bytes.

use std::sync::Arc;

use secure_rdma_rdma::{Entropy, PathMtu, RKey, RemoteSlice, Result, SendOperation, WorkId};
use secure_rdma_session::SessionOptions;

use crate::end::{End, bytes, connected, options};
use crate::wire::{Wire, alone};
use crate::{FAMILIES, SEND, everywhere};

/// The proof of path takes the first PSN, so that a message of six packets is at 0xFF_FFFE to 3.
const START: u32 = 0xFF_FFFD;

/// Gives [`START`], big-endian.
struct NearTheWrap;

impl Entropy for NearTheWrap {
    fn fill(&self, bytes: &mut [u8]) -> Result<()> {
        assert_eq!(bytes.len(), 3, "nothing but starting PSNs is drawn from here");
        bytes.copy_from_slice(&START.to_be_bytes()[1..]);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Send,
    Write,
    Read,
}

/// One message of six packets from `one` to `other`, or back for a READ, and a short one behind it.
fn over_the_wrap(kind: Kind, one: &End, other: &End) {
    let length = 5 * one.path_mtu.bytes() + 7;
    for (round, length) in [length, 9].into_iter().enumerate() {
        let seed = 40 + u8::try_from(round).unwrap();
        let sent = bytes(length, seed);
        let id = round as u64;
        let back = match kind {
            Kind::Send => {
                one.fill(0, &sent);
                other.receive(100 + id, 100_000, length);
                one.post(id, SEND, 0, length);
                assert_eq!(other.done().byte_len as usize, length);
                other
            }
            Kind::Write => {
                one.fill(0, &sent);
                let remote = other.remote(100_000);
                one.post(id, SendOperation::Write { remote, immediate: None }, 0, length);
                other
            }
            Kind::Read => {
                other.fill(0, &sent);
                one.post(id, SendOperation::Read { remote: other.remote(0) }, 100_000, length);
                one
            }
        };
        let done = one.done();
        assert_eq!(done.id, WorkId(id));
        assert!(back.read_back(100_000, length) == sent, "{kind:?} of {length} B");
    }
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn psns_wrap_inside_a_send_a_write_and_a_read_each_way() {
    let _alone = alone();
    let wire = Wire::new(0);
    for (outside, inside) in FAMILIES {
        for kind in [Kind::Send, Kind::Write, Kind::Read] {
            let near = SessionOptions {
                entropy: Arc::new(NearTheWrap),
                expose_secrets: true,
                ..options(PathMtu::Bytes1024)
            };
            let (rxe, soft) = connected(outside, inside, false, near);
            for end in [&rxe, &soft] {
                let secrets = end.secrets.as_ref().expect("they were asked for");
                assert_eq!((secrets.own_psn.expose(), secrets.peer_psn.expose()), (START, START));
            }
            over_the_wrap(kind, &soft, &rxe);
            over_the_wrap(kind, &rxe, &soft);
            soft.close();
            rxe.close();
        }
    }
    wire.check();
}

/// The WRITE behind each READ has the PSN that follows its last response: a miscount would be a gap or a duplicate.
fn reads(one: &End, other: &End) {
    let mtu = one.path_mtu.bytes();
    for (round, length) in [0, 1, mtu - 1, mtu, mtu + 1, 3 * mtu, 128 * mtu + 1].into_iter().enumerate() {
        let held = bytes(length, 90 + u8::try_from(round).unwrap());
        other.fill(16, &held);
        one.fill(0, &vec![0; length + 32]);
        one.post(1, SendOperation::Read { remote: other.remote(16) }, 8, length);
        one.fill(900_000, &[u8::try_from(round).unwrap() + 1; 4]);
        one.post(2, SendOperation::Write { remote: other.remote(900_000), immediate: None }, 900_000, 4);
        let (read, write) = (one.done(), one.done());
        assert_eq!((read.id, write.id), (WorkId(1), WorkId(2)));
        assert!(one.read_back(8, length) == held, "READ of {length} B");
        assert_eq!(one.read_back(0, 8), [0; 8], "nothing before it");
        assert_eq!(one.read_back(8 + length, 8), [0; 8], "nothing behind it");
        assert_eq!(other.read_back(900_000, 4), [u8::try_from(round).unwrap() + 1; 4]);
    }
}

fn reads_each_way(mtu: PathMtu) {
    let _alone = alone();
    let wire = Wire::new(0);
    everywhere(&wire, mtu, |rxe, soft| {
        reads(soft, rxe);
        reads(rxe, soft);
        soft.close();
        rxe.close();
    });
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn reads_of_every_length_count_their_psns_each_way_at_path_mtu_1024() {
    reads_each_way(PathMtu::Bytes1024);
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn reads_of_every_length_count_their_psns_each_way_at_path_mtu_4096() {
    reads_each_way(PathMtu::Bytes4096);
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn messages_without_bytes_need_no_key_each_way() {
    let _alone = alone();
    let wire = Wire::new(0);
    let garbage = RemoteSlice { address: u64::MAX - 7, rkey: RKey::new(0x5A5A_5A5A) };
    everywhere(&wire, PathMtu::Bytes1024, |rxe, soft| {
        for (one, other) in [(soft, rxe), (rxe, soft)] {
            other.receive(1, 0, 0);
            one.post(2, SEND, 0, 0);
            one.post(3, SendOperation::Write { remote: garbage, immediate: None }, 0, 0);
            one.post(4, SendOperation::Read { remote: garbage }, 0, 0);
            for id in 2..5 {
                assert_eq!(one.done().id, WorkId(id));
            }
            let received = other.done();
            assert_eq!((received.id, received.byte_len), (WorkId(1), 0));
        }
        soft.close();
        rxe.close();
    });
}
