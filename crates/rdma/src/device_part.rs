//! The device's part of an offer: what one device must know of the other to send to it.
//!
//! Both kinds of device write and read this one form, so that the embedded device and a NIC can meet. It is one
//! byte of version, then fields of tag, length and value, tags rising. Fields that a reader does not know are
//! refused below tag 0x80 and skipped from there on, so that hints can be added without a new version.

use std::fmt;

use crate::{Error, ErrorCode, Gid, Lid, LinkLayer, Result};

/// The UDP port of RoCEv2, and the one that a device receives on if it says nothing else.
pub const ROCE_UDP_PORT: u16 = 4791;

const VERSION: u8 = 1;

const LINK_LAYER: u8 = 1;
const GID: u8 = 2;
const LID: u8 = 3;
const UDP_PORT: u8 = 4;
const UDP_SOURCE_PORT: u8 = 5;
const RECEIVE_BUFFER: u8 = 6;
/// From here on a tag that is not known is skipped.
const OPTIONAL: u8 = 0x80;

/// One side's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePart {
    /// What carries its packets; the same on both sides.
    pub link_layer: LinkLayer,
    /// Its GID.
    pub gid: Gid,
    /// Its LID; 0 on Ethernet.
    pub lid: Lid,
    /// The UDP port that it receives on, where that is not [`ROCE_UDP_PORT`]. Never 0, and none on InfiniBand.
    pub udp_port: Option<u16>,
    /// The UDP port that its packets come from, where it is one port for all. Never 0, and none on InfiniBand.
    pub udp_source_port: Option<u16>,
    /// Bytes that its socket's receive buffer holds, where its packets go through a socket. Never 0.
    pub receive_buffer: Option<u32>,
}

impl DevicePart {
    /// The longest encoding, in bytes. Longer parts are refused unread.
    pub const MAX_LENGTH: usize = 64;

    /// A part that says no more than where packets go.
    #[must_use]
    pub fn new(link_layer: LinkLayer, gid: Gid, lid: Lid) -> Self {
        Self { link_layer, gid, lid, udp_port: None, udp_source_port: None, receive_buffer: None }
    }

    /// The UDP port that packets go to; none on InfiniBand.
    #[must_use]
    pub fn receive_port(&self) -> Option<u16> {
        match self.link_layer {
            LinkLayer::Ethernet => Some(self.udp_port.unwrap_or(ROCE_UDP_PORT)),
            LinkLayer::Infiniband => None,
        }
    }

    /// The part as it stands in an offer.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        let mut field = |tag: u8, length: u8, value: &[u8]| {
            bytes.extend([tag, length]);
            bytes.extend(value);
        };
        let link_layer = match self.link_layer {
            LinkLayer::Infiniband => 1,
            LinkLayer::Ethernet => 2,
        };
        field(LINK_LAYER, 1, &[link_layer]);
        field(GID, 16, &self.gid.bytes());
        if self.lid.0 != 0 {
            field(LID, 2, &self.lid.0.to_be_bytes());
        }
        if let Some(port) = self.udp_port {
            field(UDP_PORT, 2, &port.to_be_bytes());
        }
        if let Some(port) = self.udp_source_port {
            field(UDP_SOURCE_PORT, 2, &port.to_be_bytes());
        }
        if let Some(length) = self.receive_buffer {
            field(RECEIVE_BUFFER, 4, &length.to_be_bytes());
        }
        bytes
    }

    /// Reads a peer's part. What it says is well-formed and consistent then; whether its addresses are allowed is
    /// for [`crate::PathContext::check_peer`].
    ///
    /// # Errors
    /// [`ErrorCode::Offer`] with what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > Self::MAX_LENGTH {
            return refuse(format_args!(
                "it is {} bytes long, at most {} are taken",
                bytes.len(),
                Self::MAX_LENGTH
            ));
        }
        let Some((version, mut rest)) = bytes.split_first() else {
            return refuse(format_args!("it is empty"));
        };
        if *version != VERSION {
            return refuse(format_args!("its version is {version}, ours is {VERSION}"));
        }
        let mut fields = Fields::default();
        let mut last = 0;
        while let [tag, length, tail @ ..] = rest {
            if *tag <= last {
                return refuse(format_args!("field {tag} stands after field {last}"));
            }
            let Some((value, tail)) = tail.split_at_checked(usize::from(*length)) else {
                return refuse(format_args!("field {tag} claims {length} bytes, {} are left", tail.len()));
            };
            fields.read(*tag, value)?;
            last = *tag;
            rest = tail;
        }
        if !rest.is_empty() {
            return refuse(format_args!("{} byte is left at its end", rest.len()));
        }
        fields.finish()
    }
}

