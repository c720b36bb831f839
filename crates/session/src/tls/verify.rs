//! Whether a peer's certificate is to be trusted: authorities, revocation lists and pins.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use secure_rdma_rdma::Result;

use super::material::{certificates, config_error, revocation_lists};
use super::{Pin, SpiffeId, TlsOptions, certificate};
use crate::Role;

/// What the peer of one connection showed, kept for the message when it is refused.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    certificate: Option<Vec<u8>>,
    no_alpn: bool,
    no_key: bool,
    authority: bool,
}

impl Witness {
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saw(&self, end_entity: &CertificateDer<'_>) {
        self.shown().certificate = Some(end_entity.to_vec());
    }

    pub(super) fn certificate(&self) -> Option<Vec<u8>> {
        self.shown().certificate.clone()
    }

    /// It did not prove that it has its certificate's key.
    pub(super) fn saw_no_key(&self) -> bool {
        self.shown().no_key
    }

    /// An authority in `ca` vouches for what the certificate says.
    pub(super) fn saw_authority(&self) -> bool {
        self.shown().authority
    }

    pub(super) fn saw_no_alpn(&self) -> bool {
        self.shown().no_alpn
    }
}

/// Has no certificate for a client that offers no ALPN, which rustls alone would let in.
#[derive(Debug)]
pub(super) struct DemandAlpn {
    pub(super) identity: Arc<dyn ResolvesServerCert>,
    pub(super) witness: Witness,
}

impl ResolvesServerCert for DemandAlpn {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if hello.alpn().is_none() {
            self.witness.shown().no_alpn = true;
            return None;
        }
        self.identity.resolve(hello)
    }
}

/// The peer's key is not among the pinned ones.
#[derive(Debug)]
pub(super) struct NotPinned(pub(super) Pin);

impl fmt::Display for NotPinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the key {} is not pinned", self.0)
    }
}

impl std::error::Error for NotPinned {}

/// The certificate is not the X.509-SVID of the server that is wanted.
#[derive(Debug)]
pub(super) struct NotIdentity {
    pub(super) wanted: SpiffeId,
    pub(super) shown: Option<SpiffeId>,
}

impl fmt::Display for NotIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it is not for {}", self.wanted)
    }
}

impl std::error::Error for NotIdentity {}

