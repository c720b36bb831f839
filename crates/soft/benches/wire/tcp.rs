//! Plain TCP: one connection, 1 MiB writes, a reader that only reads.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::child::Found;

const WRITE: usize = 1 << 20;

pub(crate) fn server(buffer: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = vec![0; buffer];
    while stream.read(&mut bytes).unwrap() > 0 {}
    stream.write_all(&[1]).unwrap();
    println!("0");
}

pub(crate) fn client(address: SocketAddr, length: Duration) -> Found {
    let mut stream = TcpStream::connect(address).unwrap();
    let bytes = vec![7; WRITE];
    // The first tenth warms up.
    let warm = Instant::now();
    while warm.elapsed() < length / 10 {
        stream.write_all(&bytes).unwrap();
    }
    let (begun, mut sent) = (Instant::now(), 0);
    while begun.elapsed() < length {
        stream.write_all(&bytes).unwrap();
        sent += bytes.len();
    }
    // The rest is in buffers of both sides: until it is read.
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    stream.read_exact(&mut [0]).unwrap();
    Found { value: sent as f64 / begun.elapsed().as_secs_f64(), ..Found::default() }
}
