//! The sockets of a device: for each address family one that receives, and those that send.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::errno::Errno;
use secure_rdma_rdma::{Error, ErrorCode, ROCE_UDP_PORT, Result};

use crate::holder;
use crate::options::SoftOptions;
use crate::senders::{Refused, Senders};
use crate::socket::Socket;

/// The sockets of one address family.
#[derive(Debug)]
pub(crate) struct Family {
    pub(crate) receive: Socket,
    pub(crate) send: Senders,
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
}

/// Names one of the sockets that send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(pub(crate) usize);

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

    /// The socket for packets from an address, and its place among all that send.
    pub(crate) fn sender(&self, address: IpAddr) -> Option<(Place, &Socket)> {
        let (place, socket) = self.of(address)?.send.of(address);
        Some((Place(2 * place + usize::from(address.is_ipv6())), socket))
    }

    /// The socket at such a place.
    pub(crate) fn sending(&self, Place(place): Place) -> Option<&Socket> {
        let family = if place.is_multiple_of(2) { self.v4.as_ref() } else { self.v6.as_ref() };
        family?.send.get(place / 2)
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
    let send = Senders::open(any, &options.entropy).map_err(|refusal| match refusal {
        Refused::Entropy(error) => error,
        Refused::Syscall(syscall, errno) => refused(options, syscall, errno),
    })?;
    Ok(Some(Family { receive, send, receive_buffer, merges: options.merging }))
}

fn refused(options: &SoftOptions, syscall: &'static str, errno: Errno) -> Error {
    let message = format!("{} cannot be opened: {syscall} of a UDP socket: {}", options.name, errno.desc());
    Error::new(ErrorCode::DeviceOpen, message).with_syscall(syscall, errno as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::senders::FIRST_SOURCE_PORT;

    fn any() -> SoftOptions {
        SoftOptions { port: Some(0), ..SoftOptions::default() }
    }

    #[test]
    fn each_family_has_its_sockets() {
        let ports = Ports::open(&any()).unwrap();
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let Some(family) = ports.of(address) else { continue };
            assert!(family.port() != 0 && family.receive_buffer > 100_000);
            assert_eq!(family.receive.local().is_ipv4(), address.is_ipv4());
            assert!(family.send.port(address) >= FIRST_SOURCE_PORT);
            let (place, socket) = ports.sender(address).unwrap();
            // A host may have the family and not the address.
            assert!(socket.local().ip() == address || address.is_ipv6());
            assert_eq!(ports.sending(place).map(Socket::local), Some(socket.local()));
        }
        assert!(ports.of(Ipv4Addr::LOCALHOST.into()).is_some());
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
}
