//! Options as JavaScript gives them: checked there for types and ranges, turned here into what the crates want.

use std::net::IpAddr;
use std::time::Duration;

use napi::bindgen_prelude::Uint8Array;
use napi_derive::napi;
use secure_rdma_connection::{ConnectionOptions, DeviceOptions};
use secure_rdma_rdma::{Addressing, DeviceWish, Error, ErrorCode, PathMtu, Result};
use secure_rdma_session::{ConnectConfig, HandshakeFailed, ListenConfig, Pin, SessionOptions, TlsOptions};

use crate::authorize::Questions;

/// Attributes of the queue pair.
#[napi(object, object_to_js = false)]
pub struct NativeQueuePair {
    /// Index into the P_Key table.
    pub pkey_index: Option<u16>,
    /// Retransmission timeout, an exponent.
    pub timeout: Option<u8>,
    /// Repetitions without an answer.
    pub retry_count: Option<u8>,
    /// Repetitions after an RNR NAK.
    pub rnr_retry: Option<u8>,
    /// Code of the wait that our RNR NAKs ask for.
    pub min_rnr_timer: Option<u8>,
    /// READs and atomics that we have outstanding.
    pub initiator_depth: Option<u8>,
    /// READs and atomics of the peer that we serve.
    pub responder_resources: Option<u8>,
}

/// The buffers that connections share.
#[napi(object, object_to_js = false)]
pub struct NativePool {
    /// Bytes of a buffer.
    pub buffer_size: Option<u32>,
    /// Receive buffers at the most.
    pub receive_buffers: Option<u32>,
    /// Send buffers at the most.
    pub send_buffers: Option<u32>,
}

/// What both roles have in common. Times are in milliseconds.
#[napi(object, object_to_js = false)]
pub struct NativeOptions {
    /// Authorities: PEM or DER.
    pub ca: Vec<Uint8Array>,
    /// Pinned keys.
    pub pins: Vec<String>,
    /// Our certificates: PEM or DER.
    pub cert: Vec<Uint8Array>,
    /// Our private key: PEM or DER.
    pub key: Option<Uint8Array>,
    /// Revocation lists: PEM or DER.
    pub crl: Vec<Uint8Array>,
    /// Servers: whether clients must show a certificate.
    pub request_cert: Option<bool>,
    /// Clients: the name that the server's certificate must have.
    pub servername: Option<String>,
    /// Clients: the SPIFFE ID that the server's certificate must have.
    pub peer_identity: Option<String>,
    /// Where TLS secrets are written to.
    pub key_log_file: Option<String>,
    /// Whether there is an `authorize`.
    pub authorize: bool,
    /// One deadline for everything until the connection is up.
    pub handshake_timeout: Option<u32>,
    /// For the end of `close()`.
    pub close_timeout: Option<u32>,
    /// Between two of our keep-alives.
    pub keep_alive_interval: Option<u32>,
    /// Missing keep-alives of the peer that mean death.
    pub keep_alive_misses: Option<u32>,
    /// The device by name.
    pub device: Option<String>,
    /// The device's port.
    pub device_port: Option<u8>,
    /// The GID's index.
    pub gid_index: Option<u8>,
    /// The local address that RDMA uses.
    pub rdma_address: Option<String>,
    /// Where the embedded device writes its packets to.
    pub capture_file: Option<String>,
    /// `hybrid` or `verbs`.
    pub addressing: Option<String>,
    /// Addresses beside the TLS peer's that RDMA may go to.
    pub allowed_peer_addresses: Vec<String>,
    /// In bytes.
    pub max_path_mtu: Option<u32>,
    /// The longest message that we take.
    pub max_message_size: Option<f64>,
    /// Bytes that may wait to be sent.
    pub send_buffer_size: Option<f64>,
    /// Bytes that may wait to be read.
    pub receive_buffer_size: Option<f64>,
    /// Receive buffers posted for the peer.
    pub credits: Option<u16>,
    /// The buffers that connections share.
    pub pool: Option<NativePool>,
    /// Between two proofs of an idle path; 0 for none.
    pub path_probe_interval: Option<u32>,
    /// How long posted work may stand still.
    pub path_timeout: Option<u32>,
    /// Attributes of the queue pair.
    pub queue_pair: Option<NativeQueuePair>,
    /// Whether the report holds the PSNs.
    pub expose_secrets: bool,
}

/// What `connect` is told.
#[napi(object, object_to_js = false)]
pub struct NativeConnect {
    /// Name or address of the server.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// The local address of the TCP connection.
    pub local_address: Option<String>,
    /// Everything else.
    pub options: NativeOptions,
}

