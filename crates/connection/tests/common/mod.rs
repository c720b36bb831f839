//! What the tests of whole connections share.

use rcgen::{CertificateParams, Issuer, KeyPair};
use secure_rdma_session::TlsOptions;

/// The certificates of both ends: one authority, one name.
pub(crate) fn tls() -> TlsOptions {
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
