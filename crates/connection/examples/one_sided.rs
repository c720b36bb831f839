//! Two peers in one process, on the embedded device: one publishes memory, the other writes to it, reads it, and counts
//! in it, without the first one's application doing anything. It needs neither Node nor RDMA hardware.
//!
//! ```console
//! cargo run -p secure-rdma-connection --example one_sided
//! ```
//!
//! On a machine with an RDMA device give the registry `secure_rdma_verbs::Verbs` too, and connect to an address of
//! that device: nothing else changes.
#![allow(clippy::print_stdout, reason = "it tells what it does")]

use std::error::Error;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use secure_rdma_connection::{
    Connection, ConnectionOptions, DeviceOptions, Operation, Registry, Server, SharedRegion, connect,
};
use secure_rdma_rdma::Access;
use secure_rdma_session::{ConnectConfig, ListenConfig, TlsOptions};
use secure_rdma_soft::SoftDevices;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    // The devices of this process, shared by all its connections.
    let registry = Registry::new(vec![Arc::new(SoftDevices)]);
    let tls = certificates()?;

    let listen = ListenConfig::new("127.0.0.1", 0, tls.clone());
    let server =
        Server::listen(&registry, listen, DeviceOptions::default(), ConnectionOptions::default()).await?;
    let config = ConnectConfig::new("127.0.0.1", server.local_addr().port(), tls);
    let (client, accepted) = tokio::join!(
        connect(&registry, config, DeviceOptions::default(), ConnectionOptions::default()),
        server.accept(),
    );
    let (client, accepted) = (client?, accepted.ok_or("the server was closed")?);
    println!("connected over {}", client.local().device);

    let (served, used) = tokio::join!(serve(&accepted), use_it(&client));
    served?;
    used?;

    // Everything has been acknowledged: say so to the peer, and wait for its answer.
    client.close();
    let end = client.wait_closed().await;
    println!("closed: {}, everything delivered: {}", end.reason.as_str(), end.delivered);
    Ok(())
}

/// Lends a page to the peer, and waits until it has been used.
async fn serve(connection: &Connection) -> Result<(), Box<dyn Error>> {
    let page = SharedRegion::allocate(4096)?;
    // The first 8 bytes are a counter, the rest is for texts. Only this peer gets a key, over TLS.
    let rights = Access::REMOTE_READ | Access::REMOTE_WRITE | Access::REMOTE_ATOMIC;
    connection.publish("page", &page.whole()?, rights)?;

    // A WRITE is silent, unless it carries an immediate: then its bytes are in place when that arrives.
    let length = connection.next_immediate().await?.ok_or("the peer has ended without a word")?;
    let mut text = vec![0; usize::try_from(length)?];
    page.read(8, &mut text)?;
    println!("the peer wrote {:?}", String::from_utf8_lossy(&text));

    // Takes the right back: the peer's library stops, confirms, and only then the key dies.
    let publication = connection.unpublish("page")?;
    connection.wait_unpublished(publication).await;
    Ok(())
}

async fn use_it(connection: &Connection) -> Result<(), Box<dyn Error>> {
    let page = connection.remote("page").await?;
    let (counter, texts) = (page.slice(0, 8)?, page.slice(8, page.len() - 8)?);
    let ours = SharedRegion::allocate(4096)?;

    // Each of these is one RDMA operation, and ends when the peer's device has carried it out.
    let text = b"hello, memory of my peer";
    ours.write(0, text)?;
    connection.write(&ours.slice(0, text.len())?, &texts).await?;

    let back = ours.slice(1024, text.len())?;
    connection.read(&texts, &back).await?;
    let mut bytes = vec![0; back.len()];
    back.read(0, &mut bytes)?;
    assert_eq!(bytes, text, "what was written is read back");

    for expected in 0..3 {
        assert_eq!(connection.fetch_and_add(&counter, 1).await?, expected);
    }

    // Many at once: one lock, one list for the device. They complete in this order.
    let local = [ours.slice(0, text.len())?];
    let list = [
        Operation::CompareAndSwap { remote: &counter, compare: 3, swap: 100, fence: false },
        Operation::Write {
            local: &local,
            remote: &texts,
            immediate: Some(u32::try_from(text.len())?),
            fence: true,
        },
    ];
    let ids = connection.post(&list)?;
    assert_eq!(connection.completed(ids.start).await?, 3, "what a compare-and-swap found");
    connection.completed(ids.start + 1).await?;

    // The peer takes the page back; from then on nothing can be posted to it, and the connection lives on.
    let refused = loop {
        match connection.read(&texts, &back).await {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    println!("after that: {} ({refused})", refused.code());
    Ok(())
}

/// An authority of our own, and a certificate that both peers use: each verifies the other.
fn certificates() -> Result<TlsOptions, Box<dyn Error>> {
    let (authority_key, key) = (KeyPair::generate()?, KeyPair::generate()?);
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&authority_key)?.pem();
    let names = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    let cert = names.signed_by(&key, &Issuer::new(authority, authority_key))?.pem();
    Ok(TlsOptions {
        ca: vec![ca.into_bytes()],
        cert: vec![cert.into_bytes()],
        key: Some(key.serialize_pem().into_bytes()),
        ..TlsOptions::default()
    })
}

#[test]
fn it_runs() -> Result<(), Box<dyn Error>> {
    main()
}
