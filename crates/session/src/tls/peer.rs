//! Who the peer of a connection is.

use std::net::SocketAddr;

use super::Pin;
use crate::CertificateNames;

/// The authenticated peer, as TLS knows it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its end of the TLS connection.
    pub address: SocketAddr,
    /// Our end of the TLS connection.
    pub local: SocketAddr,
    /// The certificates that it showed, end entity first, in DER. Empty for a client that was asked for none.
    pub certificates: Vec<Vec<u8>>,
    /// The names in its end-entity certificate.
    pub names: Option<CertificateNames>,
    /// SHA-256 of its SubjectPublicKeyInfo.
    pub spki_sha256: Option<Pin>,
    /// `TLSv1.3`.
    pub tls_version: String,
    /// `TLS13_AES_256_GCM_SHA384` and the like.
    pub cipher_suite: String,
    /// `X25519MLKEM768` and the like.
    pub key_exchange: String,
    /// `secure-rdma/1`.
    pub alpn: String,
}
