//! The sockets of a device: for each address family one that receives and one that sends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;
use secure_rdma_rdma::{Entropy, Error, ErrorCode, ROCE_UDP_PORT, Result};

use crate::holder;
use crate::options::SoftOptions;
use crate::socket::Socket;

/// Source ports of RoCEv2 are from here on (brief §10).
const FIRST_SOURCE_PORT: u16 = 0xC000;

/// What the sending socket may hold back while its interface is busy: two full batches.
const SEND_BUFFER: usize = 1 << 18;

/// A sending socket receives nothing: what comes to it nevertheless must not take memory.
const NO_RECEIVE_BUFFER: usize = 0;

/// The sockets of one address family.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) receive: Socket,
    pub(crate) send: Socket,
    /// Bytes that the receive buffer really holds.
    pub(crate) receive_buffer: u32,
    /// Whether the kernel may merge what arrives.
    pub(crate) merges: bool,
}

impl Family {
    /// The port that peers send to.
    pub(crate) fn port(&self) -> u16 {
        self.receive.local().port()
    }

    /// The port that our packets come from.
    pub(crate) fn source_port(&self) -> u16 {
        self.send.local().port()
    }
}

/// The sockets of a device. Hosts without IPv6, or without IPv4, have those of the other.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) v4: Option<Family>,
    pub(crate) v6: Option<Family>,
}

impl Ports {
    /// Binds them.
    pub(crate) fn open(options: &SoftOptions) -> Result<Self> {
        let v4 = family(Ipv4Addr::UNSPECIFIED.into(), options)?;
        let v6 = family(Ipv6Addr::UNSPECIFIED.into(), options)?;
        if v4.is_none() && v6.is_none() {
            return Err(Error::new(
                ErrorCode::DeviceOpen,
                "this host has neither IPv4 nor IPv6, and the embedded device sends over UDP",
            ));
        }
        Ok(Self { v4, v6 })
    }

    /// Those of an address's family.
    pub(crate) fn of(&self, address: IpAddr) -> Option<&Family> {
        if address.is_ipv4() { self.v4.as_ref() } else { self.v6.as_ref() }
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Family> {
        self.v4.iter().chain(&self.v6)
    }
}

fn family(any: IpAddr, options: &SoftOptions) -> Result<Option<Family>> {
    let receive =
        match (Socket::bind(SocketAddr::new(any, options.port.unwrap_or(ROCE_UDP_PORT))), options.port) {
            (Err(Errno::EADDRINUSE), None) => Socket::bind(SocketAddr::new(any, 0)),
            (Err(Errno::EADDRINUSE), Some(port)) => {
                let message = format!("{} cannot be opened: {}", options.name, holder::describe(port));
                return Err(
                    Error::new(ErrorCode::DeviceOpen, message).with_syscall("bind", Errno::EADDRINUSE as i32)
                );
            }
            (bound, _) => bound,
        };
    let receive = match receive {
        // The kernel has no such family, or it is switched off.
        Err(Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT | Errno::EADDRNOTAVAIL) => return Ok(None),
        bound => bound.map_err(|errno| refused(options, "bind", errno))?,
    };
    receive.enable_receiving(options.merging).map_err(|errno| refused(options, "setsockopt", errno))?;
    let receive_buffer = receive
        .set_receive_buffer(options.receive_buffer)
        .map_err(|errno| refused(options, "setsockopt", errno))?;
    let send = bind_source(any, options)?;
    send.set_receive_buffer(NO_RECEIVE_BUFFER)
        .and_then(|_| send.set_send_buffer(SEND_BUFFER))
        .map_err(|errno| refused(options, "setsockopt", errno))?;
    Ok(Some(Family { receive, send, receive_buffer, merges: options.merging }))
}

/// A socket on a random port from 0xC000 on: the peer checks it, so that who cannot see our packets must guess it, and
/// switches spread flows by it.
fn bind_source(any: IpAddr, options: &SoftOptions) -> Result<Socket> {
    const TRIES: usize = 256;
    let mut last = Errno::EADDRINUSE;
    for _ in 0..TRIES {
        let port = draw(options.entropy.as_ref())?;
        match Socket::bind(SocketAddr::new(any, port)) {
            Ok(socket) => return Ok(socket),
            Err(errno) => last = errno,
        }
        if last != Errno::EADDRINUSE {
            break;
        }
    }
    Err(refused(options, "bind", last))
}

fn draw(entropy: &dyn Entropy) -> Result<u16> {
    let mut bytes = [0; 2];
    entropy.fill(&mut bytes)?;
    Ok(FIRST_SOURCE_PORT | u16::from_ne_bytes(bytes))
}

fn refused(options: &SoftOptions, syscall: &'static str, errno: Errno) -> Error {
    let message = format!("{} cannot be opened: {syscall} of a UDP socket: {}", options.name, errno.desc());
    Error::new(ErrorCode::DeviceOpen, message).with_syscall(syscall, errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any() -> SoftOptions {
        SoftOptions { port: Some(0), ..SoftOptions::default() }
    }

    #[test]
    fn each_family_has_its_two_sockets() {
        let ports = Ports::open(&any()).unwrap();
        let v4 = ports.of(Ipv4Addr::LOCALHOST.into()).unwrap();
        assert!(v4.port() != 0 && v4.source_port() >= FIRST_SOURCE_PORT && v4.receive_buffer > 100_000);
        assert!(v4.receive.local().is_ipv4() && v4.send.local().is_ipv4());
        if let Some(v6) = ports.of(Ipv6Addr::LOCALHOST.into()) {
            assert!(v6.receive.local().is_ipv6() && v6.source_port() >= FIRST_SOURCE_PORT);
        }
    }

    #[test]
    fn the_receive_buffer_is_what_it_really_is() {
        let options = SoftOptions { receive_buffer: 212_992, ..any() };
        assert!(Ports::open(&options).unwrap().iter().all(|family| family.receive_buffer == 425_984));
    }

    #[test]
    fn a_port_that_was_asked_for_and_is_taken_is_an_error_that_names_the_holder() {
        let first = Ports::open(&any()).unwrap();
        let port = first.v4.as_ref().unwrap().port();
        let error = Ports::open(&SoftOptions { port: Some(port), ..SoftOptions::default() }).unwrap_err();
        assert_eq!((error.code(), error.syscall()), (ErrorCode::DeviceOpen, Some("bind")));
        assert!(error.message().contains(&std::process::id().to_string()), "{error}");
    }

    #[test]
    fn source_ports_use_all_fourteen_bits() {
        let drawn: std::collections::HashSet<_> =
            (0..1000).map(|_| draw(&secure_rdma_rdma::OsEntropy).unwrap()).collect();
        let (all, any) = drawn.iter().fold((u16::MAX, 0), |(all, any), port| (all & port, any | port));
        assert_eq!((all, any), (0xC000, 0xFFFF));
    }
}
