//! Connections that come up, and what both sides then know of each other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::Duration;

use common::stub::Behaviour;
use common::{World, eventually};
use secure_rdma_rdma::{DeviceKind, PathMtu, QpState};
use secure_rdma_session::{Listener, Role, connect};

#[tokio::test]
async fn both_sides_come_up_in_order_and_agree() {
    let mut world = World::new();
    world.options.expose_secrets = true;
    world.server_host.set(|b| {
        b.path_mtu = PathMtu::Bytes1024;
        b.limits = (4, 7);
    });
    let (client, server) = world.pair().await;
    let (c, s) = (&client.report, &server.report);

    assert_eq!((c.role, s.role), (Role::Client, Role::Server));
    for report in [c, s] {
        assert_eq!(report.tls_version, "TLSv1.3");
        assert_eq!(report.key_exchange, "X25519MLKEM768");
        assert_eq!(report.path_mtu, PathMtu::Bytes1024);
        let names: Vec<_> = report.steps.iter().map(|step| step.name).collect();
        let order = "tcp tls authorize device RESET→INIT offer resolve INIT→RTR ready RTR→RTS path";
        assert_eq!(names.join(" "), order);
        assert!(report.steps.iter().map(|step| step.duration).sum::<Duration>() <= report.total * 2);
    }
    assert_eq!((c.own_qpn, c.peer_qpn), (s.peer_qpn, s.own_qpn));
    assert_eq!((c.initiator_depth, c.responder_resources), (4, 7));
    assert_eq!((s.initiator_depth, s.responder_resources), (7, 4));
    assert_eq!(c.own_psn_fingerprint, s.peer_psn_fingerprint);
    assert_eq!(c.peer_psn_fingerprint, s.own_psn_fingerprint);
    assert_ne!(c.own_psn_fingerprint, c.peer_psn_fingerprint);
    assert_eq!(c.own_psn_fingerprint.len(), 16);
    assert_eq!(c.peer_certificate.as_ref().unwrap().common_name.as_deref(), Some("localhost"));
    assert_eq!(server.peer.names.as_ref().unwrap().dns, ["client.test"]);
    assert_eq!(c.own_certificate, s.peer_certificate);

    for (host, report, up) in [(&world.client_host, c, &client.upper), (&world.server_host, s, &server.upper)]
    {
        assert_eq!(host.states(), [QpState::Init, QpState::Rtr, QpState::Rts]);
        let secrets = report.secrets.unwrap();
        let rtr = host.moved(QpState::Rtr);
        assert_eq!(rtr.rq_psn, Some(secrets.peer_psn), "the route cannot choose it");
        assert_eq!(rtr.dest_qpn, Some(report.peer_qpn));
        assert_eq!((rtr.min_rnr_timer, rtr.path_mtu), (Some(12), Some(PathMtu::Bytes1024)));
        let rts = host.moved(QpState::Rts);
        assert_eq!(rts.sq_psn, Some(secrets.own_psn), "the route cannot choose it");
        assert_eq!((rts.timeout, rts.retry_count, rts.rnr_retry), (Some(17), Some(6), Some(6)));
        let record = up.record();
        assert_eq!((record.posted_in, record.proved_in), (Some(QpState::Init), Some(QpState::Rts)));
        assert_eq!(record.adopted, Some((Behaviour::default().terms, PathMtu::Bytes1024)));
    }
    assert!(
        !format!("{c:?}").contains(&format!("{}", c.secrets.unwrap().own_psn.expose())),
        "Debug shows a PSN"
    );

    client.control.close().await.unwrap();
    eventually("the server knows", || server.control.is_ended()).await;
    assert_eq!(server.upper.record().peer_closed, 1);
    assert!(server.upper.record().lost.is_empty() && client.upper.record().lost.is_empty());
    drop((client, server));
    world.gone().await;
}

#[tokio::test]
async fn an_address_may_have_a_zone() {
    // Any address may, though only link-local ones need it, and loopback has none of those.
    let mut world = World::new();
    let identity = world.authority.issue("::1");
    world.server_tls = identity.tls(&[&world.authority]);
    let mut config = world.listen_config();
    config.host = "::1%1".to_owned();
    let listener = Listener::bind(config, Arc::clone(&world.server_host)).await.unwrap();
    let mut config = world.connect_config(listener.local_addr().port());
    config.host = "::1%1".to_owned();
    // The certificate's name is the address alone.
    config.tls.servername = None;
    let client = connect(config, Arc::clone(&world.client_host)).await.unwrap();
    assert_eq!(client.report.tls_peer.ip(), Ipv6Addr::LOCALHOST);
    listener.accept().await.unwrap();
    // Without a zone a link-local address is nobody's.
    let mut config = world.listen_config();
    config.host = "fe80::1".to_owned();
    let error = Listener::bind(config, Arc::clone(&world.server_host)).await.err().unwrap();
    assert!(error.message().contains("needs its zone, as in fe80::1%eth0"), "{error}");
}

#[tokio::test]
async fn repetitions_suit_the_device_unless_they_are_given() {
    // On rxe, which cannot be told from a NIC here, 7 is for ever.
    for (kind, given, expected) in [
        (DeviceKind::Verbs, None, 6),
        (DeviceKind::Fake, None, 6),
        (DeviceKind::Soft, None, 7),
        (DeviceKind::Verbs, Some(7), 7),
        (DeviceKind::Soft, Some(0), 0),
    ] {
        let mut world = World::new();
        world.options.queue_pair.retry_count = given;
        world.client_host.set(|b| b.kind = kind);
        let _pair = world.pair().await;
        let rts = world.client_host.moved(QpState::Rts);
        assert_eq!((rts.timeout, rts.retry_count), (Some(17), Some(expected)), "{kind} {given:?}");
    }
}
