//! The sockets of one address family that send: one for each of the own addresses that packets come from, as far as it goes.
//!
//! A socket that is bound to no address needs the source of each packet said with it (`IP_PKTINFO`), and the kernel takes as
//! long to read that as to copy a short message. So each of the first few own addresses has a socket that is bound to it,
//! once it is used. All others, and link-local ones, share one that is bound to none.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock};

use nix::errno::Errno;
use secure_rdma_rdma::{Entropy, Result};

use crate::core::lock;
use crate::socket::Socket;

/// Source ports of RoCEv2 are from here on (brief §10).
pub(crate) const FIRST_SOURCE_PORT: u16 = 0xC000;

/// Own addresses that have a socket each.
const MOST: usize = 16;

/// What a sending socket may hold back while its interface is busy: two full batches.
const SEND_BUFFER: usize = 1 << 18;

/// A sending socket receives nothing: what comes to it nevertheless must not take memory.
const NO_RECEIVE_BUFFER: usize = 0;

/// What went wrong where one could not be made: the random generator, or a system call and what it said.
#[derive(Debug)]
pub(crate) enum Refused {
    Entropy(secure_rdma_rdma::Error),
    Syscall(&'static str, Errno),
}

/// The sending sockets of one address family.
pub(crate) struct Senders {
    /// Bound to no address.
    shared: Socket,
    /// In the order of first use.
    own: [OnceLock<Own>; MOST],
    binding: Mutex<()>,
    entropy: Arc<dyn Entropy>,
}

/// What was decided for an address. It holds for as long as the device is open: peers have been told the port.
#[derive(Debug)]
struct Own {
    address: IpAddr,
    /// `None`: it uses the shared one.
    socket: Option<Socket>,
}

impl Senders {
    /// `any` is the family's unspecified address.
    pub(crate) fn open(any: IpAddr, entropy: &Arc<dyn Entropy>) -> std::result::Result<Self, Refused> {
        let shared = bind(any, entropy.as_ref())?;
        Ok(Self { shared, own: Default::default(), binding: Mutex::default(), entropy: Arc::clone(entropy) })
    }

    /// The UDP port that packets from `address` come from.
    pub(crate) fn port(&self, address: IpAddr) -> u16 {
        if self.find(address).is_none() {
            self.add(address);
        }
        self.of(address).1.local().port()
    }

    /// The socket for packets from `address`, and its place.
    pub(crate) fn of(&self, address: IpAddr) -> (usize, &Socket) {
        match self.find(address) {
            Some((place, Own { socket: Some(socket), .. })) => (place + 1, socket),
            _ => (0, &self.shared),
        }
    }

    /// The socket at a place.
    pub(crate) fn get(&self, place: usize) -> Option<&Socket> {
        match place.checked_sub(1) {
            None => Some(&self.shared),
            Some(index) => self.own.get(index)?.get()?.socket.as_ref(),
        }
    }

    fn find(&self, address: IpAddr) -> Option<(usize, &Own)> {
        let decided = self.own.iter().map_while(OnceLock::get).enumerate();
        decided.into_iter().find(|(_, own)| own.address == address)
    }

    fn add(&self, address: IpAddr) {
        let _binding = lock(&self.binding);
        if self.find(address).is_some() {
            return;
        }
        let Some(place) = self.own.iter().find(|place| place.get().is_none()) else { return };
        // A link-local address, which is one only together with an interface, or no descriptor left: not worth an error.
        let socket = bind(address, self.entropy.as_ref()).ok();
        let _ = place.set(Own { address, socket });
    }
}

/// A socket on a random port from 0xC000 on: the peer checks it, so that who cannot see our packets must guess it, and
/// switches spread flows by it.
fn bind(address: IpAddr, entropy: &dyn Entropy) -> std::result::Result<Socket, Refused> {
    const TRIES: usize = 256;
    let mut bound = Err(Errno::EADDRINUSE);
    for _ in 0..TRIES {
        let port = draw(entropy).map_err(Refused::Entropy)?;
        bound = Socket::bind(SocketAddr::new(address, port));
        if !matches!(bound, Err(Errno::EADDRINUSE)) {
            break;
        }
    }
    let socket = bound.map_err(|errno| Refused::Syscall("bind", errno))?;
    socket
        .set_receive_buffer(NO_RECEIVE_BUFFER)
        .and_then(|_| socket.set_send_buffer(SEND_BUFFER))
        .map_err(|errno| Refused::Syscall("setsockopt", errno))?;
    Ok(socket)
}

fn draw(entropy: &dyn Entropy) -> Result<u16> {
    let mut bytes = [0; 2];
    entropy.fill(&mut bytes)?;
    Ok(FIRST_SOURCE_PORT | u16::from_ne_bytes(bytes))
}

impl std::fmt::Debug for Senders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Senders")
            .field("shared", &self.shared)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use secure_rdma_rdma::OsEntropy;

    use super::*;

    fn open(any: IpAddr) -> Senders {
        Senders::open(any, &(Arc::new(OsEntropy) as Arc<dyn Entropy>)).unwrap()
    }

    #[test]
    fn each_of_the_first_addresses_has_a_socket_of_its_own_and_keeps_it() {
        let senders = open(Ipv4Addr::UNSPECIFIED.into());
        let address = |last: usize| IpAddr::from([127, 0, 0, u8::try_from(last).unwrap()]);
        let ports: Vec<u16> = (1..=MOST + 2).map(|last| senders.port(address(last))).collect();
        let shared = senders.shared.local().port();
        for (last, port) in (1..).zip(&ports) {
            let (place, socket) = senders.of(address(last));
            assert_eq!((senders.port(address(last)), socket.local().port()), (*port, *port));
            assert_eq!(senders.get(place).map(Socket::local), Some(socket.local()));
            let own = last <= MOST;
            assert_eq!((*port != shared, socket.local().ip() == address(last)), (own, own));
        }
        assert!(ports.iter().all(|port| *port >= FIRST_SOURCE_PORT));
    }

    #[test]
    fn an_address_that_no_socket_can_have_uses_the_shared_one_for_good() {
        for (any, address) in
            [(IpAddr::from(Ipv4Addr::UNSPECIFIED), "192.0.2.1"), (Ipv6Addr::UNSPECIFIED.into(), "fe80::1")]
        {
            let senders = open(any);
            let address = address.parse().unwrap();
            assert_eq!(senders.port(address), senders.shared.local().port());
            assert_eq!(senders.of(address).0, 0);
            assert!(senders.own[0].get().is_some_and(|own| own.socket.is_none()));
        }
    }

    #[test]
    fn source_ports_use_all_fourteen_bits() {
        let drawn: std::collections::HashSet<_> = (0..1000).map(|_| draw(&OsEntropy).unwrap()).collect();
        let (all, any) = drawn.iter().fold((u16::MAX, 0), |(all, any), port| (all & port, any | port));
        assert_eq!((all, any), (0xC000, 0xFFFF));
    }
}
