//! Devices that go and come back under a server.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use secure_rdma_rdma::fake::Fabric;
use secure_rdma_rdma::{AsyncEvent, Device, DeviceInfo, DeviceWish, Devices, Error, ErrorCode, Result};
use secure_rdma_session::{Host, TlsAddresses};

use super::{ADDRESSES, until};
use crate::host::{DeviceHost, Registry};
use crate::options::{ConnectionOptions, DeviceOptions};

/// A server's host on a fabric whose devices come and go.
fn server() -> (Arc<Fabric>, Arc<DeviceHost>) {
    let fabric = Arc::new(Fabric::new());
    let registry = Registry::new(vec![Arc::<Fabric>::clone(&fabric)]);
    let host = DeviceHost::new(&registry, DeviceOptions::default(), ConnectionOptions::default(), true);
    (fabric, host)
}

fn addresses() -> TlsAddresses {
    TlsAddresses { local: SocketAddr::from((ADDRESSES[0], 1)), peer: SocketAddr::from((ADDRESSES[1], 2)) }
}

#[test]
fn a_device_that_comes_back_is_used_again() {
    let (fabric, host) = server();
    let first = fabric.device("fake0", ADDRESSES[0].into());
    let prepared = host.prepare(addresses()).unwrap();
    first.inject(AsyncEvent::DeviceGone);
    assert_eq!(host.prepare(addresses()).err().unwrap().code(), ErrorCode::NoDevice);
    // The first is still held, by a handshake under way.
    let _second = fabric.device("fake0", ADDRESSES[0].into());
    let again = host.prepare(addresses()).unwrap();
    assert!(prepared.device.is_gone() && !again.device.is_gone());
}

#[test]
fn a_link_local_address_is_looked_for_on_its_interface() {
    // Two devices with the same hardware address, as of a NIC and its VLAN.
    let (fabric, host) = server();
    let _twins = ["fake0", "fake1"].map(|name| fabric.device(name, ADDRESSES[0].into()));
    let gids: Vec<_> = fabric.list().unwrap().iter().map(|device| device.ports[0].gids[0].gid).collect();
    assert!(gids[0].is_link_local() && gids[0] == gids[1]);
    let address = Ipv6Addr::from(gids[0].bytes());
    let prepare = |scope| {
        let local = SocketAddr::V6(SocketAddrV6::new(address, 1, 0, scope));
        host.prepare(TlsAddresses { local, ..addresses() }).map(|prepared| prepared.local.device)
    };
    assert_eq!((prepare(1).unwrap(), prepare(2).unwrap()), ("fake0".to_owned(), "fake1".to_owned()));
    // Of two that fit equally none is guessed.
    assert_eq!(prepare(0).err().unwrap().code(), ErrorCode::NoMatchingDevice);
}

#[test]
fn an_idle_server_lets_go_of_a_device_that_is_gone() {
    let (fabric, host) = server();
    let device = fabric.device("fake0", ADDRESSES[0].into());
    drop(host.prepare(addresses()).unwrap());
    until("the queue pair to be gone", || fabric.counters().queue_pairs == 0);
    assert_eq!(fabric.counters().receive_queues, 1, "kept for the next client");
    device.inject(AsyncEvent::DeviceGone);
    assert_eq!(fabric.counters().receive_queues, 0);
    assert_eq!(fabric.counters().regions, 0);
}

#[test]
fn a_server_that_is_closed_keeps_no_device() {
    let (fabric, host) = server();
    let _device = fabric.device("fake0", ADDRESSES[0].into());
    host.release();
    // As of a handshake that was in a blocking call when the server closed.
    drop(host.prepare(addresses()).unwrap());
    until("all to be gone", || fabric.counters().receive_queues == 0 && fabric.counters().regions == 0);
}

/// A family that cannot be asked, as libibverbs of a half-installed rdma-core.
struct Broken;

impl Devices for Broken {
    fn list(&self) -> Result<Vec<DeviceInfo>> {
        Err(Error::new(ErrorCode::Library, "it is broken"))
    }

    fn open(&self, _name: &str) -> Result<Arc<dyn Device>> {
        self.list().map(|_| unreachable!())
    }
}

/// What comes of a connection whose user gave these device options, beside a family that is broken.
fn beside_a_broken_family(device: DeviceOptions) -> Result<()> {
    let fabric = Arc::new(Fabric::new());
    let _fake0 = fabric.device("fake0", ADDRESSES[0].into());
    let registry = Registry::new(vec![Arc::new(Broken), fabric]);
    DeviceHost::new(&registry, device, ConnectionOptions::default(), false).prepare(addresses()).map(drop)
}

#[test]
fn a_family_that_cannot_be_asked_is_in_the_way_of_every_device_but_a_named_one() {
    let named = |name: &str| DeviceOptions {
        wish: DeviceWish { device: Some(name.to_owned()), ..DeviceWish::default() },
        ..DeviceOptions::default()
    };
    let code = |device| beside_a_broken_family(device).unwrap_err().code();
    assert_eq!(code(DeviceOptions::default()), ErrorCode::Library, "what fits best may be one of its");
    assert_eq!(code(named("mlx5_0")), ErrorCode::Library);
    beside_a_broken_family(named("fake0")).unwrap();
}

#[test]
fn a_capture_that_the_device_cannot_make_is_refused_by_name() {
    let (fabric, _) = server();
    let _device = fabric.device("fake0", ADDRESSES[0].into());
    let registry = Registry::new(vec![Arc::<Fabric>::clone(&fabric)]);
    let device =
        DeviceOptions { capture_file: Some("/tmp/capture.pcapng".into()), ..DeviceOptions::default() };
    let host = DeviceHost::new(&registry, device, ConnectionOptions::default(), false);
    let error = host.prepare(addresses()).map(drop).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeviceUnsupported);
    assert!(error.message().starts_with("fake0 cannot capture to /tmp/capture.pcapng: "), "{error}");
    assert!(fabric.counters().all_unmade());
}
