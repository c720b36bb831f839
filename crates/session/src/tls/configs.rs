//! rustls's configurations: TLS 1.3 alone, nothing resumed, nothing early.

use std::fmt;
use std::net::Ipv6Addr;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, KeyLog, ServerConfig};
use rustls_pki_types::ServerName;
use secure_rdma_rdma::Result;

use super::key_log::KeyLogFile;
use super::material::{certificates, config_error, private_key};
use super::verify::{DemandAlpn, Judge, Trust};
use super::{ALPN, TlsOptions, Witness, certificate};
use crate::CertificateNames;

/// Everything that one client connection needs of TLS.
pub(crate) struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) name: ServerName<'static>,
    pub(crate) witness: Witness,
    pub(crate) own: Option<CertificateNames>,
}

impl ClientTls {
    /// For a connection to `host`.
    pub(crate) fn new(options: &TlsOptions, host: &str) -> Result<Self> {
        let provider = provider();
        let name = options.servername.as_deref().unwrap_or(without_zone(host));
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            config_error(format!("{name:?} is no name that a certificate can have: give `servername`"))
        })?;
        let witness = Witness::default();
        if options.peer_identity.is_some() {
            if options.servername.is_some() {
                return Err(config_error(
                    "`servername` and `peerIdentity` are two identities: give one".to_owned(),
                ));
            }
            if options.ca.is_empty() {
                return Err(config_error(
                    "`peerIdentity` needs `ca`: an authority must vouch for it, which a pinned key does not"
                        .to_owned(),
                ));
            }
        }
        let judge = Judge {
            trust: Arc::new(Trust::new(options, &provider)?),
            witness: witness.clone(),
            identity: options.peer_identity.clone(),
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|cause| unusable(&cause))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(judge));
        let (mut config, own) = match identity(options, &provider)? {
            Some((key, names)) => {
                (builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))), Some(names))
            }
            None => (builder.with_no_client_auth(), None),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        if let Some(log) = key_log(options)? {
            config.key_log = log;
        }
        Ok(Self { config: Arc::new(config), name, witness, own })
    }
}

/// Everything that a listener's connections share of TLS.
pub(crate) struct ServerTls {
    provider: Arc<CryptoProvider>,
    /// `None` where clients are asked for no certificate.
    trust: Option<Arc<Trust>>,
    resolver: Arc<dyn ResolvesServerCert>,
    key_log: Option<Arc<dyn KeyLog>>,
    request_cert: bool,
    pub(crate) own: CertificateNames,
}

impl ServerTls {
    pub(crate) fn new(options: &TlsOptions) -> Result<Self> {
        let provider = provider();
        let trust = options.request_cert.then(|| Trust::new(options, &provider)).transpose()?.map(Arc::new);
        if options.servername.is_some() {
            return Err(config_error("`servername` is for clients".to_owned()));
        }
        if options.peer_identity.is_some() {
            return Err(config_error("`peerIdentity` is for clients; a server has `authorize`".to_owned()));
        }
        let Some((key, own)) = identity(options, &provider)? else {
            return Err(config_error("a server needs `cert` and `key`".to_owned()));
        };
        let resolver = Arc::new(SingleCertAndKey::from(key));
        let tls = Self {
            provider,
            trust,
            resolver,
            key_log: key_log(options)?,
            request_cert: options.request_cert,
            own,
        };
        tls.for_connection()?;
        Ok(tls)
    }

    /// The same server with another identity and other authorities, pins and revocation lists. `request_cert` and the key
    /// log stay.
    pub(crate) fn renewed(&self, options: &TlsOptions) -> Result<Self> {
        let options = TlsOptions { request_cert: self.request_cert, key_log_file: None, ..options.clone() };
        Ok(Self { key_log: self.key_log.clone(), ..Self::new(&options)? })
    }

    /// The configuration of one connection. Cheap: everything in it is shared, but for the witness.
    pub(crate) fn for_connection(&self) -> Result<(Arc<ServerConfig>, Witness)> {
        let witness = Witness::default();
        let builder = ServerConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|cause| unusable(&cause))?;
        let builder = match &self.trust {
            Some(trust) => {
                let judge = Judge { trust: Arc::clone(trust), witness: witness.clone(), identity: None };
                builder.with_client_cert_verifier(Arc::new(judge))
            }
            None => builder.with_no_client_auth(),
        };
        let identity = Arc::clone(&self.resolver);
        let demand = DemandAlpn { identity, witness: witness.clone() };
        let mut config = builder.with_cert_resolver(Arc::new(demand));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config.max_early_data_size = 0;
        if let Some(log) = &self.key_log {
            config.key_log = Arc::clone(log);
        }
        Ok((Arc::new(config), witness))
    }
}

/// An IPv6 address without its zone (`fe80::1%eth0`), which is this host's affair and in no certificate.
fn without_zone(host: &str) -> &str {
    match host.split_once('%') {
        Some((address, _)) if address.parse::<Ipv6Addr>().is_ok() => address,
        _ => host,
    }
}

/// aws-lc-rs by name: no process-wide default is read or set. X25519MLKEM768 comes first.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn unusable(cause: &dyn fmt::Display) -> secure_rdma_rdma::Error {
    config_error(format!("TLS 1.3 cannot be configured: {cause}"))
}

fn key_log(options: &TlsOptions) -> Result<Option<Arc<dyn KeyLog>>> {
    let Some(path) = &options.key_log_file else { return Ok(None) };
    Ok(Some(Arc::new(KeyLogFile::open(path)?)))
}

/// Our certificate and key, where there are any; they must belong together.
fn identity(
    options: &TlsOptions,
    provider: &CryptoProvider,
) -> Result<Option<(CertifiedKey, CertificateNames)>> {
    let chain = certificates("cert", &options.cert)?;
    let (first, key) = match (chain.first(), &options.key) {
        (None, None) => return Ok(None),
        (Some(_), None) => return Err(config_error("`cert` is there but `key` is missing".to_owned())),
        (None, Some(_)) => return Err(config_error("`key` is there but `cert` is missing".to_owned())),
        (Some(first), Some(key)) => (first, key),
    };
    let names = certificate::read(first).map(|read| read.names).unwrap_or_default();
    let subject = names.subject.clone();
    let key = CertifiedKey::from_der(chain, private_key(key)?, provider).map_err(|cause| {
        config_error(format!("`key` does not fit the certificate of {subject:?}: {cause}"))
    })?;
    Ok(Some((key, names)))
}
