//! Certificates for the tests.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};
use secure_rdma_session::{Pin, TlsOptions};

pub struct Authority {
    pub pem: Vec<u8>,
    pub issuer: Issuer<'static, KeyPair>,
}

pub struct Identity {
    pub chain: Vec<Vec<u8>>,
    pub key: Vec<u8>,
    pub spki: Pin,
    pub serial: SerialNumber,
}

/// An end-entity certificate's parameters for `name`, good for both roles.
pub fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2090, 1, 1);
    params
}

/// A certificate's parameters, changed.
pub fn changed(name: &str, change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = params(name);
    change(&mut params);
    params
}

/// What turns a certificate into one with these URI names and no others.
pub fn with_uris(uris: &[&str]) -> impl FnOnce(&mut CertificateParams) {
    let names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    move |params| params.subject_alt_names = names
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2090, 1, 1);
    params
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority_params(name);
        let pem = params.self_signed(&key).unwrap().pem().into_bytes();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// An intermediate authority below this one.
    pub fn intermediate(&self, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = authority_params(name);
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(SerialNumber::from(77_u64));
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem().into_bytes();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn issue(&self, name: &str) -> Identity {
        self.issue_params(&params(name))
    }

    pub fn issue_params(&self, params: &CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity::new(certificate.pem(), certificate.der(), &key)
    }

    /// A revocation list that names `revoked`, current until `year`.
    pub fn crl(&self, revoked: &[&SerialNumber], year: i32) -> Vec<u8> {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: (*serial).clone(),
                    revocation_time: date_time_ymd(2021, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap().into_bytes()
    }
}

impl Identity {
    fn new(pem: String, der: &[u8], key: &KeyPair) -> Self {
        let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
        Self {
            chain: vec![pem.into_bytes()],
            key: key.serialize_pem().into_bytes(),
            spki: Pin::of_spki(parsed.public_key().raw),
            serial: SerialNumber::from_slice(parsed.raw_serial()),
        }
    }

    pub fn self_signed(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = params(name).self_signed(&key).unwrap();
        Self::new(certificate.pem(), certificate.der(), &key)
    }

    /// The identity with a chain: `intermediate` behind its own certificate.
    pub fn through(mut self, intermediate: &Authority) -> Self {
        self.chain.push(intermediate.pem.clone());
        self
    }

    /// Options with this identity that trust `authorities`.
    pub fn tls(&self, authorities: &[&Authority]) -> TlsOptions {
        TlsOptions {
            ca: authorities.iter().map(|authority| authority.pem.clone()).collect(),
            cert: self.chain.clone(),
            key: Some(self.key.clone()),
            ..TlsOptions::default()
        }
    }
}