/// What `listen` is told.
#[napi(object, object_to_js = false)]
pub struct NativeListen {
    /// Name or address.
    pub host: String,
    /// The TCP port; 0 for any.
    pub port: u16,
    /// Length of the kernel's queue.
    pub backlog: Option<u32>,
    /// Handshakes at once.
    pub max_pending_handshakes: Option<u32>,
    /// Connections that are up and not accepted.
    pub max_unaccepted: Option<u32>,
    /// Everything else.
    pub options: NativeOptions,
}

/// Who a server is and whom it trusts, from now on.
#[napi(object, object_to_js = false)]
pub struct NativeSecureContext {
    /// Authorities: PEM or DER.
    pub ca: Vec<Uint8Array>,
    /// Pinned keys.
    pub pins: Vec<String>,
    /// Our certificates: PEM or DER.
    pub cert: Vec<Uint8Array>,
    /// Our private key: PEM or DER.
    pub key: Option<Uint8Array>,
    /// Revocation lists: PEM or DER.
    pub crl: Vec<Uint8Array>,
}

impl NativeSecureContext {
    pub(crate) fn into_tls(self) -> Result<TlsOptions> {
        Ok(TlsOptions {
            ca: bytes(&self.ca),
            pins: pins(&self.pins)?,
            cert: bytes(&self.cert),
            key: self.key.map(|key| key.to_vec()),
            crl: bytes(&self.crl),
            ..TlsOptions::default()
        })
    }
}

impl NativeConnect {
    pub(crate) fn into_parts(
        self,
        questions: &Questions,
    ) -> Result<(ConnectConfig, DeviceOptions, ConnectionOptions)> {
        let local_address = self.local_address.as_deref().map(|text| ip("localAddress", text)).transpose()?;
        let (tls, session, device, connection) = self.options.into_parts(questions)?;
        let mut config = ConnectConfig::new(self.host, self.port, tls);
        config.local_address = local_address;
        config.options = session;
        Ok((config, device, connection))
    }
}

impl NativeListen {
    pub(crate) fn into_parts(
        self,
        questions: &Questions,
        on_handshake_failed: HandshakeFailed,
    ) -> Result<(ListenConfig, DeviceOptions, ConnectionOptions)> {
        let (tls, session, device, connection) = self.options.into_parts(questions)?;
        let mut config = ListenConfig::new(self.host, self.port, tls);
        config.options = session;
        config.on_handshake_failed = Some(on_handshake_failed);
        set(&mut config.backlog, self.backlog);
        set(&mut config.max_pending_handshakes, self.max_pending_handshakes.map(|count| count as usize));
        set(&mut config.max_unaccepted, self.max_unaccepted.map(|count| count as usize));
        Ok((config, device, connection))
    }
}

type Parts = (TlsOptions, SessionOptions, DeviceOptions, ConnectionOptions);

impl NativeOptions {
    fn into_parts(self, questions: &Questions) -> Result<Parts> {
        let session = self.session(questions)?;
        let device = self.device()?;
        let connection = self.connection();
        Ok((self.tls()?, session, device, connection))
    }

    fn tls(self) -> Result<TlsOptions> {
        let defaults = TlsOptions::default();
        Ok(TlsOptions {
            ca: bytes(&self.ca),
            pins: pins(&self.pins)?,
            cert: bytes(&self.cert),
            key: self.key.map(|key| key.to_vec()),
            crl: bytes(&self.crl),
            request_cert: self.request_cert.unwrap_or(defaults.request_cert),
            servername: self.servername,
            peer_identity: self.peer_identity.as_deref().map(str::parse).transpose()?,
            key_log_file: self.key_log_file.map(Into::into),
        })
    }

    fn session(&self, questions: &Questions) -> Result<SessionOptions> {
        let mut options = SessionOptions {
            authorize: self.authorize.then(|| questions.authorize()),
            allowed_peer_addresses: self
                .allowed_peer_addresses
                .iter()
                .map(|text| ip("allowedPeerAddresses", text))
                .collect::<Result<_>>()?,
            max_path_mtu: self.max_path_mtu.map(path_mtu).transpose()?,
            expose_secrets: self.expose_secrets,
            ..SessionOptions::default()
        };
        set(&mut options.handshake_timeout, self.handshake_timeout.map(milliseconds));
        set(&mut options.close_timeout, self.close_timeout.map(milliseconds));
        set(&mut options.keep_alive.interval, self.keep_alive_interval.map(milliseconds));
        set(&mut options.keep_alive.misses, self.keep_alive_misses);
        if let Some(wanted) = &self.queue_pair {
            let queue_pair = &mut options.queue_pair;
            set(&mut queue_pair.pkey_index, wanted.pkey_index);
            set(&mut queue_pair.timeout, wanted.timeout);
            queue_pair.retry_count = wanted.retry_count;
            set(&mut queue_pair.rnr_retry, wanted.rnr_retry);
            set(&mut queue_pair.min_rnr_timer, wanted.min_rnr_timer);
            set(&mut queue_pair.initiator_depth, wanted.initiator_depth);
            set(&mut queue_pair.responder_resources, wanted.responder_resources);
        }
        Ok(options)
    }

