//! What the tests share: certificates, and a device that exists only as a record of what was done to it.
#![allow(dead_code, unreachable_pub)]

pub mod certs;
pub mod raw;
pub mod refusals;
pub mod stub;

use std::sync::Arc;
use std::time::Duration;

use certs::Authority;
use secure_rdma_rdma::Result;
use secure_rdma_session::{
    ConnectConfig, Established, ListenConfig, Listener, SessionOptions, TlsOptions, connect,
};
use stub::{StubHost, StubUpper};

pub type Pair = (Established<StubUpper>, Established<StubUpper>);

/// Two sides that trust each other, on loopback.
pub struct World {
    pub authority: Authority,
    pub server_tls: TlsOptions,
    pub client_tls: TlsOptions,
    pub server_host: Arc<StubHost>,
    pub client_host: Arc<StubHost>,
    pub options: SessionOptions,
}

impl World {
    pub fn new() -> Self {
        let authority = Authority::new("test authority");
        let server = authority.issue("localhost");
        let client = authority.issue("client.test");
        Self {
            server_tls: server.tls(&[&authority]),
            client_tls: client.tls(&[&authority]),
            authority,
            server_host: StubHost::new(),
            client_host: StubHost::new(),
            options: SessionOptions {
                handshake_timeout: Duration::from_secs(5),
                ..SessionOptions::default()
            },
        }
    }

    pub fn listen_config(&self) -> ListenConfig {
        let options = self.options.clone();
        ListenConfig { options, ..ListenConfig::new("127.0.0.1", 0, self.server_tls.clone()) }
    }

    pub fn connect_config(&self, port: u16) -> ConnectConfig {
        let servername = self.client_tls.peer_identity.is_none().then(|| "localhost".to_owned());
        ConnectConfig {
            options: self.options.clone(),
            tls: TlsOptions { servername, ..self.client_tls.clone() },
            ..ConnectConfig::new("127.0.0.1", port, TlsOptions::default())
        }
    }

    /// The same identities and options, with hosts of its own.
    pub fn again(&self) -> Self {
        Self {
            authority: Authority::new("unused"),
            server_tls: self.server_tls.clone(),
            client_tls: self.client_tls.clone(),
            server_host: StubHost::new(),
            client_host: StubHost::new(),
            options: self.options.clone(),
        }
    }

    pub async fn listen(&self) -> Listener<StubHost> {
        Listener::bind(self.listen_config(), Arc::clone(&self.server_host)).await.unwrap()
    }

    pub async fn connect(&self, port: u16) -> Result<Established<StubUpper>> {
        connect(self.connect_config(port), Arc::clone(&self.client_host)).await
    }

    /// A connection: client, server.
    pub async fn pair(&self) -> Pair {
        let listener = self.listen().await;
        let client = self.connect(listener.local_addr().port()).await.unwrap();
        (client, listener.accept().await.unwrap())
    }

    /// Waits until neither side has a queue pair.
    pub async fn gone(&self) {
        eventually("every queue pair is gone", || {
            self.server_host.live() == 0 && self.client_host.live() == 0
        })
        .await;
    }
}

pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("not within 5 s: {what}");
}
