//! The certificate matrix: every cause on both sides, with its code on the side that refuses and the alert on the other,
//! and no queue pair where there must be none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::sync::Arc;

use common::World;
use common::certs::{Authority, Identity, changed};
use common::refusals::{client_refuses, refused, server_refuses};
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use secure_rdma_rdma::ErrorCode;
use secure_rdma_session::{Listener, Pin, TlsOptions, connect};

/// Identities that no side may accept, with code and alert.
fn bad_identities(
    world: &World,
    name: &'static str,
    wrong_purpose: ExtendedKeyUsagePurpose,
) -> Vec<(&'static str, Identity, ErrorCode, &'static str)> {
    let good = &world.authority;
    vec![
        ("wrong CA", Authority::new("another").issue(name), ErrorCode::TlsUntrusted, "unknown_ca"),
        (
            "CA's name, another key",
            Authority::new("test authority").issue(name),
            ErrorCode::TlsUntrusted,
            "decrypt_error",
        ),
        ("self-signed", Identity::self_signed(name), ErrorCode::TlsUntrusted, "unknown_ca"),
        (
            "expired",
            good.issue_params(&changed(name, |p| p.not_after = date_time_ymd(2021, 1, 1))),
            ErrorCode::TlsExpired,
            "certificate_expired",
        ),
        (
            "not yet valid",
            good.issue_params(&changed(name, |p| p.not_before = date_time_ymd(2080, 1, 1))),
            ErrorCode::TlsNotYetValid,
            "certificate_expired",
        ),
        (
            "wrong purpose",
            good.issue_params(&changed(name, |p| p.extended_key_usages = vec![wrong_purpose])),
            ErrorCode::TlsPurpose,
            "unsupported_certificate",
        ),
        (
            "intermediate missing",
            good.intermediate("between").issue(name),
            ErrorCode::TlsUntrusted,
            "unknown_ca",
        ),
    ]
}

