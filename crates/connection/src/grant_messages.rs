//! What two connections tell each other of what they publish, over the control channel.
//!
//! Each message has a fixed layout, big-endian, and exactly its length:
//!
//! ```text
//! GRANT    1  id (4)  rights (1)  address (8)  length (8)  R_Key (4)  name (1 to 255, UTF-8)
//! REVOKE   2  id (4)
//! REVOKED  3  id (4)
//! ```
//!
//! Rights are read (1), write (2), atomics (4), at least one. Ids are the publisher's, and ascend. A grant lives from
//! GRANT to the REVOKED with which its holder answers REVOKE: it has posted nothing with the key since, and what it had
//! posted is done.

use secure_rdma_rdma::{Access, RKey, Result};

use crate::framing::violation;

/// Bytes of the longest name.
pub(crate) const MOST_NAME: usize = 255;

/// Bytes of GRANT before the name.
const GRANT_HEAD: usize = 26;

const RIGHTS: [(u8, Access); 3] =
    [(1, Access::REMOTE_READ), (2, Access::REMOTE_WRITE), (4, Access::REMOTE_ATOMIC)];

/// A message. No `Debug` shows the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GrantMessage {
    Grant(Grant),
    /// The publisher wants it back.
    Revoke(u32),
    /// The holder has let go of it.
    Revoked(u32),
}

/// A range that the receiver of the message may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) id: u32,
    pub(crate) access: Access,
    pub(crate) address: u64,
    pub(crate) length: u64,
    pub(crate) rkey: RKey,
    pub(crate) name: String,
}

impl GrantMessage {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, id) = match self {
            Self::Grant(grant) => (1, grant.id),
            Self::Revoke(id) => (2, *id),
            Self::Revoked(id) => (3, *id),
        };
        let mut bytes = vec![kind];
        bytes.extend_from_slice(&id.to_be_bytes());
        if let Self::Grant(grant) = self {
            let rights = RIGHTS.iter().filter(|(_, right)| grant.access.contains(*right));
            bytes.push(rights.fold(0, |bits, (bit, _)| bits | bit));
            bytes.extend_from_slice(&grant.address.to_be_bytes());
            bytes.extend_from_slice(&grant.length.to_be_bytes());
            bytes.extend_from_slice(&grant.rkey.expose().to_be_bytes());
            bytes.extend_from_slice(grant.name.as_bytes());
        }
        bytes
    }

    /// # Errors
    /// `ERR_RDMA_PEER_VIOLATION` for anything but what [`GrantMessage::encode`] gives.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let Some((kind, rest)) = bytes.split_first() else { return Err(violation("an empty message")) };
        let Some((id, rest)) = rest.split_first_chunk() else {
            return Err(violation("a message about a grant that is cut short"));
        };
        let id = u32::from_be_bytes(*id);
        match (kind, rest.is_empty()) {
            (1, _) => Grant::decode(id, rest).map(Self::Grant),
            (2, true) => Ok(Self::Revoke(id)),
            (3, true) => Ok(Self::Revoked(id)),
            (2 | 3, false) => Err(violation("a message about a grant that is too long")),
            _ => Err(violation(format!("a message of the unknown kind {kind}"))),
        }
    }
}

impl Grant {
    fn decode(id: u32, bytes: &[u8]) -> Result<Self> {
        let head = bytes.split_at_checked(GRANT_HEAD - 5).and_then(|(head, name)| {
            let (bits, head) = head.split_first()?;
            let (address, head) = head.split_first_chunk()?;
            let (length, head) = head.split_first_chunk()?;
            let (rkey, _) = head.split_first_chunk()?;
            let (address, length) = (u64::from_be_bytes(*address), u64::from_be_bytes(*length));
            Some((*bits, address, length, RKey::new(u32::from_be_bytes(*rkey)), name))
        });
        let Some((bits, address, length, rkey, name)) = head else {
            return Err(violation("a grant that is cut short"));
        };
        let all = RIGHTS.iter().fold(0, |bits, (bit, _)| bits | bit);
        if bits == 0 || bits & !all != 0 {
            return Err(violation("a grant of nothing, or of rights that there are not"));
        }
        let granted = RIGHTS.iter().filter(|(bit, _)| bits & bit != 0);
        let access = granted.fold(Access::empty(), |access, (_, right)| access | *right);
        // The end as well must be an address: one beyond the last byte.
        if length == 0 || address.checked_add(length).is_none() {
            return Err(violation("a grant of a range that there cannot be"));
        }
        if name.is_empty() || name.len() > MOST_NAME {
            return Err(violation("a grant whose name is empty or too long"));
        }
        let Ok(name) = String::from_utf8(name.to_vec()) else {
            return Err(violation("a grant whose name is no UTF-8"));
        };
        Ok(Self { id, access, address, length, rkey, name })
    }
}