#[derive(Default)]
struct Fields {
    link_layer: Option<LinkLayer>,
    gid: Option<Gid>,
    lid: Option<Lid>,
    udp_port: Option<u16>,
    udp_source_port: Option<u16>,
    receive_buffer: Option<u32>,
}

impl Fields {
    fn read(&mut self, tag: u8, value: &[u8]) -> Result<()> {
        match tag {
            LINK_LAYER => {
                self.link_layer = Some(match fixed(tag, value)? {
                    [1] => LinkLayer::Infiniband,
                    [2] => LinkLayer::Ethernet,
                    [other] => return refuse(format_args!("there is no link layer {other}")),
                });
            }
            GID => self.gid = Some(Gid::new(fixed(tag, value)?)),
            LID => {
                let lid = Lid(u16::from_be_bytes(fixed(tag, value)?));
                if lid.0 == 0 {
                    return refuse(format_args!("a LID of 0 is not written"));
                }
                self.lid = Some(lid);
            }
            UDP_PORT => self.udp_port = Some(port(tag, value)?),
            UDP_SOURCE_PORT => self.udp_source_port = Some(port(tag, value)?),
            RECEIVE_BUFFER => {
                let length = u32::from_be_bytes(fixed(tag, value)?);
                if length == 0 {
                    return refuse(format_args!("a receive buffer holds 0 bytes"));
                }
                self.receive_buffer = Some(length);
            }
            OPTIONAL.. => {}
            _ => return refuse(format_args!("field {tag} is not known")),
        }
        Ok(())
    }

    fn finish(self) -> Result<DevicePart> {
        let Some(link_layer) = self.link_layer else {
            return refuse(format_args!("the link layer is missing"));
        };
        let Some(gid) = self.gid else { return refuse(format_args!("the GID is missing")) };
        let lid = self.lid.unwrap_or_default();
        match link_layer {
            LinkLayer::Ethernet if lid.0 != 0 => {
                return refuse(format_args!("it has LID {lid}, and Ethernet has no LIDs"));
            }
            LinkLayer::Infiniband if !lid.is_unicast() => {
                return refuse(format_args!("LID {lid} is no port's: it must be 1 to 49151"));
            }
            LinkLayer::Infiniband if self.udp_port.or(self.udp_source_port).is_some() => {
                return refuse(format_args!("it has a UDP port, and InfiniBand has none"));
            }
            _ => {}
        }
        let Self { udp_port, udp_source_port, receive_buffer, .. } = self;
        Ok(DevicePart { link_layer, gid, lid, udp_port, udp_source_port, receive_buffer })
    }
}

fn port(tag: u8, value: &[u8]) -> Result<u16> {
    let port = u16::from_be_bytes(fixed(tag, value)?);
    if port == 0 { refuse(format_args!("a UDP port is 0")) } else { Ok(port) }
}

fn fixed<const N: usize>(tag: u8, value: &[u8]) -> Result<[u8; N]> {
    value.try_into().or_else(|_| refuse(format_args!("field {tag} is {} bytes long, not {N}", value.len())))
}

