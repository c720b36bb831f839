//! What a hostile peer does with keys on the embedded device, over TLS.

use std::sync::Arc;

use rcgen::{CertificateParams, Issuer, KeyPair};
use secure_rdma_rdma::{Access, ErrorCode, WcStatus};
use secure_rdma_session::{ConnectConfig, ListenConfig, TlsOptions};
use secure_rdma_soft::SoftDevices;

use crate::remote::{RemoteRegion, RemoteSlice};
use crate::{
    Connection, ConnectionOptions, DeviceOptions, Operation, Registry, Server, SharedRegion, connect,
};

fn tls() -> TlsOptions {
    let (ca_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    TlsOptions {
        ca: vec![ca_pem.into_bytes()],
        cert: vec![cert.pem().into_bytes()],
        key: Some(key.serialize_pem().into_bytes()),
        ..TlsOptions::default()
    }
}

/// A server that publishes, its connections A and B as it sees them, and as its clients do.
struct Ends {
    _server: Server,
    served: [Connection; 2],
    clients: [Connection; 2],
}

async fn ends() -> Ends {
    let registry = Registry::new(vec![Arc::new(SoftDevices)]);
    let tls = tls();
    let listen = ListenConfig::new("127.0.0.1", 0, tls.clone());
    let (device, options) = (DeviceOptions::default, ConnectionOptions::default);
    let server = Server::listen(&registry, listen, device(), options()).await.unwrap();
    let config = ConnectConfig::new("127.0.0.1", server.local_addr().port(), tls);
    let (mut served, mut clients) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        clients.push(connect(&registry, config.clone(), device(), options()).await.unwrap());
        served.push(server.accept().await.unwrap());
    }
    let two = |connections: Vec<Connection>| <[Connection; 2]>::try_from(connections).unwrap();
    Ends { _server: server, served: two(served), clients: two(clients) }
}

#[tokio::test]
async fn what_was_not_granted_ends_the_connection_that_tries_it_and_no_other() {
    type Attack = fn(&RemoteRegion, &Connection) -> RemoteSlice;
    let attacks: [(&str, usize, Access, Attack); 5] = [
        ("the key of A on B, with A's address", 1, Access::REMOTE_WRITE, |of, to| {
            of.forged(to, 0, 64).whole()
        }),
        ("a byte before its own range", 0, Access::REMOTE_WRITE, |of, to| of.forged(to, -1, 64).whole()),
        ("a byte behind its own range", 0, Access::REMOTE_WRITE, |of, to| of.forged(to, 1, 64).whole()),
        ("a range far away", 0, Access::REMOTE_WRITE, |of, to| of.forged(to, i64::MAX, 64).whole()),
        ("a right that it has not", 0, Access::REMOTE_READ, |of, to| of.forged(to, 0, 64).whole()),
    ];
    for (what, attacker, access, attack) in attacks {
        let Ends { _server, served, clients } = ends().await;
        let inbox = SharedRegion::allocate(4096).unwrap();
        let range = inbox.slice(1024, 64).unwrap();
        for connection in &served {
            connection.publish("inbox", &range, access).unwrap();
        }
        let of_a = clients[0].remote("inbox").await.unwrap();
        let of_b = clients[1].remote("inbox").await.unwrap();
        assert_eq!(of_a.address(), of_b.address());
        let own = SharedRegion::allocate(64).unwrap();
        own.write(0, &[7; 64]).unwrap();
        let own = own.whole().unwrap();
        let remote = attack(&of_a, &clients[attacker]);
        let write = Operation::write(std::slice::from_ref(&own), &remote);
        let error = clients[attacker].perform(write).await.unwrap_err();
        // Its own device tells it, or the peer, whose device has refused it.
        match error.code() {
            ErrorCode::Work => assert_eq!(error.wc_status(), Some(WcStatus::REM_ACCESS_ERR.0), "{what}"),
            code => assert_eq!(code, ErrorCode::PeerLost, "{what}"),
        }
        served[attacker].wait_closed().await;
        let mut bytes = vec![1; 4096];
        inbox.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "{what}");
        // The other one goes on, with its own grant.
        let honest = &clients[1 - attacker];
        let theirs = [of_a, of_b][1 - attacker].whole();
        if access == Access::REMOTE_WRITE {
            honest.write(&own, &theirs).await.unwrap();
        } else {
            honest.read(&theirs, &own).await.unwrap();
        }
        honest.send_acknowledged(b"alive").await.unwrap();
        assert!(served[1 - attacker].closed().is_none(), "{what}");
    }
}
