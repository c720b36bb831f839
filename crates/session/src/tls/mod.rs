//! TLS 1.3: who we are, whom we trust, and what became of that.

mod certificate;
mod configs;
mod errors;
mod key_log;
mod material;
mod peer;
mod pins;
mod session;
mod spiffe;
mod verify;

use std::fmt;
use std::path::PathBuf;

pub(crate) use configs::{ClientTls, ServerTls};
pub(crate) use errors::{Suspect, closed_by_peer};
pub use peer::Peer;
pub use pins::Pin;
pub(crate) use session::{Secured, same_binding, wrong_alpn};
pub use spiffe::SpiffeId;
pub(crate) use verify::Witness;

/// The one application protocol. Required on both sides after the handshake.
pub const ALPN: &[u8] = b"secure-rdma/1";

/// Who we are and whom we trust.
///
/// TLS 1.3 only; no tickets, no resumption, no 0-RTT. `ca` or `pins` is required (a server with
/// `request_cert: false` needs neither).
#[derive(Clone)]
pub struct TlsOptions {
    /// Authorities that we trust: each element is PEM (any number of certificates) or one DER certificate.
    pub ca: Vec<Vec<u8>>,
    /// Keys that we trust: SHA-256 of the peer certificate's SubjectPublicKeyInfo. With `ca` both must hold. Alone,
    /// the pinned key *is* the identity: chain and name are not looked at; validity dates, key usage and the
    /// handshake's signature are.
    pub pins: Vec<Pin>,
    /// Our certificate chain, end entity first: PEM (any number) or DER elements. A server needs one.
    pub cert: Vec<Vec<u8>>,
    /// Our private key: PEM or DER; PKCS#8, PKCS#1 or SEC1.
    pub key: Option<Vec<u8>>,
    /// Revocation lists: PEM or DER elements. When there are any, every certificate of a chain must be covered by one
    /// that has not expired, otherwise `ERR_RDMA_TLS_REVOCATION_UNKNOWN`. Needs `ca`.
    pub crl: Vec<Vec<u8>>,
    /// Servers: demand a certificate of the client. Default true (node:tls: false).
    pub request_cert: bool,
    /// Clients: the name that the server's certificate must have. Default: the host that is connected to.
    pub servername: Option<String>,
    /// Clients: the SPIFFE ID that the server's certificate must have, instead of a name. The certificate is judged as an
    /// X.509-SVID then: one URI among its subject alternative names, no right to sign certificates or revocation lists,
    /// and, if it lists extended key usages, both serverAuth and clientAuth. Needs `ca`; not together with `servername`.
    pub peer_identity: Option<SpiffeId>,
    /// Appends the secrets of every session to this file (NSS key log format, mode 0600). **Whoever reads the file
    /// can decrypt captured connections.** For debugging only.
    pub key_log_file: Option<PathBuf>,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            ca: Vec::new(),
            pins: Vec::new(),
            cert: Vec::new(),
            key: None,
            crl: Vec::new(),
            request_cert: true,
            servername: None,
            peer_identity: None,
            key_log_file: None,
        }
    }
}

impl fmt::Debug for TlsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsOptions")
            .field("ca", &self.ca.len())
            .field("pins", &self.pins)
            .field("cert", &self.cert.len())
            .field("key", &self.key.is_some())
            .field("crl", &self.crl.len())
            .field("request_cert", &self.request_cert)
            .field("servername", &self.servername)
            .field("peer_identity", &self.peer_identity)
            .field("key_log_file", &self.key_log_file)
            .finish()
    }
}
