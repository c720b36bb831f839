//! What two processes tell each other over TCP, in the place of the exchange over TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

/// A TCP connection that carries short frames.
pub(crate) struct Link(TcpStream);

pub(crate) struct Listener(TcpListener);

impl Listener {
    /// Listens, and says where.
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        println!("{}", listener.local_addr().unwrap());
        Self(listener)
    }

    pub(crate) fn accept(&self) -> Link {
        Link(self.0.accept().unwrap().0)
    }
}

impl Link {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).unwrap())
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        // In one piece: the rest of a short frame would wait for an acknowledgement.
        let length = u8::try_from(frame.len()).unwrap();
        self.0.write_all(&[&[length], frame].concat()).unwrap();
    }

    pub(crate) fn receive(&mut self) -> Vec<u8> {
        let mut length = [0];
        self.0.read_exact(&mut length).unwrap();
        let mut frame = vec![0; usize::from(length[0])];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }

    pub(crate) fn number(&mut self, own: u64) -> u64 {
        self.send(&own.to_le_bytes());
        u64::from_le_bytes(self.receive().try_into().unwrap())
    }
}
