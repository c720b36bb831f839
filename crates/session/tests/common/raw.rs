//! Peers that speak TLS, and then whatever the test wants.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secure_rdma_rdma::{PathMtu, Psn, Qpn};
use secure_rdma_session::{Frame, FrameDecoder, Offer, Terms, VERSION};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::World;

/// A client that is not ours.
pub struct RawClient {
    pub stream: TlsStream<TcpStream>,
    decoder: FrameDecoder,
    /// What its offer states.
    pub keep_alive_interval: Option<Duration>,
}

/// A client configuration with the world's client identity.
pub fn client_config(world: &World, alpn: &[&[u8]]) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&world.authority.pem).unwrap()).unwrap();
    let chain = vec![CertificateDer::from_pem_slice(&world.client_tls.cert[0]).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(world.client_tls.key.as_ref().unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    config
}

impl RawClient {
    pub async fn new(world: &World, port: u16) -> Self {
        let tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let config = client_config(world, &[b"secure-rdma/1"]);
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        let keep_alive_interval = Some(world.options.keep_alive.interval);
        Self { stream, decoder: FrameDecoder::default(), keep_alive_interval }
    }

    /// What the TLS session exports for a role.
    pub fn binding(&self, role: &str) -> [u8; 32] {
        let session = self.stream.get_ref().1;
        session
            .export_keying_material([0; 32], b"EXPORTER-secure-rdma-binding", Some(role.as_bytes()))
            .unwrap()
    }

    /// An offer that is good for this session.
    pub fn offer(&self) -> Offer {
        Offer {
            version: VERSION,
            min_version: VERSION,
            qpn: Qpn::new(0x4711).unwrap(),
            psn: Psn::new(0x12_3456).unwrap(),
            path_mtu: PathMtu::Bytes1024,
            responder_resources: 16,
            initiator_depth: 16,
            terms: Terms { max_message_size: 1 << 20, segment_size: 8192, credits: 64 },
            device_part: secure_rdma_rdma::Gid::from_ip("127.0.0.1".parse().unwrap()).bytes().to_vec(),
            binding: self.binding("client"),
            keep_alive_interval: self.keep_alive_interval,
        }
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub async fn send(&mut self, frame: &Frame) {
        self.send_bytes(&frame.encode()).await;
    }

    pub async fn send_offer(&mut self, offer: Offer) {
        self.send(&Frame::Offer(Box::new(offer))).await;
    }

    /// The next frame, or `None` at the end.
    pub async fn receive(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 4096];
            match tokio::time::timeout(Duration::from_secs(10), self.stream.read(&mut bytes)).await.unwrap() {
                Ok(0) | Err(_) => return None,
                Ok(read) => self.decoder.push(&bytes[..read]),
            }
        }
    }

    /// The ERROR frame that ends it: code and message.
    pub async fn error(&mut self) -> (String, String) {
        loop {
            match self.receive().await {
                Some(Frame::Error { code, message }) => return (code, message),
                Some(_) => {}
                None => panic!("it ended without an ERROR frame"),
            }
        }
    }

    /// Everything up to a connection that is up.
    pub async fn bring_up(&mut self) {
        self.send_offer(self.offer()).await;
        self.send(&Frame::Ready).await;
        while self.receive().await != Some(Frame::Ready) {}
        self.send(&Frame::Proven).await;
        while self.receive().await != Some(Frame::Proven) {}
    }
}
