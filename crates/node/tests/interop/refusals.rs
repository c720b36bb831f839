//! Each NAK that a peer can be made to send: the statuses on both sides, and both queue pairs in ERR.

use std::sync::Arc;

use secure_rdma_rdma::{
    Access, Memory, PathMtu, QpAttr, QpState, RKey, ReceiveRequest, RemoteSlice, SendOperation, WcStatus,
    WorkId,
};

use crate::end::{End, REGION, connected, options};
use crate::wire::{Wire, alone};
use crate::{FAMILIES, SEND};

/// What is refused, by a request of `length` bytes.
struct Refused {
    what: &'static str,
    operation: fn(&End) -> SendOperation,
    length: usize,
    /// What the responder lets its peer do; `None` is everything.
    access: Option<Access>,
    /// The requester's status.
    status: WcStatus,
}

const fn of_the_region(what: &'static str, operation: fn(&End) -> SendOperation, length: usize) -> Refused {
    Refused { what, operation, length, access: None, status: WcStatus::REM_ACCESS_ERR }
}

const fn of_the_queue_pair(
    what: &'static str,
    operation: fn(&End) -> SendOperation,
    access: Access,
) -> Refused {
    Refused { what, operation, length: 8, access: Some(access), status: WcStatus::REM_INV_REQ_ERR }
}

fn write(remote: RemoteSlice) -> SendOperation {
    SendOperation::Write { remote, immediate: None }
}

fn nowhere(end: &End) -> RemoteSlice {
    RemoteSlice { rkey: RKey::new(end.region.rkey().expose() ^ 0x5A5A_5A5A), ..end.remote(0) }
}

const REFUSED: [Refused; 8] = [
    of_the_region("WRITE with a wrong key", |end| write(nowhere(end)), 8),
    of_the_region("READ with a wrong key", |end| SendOperation::Read { remote: nowhere(end) }, 8),
    of_the_region(
        "FETCH_ADD with a wrong key",
        |end| SendOperation::FetchAdd { remote: nowhere(end), add: 1 },
        8,
    ),
    of_the_region("WRITE beyond the region", |end| write(end.remote(REGION - 5000)), 5001),
    of_the_region("READ beyond the region", |end| SendOperation::Read { remote: end.remote(REGION - 4) }, 8),
    of_the_queue_pair("WRITE without the right", |end| write(end.remote(0)), Access::REMOTE_READ),
    of_the_queue_pair(
        "READ without the right",
        |end| SendOperation::Read { remote: end.remote(0) },
        Access::REMOTE_WRITE,
    ),
    of_the_queue_pair(
        "CMP_SWAP without the right",
        |end| SendOperation::CompareSwap { remote: end.remote(0), compare: 0, swap: 1 },
        Access::REMOTE_READ,
    ),
];

/// That a queue pair is in ERR: what is posted is flushed.
fn in_err(end: &End) {
    end.post(99, SEND, 0, 8);
    assert_eq!(end.ended(1), [(99, WcStatus::WR_FLUSH_ERR)]);
}

/// A request that succeeds, the refused one, and one behind it.
fn refuse(refused: &Refused, one: &End, other: &End) {
    if let Some(access) = refused.access {
        other.pair.modify(&QpAttr { access: Some(access), ..QpAttr::to(QpState::Rts) }).unwrap();
    }
    let guarded = other.read_back(4096, REGION - 4096);
    for id in [1, 2, 3] {
        other.receive(id, 0, 8);
    }
    one.post(1, SEND, 0, 8);
    assert_eq!((one.ended(1), other.ended(1)), (vec![(1, WcStatus::SUCCESS)], vec![(1, WcStatus::SUCCESS)]));
    one.post(2, (refused.operation)(other), 0, refused.length);
    one.post(3, SEND, 0, 8);
    one.post(4, SEND, 0, 8);
    let flushed = WcStatus::WR_FLUSH_ERR;
    assert_eq!(one.ended(3), [(2, refused.status), (3, flushed), (4, flushed)], "{}", refused.what);
    assert_eq!(other.ended(2), [(2, flushed), (3, flushed)], "{}", refused.what);
    in_err(one);
    in_err(other);
    assert!(other.read_back(4096, REGION - 4096) == guarded, "{}", refused.what);
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn each_refusal_has_its_status_and_ends_both_queue_pairs_each_way() {
    let _alone = alone();
    let wire = Wire::new(0);
    for (number, refused) in REFUSED.iter().enumerate() {
        for asker_is_soft in [false, true] {
            let (outside, inside) = FAMILIES[number % 2];
            let (rxe, soft) = connected(outside, inside, number % 3 == 0, options(PathMtu::Bytes1024));
            let (one, other) = if asker_is_soft { (&soft, &rxe) } else { (&rxe, &soft) };
            refuse(refused, one, other);
            println!("{}, asked for by {}", refused.what, if asker_is_soft { "soft" } else { "rxe" });
        }
    }
    wire.check();
}

/// rxe takes a SEND that is longer than its receive for an operational error (measured); the embedded device, as the
/// specification, for an invalid request.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn a_send_longer_than_its_receive_ends_both_queue_pairs_each_way() {
    let _alone = alone();
    let wire = Wire::new(0);
    for (outside, inside) in FAMILIES {
        for length in [101, 5000] {
            for (asker_is_soft, here, there) in [
                (true, WcStatus::REM_OP_ERR, WcStatus::LOC_QP_OP_ERR),
                (false, WcStatus::REM_INV_REQ_ERR, WcStatus::LOC_LEN_ERR),
            ] {
                let (rxe, soft) = connected(outside, inside, true, options(PathMtu::Bytes1024));
                let (one, other) = if asker_is_soft { (&soft, &rxe) } else { (&rxe, &soft) };
                other.fill(1000, &[7; 8000]);
                other.receive(1, 1000, 100);
                other.receive(2, 1000, 100);
                one.post(1, SEND, 0, length);
                one.post(2, SEND, 0, 8);
                let flushed = WcStatus::WR_FLUSH_ERR;
                assert_eq!(one.ended(2), [(1, here), (2, flushed)], "{length} B");
                assert_eq!(other.ended(2), [(1, there), (2, flushed)], "{length} B");
                in_err(one);
                in_err(other);
                assert_eq!(other.read_back(1100, 7900), [7; 7900], "nothing beyond the receive");
            }
        }
    }
    wire.check();
}

