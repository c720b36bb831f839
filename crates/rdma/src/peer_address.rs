//! Whether a peer may have its packets sent where its offer says.

use std::fmt;
use std::net::IpAddr;

use crate::{DevicePart, Error, ErrorCode, Gid, LinkLayer, PathContext, Result};

impl PathContext {
    /// Judges the addresses of a peer's part, for a device on `link_layer`.
    ///
    /// On RoCE the GID is an IP address, and a peer that could name any could aim our packets at a third party: it
    /// must be the address that the TLS connection's peer has, or one that the user has allowed. On InfiniBand a
    /// GID is no IP address; the peer is then believed because TLS has authenticated it.
    ///
    /// # Errors
    /// [`ErrorCode::Offer`] with what is wrong.
    pub fn check_peer(&self, link_layer: LinkLayer, peer: &DevicePart) -> Result<()> {
        if peer.link_layer != link_layer {
            return refuse(format_args!("it is on {:?}, we are on {link_layer:?}", peer.link_layer));
        }
        if peer.gid.is_unspecified() {
            return refuse(format_args!("its GID is empty"));
        }
        match link_layer {
            LinkLayer::Infiniband if peer.gid.bytes()[0] == 0xFF => {
                refuse(format_args!("its GID {} is a multicast address", peer.gid))
            }
            LinkLayer::Infiniband => Ok(()),
            LinkLayer::Ethernet => self.check_ip(peer.gid),
        }
    }

    fn check_ip(&self, gid: Gid) -> Result<()> {
        let address = gid.to_ip();
        if gid.is_multicast() {
            return refuse(format_args!("its address {address} is a multicast or broadcast address"));
        }
        let tls_peer = self.tls_peer.to_canonical();
        if gid.is_loopback() && !tls_peer.is_loopback() {
            return refuse(format_args!("its address {address} is on loopback, its TLS connection is not"));
        }
        if address == tls_peer {
            return Ok(());
        }
        if gid.is_link_local() || matches!(address, IpAddr::V4(v4) if v4.is_link_local()) {
            return refuse(format_args!(
                "its address {address} is link-local, and not the address of its TLS connection ({tls_peer})"
            ));
        }
        if self.allowed_peer_addresses.iter().any(|allowed| allowed.to_canonical() == address) {
            return Ok(());
        }
        refuse(format_args!(
            "its address {address} is neither that of its TLS connection ({tls_peer}) nor in allowedPeerAddresses"
        ))
    }
}

fn refuse(reason: fmt::Arguments<'_>) -> Result<()> {
    Err(Error::new(ErrorCode::Offer, format!("the peer's RDMA address is refused: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Lid;

    fn judge(gid: &str, tls_peer: &str, allowed: &[&str]) -> std::result::Result<(), String> {
        let context = PathContext {
            tls_local: "10.8.0.1".parse().unwrap(),
            tls_peer: tls_peer.parse().unwrap(),
            allowed_peer_addresses: allowed.iter().map(|text| text.parse().unwrap()).collect(),
        };
        let part = DevicePart::new(LinkLayer::Ethernet, Gid::from_ip(gid.parse().unwrap()), Lid(0));
        context.check_peer(LinkLayer::Ethernet, &part).map_err(|error| {
            assert_eq!(error.code(), ErrorCode::Offer);
            error.message().to_owned()
        })
    }

    #[test]
    fn the_address_of_the_tls_connection_is_allowed() {
        for (gid, tls_peer) in [
            ("10.8.0.2", "10.8.0.2"),
            ("10.8.0.2", "::ffff:10.8.0.2"),
            ("fd08::2", "fd08::2"),
            ("fe80::2", "fe80::2"),
            ("169.254.1.1", "169.254.1.1"),
            ("127.0.0.1", "127.0.0.1"),
            ("::1", "::1"),
        ] {
            assert_eq!(judge(gid, tls_peer, &[]), Ok(()), "{gid} from {tls_peer}");
        }
    }

    #[test]
    fn another_address_must_be_allowed() {
        assert!(judge("10.9.0.2", "10.8.0.2", &[]).unwrap_err().contains("allowedPeerAddresses"));
        assert!(judge("fd08::2", "10.8.0.2", &["10.9.0.2"]).unwrap_err().contains("fd08::2"));
        assert_eq!(judge("10.9.0.2", "10.8.0.2", &["fd08::1", "::ffff:10.9.0.2"]), Ok(()));
        assert_eq!(judge("fd08::2", "10.8.0.2", &["fd08::2"]), Ok(()));
    }

    #[test]
    fn some_addresses_cannot_be_allowed() {
        for (gid, reason) in [
            ("127.0.0.1", "loopback"),
            ("::1", "loopback"),
            ("224.0.0.1", "multicast"),
            ("239.1.2.3", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("ff02::1", "multicast"),
            ("ff0e::1", "multicast"),
            ("0.0.0.0", "empty"),
            ("::", "empty"),
            ("fe80::9", "link-local"),
            ("169.254.9.9", "link-local"),
        ] {
            let refused = judge(gid, "10.8.0.2", &[gid]).unwrap_err();
            assert!(refused.contains(reason), "{gid}: {refused}");
        }
    }

    #[test]
    fn the_link_layers_must_be_the_same() {
        let gid = Gid::from_ip("10.8.0.2".parse().unwrap());
        let address: IpAddr = "10.8.0.2".parse().unwrap();
        let context =
            PathContext { tls_local: address, tls_peer: address, allowed_peer_addresses: Vec::new() };
        let roce = DevicePart::new(LinkLayer::Ethernet, gid, Lid(0));
        assert!(context.check_peer(LinkLayer::Infiniband, &roce).unwrap_err().message().contains("Ethernet"));
        let infiniband = DevicePart::new(LinkLayer::Infiniband, Gid::new([0xFE; 16]), Lid(1));
        assert!(context.check_peer(LinkLayer::Ethernet, &infiniband).is_err());
        assert!(
            context.check_peer(LinkLayer::Infiniband, &infiniband).is_ok(),
            "not compared with an IP address"
        );
        let multicast = DevicePart::new(LinkLayer::Infiniband, Gid::new([0xFF; 16]), Lid(1));
        assert!(context.check_peer(LinkLayer::Infiniband, &multicast).is_err());
    }
}
