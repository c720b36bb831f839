//! Plain UDP: 64 bytes to and fro, and as many 64-byte packets as go out.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::child::Found;
use crate::report::median;

const SIZE: usize = 64;

fn socket(spin: bool) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(spin).unwrap();
    socket
}

fn receive(socket: &UdpSocket, bytes: &mut [u8]) -> SocketAddr {
    loop {
        match socket.recv_from(bytes) {
            Ok((_, from)) => return from,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sends everything back, until standard input ends.
pub(crate) fn echo(spin: bool) {
    let socket = socket(spin);
    println!("{}", socket.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; SIZE];
        loop {
            let from = receive(&socket, &mut bytes);
            socket.send_to(&bytes, from).unwrap();
        }
    });
    crate::soft::wait_for_end();
    println!("0");
}

pub(crate) fn ping(address: SocketAddr, spin: bool, length: Duration) -> Found {
    let socket = socket(spin);
    let mut bytes = [7; SIZE];
    let mut times = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < length {
        let sent = Instant::now();
        socket.send_to(&bytes, address).unwrap();
        receive(&socket, &mut bytes);
        times.push(sent.elapsed().as_secs_f64());
    }
    Found { value: median(&times), ..Found::default() }
}

/// Takes everything in, in large batches, so that it does not hold the sender up.
pub(crate) fn sink(receive_buffer: usize) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    setsockopt(&socket.as_fd(), sockopt::RcvBuf, &receive_buffer).unwrap();
    println!("{}", socket.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; SIZE];
        loop {
            socket.recv_from(&mut bytes).unwrap();
        }
    });
    crate::soft::wait_for_end();
    println!("0");
}

pub(crate) fn flood(address: SocketAddr, length: Duration) -> Found {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let bytes = [7; SIZE];
    let (begun, mut sent) = (Instant::now(), 0_u64);
    while begun.elapsed() < length {
        for _ in 0..64 {
            socket.send_to(&bytes, address).unwrap();
        }
        sent += 64;
    }
    Found { value: sent as f64 / begun.elapsed().as_secs_f64(), ..Found::default() }
}
