//! A peer that has no receive yet, or none at all, and a peer that is silent.

use std::time::{Duration, Instant};

use secure_rdma_rdma::{PathMtu, WcStatus};
use secure_rdma_session::{QueuePairOptions, SessionOptions};

use crate::end::{End, bytes, connected, options};
use crate::wire::{Filter, Wire, alone};
use crate::{FAMILIES, SEND};

/// Calls it for either side as the one that asks, with ends brought up with these options.
fn each_way(queue_pair: QueuePairOptions, test: impl Fn(bool, &End, &End)) {
    for (outside, inside) in FAMILIES {
        for asker_is_soft in [false, true] {
            let options = SessionOptions { queue_pair, ..options(PathMtu::Bytes1024) };
            let (rxe, soft) = connected(outside, inside, false, options);
            let (one, other) = if asker_is_soft { (&soft, &rxe) } else { (&rxe, &soft) };
            test(asker_is_soft, one, other);
        }
    }
}

/// Waits until rxe2 has received, or sent, this many RNR NAKs more. The kernel may show counts that are 10 ms old.
fn until_rnr_naks(received: bool, before: u64, more: u64) {
    let end = Instant::now() + Duration::from_secs(60);
    while rnr_naks(received) < before + more {
        assert!(Instant::now() < end, "{more} RNR NAKs come");
        std::thread::yield_now();
    }
}

/// RNR NAKs that rxe2 has received, or sent.
fn rnr_naks(received: bool) -> u64 {
    let name = if received { "rcvd_rnr_err" } else { "send_rnr_err" };
    let path = format!("/sys/class/infiniband/rxe2/ports/1/hw_counters/{name}");
    std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn a_receive_that_is_posted_late_is_waited_for_each_way() {
    let _alone = alone();
    let wire = Wire::new(0);
    each_way(
        QueuePairOptions { rnr_retry: 7, ..QueuePairOptions::default() },
        |asker_is_soft, one, other| {
            let sent = bytes(5000, 21);
            one.fill(0, &sent);
            let before = rnr_naks(!asker_is_soft);
            one.post(1, SEND, 0, 5000);
            one.post(2, SEND, 0, 5);
            // Refused at least three times before there is a receive.
            until_rnr_naks(!asker_is_soft, before, 3);
            other.receive(3, 10_000, 5000);
            assert_eq!((one.done().id.0, other.done().byte_len), (1, 5000));
            assert!(other.read_back(10_000, 5000) == sent);
            other.receive(4, 20_000, 5);
            assert_eq!((one.done().id.0, other.done().byte_len), (2, 5));
            one.close();
            other.close();
        },
    );
    wire.check();
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn a_receive_that_never_comes_is_given_up_each_way() {
    let _alone = alone();
    let wire = Wire::new(0);
    for rnr_retry in [0, 1, 3, 6] {
        let queue_pair = QueuePairOptions { rnr_retry, ..QueuePairOptions::default() };
        each_way(queue_pair, |asker_is_soft, one, other| {
            let before = rnr_naks(!asker_is_soft);
            one.post(1, SEND, 0, 5);
            one.post(2, SEND, 0, 5);
            let expected = [(1, WcStatus::RNR_RETRY_EXC_ERR), (2, WcStatus::WR_FLUSH_ERR)];
            assert_eq!(one.ended(2), expected, "rnr_retry {rnr_retry}");
            until_rnr_naks(!asker_is_soft, before, u64::from(rnr_retry) + 1);
            // The responder goes on: it takes no part in the error.
            other.close();
        });
    }
    wire.check();
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn a_silent_peer_is_given_up_after_all_copies_each_way() {
    let _alone = alone();
    for retry_count in [0, 1, 3, 6] {
        // 67 ms, well above the guest's jiffy, below which rxe is known to send more copies.
        let queue_pair =
            QueuePairOptions { timeout: 14, retry_count: Some(retry_count), ..QueuePairOptions::default() };
        each_way(queue_pair, |asker_is_soft, one, other| {
            other.receive(1, 0, 8);
            let silence = Filter::all();
            one.post(1, SEND, 0, 5);
            assert_eq!(one.ended(1), [(1, WcStatus::RETRY_EXC_ERR)], "retry_cnt {retry_count}");
            one.post(2, SEND, 0, 5);
            assert_eq!(one.ended(1), [(2, WcStatus::WR_FLUSH_ERR)]);
            let copies: u64 = silence.met(!asker_is_soft).iter().sum();
            println!(
                "retry_cnt {retry_count}: {copies} copies, sent by {}",
                if asker_is_soft { "soft" } else { "rxe" }
            );
            assert!(copies > u64::from(retry_count), "{copies} copies with retry_cnt {retry_count}");
        });
    }
}