fn refuse<T>(reason: fmt::Arguments<'_>) -> Result<T> {
    Err(Error::new(ErrorCode::Offer, format!("the peer's device part is refused: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roce() -> DevicePart {
        DevicePart::new(LinkLayer::Ethernet, Gid::from_ip("10.8.0.1".parse().unwrap()), Lid(0))
    }

    #[test]
    fn what_is_written_is_read() {
        let soft = DevicePart {
            udp_port: Some(4800),
            udp_source_port: Some(0xC123),
            receive_buffer: Some(212_992),
            ..roce()
        };
        let gid = Gid::new([0xFE, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let infiniband = DevicePart::new(LinkLayer::Infiniband, gid, Lid(0xBFFF));
        for part in [roce(), soft.clone(), infiniband.clone()] {
            let bytes = part.encode();
            assert!(bytes.len() <= DevicePart::MAX_LENGTH);
            assert_eq!(DevicePart::decode(&bytes).unwrap(), part);
        }
        assert_eq!(roce().receive_port(), Some(4791));
        assert_eq!(soft.receive_port(), Some(4800));
        assert_eq!(infiniband.receive_port(), None);
    }

    #[test]
    fn the_form_is_fixed() {
        let head = [1, 1, 1, 2, 2, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 8, 0, 1];
        assert_eq!(roce().encode(), head);
    }

    #[test]
    fn a_field_from_0x80_on_is_skipped() {
        let mut bytes = roce().encode();
        bytes.extend([0x80, 2, 9, 9, 0xFF, 0]);
        assert_eq!(DevicePart::decode(&bytes).unwrap(), roce());
    }

    #[test]
    fn bad_parts_are_refused_with_a_reason() {
        let roce = roce().encode();
        let infiniband = DevicePart::new(LinkLayer::Infiniband, Gid::new([7; 16]), Lid(5)).encode();
        let with = |base: &[u8], tail: &[u8]| [base, tail].concat();
        let cases: &[(Vec<u8>, &str)] = &[
            (vec![], "empty"),
            (vec![0], "version is 0"),
            (with(&[2], &roce[1..]), "version is 2"),
            (vec![1], "link layer is missing"),
            (vec![1; 65], "65 bytes long"),
            (vec![1, 1, 1, 2], "GID is missing"),
            (roce[..roce.len() - 1].to_vec(), "field 2 claims 16 bytes, 15 are left"),
            (with(&[1], &roce[4..]), "link layer is missing"),
            (with(&[1, 1, 1, 0], &roce[4..]), "no link layer 0"),
            (with(&[1, 1, 1, 3], &roce[4..]), "no link layer 3"),
            (with(&[1, 1, 2, 2, 2], &roce[4..]), "field 1 is 2 bytes long, not 1"),
            (with(&[1, 1, 0], &roce[4..]), "field 1 is 0 bytes long, not 1"),
            (with(&roce, &[2]), "1 byte is left"),
            (with(&roce, &[0, 0]), "field 0 stands after field 2"),
            (with(&roce, &[2, 0]), "field 2 stands after field 2"),
            (with(&roce, &[1, 1, 2]), "field 1 stands after field 2"),
            (with(&roce, &[7, 0]), "field 7 is not known"),
            (with(&roce, &[0x7F, 1, 1]), "field 127 is not known"),
            (with(&roce, &[0x80, 5, 1]), "field 128 claims 5 bytes, 1 are left"),
            (with(&roce, &[0x81, 0, 0x80, 0]), "field 128 stands after field 129"),
            (with(&roce, &[3, 2, 0, 1]), "Ethernet has no LIDs"),
            (with(&roce, &[3, 2, 0, 0]), "LID of 0"),
            (with(&roce, &[3, 1, 1]), "field 3 is 1 bytes long, not 2"),
            (with(&roce, &[4, 2, 0, 0]), "UDP port is 0"),
            (with(&roce, &[4, 3, 0, 0, 1]), "field 4 is 3 bytes long, not 2"),
            (with(&roce, &[5, 2, 0, 0]), "UDP port is 0"),
            (with(&roce, &[5, 0]), "field 5 is 0 bytes long, not 2"),
            (with(&roce, &[6, 4, 0, 0, 0, 0]), "holds 0 bytes"),
            (with(&roce, &[6, 2, 1, 1]), "field 6 is 2 bytes long, not 4"),
            (with(&roce, &[5, 2, 0, 9, 4, 2, 0, 9]), "field 4 stands after field 5"),
            (infiniband[..infiniband.len() - 4].to_vec(), "LID 0 is no port's"),
            (with(&infiniband[..infiniband.len() - 2], &[0xC0, 0]), "LID 49152 is no port's"),
            (with(&infiniband[..infiniband.len() - 2], &[0xFF, 0xFF]), "LID 65535 is no port's"),
            (with(&infiniband, &[4, 2, 0x12, 0xB7]), "InfiniBand has none"),
            (with(&infiniband, &[5, 2, 0x12, 0xB7]), "InfiniBand has none"),
        ];
        for (bytes, reason) in cases {
            let error = DevicePart::decode(bytes).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Offer);
            assert!(error.message().contains(reason), "{bytes:?}: {error} does not say {reason:?}");
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        let full = DevicePart {
            udp_port: Some(4800),
            udp_source_port: Some(0xC123),
            receive_buffer: Some(1),
            ..roce()
        };
        let bytes = full.encode();
        let read = (0..bytes.len()).filter(|length| DevicePart::decode(&bytes[..*length]).is_ok());
        // Only where a whole number of fields is left, with the two that are required.
        assert_eq!(read.collect::<Vec<_>>(), [22, 26, 30]);
    }
}
