//! What happened while a connection came up, for people and for tests.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use secure_rdma_rdma::{Gid, LocalAddress, PathMtu, Psn, Qpn};

use crate::{Terms, Transition};

/// Who opened the TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The side that called [`crate::connect`].
    Client,
    /// The side that listens.
    Server,
}

impl Role {
    /// The role of the other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }

    /// `client` or `server`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The names in a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateNames {
    /// The subject as a string (`CN=…, O=…`).
    pub subject: String,
    /// The issuer as a string.
    pub issuer: String,
    /// The subject's common name.
    pub common_name: Option<String>,
    /// DNS names of the subject alternative name.
    pub dns: Vec<String>,
    /// IP addresses of the subject alternative name.
    pub ip: Vec<std::net::IpAddr>,
    /// URIs of the subject alternative name (SPIFFE IDs among them).
    pub uri: Vec<String>,
    /// When it becomes valid, in seconds since 1970.
    pub not_before: i64,
    /// When it expires, in seconds since 1970.
    pub not_after: i64,
}

/// One step of the way, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `tcp`, `tls`, `authorize`, `device`, `RESET→INIT`, `offer`, `resolve`, `INIT→RTR`, `ready`, `RTR→RTS`, `path`.
    pub name: &'static str,
    /// How long it took.
    pub duration: Duration,
}

/// The starting PSNs. They are in a [`Report`] only where [`crate::SessionOptions::expose_secrets`] says so.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ExposedSecrets {
    /// Of our first request.
    pub own_psn: Psn,
    /// Of the peer's first request.
    pub peer_psn: Psn,
}

impl fmt::Debug for ExposedSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExposedSecrets(…)")
    }
}

/// What happened while a connection came up.
#[derive(Clone, Debug)]
pub struct Report {
    /// Our role.
    pub role: Role,
    /// `TLSv1.3`.
    pub tls_version: String,
    /// `TLS13_AES_256_GCM_SHA384` and the like.
    pub cipher_suite: String,
    /// `X25519MLKEM768` and the like.
    pub key_exchange: String,
    /// Names in our certificate, where we showed one.
    pub own_certificate: Option<CertificateNames>,
    /// Names in the peer's certificate, where it showed one.
    pub peer_certificate: Option<CertificateNames>,
    /// Our end of the TLS connection.
    pub tls_local: SocketAddr,
    /// The peer's end of the TLS connection.
    pub tls_peer: SocketAddr,
    /// Device, port and GID, and why these.
    pub local: LocalAddress,
    /// How the path was found, and why so where another way was asked for.
    pub addressing: String,
    /// Version of the exchange that was agreed.
    pub version: u32,
    /// Our queue pair.
    pub own_qpn: Qpn,
    /// The peer's queue pair.
    pub peer_qpn: Qpn,
    /// The peer's GID.
    pub peer_gid: Gid,
    /// The UDP port that packets go to, on RoCEv2.
    pub udp_port: Option<u16>,
    /// The agreed path MTU.
    pub path_mtu: PathMtu,
    /// READs and atomics that we may have outstanding.
    pub initiator_depth: u8,
    /// READs and atomics that the peer may have outstanding.
    pub responder_resources: u8,
    /// The peer's terms.
    pub peer_terms: Terms,
    /// Between two of the peer's signs of life: by it its silence is judged.
    pub peer_keep_alive_interval: Duration,
    /// Every step with its duration, in order.
    pub steps: Vec<Step>,
    /// How long the proof of path took.
    pub path_proof: Duration,
    /// From the start (server: from TCP's accept) to the end of the proof of path.
    pub total: Duration,
    /// Fingerprint of our starting PSN: HMAC-SHA-256 under a key that only the two ends have, 16 hexadecimal digits.
    /// Equal to the peer's `peer_psn_fingerprint`.
    pub own_psn_fingerprint: String,
    /// Fingerprint of the peer's starting PSN.
    pub peer_psn_fingerprint: String,
    /// The starting PSNs themselves, where asked for.
    pub secrets: Option<ExposedSecrets>,
}

impl Report {
    /// Puts the transitions' own durations in place of those that include the way to another thread.
    pub(crate) fn take_transitions(&mut self, transitions: &[Transition]) {
        for transition in transitions {
            let name = format!("{}→{}", transition.from, transition.to);
            if let Some(step) = self.steps.iter_mut().find(|step| step.name == name) {
                step.duration = transition.duration;
            }
        }
    }
}

/// Measures steps.
pub(crate) struct Stopwatch {
    begun: Instant,
    last: Instant,
    steps: Vec<Step>,
}

impl Stopwatch {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { begun: now, last: now, steps: Vec::with_capacity(12) }
    }

    /// Ends a step that began when the one before it ended.
    pub(crate) fn lap(&mut self, name: &'static str) {
        let duration = self.last.elapsed();
        self.part(name, duration);
    }

    /// A step that was measured elsewhere.
    pub(crate) fn part(&mut self, name: &'static str, duration: Duration) {
        self.last += duration;
        self.steps.push(Step { name, duration });
    }

    pub(crate) fn steps(&self) -> Vec<Step> {
        self.steps.clone()
    }

    /// How long the last step took.
    pub(crate) fn last_step(&self) -> Duration {
        self.steps.last().map(|step| step.duration).unwrap_or_default()
    }

    pub(crate) fn total(&self) -> Duration {
        self.begun.elapsed()
    }
}