/// Whom one side trusts. Shared by its connections.
#[derive(Debug)]
pub(super) struct Trust {
    /// Judges servers; `None` where pins alone decide.
    servers: Option<Arc<WebPkiServerVerifier>>,
    roots: Arc<RootCertStore>,
    /// Judges clients; `None` where pins alone decide.
    clients: Option<Arc<dyn ClientCertVerifier>>,
    pins: Vec<Pin>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Trust {
    pub(super) fn new(options: &TlsOptions, provider: &Arc<CryptoProvider>) -> Result<Self> {
        let mut trust = Self {
            servers: None,
            roots: Arc::new(RootCertStore::empty()),
            clients: None,
            pins: options.pins.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        if options.ca.is_empty() {
            if options.pins.is_empty() {
                return Err(config_error(
                    "`ca` or `pins` is required: say which authorities or which keys you trust".to_owned(),
                ));
            }
            if !options.crl.is_empty() {
                return Err(config_error(
                    "`crl` needs `ca`: a list is checked with its issuer's key".to_owned(),
                ));
            }
            return Ok(trust);
        }
        let mut roots = RootCertStore::empty();
        for (index, authority) in certificates("ca", &options.ca)?.into_iter().enumerate() {
            roots.add(authority).map_err(|cause| {
                config_error(format!("certificate {index} of `ca` cannot be an authority: {cause}"))
            })?;
        }
        let roots = Arc::new(roots);
        trust.roots = Arc::clone(&roots);
        let lists = revocation_lists(&options.crl)?;
        let refused =
            |cause: &dyn fmt::Display| config_error(format!("`ca` and `crl` give no verifier: {cause}"));

        // Revocation is judged for the whole chain, an unknown status is a refusal, and so is an expired list.
        let mut servers =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
        let mut clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
        if !lists.is_empty() {
            servers = servers.with_crls(lists.iter().cloned()).enforce_revocation_expiration();
            clients = clients.with_crls(lists).enforce_revocation_expiration();
        }
        trust.servers = Some(servers.build().map_err(|cause| refused(&cause))?);
        trust.clients = Some(clients.build().map_err(|cause| refused(&cause))?);
        Ok(trust)
    }

    fn check_pin(&self, end_entity: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if self.pins.is_empty() {
            return Ok(());
        }
        let read = certificate::read(end_entity).ok_or(CertificateError::BadEncoding)?;
        if self.pins.contains(&read.spki) {
            Ok(())
        } else {
            Err(CertificateError::Other(OtherError(Arc::new(NotPinned(read.spki)))).into())
        }
    }

    /// A server that is known by its SPIFFE ID and not by a name. `None` where pins alone decide.
    ///
    /// rustls's judge of servers demands a name, so the chain is followed without one, and revocation is left to the judge
    /// of clients. That one demands the purpose clientAuth, and so does X.509-SVID §4.4.
    fn check_identity(
        &self,
        wanted: &SpiffeId,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let clients = self.clients.as_ref().ok_or(CertificateError::UnknownIssuer)?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        clients.verify_client_cert(end_entity, intermediates, now)?;
        let read = certificate::read(end_entity).ok_or(CertificateError::BadEncoding)?;
        if read.spiffe_id.as_ref() == Some(wanted) {
            return Ok(());
        }
        let refusal = NotIdentity { wanted: wanted.clone(), shown: read.spiffe_id };
        Err(CertificateError::Other(OtherError(Arc::new(refusal))).into())
    }

    /// Without an authority: what a certificate itself says. That the peer has its key, the handshake proves.
    fn check_alone(
        &self,
        end_entity: &CertificateDer<'_>,
        peer: Role,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        self.check_pin(end_entity)?;
        let read = certificate::read(end_entity).ok_or(CertificateError::BadEncoding)?;
        let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        let purpose = match peer {
            Role::Server => read.server_purpose,
            Role::Client => read.client_purpose,
        };
        if seconds < read.names.not_before {
            Err(CertificateError::NotValidYet.into())
        } else if seconds > read.names.not_after {
            Err(CertificateError::Expired.into())
        } else if purpose == Some(false) {
            Err(CertificateError::InvalidPurpose.into())
        } else {
            Ok(())
        }
    }
}

/// [`Trust`] for one connection.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) trust: Arc<Trust>,
    pub(super) witness: Witness,
    /// Clients: the server must be this one, whatever its name.
    pub(super) identity: Option<SpiffeId>,
}

impl Judge {
    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let verified = verify_tls13_signature(message, certificate, signed, &self.trust.algorithms);
        self.witness.shown().no_key = verified.is_err();
        verified
    }
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.witness.saw(end_entity);
        match (&self.identity, &self.trust.servers) {
            (Some(wanted), _) => {
                self.trust.check_identity(wanted, end_entity, intermediates, now)?;
                self.trust.check_pin(end_entity)?;
                self.witness.shown().authority = true;
            }
            (None, Some(authorities)) => {
                authorities.verify_server_cert(end_entity, intermediates, name, ocsp, now)?;
                self.trust.check_pin(end_entity)?;
                self.witness.shown().authority = true;
            }
            (None, None) => self.trust.check_alone(end_entity, Role::Server, now)?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Judge {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.trust.clients.as_ref().map_or(&[], |authorities| authorities.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.witness.saw(end_entity);
        match &self.trust.clients {
            Some(authorities) => {
                authorities.verify_client_cert(end_entity, intermediates, now)?;
                self.trust.check_pin(end_entity)?;
                self.witness.shown().authority = true;
            }
            None => self.trust.check_alone(end_entity, Role::Client, now)?,
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::SupportedVersionsExtensionRequired.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trust.algorithms.supported_schemes()
    }
}
