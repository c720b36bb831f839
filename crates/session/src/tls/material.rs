//! Certificates, keys and revocation lists as bytes: PEM or DER.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use secure_rdma_rdma::{Error, ErrorCode, Result};

pub(super) fn config_error(message: String) -> Error {
    Error::new(ErrorCode::TlsConfig, message)
}

/// Every certificate of an option, in order.
pub(super) fn certificates(option: &str, elements: &[Vec<u8>]) -> Result<Vec<CertificateDer<'static>>> {
    let sections = sections::<CertificateDer<'static>>(option, "certificate", elements)?;
    for (index, certificate) in sections.iter().enumerate() {
        if super::certificate::read(certificate).is_none() {
            return Err(config_error(format!("certificate {index} of `{option}` is no X.509 certificate")));
        }
    }
    Ok(sections)
}

/// Every revocation list of the option `crl`.
pub(super) fn revocation_lists(elements: &[Vec<u8>]) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    sections::<CertificateRevocationListDer<'static>>("crl", "revocation list", elements)
}

/// The private key of the option `key`.
pub(super) fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>> {
    let key = if is_pem(bytes) {
        PrivateKeyDer::from_pem_slice(bytes).map_err(|cause| cause.to_string())
    } else {
        PrivateKeyDer::try_from(bytes.to_vec()).map_err(str::to_owned)
    };
    key.map_err(|cause| {
        config_error(format!(
            "`key` holds no private key ({cause}): give an unencrypted PKCS#8, PKCS#1 or SEC1 key in PEM or DER"
        ))
    })
}

fn sections<T>(option: &str, what: &str, elements: &[Vec<u8>]) -> Result<Vec<T>>
where
    T: PemObject + From<Vec<u8>>,
{
    let mut found = Vec::new();
    for (index, element) in elements.iter().enumerate() {
        let before = found.len();
        if is_pem(element) {
            for section in T::pem_slice_iter(element) {
                let section = section.map_err(|cause| {
                    config_error(format!("element {index} of `{option}` is damaged PEM: {cause}"))
                })?;
                found.push(section);
            }
        } else if !element.is_empty() {
            found.push(T::from(element.clone()));
        }
        if found.len() == before {
            return Err(config_error(format!(
                "element {index} of `{option}` holds no {what}: give PEM or DER"
            )));
        }
    }
    Ok(found)
}

fn is_pem(bytes: &[u8]) -> bool {
    const MARK: &[u8] = b"-----BEGIN";
    bytes.windows(MARK.len()).any(|window| window == MARK)
}
