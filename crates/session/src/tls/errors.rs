//! What TLS answers, as our codes and as sentences that name who and what to do.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;

use rustls::{AlertDescription, CertificateError, InvalidMessage, OtherError, PeerIncompatible};
use secure_rdma_rdma::{Error, ErrorCode};

use super::verify::{NotIdentity, NotPinned};
use super::{Witness, certificate};
use crate::Role;
use crate::frame::printable;

/// The peer of one connection, for blaming it.
#[derive(Clone, Debug)]
pub(crate) struct Suspect {
    pub(crate) address: SocketAddr,
    /// Our own role.
    pub(crate) role: Role,
    pub(crate) witness: Witness,
}

impl Suspect {
    /// What an error of the TLS stream means.
    pub(crate) fn judge(&self, cause: &io::Error) -> Error {
        let address = self.address;
        if let Some(tls) = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            return self.judge_tls(tls);
        }
        if cause.kind() == io::ErrorKind::UnexpectedEof {
            return closed_by_peer(address);
        }
        let code = match cause.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted => {
                ErrorCode::HandshakeClosed
            }
            _ => ErrorCode::Tcp,
        };
        let error =
            Error::new(code, format!("the connection to {address} broke: {cause}. Its own log may say why"));
        match cause.raw_os_error() {
            Some(errno) => error.with_syscall("read", errno),
            None => error,
        }
    }

    fn judge_tls(&self, error: &rustls::Error) -> Error {
        let address = self.address;
        if self.witness.saw_no_alpn() {
            return super::wrong_alpn(address, None);
        }
        match error {
            rustls::Error::InvalidCertificate(cause) => self.judge_certificate(cause),
            rustls::Error::NoCertificatesPresented => Error::new(
                ErrorCode::TlsNoCertificate,
                format!(
                    "{address} showed no certificate: give it `cert` and `key`, or listen with requestCert: false"
                ),
            ),
            rustls::Error::AlertReceived(alert) => Error::new(
                ErrorCode::TlsAlert,
                format!(
                    "{address} refused with the TLS alert {}: {}",
                    alert_name(*alert),
                    alert_remedy(*alert)
                ),
            ),
            rustls::Error::NoApplicationProtocol => super::wrong_alpn(address, None),
            rustls::Error::PeerIncompatible(
                PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic,
            )
            | rustls::Error::InvalidMessage(InvalidMessage::UnknownProtocolVersion) => Error::new(
                ErrorCode::TlsVersion,
                format!("{address} does not speak TLS 1.3, which is required: is it another service's port?"),
            ),
            rustls::Error::InvalidMessage(cause) => Error::new(
                ErrorCode::Tls,
                format!("what {address} sent is not TLS ({cause:?}): is it another service's port?"),
            ),
            other => Error::new(ErrorCode::Tls, format!("TLS with {address} failed: {other}")),
        }
    }

    fn judge_certificate(&self, cause: &CertificateError) -> Error {
        use CertificateError as C;
        let (code, what, remedy): (_, String, &str) = match cause {
            C::UnknownIssuer => (
                ErrorCode::TlsUntrusted,
                "does not lead to an authority in `ca`".to_owned(),
                "add its issuer to `ca`, or have the peer send its intermediate certificates",
            ),
            C::BadSignature if self.witness.saw_no_key() => {
                bad_certificate(&"the peer has not shown that it has its key")
            }
            C::BadSignature => (
                ErrorCode::TlsUntrusted,
                "is not signed by the authority of its issuer's name in `ca`".to_owned(),
                "that authority has another key: give the one that issued it, or issue the certificate anew",
            ),
            C::NotValidForName => (
                ErrorCode::TlsName,
                "is for another name".to_owned(),
                "connect by its name, or give `servername`",
            ),
            C::NotValidForNameContext { expected, .. } => (
                ErrorCode::TlsName,
                format!("is not for {:?}", expected.to_str()),
                "connect by a name that it has, or give `servername`",
            ),
            C::Expired | C::ExpiredContext { .. } => {
                (ErrorCode::TlsExpired, "has expired".to_owned(), "renew it, or set the clock")
            }
            C::NotValidYet | C::NotValidYetContext { .. } => {
                (ErrorCode::TlsNotYetValid, "is not valid yet".to_owned(), "set the clock, or wait")
            }
            C::InvalidPurpose | C::InvalidPurposeContext { .. } => (
                ErrorCode::TlsPurpose,
                format!("is not for {} authentication", self.role.other()),
                "issue it with the extended key usage serverAuth, clientAuth, or both",
            ),
            C::Revoked => {
                (ErrorCode::TlsRevoked, "has been revoked, or its issuer's has".to_owned(), "issue a new one")
            }
            C::UnknownRevocationStatus => (
                ErrorCode::TlsRevocationUnknown,
                "is covered by no revocation list".to_owned(),
                "add the lists of every issuer in its chain to `crl`",
            ),
            C::ExpiredRevocationList | C::ExpiredRevocationListContext { .. } => (
                ErrorCode::TlsRevocationUnknown,
                "is covered only by a revocation list that has expired".to_owned(),
                "give a current list in `crl`",
            ),
            C::Other(other) => judge_refusal(other),
            other => bad_certificate(other),
        };
        let whose = self.describe();
        Error::new(code, format!("the certificate of {}{whose} {what}: {remedy}", self.address))
    }

    fn describe(&self) -> String {
        let Some(read) = self.witness.certificate().and_then(|der| certificate::read(&der)) else {
            return String::new();
        };
        let names = read.names;
        let mut also: Vec<String> = names.dns;
        also.extend(names.ip.iter().map(ToString::to_string));
        also.extend(names.uri);
        let also = if also.is_empty() { String::new() } else { format!(", for {}", also.join(", ")) };
        format!(" (subject {:?}, issuer {:?}{also})", names.subject, names.issuer)
    }
}

