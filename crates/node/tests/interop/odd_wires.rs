//! Packets that are not as they were sent, and packets that are sent one by one.

use std::sync::Arc;

use secure_rdma_rdma::PathMtu;
use secure_rdma_soft::{SoftDevice, SoftOptions};

use crate::end::{Single, connected_to, options};
use crate::wire::{Filter, Wire, alone, alone_with};
use crate::{FAMILIES, every_operation, everywhere, many_at_once};

/// Over each family, on connections of this device.
fn everything(soft: &Single, mtu: PathMtu) {
    for (number, (outside, inside)) in FAMILIES.into_iter().enumerate() {
        let (rxe, soft) = connected_to(Arc::new(soft.clone()), outside, inside, number == 0, options(mtu));
        every_operation(&soft, &rxe);
        every_operation(&rxe, &soft);
        many_at_once(&rxe, &soft);
        soft.close();
        rxe.close();
    }
}

/// A flipped bit is noticed by the ICRC of either side, dropped in silence, and made good.
fn one_percent_corrupted(mtu: PathMtu) {
    let alone = alone();
    let wire = Wire::corrupting(1);
    everything(&alone.soft, mtu);
    let counters = alone.soft.0.counters().engine;
    println!("{} wrong ICRCs, {} packets sent again", counters.dropped_icrc, counters.retransmitted_pkts);
    assert!(counters.dropped_icrc > 0 && counters.retransmitted_pkts > 0, "positive control");
    wire.check();
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn every_operation_each_way_at_path_mtu_1024_with_one_percent_corrupted() {
    one_percent_corrupted(PathMtu::Bytes1024);
}

#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn every_operation_each_way_at_path_mtu_4096_with_one_percent_corrupted() {
    one_percent_corrupted(PathMtu::Bytes4096);
}

/// FECN, BECN and the bits behind them are outside the ICRC, and change nothing. MigReq is always as the other side does
/// not send it: rxe sends 0, the embedded device 1.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn marked_packets_are_taken_each_way() {
    let _alone = alone();
    let wire = Wire::new(0);
    let marking = Filter::marking();
    everywhere(&wire, PathMtu::Bytes1024, |rxe, soft| {
        every_operation(soft, rxe);
        every_operation(rxe, soft);
        soft.close();
        rxe.close();
    });
    for to_soft in [false, true] {
        let marked = marking.met(to_soft);
        println!("{marked:?} packets marked");
        assert!(marked[0] > 0, "positive control");
    }
}

/// Where the kernel cuts no batches, each packet has the IPv4 ID 0.
#[test]
#[ignore = "needs an rxe device and the namespace of peer.sh"]
fn every_operation_each_way_without_batches() {
    let alone = alone_with(|| {
        SoftDevice::open(&SoftOptions { segmentation: false, port: Some(4791), ..SoftOptions::default() })
    });
    let wire = Wire::new(0);
    for mtu in [PathMtu::Bytes1024, PathMtu::Bytes4096] {
        everything(&alone.soft, mtu);
    }
    let sockets = alone.soft.0.counters().sockets;
    assert_eq!(sockets.send_calls, sockets.sent_packets, "one by one");
    wire.check();
}