    fn device(&self) -> Result<DeviceOptions> {
        Ok(DeviceOptions {
            wish: DeviceWish {
                device: self.device.clone(),
                port: self.device_port,
                gid_index: self.gid_index,
                rdma_address: self.rdma_address.as_deref().map(|text| ip("rdmaAddress", text)).transpose()?,
            },
            capture_file: self.capture_file.as_ref().map(Into::into),
            addressing: match self.addressing.as_deref() {
                None | Some("hybrid") => Addressing::Hybrid,
                Some("verbs") => Addressing::Verbs,
                Some(other) => {
                    return Err(invalid(format!("addressing is {other:?}: give \"hybrid\" or \"verbs\"")));
                }
            },
        })
    }

    fn connection(&self) -> ConnectionOptions {
        let mut options = ConnectionOptions::default();
        set(&mut options.max_message_size, self.max_message_size.map(whole));
        set(&mut options.send_buffer_size, self.send_buffer_size.map(size));
        set(&mut options.receive_buffer_size, self.receive_buffer_size.map(size));
        set(&mut options.credits, self.credits);
        if let Some(pool) = &self.pool {
            set(&mut options.pool.buffer_size, pool.buffer_size);
            set(&mut options.pool.receive_buffers, pool.receive_buffers);
            set(&mut options.pool.send_buffers, pool.send_buffers);
        }
        set(&mut options.close_timeout, self.close_timeout.map(milliseconds));
        set(&mut options.path_timeout, self.path_timeout.map(milliseconds));
        if let Some(interval) = self.path_probe_interval {
            options.path_probe = (interval > 0).then(|| milliseconds(interval));
        }
        options
    }
}

/// What was not given keeps its default.
fn set<T>(option: &mut T, given: Option<T>) {
    if let Some(given) = given {
        *option = given;
    }
}

fn bytes(list: &[Uint8Array]) -> Vec<Vec<u8>> {
    list.iter().map(|element| element.to_vec()).collect()
}

fn pins(list: &[String]) -> Result<Vec<Pin>> {
    list.iter().map(|pin| pin.parse()).collect()
}

fn milliseconds(count: u32) -> Duration {
    Duration::from_millis(count.into())
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "TypeScript gives whole numbers >= 0"
)]
fn whole(count: f64) -> u64 {
    count as u64
}

fn size(count: f64) -> usize {
    usize::try_from(whole(count)).unwrap_or(usize::MAX)
}

fn ip(option: &str, text: &str) -> Result<IpAddr> {
    text.parse().map_err(|_| invalid(format!("{option}: {text:?} is no IP address")))
}

fn path_mtu(bytes: u32) -> Result<PathMtu> {
    let code = u8::try_from(bytes.trailing_zeros().saturating_sub(7)).ok();
    code.and_then(PathMtu::from_code)
        .filter(|mtu| mtu.bytes() == bytes as usize)
        .ok_or_else(|| invalid(format!("maxPathMtu is {bytes}: give 256, 512, 1024, 2048 or 4096")))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_five_path_mtus_are_taken() {
        for bytes in 0..=8192 {
            let expected = matches!(bytes, 256 | 512 | 1024 | 2048 | 4096);
            assert_eq!(path_mtu(bytes).is_ok(), expected, "{bytes}");
        }
        assert_eq!(path_mtu(4096).unwrap().code(), 5);
        assert!(path_mtu(1 << 31).is_err() && path_mtu(u32::MAX).is_err());
    }

    #[test]
    fn an_address_that_is_none_is_refused_by_the_options_name() {
        assert_eq!(ip("rdmaAddress", "fd08::1").unwrap().to_string(), "fd08::1");
        let error = ip("rdmaAddress", "fe80::1%eth0").unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument);
        assert!(error.message().starts_with("rdmaAddress: "));
    }
}