#[tokio::test]
async fn what_is_wrong_with_a_servers_certificate() {
    let base = World::new();
    let bad = bad_identities(&base, "localhost", ExtendedKeyUsagePurpose::ClientAuth);
    for (name, identity, code, alert) in bad {
        let world = World { server_tls: identity.tls(&[&base.authority]), ..base.again() };
        client_refuses(name, &world, code, alert).await;
    }
    let world =
        World { server_tls: base.authority.issue("other.test").tls(&[&base.authority]), ..base.again() };
    client_refuses("wrong name", &world, ErrorCode::TlsName, "bad_certificate").await;
    let message = refused(&World { server_host: common::stub::StubHost::new(), ..world }).await.client;
    for part in ["other.test", "test authority", "localhost", "servername"] {
        assert!(message.message().contains(part), "the message names {part}: {message}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_clients_certificate() {
    let base = World::new();
    let bad = bad_identities(&base, "client.test", ExtendedKeyUsagePurpose::ServerAuth);
    for (name, identity, code, alert) in bad {
        let world = World { client_tls: identity.tls(&[&base.authority]), ..base.again() };
        server_refuses(name, &world, code, alert).await;
    }
    let nobody = TlsOptions { cert: Vec::new(), key: None, ..base.client_tls.clone() };
    let world = World { client_tls: nobody, ..base.again() };
    server_refuses("no certificate", &world, ErrorCode::TlsNoCertificate, "certificate_required").await;
}

#[tokio::test]
async fn revocation_lists_are_enforced_for_the_whole_chain() {
    let base = World::new();
    let root = &base.authority;
    let between = root.intermediate("between");
    let server = between.issue("localhost").through(&between);
    let client = between.issue("client.test").through(&between);
    let (none, both) = (&[][..], 2090);
    let serial_of_between = rcgen::SerialNumber::from(77_u64);
    let lists = |root_list: Vec<u8>, between_list: Vec<u8>| vec![root_list, between_list];
    // (name, what revokes server and client, code, alert)
    let table = |serial: &rcgen::SerialNumber| {
        vec![
            (
                "revoked",
                lists(root.crl(none, both), between.crl(&[serial], both)),
                ErrorCode::TlsRevoked,
                "certificate_revoked",
            ),
            (
                "issuer revoked",
                lists(root.crl(&[&serial_of_between], both), between.crl(none, both)),
                ErrorCode::TlsRevoked,
                "certificate_revoked",
            ),
            (
                "list expired",
                lists(root.crl(none, both), between.crl(none, 2021)),
                ErrorCode::TlsRevocationUnknown,
                "unknown_ca",
            ),
            (
                "no list of the issuer",
                vec![root.crl(none, both)],
                ErrorCode::TlsRevocationUnknown,
                "unknown_ca",
            ),
        ]
    };
    let worlds = |server_crl: Vec<Vec<u8>>, client_crl: Vec<Vec<u8>>| World {
        server_tls: TlsOptions { crl: client_crl, ..server.tls(&[root]) },
        client_tls: TlsOptions { crl: server_crl, ..client.tls(&[root]) },
        ..base.again()
    };
    for (name, crl, code, alert) in table(&server.serial) {
        client_refuses(name, &worlds(crl, vec![]), code, alert).await;
    }
    for (name, crl, code, alert) in table(&client.serial) {
        server_refuses(name, &worlds(vec![], crl), code, alert).await;
    }
    // The positive control: lists that revoke someone else, on both sides.
    let other = root.issue("someone").serial;
    let good = lists(root.crl(&[&other], both), between.crl(&[&other], both));
    worlds(good.clone(), good).pair().await;
}

#[tokio::test]
async fn pins_with_and_without_an_authority() {
    let base = World::new();
    let (server, client) = (base.authority.issue("localhost"), base.authority.issue("client.test"));
    let wrong = Pin::new([1; 32]);
    let world = |server_pins: &[Pin], client_pins: &[Pin], with_ca: bool| {
        let mut world = World {
            server_tls: TlsOptions { pins: client_pins.to_vec(), ..server.tls(&[&base.authority]) },
            client_tls: TlsOptions { pins: server_pins.to_vec(), ..client.tls(&[&base.authority]) },
            ..base.again()
        };
        if !with_ca {
            world.server_tls.ca.clear();
            world.client_tls.ca.clear();
        }
        world
    };
    for with_ca in [true, false] {
        let (good_server, good_client) = (&[wrong, server.spki][..], &[client.spki][..]);
        let (one, _other) = world(good_server, good_client, with_ca).pair().await;
        assert_eq!(one.peer.spki_sha256, Some(server.spki));
        client_refuses(
            "pin",
            &world(&[wrong], good_client, with_ca),
            ErrorCode::TlsPin,
            "certificate_unknown",
        )
        .await;
        server_refuses(
            "pin",
            &world(good_server, &[wrong], with_ca),
            ErrorCode::TlsPin,
            "certificate_unknown",
        )
        .await;
    }
    // With both, the pin alone does not do.
    let stranger = Identity::self_signed("localhost");
    let both = World {
        server_tls: stranger.tls(&[&base.authority]),
        client_tls: TlsOptions { pins: vec![stranger.spki], ..client.tls(&[&base.authority]) },
        ..base.again()
    };
    client_refuses("pin without the CA", &both, ErrorCode::TlsUntrusted, "unknown_ca").await;
    // Alone it does, for a self-signed certificate and any name; dates and purpose still count.
    let alone = |identity: &Identity| World {
        server_tls: identity.tls(&[&base.authority]),
        client_tls: TlsOptions { ca: vec![], pins: vec![identity.spki], ..client.tls(&[&base.authority]) },
        ..base.again()
    };
    alone(&Identity::self_signed("any.name")).pair().await;
    let late =
        base.authority.issue_params(&changed("localhost", |p| p.not_after = date_time_ymd(2021, 1, 1)));
    client_refuses("expired, pinned", &alone(&late), ErrorCode::TlsExpired, "certificate_expired").await;
    let early =
        base.authority.issue_params(&changed("localhost", |p| p.not_before = date_time_ymd(2080, 1, 1)));
    client_refuses("early, pinned", &alone(&early), ErrorCode::TlsNotYetValid, "certificate_expired").await;
    let purpose = changed("localhost", |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let purpose = base.authority.issue_params(&purpose);
    client_refuses("purpose, pinned", &alone(&purpose), ErrorCode::TlsPurpose, "unsupported_certificate")
        .await;
}

#[tokio::test]
async fn a_server_that_asks_for_no_certificate_lets_anyone_in() {
    let base = World::new();
    let nobody = TlsOptions { cert: Vec::new(), key: None, ..base.client_tls.clone() };
    let open = TlsOptions { request_cert: false, ca: vec![], ..base.server_tls.clone() };
    let (client, server) = World { server_tls: open, client_tls: nobody, ..base.again() }.pair().await;
    assert!(server.peer.certificates.is_empty() && server.report.peer_certificate.is_none());
    assert!(client.report.own_certificate.is_none());
}

#[tokio::test]
async fn options_that_cannot_work_are_refused_by_name() {
    let world = World::new();
    let (server, client) = (&world.server_tls, &world.client_tls);
    let cases: Vec<(&str, bool, TlsOptions)> = vec![
        ("`ca` or `pins` is required", false, TlsOptions { ca: vec![], ..client.clone() }),
        ("`ca` or `pins` is required", true, TlsOptions { ca: vec![], ..server.clone() }),
        (
            "holds no certificate",
            false,
            TlsOptions {
                ca: vec![b"-----BEGIN NOTHING-----\n-----END NOTHING-----\n".to_vec()],
                ..client.clone()
            },
        ),
        ("is no X.509 certificate", false, TlsOptions { ca: vec![vec![1, 2, 3]], ..client.clone() }),
        ("`key` is missing", false, TlsOptions { key: None, ..client.clone() }),
        ("`cert` is missing", false, TlsOptions { cert: vec![], ..client.clone() }),
        ("a server needs `cert` and `key`", true, TlsOptions { cert: vec![], key: None, ..server.clone() }),
        ("no private key", true, TlsOptions { key: Some(b"nonsense".to_vec()), ..server.clone() }),
        ("does not fit the certificate", true, TlsOptions { key: client.key.clone(), ..server.clone() }),
        (
            "`crl` needs `ca`",
            false,
            TlsOptions { ca: vec![], pins: vec![Pin::new([0; 32])], crl: vec![vec![1]], ..client.clone() },
        ),
        ("give no verifier", false, TlsOptions { crl: vec![vec![1]], ..client.clone() }),
        ("key log file", true, TlsOptions { key_log_file: Some("/nowhere/at/all".into()), ..server.clone() }),
        ("`servername` is for clients", true, TlsOptions { servername: Some("a".into()), ..server.clone() }),
        ("give `servername`", false, TlsOptions { servername: Some("not a name".into()), ..client.clone() }),
    ];
    for (part, is_server, tls) in cases {
        let error = if is_server {
            let config = secure_rdma_session::ListenConfig { tls, ..world.listen_config() };
            Listener::bind(config, Arc::clone(&world.server_host)).await.map(|_| ()).unwrap_err()
        } else {
            let servername = tls.servername.clone().or(Some("localhost".to_owned()));
            let config = secure_rdma_session::ConnectConfig {
                tls: TlsOptions { servername, ..tls },
                ..world.connect_config(1)
            };
            connect(config, Arc::clone(&world.client_host)).await.map(|_| ()).unwrap_err()
        };
        assert_eq!(error.code(), ErrorCode::TlsConfig, "{part}: {error}");
        assert!(error.message().contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn the_key_log_is_private_and_opens_the_session() {
    use std::os::unix::fs::PermissionsExt;
    let mut world = World::new();
    let path = std::env::temp_dir().join(format!("secure-rdma-keys-{}", std::process::id()));
    world.client_tls.key_log_file = Some(path.clone());
    world.pair().await;
    let log = std::fs::read_to_string(&path).unwrap();
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(mode & 0o777, 0o600);
    for label in ["CLIENT_HANDSHAKE_TRAFFIC_SECRET", "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"] {
        assert!(log.lines().any(|line| line.starts_with(&format!("{label} "))), "{label}");
    }
}
