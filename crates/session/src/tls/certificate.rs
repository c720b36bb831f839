//! What a certificate says, for people and for pins.

use std::net::IpAddr;

use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509Name};

use super::{Pin, SpiffeId};
use crate::CertificateNames;
use crate::frame::printable;

/// `uniformResourceIdentifier` among the general names (RFC 5280 §4.2.1.6).
const URI: Tag = Tag(6);

/// What we read of a certificate.
#[derive(Clone, Debug)]
pub(crate) struct Read {
    pub(crate) names: CertificateNames,
    pub(crate) spki: Pin,
    /// The identity that an X.509-SVID shows. Whether it may, its issuer must say.
    pub(crate) spiffe_id: Option<SpiffeId>,
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
    let mut uris = Vec::new();
    for name in certificate.subject_alternative_name().ok()?.iter().flat_map(|san| &san.value.general_names) {
        match name {
            GeneralName::DNSName(dns) => names.dns.push(printable(dns)),
            GeneralName::URI(uri) => {
                uris.push(*uri);
                names.uri.push(printable(uri));
            }
            // One that cannot be read is one too many beside another.
            GeneralName::Invalid(URI, _) => uris.push(""),
            GeneralName::IPAddress(bytes) => names.ip.extend(address(bytes)),
            _ => {}
        }
    }
    let usage = certificate.extended_key_usage().ok()?.map(|usage| usage.value);
    let signs = certificate
        .key_usage()
        .ok()?
        .is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign());
    let is_leaf = !certificate.is_ca() && !signs;
    Some(Read {
        names,
        spki: Pin::of_spki(certificate.public_key().raw),
        spiffe_id: SpiffeId::of_uris(uris.into_iter()).filter(|_| is_leaf),
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
