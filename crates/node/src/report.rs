//! The report of a bring-up as JavaScript sees it.

use napi_derive::napi;
use secure_rdma_rdma::LocalAddress;
use secure_rdma_session::Report;

use crate::device::{link_layer, mtu};
use crate::peer::NativeNames;
use crate::server::NativeAddress;

/// Device, port and GID of a connection, and why these.
#[napi(object, object_from_js = false)]
pub struct NativeLocal {
    /// The device.
    pub name: String,
    /// `verbs`, `soft`.
    pub kind: String,
    /// The port, from 1.
    pub port: u32,
    /// Index of the GID.
    pub gid_index: u32,
    /// The GID, written as an IPv6 address.
    pub gid: String,
    /// The network interface.
    pub interface: Option<String>,
    /// `ethernet` or `infiniband`.
    pub link_layer: String,
    /// The LID; 0 on Ethernet.
    pub lid: u32,
    /// Why it was chosen.
    pub reason: String,
}

/// What a side states in its offer.
#[napi(object, object_from_js = false)]
pub struct NativeTerms {
    /// The longest message that it takes.
    pub max_message_size: f64,
    /// Bytes of each of its receive buffers.
    pub segment_size: u32,
    /// Receive buffers that it keeps posted.
    pub credits: u32,
}

/// One step of the way.
#[napi(object, object_from_js = false)]
pub struct NativeStep {
    /// Its name.
    pub name: String,
    /// In milliseconds.
    pub duration: f64,
}

/// The starting PSNs.
#[napi(object, object_from_js = false)]
pub struct NativeSecrets {
    /// Of our first request.
    pub own_psn: u32,
    /// Of the peer's first request.
    pub peer_psn: u32,
}

/// What happened while a connection came up.
#[napi(object, object_from_js = false)]
pub struct NativeReport {
    /// `client` or `server`.
    pub role: String,
    /// `TLSv1.3`.
    pub tls_version: String,
    /// The cipher suite.
    pub cipher_suite: String,
    /// The key exchange group.
    pub key_exchange: String,
    /// Names in our certificate.
    pub own_certificate: Option<NativeNames>,
    /// Names in the peer's certificate.
    pub peer_certificate: Option<NativeNames>,
    /// Our end of the TLS connection.
    pub tls_local: NativeAddress,
    /// The peer's end of the TLS connection.
    pub tls_peer: NativeAddress,
    /// How the path was found.
    pub addressing: String,
    /// Version of the exchange.
    pub version: u32,
    /// Our queue pair.
    pub own_qpn: u32,
    /// The peer's queue pair.
    pub peer_qpn: u32,
    /// The peer's GID.
    pub peer_gid: String,
    /// The UDP port that packets go to.
    pub udp_port: Option<u32>,
    /// The agreed path MTU, in bytes.
    pub path_mtu: u32,
    /// READs and atomics that we may have outstanding.
    pub initiator_depth: u32,
    /// READs and atomics that the peer may have outstanding.
    pub responder_resources: u32,
    /// The peer's terms.
    pub peer_terms: NativeTerms,
    /// Every step.
    pub steps: Vec<NativeStep>,
    /// How long the proof of path took, in milliseconds.
    pub path_proof: f64,
    /// How long everything took, in milliseconds.
    pub total: f64,
    /// Fingerprint of our starting PSN.
    pub own_psn_fingerprint: String,
    /// Fingerprint of the peer's starting PSN.
    pub peer_psn_fingerprint: String,
    /// The starting PSNs, where asked for.
    pub secrets: Option<NativeSecrets>,
}

impl From<&LocalAddress> for NativeLocal {
    fn from(local: &LocalAddress) -> Self {
        Self {
            name: local.device.clone(),
            kind: local.kind.to_string(),
            port: local.port.into(),
            gid_index: local.gid_index.into(),
            gid: local.gid.to_string(),
            interface: local.interface.clone(),
            link_layer: link_layer(local.link_layer),
            lid: local.lid.0.into(),
            reason: local.reason.clone(),
        }
    }
}

impl From<&Report> for NativeReport {
    fn from(report: &Report) -> Self {
        let step = |step: &secure_rdma_session::Step| NativeStep {
            name: step.name.to_owned(),
            duration: milliseconds(step.duration),
        };
        Self {
            role: report.role.to_string(),
            tls_version: report.tls_version.clone(),
            cipher_suite: report.cipher_suite.clone(),
            key_exchange: report.key_exchange.clone(),
            own_certificate: report.own_certificate.as_ref().map(NativeNames::from),
            peer_certificate: report.peer_certificate.as_ref().map(NativeNames::from),
            tls_local: report.tls_local.into(),
            tls_peer: report.tls_peer.into(),
            addressing: report.addressing.clone(),
            version: report.version,
            own_qpn: report.own_qpn.get(),
            peer_qpn: report.peer_qpn.get(),
            peer_gid: report.peer_gid.to_string(),
            udp_port: report.udp_port.map(u32::from),
            path_mtu: mtu(report.path_mtu),
            initiator_depth: report.initiator_depth.into(),
            responder_resources: report.responder_resources.into(),
            peer_terms: NativeTerms {
                max_message_size: number(report.peer_terms.max_message_size),
                segment_size: report.peer_terms.segment_size,
                credits: report.peer_terms.credits.into(),
            },
            steps: report.steps.iter().map(step).collect(),
            path_proof: milliseconds(report.path_proof),
            total: milliseconds(report.total),
            own_psn_fingerprint: report.own_psn_fingerprint.clone(),
            peer_psn_fingerprint: report.peer_psn_fingerprint.clone(),
            secrets: report.secrets.map(|secrets| NativeSecrets {
                own_psn: secrets.own_psn.expose(),
                peer_psn: secrets.peer_psn.expose(),
            }),
        }
    }
}

fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A count as JavaScript counts: exact up to 2^53.
#[allow(clippy::cast_precision_loss, reason = "no counter of ours comes near 2^53")]
pub(crate) fn number(value: u64) -> f64 {
    value as f64
}
