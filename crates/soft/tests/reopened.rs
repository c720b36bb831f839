//! The device of the process, closed and opened again at once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::thread;

use secure_rdma_rdma::ROCE_UDP_PORT;
use secure_rdma_soft::SoftDevices;

/// The one before may still be closing its sockets: peers that are NICs send to this port and to no other. Whoever opens it
/// meanwhile shares it.
#[test]
fn a_device_that_is_opened_again_has_the_port_of_the_one_before() {
    for round in 0..300 {
        let open = || SoftDevices::open_soft().unwrap();
        let [one, other] = [thread::spawn(open), thread::spawn(open)].map(|opener| opener.join().unwrap());
        let ports = (one.port(), other.port());
        let why = "round 0 fails where another process holds the port";
        assert_eq!(ports, (ROCE_UDP_PORT, ROCE_UDP_PORT), "round {round}; {why}");
    }
}
