//! What a finished TLS handshake yields: the peer, and secrets that only the two ends can derive.

use std::net::SocketAddr;

use aws_lc_rs::{constant_time, hmac};
use rustls::{ConnectionCommon, ProtocolVersion};
use secure_rdma_rdma::{Error, ErrorCode, Psn, Result};

use super::{ALPN, Peer, Suspect, certificate};
use crate::Role;

const BINDING_LABEL: &[u8] = b"EXPORTER-secure-rdma-binding";
const FINGERPRINT_LABEL: &[u8] = b"EXPORTER-secure-rdma-fingerprint";

/// The peer, and what binds the exchange to this TLS session.
pub(crate) struct Secured {
    pub(crate) peer: Peer,
    /// Goes into our offer.
    pub(crate) own_binding: [u8; 32],
    /// Must be in the peer's offer.
    pub(crate) peer_binding: [u8; 32],
    pub(crate) fingerprints: Fingerprints,
}

impl Secured {
    /// Reads a connection whose handshake is over.
    ///
    /// # Errors
    /// `ERR_RDMA_TLS_ALPN`, `ERR_RDMA_TLS_VERSION`; rustls alone accepts a client that offers no ALPN.
    pub(crate) fn new<D>(
        connection: &ConnectionCommon<D>,
        local: SocketAddr,
        suspect: &Suspect,
    ) -> Result<Self> {
        let (role, address) = (suspect.role, suspect.address);
        if connection.alpn_protocol() != Some(ALPN) {
            return Err(wrong_alpn(address, connection.alpn_protocol()));
        }
        if connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            return Err(Error::new(
                ErrorCode::TlsVersion,
                format!("{address} does not speak TLS 1.3: is it another service's port?"),
            ));
        }
        let certificates: Vec<Vec<u8>> =
            connection.peer_certificates().unwrap_or_default().iter().map(|der| der.to_vec()).collect();
        let read = certificates.first().and_then(|der| certificate::read(der));
        let suite = connection.negotiated_cipher_suite();
        let group = connection.negotiated_key_exchange_group();
        let peer = Peer {
            address,
            local,
            names: read.as_ref().map(|read| read.names.clone()),
            spiffe_id: read
                .as_ref()
                .filter(|_| suspect.witness.saw_authority())
                .and_then(|read| read.spiffe_id.clone()),
            spki_sha256: read.map(|read| read.spki),
            certificates,
            tls_version: "TLSv1.3".to_owned(),
            cipher_suite: suite.map(|suite| format!("{:?}", suite.suite())).unwrap_or_default(),
            key_exchange: group.map(|group| format!("{:?}", group.name())).unwrap_or_default(),
            alpn: String::from_utf8_lossy(ALPN).into_owned(),
        };
        Ok(Self {
            peer,
            own_binding: export(connection, BINDING_LABEL, role.as_str().as_bytes())?,
            peer_binding: export(connection, BINDING_LABEL, role.other().as_str().as_bytes())?,
            fingerprints: Fingerprints { key: export(connection, FINGERPRINT_LABEL, b"")? },
        })
    }
}

fn export<D>(connection: &ConnectionCommon<D>, label: &[u8], context: &[u8]) -> Result<[u8; 32]> {
    connection
        .export_keying_material([0; 32], label, Some(context))
        .map_err(|cause| Error::new(ErrorCode::Tls, format!("TLS exported no key: {cause}")))
}

/// The error of a peer that did not agree on our protocol.
pub(crate) fn wrong_alpn(address: SocketAddr, agreed: Option<&[u8]>) -> Error {
    let agreed = agreed.map_or_else(
        || "none was agreed on".to_owned(),
        |alpn| format!("{:?} was agreed on", String::from_utf8_lossy(alpn)),
    );
    Error::new(
        ErrorCode::TlsAlpn,
        format!("{address} does not speak secure-rdma/1 (ALPN: {agreed}): is it another service's port?"),
    )
}

/// Whether a binding is the expected one.
pub(crate) fn same_binding(one: &[u8], other: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(one, other).is_ok()
}

/// Names for PSNs that only the two ends can compute, equal on both.
#[derive(Clone)]
pub(crate) struct Fingerprints {
    key: [u8; 32],
}

impl Fingerprints {
    /// Of the starting PSN of the requests that `sender` sends.
    pub(crate) fn of(&self, sender: Role, psn: Psn) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key);
        let mut context = hmac::Context::with_key(&key);
        context.update(sender.as_str().as_bytes());
        context.update(&psn.expose().to_be_bytes());
        context.sign().as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}
