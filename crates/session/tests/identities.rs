//! SPIFFE identities, and a listener that gets another identity while it runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::World;
use common::certs::{Authority, Identity, changed, params, with_uris};
use common::refusals::{client_refuses, refused};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, date_time_ymd};
use secure_rdma_rdma::ErrorCode;
use secure_rdma_session::{Pin, SpiffeId, TlsOptions};

const SERVER: &str = "spiffe://example.org/server";
const CLIENT: &str = "spiffe://example.org/client";

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// A server with this certificate, and a client that wants the SPIFFE ID of the server.
fn world(base: &World, server: &Identity) -> World {
    let client_tls = TlsOptions { peer_identity: Some(id(SERVER)), ..base.client_tls.clone() };
    World { server_tls: server.tls(&[&base.authority]), client_tls, ..base.again() }
}

#[tokio::test]
async fn a_spiffe_id_takes_the_place_of_the_name() {
    let base = World::new();
    let server = base.authority.issue_params(&changed("ignored.test", with_uris(&[SERVER])));
    let client = base.authority.issue_params(&changed("client.test", with_uris(&[CLIENT])));
    let mut world = world(&base, &server);
    world.client_tls = TlsOptions { peer_identity: Some(id(SERVER)), ..client.tls(&[&base.authority]) };
    let (ours, theirs) = world.pair().await;
    assert_eq!(ours.peer.spiffe_id, Some(id(SERVER)));
    assert_eq!(theirs.peer.spiffe_id, Some(id(CLIENT)), "a server sees it without having asked for one");

    // Beside DNS names, and with no extended key usage at all.
    let also = changed("localhost", |params| {
        params.subject_alt_names.push(SanType::URI(SERVER.try_into().unwrap()));
        params.extended_key_usages.clear();
    });
    self::world(&base, &base.authority.issue_params(&also)).pair().await;
}