/// Refusals of our own.
fn judge_refusal(other: &OtherError) -> (ErrorCode, String, &'static str) {
    if let Some(NotPinned(spki)) = other.0.downcast_ref() {
        let what = format!("has the key sha256/{spki}, which is not pinned");
        return (ErrorCode::TlsPin, what, "add it to `pins` if it is the peer's");
    }
    if let Some(NotIdentity { wanted, shown }) = other.0.downcast_ref() {
        return match shown {
            Some(shown) => (
                ErrorCode::TlsName,
                format!("is for {shown} and not for {wanted}"),
                "give the server's own identity in `peerIdentity`, or connect to the right server",
            ),
            None => (
                ErrorCode::TlsName,
                format!("is not for {wanted}: it is no X.509-SVID"),
                "issue it with one URI name, spiffe://trust-domain/path, and no right to sign certificates or lists",
            ),
        };
    }
    bad_certificate(&other.0)
}

fn bad_certificate(cause: &dyn Display) -> (ErrorCode, String, &'static str) {
    let what = format!("cannot be used ({})", printable(&cause.to_string()));
    (ErrorCode::TlsBadCertificate, what, "issue it as an X.509 version 3 end-entity certificate")
}

/// The error of a peer that went away without a word.
pub(crate) fn closed_by_peer(address: SocketAddr) -> Error {
    Error::new(
        ErrorCode::HandshakeClosed,
        format!("{address} closed the connection before it was up: its own log says why"),
    )
}

/// The alert's name in RFC 8446.
fn alert_name(alert: AlertDescription) -> String {
    let mut name = String::new();
    // rustls spells them in camel case.
    let spelled = format!("{alert:?}");
    let letters: Vec<char> = spelled.chars().collect();
    for (index, letter) in letters.iter().enumerate() {
        let after_lower = index > 0 && letters.get(index - 1).is_some_and(|c| c.is_ascii_lowercase());
        if letter.is_ascii_uppercase() && after_lower {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn alert_remedy(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::UnknownCA => "it does not trust our certificate's issuer; check its `ca` and our `cert`",
        A::CertificateExpired => {
            "our certificate has expired or is not valid yet: renew it, or set the clocks"
        }
        A::CertificateRevoked => "our certificate has been revoked: issue a new one",
        A::CertificateRequired => "it wants a certificate: give `cert` and `key`",
        A::BadCertificate => "it does not take our certificate: check its name and encoding",
        A::UnsupportedCertificate => {
            "our certificate is not for this purpose: issue it with the extended key usage serverAuth, clientAuth, or both"
        }
        A::CertificateUnknown => {
            "it does not take our certificate: check its `pins` or `peerIdentity`; its own log says more"
        }
        A::ProtocolVersion => "it does not speak TLS 1.3: is it another service's port?",
        A::NoApplicationProtocol => "it does not speak secure-rdma/1: is it another service's port?",
        A::DecryptError => {
            "it could not check a signature: does our `key` belong to our `cert`, and is its `ca` the one that issued it?"
        }
        A::UnrecognisedName => "it has no certificate for this name: give `servername`",
        A::HandshakeFailure => "it has no cipher suite or group in common: allow those of TLS 1.3 there",
        _ => "its own log says why",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_have_their_rfc_names() {
        assert_eq!(alert_name(AlertDescription::UnknownCA), "unknown_ca");
        assert_eq!(alert_name(AlertDescription::CertificateRequired), "certificate_required");
        assert_eq!(alert_name(AlertDescription::NoApplicationProtocol), "no_application_protocol");
        assert_eq!(alert_name(AlertDescription::HandshakeFailure), "handshake_failure");
    }
}
