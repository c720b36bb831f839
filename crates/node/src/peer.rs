//! The peer as JavaScript sees it.

use napi::bindgen_prelude::Buffer;
use napi_derive::napi;
use secure_rdma_session::{CertificateNames, Peer};

/// The names in a certificate.
#[napi(object, object_from_js = false)]
pub struct NativeNames {
    /// The subject.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// The subject's common name.
    pub common_name: Option<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// IP addresses.
    pub ip: Vec<String>,
    /// URIs.
    pub uri: Vec<String>,
    /// In seconds since 1970.
    pub not_before: i64,
    /// In seconds since 1970.
    pub not_after: i64,
}

/// The authenticated peer.
#[napi(object, object_from_js = false)]
pub struct NativePeer {
    /// Its address.
    pub address: String,
    /// Its TCP port.
    pub port: u32,
    /// The names in its certificate.
    pub names: Option<NativeNames>,
    /// Its certificates in DER, end entity first.
    pub certificates: Vec<Buffer>,
    /// Its SPIFFE ID, where an authority vouches for it.
    pub spiffe_id: Option<String>,
    /// SHA-256 of its SubjectPublicKeyInfo, in hexadecimal digits.
    pub spki_sha256: Option<String>,
    /// `TLSv1.3`.
    pub tls_version: String,
    /// `TLS13_AES_256_GCM_SHA384` and the like.
    pub cipher_suite: String,
    /// `X25519MLKEM768` and the like.
    pub key_exchange: String,
    /// `secure-rdma/1`.
    pub alpn: String,
}

impl From<&CertificateNames> for NativeNames {
    fn from(names: &CertificateNames) -> Self {
        Self {
            subject: names.subject.clone(),
            issuer: names.issuer.clone(),
            common_name: names.common_name.clone(),
            dns: names.dns.clone(),
            ip: names.ip.iter().map(ToString::to_string).collect(),
            uri: names.uri.clone(),
            not_before: names.not_before,
            not_after: names.not_after,
        }
    }
}

impl From<&Peer> for NativePeer {
    fn from(peer: &Peer) -> Self {
        Self {
            address: peer.address.ip().to_canonical().to_string(),
            port: peer.address.port().into(),
            names: peer.names.as_ref().map(NativeNames::from),
            certificates: peer.certificates.iter().map(|der| der.clone().into()).collect(),
            spiffe_id: peer.spiffe_id.as_ref().map(ToString::to_string),
            spki_sha256: peer.spki_sha256.as_ref().map(ToString::to_string),
            tls_version: peer.tls_version.clone(),
            cipher_suite: peer.cipher_suite.clone(),
            key_exchange: peer.key_exchange.clone(),
            alpn: peer.alpn.clone(),
        }
    }
}
