//! What a certificate says, for people and for pins.

use std::net::IpAddr;

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

use super::Pin;
use crate::CertificateNames;
use crate::frame::printable;

/// What we read of a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) names: CertificateNames,
    pub(crate) spki: Pin,
    /// Extended key usage: what it may be used for, where it says so at all.
    pub(super) server_purpose: Option<bool>,
    pub(super) client_purpose: Option<bool>,
}

/// Reads a certificate in DER; `None` when it is malformed or has something behind it.
pub(crate) fn read(der: &[u8]) -> Option<Read> {
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let mut names = CertificateNames {
        subject: text(certificate.subject()),
        issuer: text(certificate.issuer()),
        common_name: common_name(certificate.subject()),
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        ..CertificateNames::default()
    };
    for name in certificate.subject_alternative_name().ok()?.iter().flat_map(|san| &san.value.general_names) {
        match name {
            GeneralName::DNSName(dns) => names.dns.push(printable(dns)),
            GeneralName::URI(uri) => names.uri.push(printable(uri)),
            GeneralName::IPAddress(bytes) => names.ip.extend(address(bytes)),
            _ => {}
        }
    }
    let usage = certificate.extended_key_usage().ok()?.map(|usage| usage.value);
    Some(Read {
        names,
        spki: Pin::of_spki(certificate.public_key().raw),
        server_purpose: usage.map(|usage| usage.any || usage.server_auth),
        client_purpose: usage.map(|usage| usage.any || usage.client_auth),
    })
}

fn text(name: &X509Name<'_>) -> String {
    printable(&name.to_string())
}

fn common_name(name: &X509Name<'_>) -> Option<String> {
    name.iter_common_name().next().and_then(|name| name.as_str().ok()).map(printable)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
