//! Two channels on the in-memory device: what travels between them, and what a peer can do wrong.

mod arrived;
mod devices;
mod ends;
mod flow;
mod grants;
mod hostile;
mod operations;
mod over_tls;
mod regions;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use secure_rdma_rdma::fake::{self, Fabric, FakeDevice};
use secure_rdma_rdma::{PathMtu, QueuePair, Result};
use secure_rdma_session::{Host, Prepared, TlsAddresses, UpperLayer};

use crate::channel::Channel;
use crate::connection::Received;
use crate::host::{DeviceHost, Registry};
use crate::options::{ConnectionOptions, DeviceOptions};
use crate::upper::Upper;

/// Two devices on one wire, each with its own host.
pub(crate) struct World {
    pub(crate) fabric: Fabric,
    pub(crate) devices: [Arc<FakeDevice>; 2],
    registries: [Arc<Registry>; 2],
}

/// One end of a connection, without a control channel.
pub(crate) struct End {
    pub(crate) channel: Arc<Channel>,
    pub(crate) upper: Arc<Upper>,
}

pub(crate) const ADDRESSES: [[u8; 4]; 2] = [[10, 8, 0, 1], [10, 8, 0, 2]];

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Two devices, as `change` makes them.
    pub(crate) fn with(change: impl Fn(&mut secure_rdma_rdma::DeviceInfo)) -> Self {
        let fabric = Fabric::new();
        let devices = [0, 1].map(|i| {
            let mut info = fake::device_info(&format!("fake{i}"), ADDRESSES[i].into());
            change(&mut info);
            fabric.add(info)
        });
        let registries = [0, 1].map(|i| Registry::new(vec![Arc::new(fabric.host([&devices[i]]))]));
        Self { fabric, devices, registries }
    }

    pub(crate) fn prepare(&self, i: usize, options: &ConnectionOptions) -> Result<Prepared<Upper>> {
        let host = DeviceHost::new(&self.registries[i], DeviceOptions::default(), options.clone(), false);
        let addresses = TlsAddresses {
            local: SocketAddr::from((ADDRESSES[i], 1)),
            peer: SocketAddr::from((ADDRESSES[1 - i], 2)),
        };
        host.prepare(addresses)
    }

    /// A connection that is up.
    pub(crate) fn pair(&self, options: &ConnectionOptions) -> [End; 2] {
        let ends = self.proven(options);
        for end in &ends {
            end.channel.open(None, "between two tests, UDP port 4791".to_owned());
        }
        ends
    }

    /// A connection whose path is proven and that nobody has been told of.
    pub(crate) fn proven(&self, options: &ConnectionOptions) -> [End; 2] {
        let ends = self.proving(options);
        for end in &ends {
            wait(poll_fn(|cx| end.upper.poll_path_proven(cx))).unwrap();
        }
        ends
    }

    /// Two queue pairs in RTS whose proofs of path are on the wire.
    pub(crate) fn proving(&self, options: &ConnectionOptions) -> [End; 2] {
        let prepared = [0, 1].map(|i| self.prepare(i, options).unwrap());
        let queue_pairs = [0, 1].map(|i| Arc::clone(&prepared[i].queue_pair));
        for queue_pair in &queue_pairs {
            fake::init(queue_pair.as_ref()).unwrap();
        }
        let uppers = [0, 1].map(|i| Arc::clone(&prepared[i].upper));
        for (i, upper) in uppers.iter().enumerate() {
            upper.post_receives().unwrap();
            upper.adopt(&uppers[1 - i].terms(), PathMtu::Bytes1024).unwrap();
        }
        self.connect(&queue_pairs);
        for upper in &uppers {
            upper.prove_path().unwrap();
        }
        uppers.map(|upper| End { channel: Arc::clone(&upper.0), upper })
    }

    pub(crate) fn connect(&self, queue_pairs: &[Arc<dyn QueuePair>; 2]) {
        fake::connect(
            (&self.devices[0], queue_pairs[0].as_ref()),
            (&self.devices[1], queue_pairs[1].as_ref()),
        )
        .unwrap();
    }
}

impl End {
    /// The next message, waited for.
    pub(crate) fn next(&self) -> Result<Option<Vec<u8>>> {
        wait(poll_fn(|cx| {
            Channel::wake_on_news(&mut self.channel.lock(), cx.waker());
            match self.channel.take_message() {
                Received::Message(message) => Poll::Ready(Ok(Some(message))),
                Received::End => Poll::Ready(Ok(None)),
                Received::Closed(error) => Poll::Ready(Err(error)),
                Received::Pending => Poll::Pending,
            }
        }))
    }

    /// Waits until `is` holds of the channel.
    pub(crate) fn until(&self, what: &str, is: impl Fn(&Channel) -> bool) {
        until(what, || is(&self.channel));
    }
}

pub(crate) fn until(what: &str, is: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < Duration::from_secs(20), "waited 20 s for: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future to its end on this thread, 20 s at most.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    let begun = Instant::now();
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "a future did not end within 20 s");
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

/// Bytes that tell where they belong.
pub(crate) fn message(seed: usize, length: usize) -> Vec<u8> {
    (0..length)
        .map(|i| (i.wrapping_mul(31).wrapping_add(seed.wrapping_mul(17)) % 251).to_le_bytes()[0])
        .collect()
}