#[cfg(test)]
mod tests {
    use secure_rdma_rdma::ErrorCode;

    use super::*;

    fn grant() -> Grant {
        Grant {
            id: 0x0102_0304,
            access: Access::REMOTE_READ | Access::REMOTE_ATOMIC,
            address: 0x1112_1314_1516_1718,
            length: 0x2122,
            rkey: RKey::new(0x3132_3334),
            name: "inbox".to_owned(),
        }
    }

    #[test]
    fn the_layout_is_what_it_says() {
        let golden = [
            &[1, 1, 2, 3, 4, 5][..],
            &[0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18],
            &[0, 0, 0, 0, 0, 0, 0x21, 0x22],
            &[0x31, 0x32, 0x33, 0x34],
            b"inbox",
        ]
        .concat();
        assert_eq!(GrantMessage::Grant(grant()).encode(), golden);
        assert_eq!(GrantMessage::Revoke(5).encode(), [2, 0, 0, 0, 5]);
        assert_eq!(GrantMessage::Revoked(0x0100_0000).encode(), [3, 1, 0, 0, 0]);
    }

    #[test]
    fn every_message_survives_its_encoding() {
        let mut all = vec![GrantMessage::Revoke(0), GrantMessage::Revoked(u32::MAX)];
        for bits in 1..8_u32 {
            // The three remote rights are neighbours.
            let access = Access::from_bits_truncate(bits << 1);
            for (address, length) in [(0, 1), (0, u64::MAX), (u64::MAX - 1, 1), (4096, 1 << 40)] {
                for name in ["a", "ü", &"n".repeat(MOST_NAME)] {
                    let grant = Grant { access, address, length, name: name.to_owned(), ..grant() };
                    all.push(GrantMessage::Grant(grant));
                }
            }
        }
        for message in all {
            assert_eq!(GrantMessage::decode(&message.encode()).unwrap(), message);
            assert!(message.encode().len() <= secure_rdma_session::MAX_TOLD);
        }
    }

    #[test]
    fn whatever_else_comes_is_a_violation() {
        let good = GrantMessage::Grant(grant()).encode();
        let with = |at: usize, bytes: &[u8]| {
            let mut changed = good.clone();
            changed[at..at + bytes.len()].copy_from_slice(bytes);
            changed
        };
        let named = |name: &[u8]| [&good[..GRANT_HEAD], name].concat();
        let mut bad = vec![
            ("nothing", vec![]),
            ("kind 0", with(0, &[0])),
            ("kind 4", vec![4, 0, 0, 0, 1]),
            ("kind 255", with(0, &[255])),
            ("REVOKE cut short", vec![2, 0, 0, 0]),
            ("REVOKE too long", vec![2, 0, 0, 0, 1, 0]),
            ("REVOKED alone", vec![3]),
            ("REVOKED cut short", vec![3, 0, 0, 0]),
            ("REVOKED too long", vec![3, 0, 0, 0, 1, 0]),
            ("GRANT as REVOKE", with(0, &[2])),
            ("no rights", with(5, &[0])),
            ("an unknown right", with(5, &[8])),
            ("a known and an unknown right", with(5, &[0x81])),
            ("length 0", with(14, &[0; 8])),
            ("the end overflows", with(6, &[0xFF; 8])),
            (
                "the end overflows by one",
                with(6, &[[0xFF; 7].as_slice(), &[0xFF], &2_u64.to_be_bytes()].concat()),
            ),
            ("all of it overflows", with(6, &[0xFF; 16])),
            ("no name", named(b"")),
            ("a name of 256 bytes", named(&[b'n'; 256])),
            ("a name of 2000 bytes", named(&[b'n'; 2000])),
            ("a name that is no UTF-8", named(&[0xC3, 0x28])),
            ("a name that ends within a letter", named(&[b'a', 0xC3])),
            ("a name with a surrogate", named(&[0xED, 0xA0, 0x80])),
            ("an overlong letter", named(&[0xC0, 0x80])),
        ];
        bad.extend((0..=GRANT_HEAD).map(|length| ("a GRANT cut short", good[..length].to_vec())));
        for (what, bytes) in bad {
            let error = GrantMessage::decode(&bytes).expect_err(what);
            assert_eq!(error.code(), ErrorCode::PeerViolation, "{what}");
        }
    }

    #[test]
    fn no_key_is_shown() {
        let shown = format!("{:?}", GrantMessage::Grant(grant()));
        assert!(shown.contains("inbox"), "{shown}");
        let keys = [0x3132_3334.to_string(), "31323334".to_owned(), "3132_3334".to_owned()];
        assert!(keys.iter().all(|key| !shown.contains(key)), "{shown}");
    }
}