#[tokio::test]
async fn what_is_not_the_svid_of_the_wanted_server_is_refused() {
    let base = World::new();
    let issue = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        base.authority.issue_params(&changed("localhost", |params| {
            with_uris(&[SERVER])(params);
            change(params);
        }))
    };
    let alert = "certificate_unknown";
    for (name, uris) in [
        ("another ID", &["spiffe://example.org/other"][..]),
        ("another trust domain", &["spiffe://example.com/server"]),
        ("no path", &["spiffe://example.org"]),
        ("longer", &["spiffe://example.org/server/1"]),
        ("another case", &["spiffe://example.org/Server"]),
        ("another scheme", &["https://example.org/server"]),
        ("two", &[SERVER, SERVER]),
        ("two, one of them no SPIFFE ID", &[SERVER, "https://example.org/"]),
        ("none", &[]),
    ] {
        let server = base.authority.issue_params(&changed("localhost", with_uris(uris)));
        client_refuses(name, &world(&base, &server), ErrorCode::TlsName, alert).await;
    }
    // DNS names do not do: with one alone, a connection by name would come up.
    client_refuses(
        "a DNS name",
        &world(&base, &base.authority.issue("localhost")),
        ErrorCode::TlsName,
        alert,
    )
    .await;

    // What X.509-SVID §5.2 forbids to a leaf.
    let signs = issue(&|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign));
    client_refuses("keyCertSign", &world(&base, &signs), ErrorCode::TlsName, alert).await;
    let lists = issue(&|params| params.key_usages.push(KeyUsagePurpose::CrlSign));
    client_refuses("cRLSign", &world(&base, &lists), ErrorCode::TlsName, alert).await;
    let authority = issue(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let outcome = refused(&world(&base, &authority)).await;
    assert_eq!(outcome.client.code(), ErrorCode::TlsBadCertificate, "{}", outcome.client);
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_wrong_with_an_svid() {
    let base = World::new();
    let svid = |change: &dyn Fn(&mut rcgen::CertificateParams)| {
        changed("localhost", |params| {
            with_uris(&[SERVER])(params);
            change(params);
        })
    };
    let good = &base.authority;
    let stranger = Authority::new("another");
    let usage = |purpose: ExtendedKeyUsagePurpose| {
        move |params: &mut rcgen::CertificateParams| params.extended_key_usages = vec![purpose.clone()]
    };
    for (name, identity, code, alert) in [
        ("wrong CA", stranger.issue_params(&svid(&|_| ())), ErrorCode::TlsUntrusted, "unknown_ca"),
        (
            "expired",
            good.issue_params(&svid(&|params| params.not_after = date_time_ymd(2021, 1, 1))),
            ErrorCode::TlsExpired,
            "certificate_expired",
        ),
        (
            "not yet valid",
            good.issue_params(&svid(&|params| params.not_before = date_time_ymd(2080, 1, 1))),
            ErrorCode::TlsNotYetValid,
            "certificate_expired",
        ),
        (
            "clientAuth alone",
            good.issue_params(&svid(&usage(ExtendedKeyUsagePurpose::ClientAuth))),
            ErrorCode::TlsPurpose,
            "unsupported_certificate",
        ),
        // X.509-SVID §4.4: both, where there are any.
        (
            "serverAuth alone",
            good.issue_params(&svid(&usage(ExtendedKeyUsagePurpose::ServerAuth))),
            ErrorCode::TlsPurpose,
            "unsupported_certificate",
        ),
        (
            "intermediate missing",
            good.intermediate("between").issue_params(&svid(&|_| ())),
            ErrorCode::TlsUntrusted,
            "unknown_ca",
        ),
    ] {
        client_refuses(name, &world(&base, &identity), code, alert).await;
    }

    // Revocation, for the whole chain, and a pin beside it.
    let between = good.intermediate("between");
    let server = between.issue_params(&svid(&|_| ())).through(&between);
    let with = |crl: Vec<Vec<u8>>, pins: &[Pin]| {
        let mut world = world(&base, &server);
        world.client_tls = TlsOptions { crl, pins: pins.to_vec(), ..world.client_tls };
        world
    };
    let other = good.issue("someone").serial;
    let lists = |serial| vec![good.crl(&[&other], 2090), between.crl(&[serial], 2090)];
    with(lists(&other), &[server.spki]).pair().await;
    let revoked = with(lists(&server.serial), &[]);
    client_refuses("revoked", &revoked, ErrorCode::TlsRevoked, "certificate_revoked").await;
    let uncovered = with(vec![good.crl(&[], 2090)], &[]);
    client_refuses("no list", &uncovered, ErrorCode::TlsRevocationUnknown, "unknown_ca").await;
    let wrong = with(vec![], &[Pin::new([1; 32])]);
    client_refuses("pin", &wrong, ErrorCode::TlsPin, "certificate_unknown").await;
}

#[tokio::test]
async fn a_pinned_key_vouches_for_no_identity() {
    let base = World::new();
    let mut both = params("localhost");
    both.subject_alt_names.push(SanType::URI(CLIENT.try_into().unwrap()));
    let client = base.authority.issue_params(&both);
    let trusting = |ca: bool| {
        let mut world = World { client_tls: client.tls(&[&base.authority]), ..base.again() };
        world.server_tls.pins = vec![client.spki];
        if !ca {
            world.server_tls.ca.clear();
        }
        world
    };
    let (_, vouched) = trusting(true).pair().await;
    assert_eq!(vouched.peer.spiffe_id, Some(id(CLIENT)));
    let (_, claimed) = trusting(false).pair().await;
    assert_eq!(claimed.peer.spiffe_id, None);
    assert_eq!(claimed.peer.names.as_ref().unwrap().uri, [CLIENT], "what it claims is there to see");
}

#[tokio::test]
async fn a_listener_gets_another_identity_while_it_runs() {
    let base = World::new();
    let listener = base.listen().await;
    let port = listener.local_addr().port();
    let before = base.connect(port).await.unwrap();
    let _accepted = listener.accept().await.unwrap();

    // Another authority for both sides: the old client is a stranger now.
    let next = Authority::new("next authority");
    let (server, client) = (next.issue("localhost"), next.issue("client.test"));
    listener.set_tls(&server.tls(&[&next])).unwrap();
    let old = TlsOptions { ca: vec![next.pem.clone()], ..base.client_tls.clone() };
    let stranger = World { client_tls: old, ..base.again() };
    assert_eq!(stranger.connect(port).await.unwrap_err().code(), ErrorCode::TlsAlert);
    let renewed = World { client_tls: client.tls(&[&next]), ..base.again() };
    let after = renewed.connect(port).await.unwrap();
    assert_eq!(after.peer.spki_sha256, Some(server.spki));
    assert_ne!(before.peer.spki_sha256, after.peer.spki_sha256);

    // Revoked at run time.
    listener
        .set_tls(&TlsOptions { crl: vec![next.crl(&[&client.serial], 2090)], ..server.tls(&[&next]) })
        .unwrap();
    let error = renewed.again().connect(port).await.unwrap_err();
    assert!(error.message().contains("certificate_revoked"), "{error}");
    assert_eq!(listener.failures(), [(ErrorCode::TlsRevoked, 1), (ErrorCode::TlsUntrusted, 1)]);
    let stats = listener.stats();
    assert_eq!((stats.established, stats.failed), (2, 2));
    assert!(!before.control.is_ended(), "a connection outlives the identity that it began with");
}

#[tokio::test]
async fn a_bad_identity_is_refused_and_the_old_one_stays() {
    let world = World::new();
    let listener = world.listen().await;
    let port = listener.local_addr().port();
    let good = &world.server_tls;
    for (part, bad) in [
        ("`ca` or `pins` is required", TlsOptions { ca: vec![], ..good.clone() }),
        ("`key` is missing", TlsOptions { key: None, ..good.clone() }),
        ("a server needs", TlsOptions { cert: vec![], key: None, ..good.clone() }),
        ("does not fit", TlsOptions { key: world.client_tls.key.clone(), ..good.clone() }),
        ("no verifier", TlsOptions { crl: vec![vec![1]], ..good.clone() }),
        ("is for clients", TlsOptions { peer_identity: Some(id(CLIENT)), ..good.clone() }),
    ] {
        let error = listener.set_tls(&bad).unwrap_err();
        assert_eq!(error.code(), ErrorCode::TlsConfig, "{error}");
        assert!(error.message().contains(part), "{part}: {error}");
        world.connect(port).await.unwrap();
    }
    // That clients must show a certificate is no part of it.
    listener.set_tls(&TlsOptions { request_cert: false, ..good.clone() }).unwrap();
    let nobody = TlsOptions { cert: vec![], key: None, ..world.client_tls.clone() };
    let nobody = World { client_tls: nobody, ..world.again() };
    assert_eq!(nobody.connect(port).await.unwrap_err().code(), ErrorCode::TlsAlert);
}

#[tokio::test]
async fn an_identity_that_cannot_be_wanted_is_refused_by_name() {
    let world = World::new();
    let wanted = TlsOptions { peer_identity: Some(id(SERVER)), ..world.client_tls.clone() };
    for (part, tls) in [
        ("two identities", TlsOptions { servername: Some("localhost".into()), ..wanted.clone() }),
        ("needs `ca`", TlsOptions { ca: vec![], pins: vec![Pin::new([0; 32])], ..wanted }),
    ] {
        let config = secure_rdma_session::ConnectConfig { tls, ..world.connect_config(1) };
        let host = std::sync::Arc::clone(&world.client_host);
        let error = secure_rdma_session::connect(config, host).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::TlsConfig);
        assert!(error.message().contains(part), "{part}: {error}");
    }
}
