//! Who the peer of a connection is.

use std::net::SocketAddr;

use super::{Pin, SpiffeId};
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
    /// Its SPIFFE ID, where its certificate is an X.509-SVID and leads to an authority in `ca`: a pinned key vouches for
    /// nothing that its owner writes into a certificate.
    pub spiffe_id: Option<SpiffeId>,
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