/// What a region grants nobody is refused, whatever its queue pair grants.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn what_a_region_does_not_grant_is_refused_each_way() {
    type Ask = fn(RemoteSlice) -> SendOperation;
    let cases: [(&str, Access, Ask); 3] = [
        ("WRITE", Access::REMOTE_READ, write),
        ("READ", Access::REMOTE_WRITE, |remote| SendOperation::Read { remote }),
        ("FETCH_ADD", Access::REMOTE_WRITE.union(Access::REMOTE_READ), |remote| SendOperation::FetchAdd {
            remote,
            add: 1,
        }),
    ];
    let _alone = alone();
    let wire = Wire::new(0);
    for (number, (what, access, ask)) in cases.into_iter().enumerate() {
        for asker_is_soft in [false, true] {
            let (outside, inside) = FAMILIES[number % 2];
            let (rxe, soft) = connected(outside, inside, false, options(PathMtu::Bytes1024));
            let (one, other) = if asker_is_soft { (&soft, &rxe) } else { (&rxe, &soft) };
            let memory = Arc::new(Memory::allocate(64).unwrap());
            memory.write(0, &[7; 64]).unwrap();
            let region = other.device.register(memory, access | Access::LOCAL_WRITE).unwrap();
            one.fill(0, &[9; 8]);
            one.post(1, ask(RemoteSlice { address: region.address(), rkey: region.rkey() }), 0, 8);
            one.post(2, SEND, 0, 8);
            let expected = [(1, WcStatus::REM_ACCESS_ERR), (2, WcStatus::WR_FLUSH_ERR)];
            assert_eq!(one.ended(2), expected, "{what}");
            in_err(one);
            in_err(other);
            let mut bytes = [0; 64];
            region.memory().read(0, &mut bytes).unwrap();
            assert_eq!((bytes, one.read_back(0, 8)), ([7; 64], vec![9; 8]), "{what}");
        }
    }
    wire.check();
}

/// A receive into memory that its own device may not write is the responder's mistake, which rxe is told of.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn a_receive_that_soft_may_not_write_is_an_operational_error_to_rxe() {
    let _alone = alone();
    let wire = Wire::new(0);
    for (outside, inside) in FAMILIES {
        let (rxe, soft) = connected(outside, inside, false, options(PathMtu::Bytes1024));
        let memory = Arc::new(Memory::allocate(64).unwrap());
        let region = soft.device.register(memory, Access::REMOTE_READ).unwrap();
        soft.pair.post_receive(&[ReceiveRequest::new(WorkId(1), &region, 0, 64)]).unwrap();
        soft.receive(2, 0, 8);
        rxe.post(1, SEND, 0, 8);
        rxe.post(2, SEND, 0, 8);
        let flushed = WcStatus::WR_FLUSH_ERR;
        assert_eq!(rxe.ended(2), [(1, WcStatus::REM_OP_ERR), (2, flushed)]);
        assert_eq!(soft.ended(2), [(1, WcStatus::LOC_PROT_ERR), (2, flushed)]);
        in_err(&rxe);
        in_err(&soft);
    }
    wire.check();
}
