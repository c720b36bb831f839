//! The path MTU: how much payload one packet carries.

use std::fmt;

/// The largest payload of one packet. Both ends of a connection must set the same value: nothing on the wire
/// negotiates it. The numbers are those of `enum ibv_mtu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PathMtu {
    /// 256 bytes.
    Bytes256 = 1,
    /// 512 bytes.
    Bytes512 = 2,
    /// 1024 bytes: what an Ethernet MTU of 1500 leaves room for.
    Bytes1024 = 3,
    /// 2048 bytes.
    Bytes2048 = 4,
    /// 4096 bytes: needs an Ethernet MTU of at least 4176.
    Bytes4096 = 5,
}

impl PathMtu {
    /// From the number that verbs and the wire of the exchange use: 1 to 5.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Bytes256,
            2 => Self::Bytes512,
            3 => Self::Bytes1024,
            4 => Self::Bytes2048,
            5 => Self::Bytes4096,
            _ => return None,
        })
    }

    /// The number of `enum ibv_mtu`: 1 to 5.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The payload in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        128 << (self as usize)
    }
}

impl fmt::Display for PathMtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_bytes_agree() {
        let bytes: Vec<_> = (1..=5).map(|code| PathMtu::from_code(code).unwrap().bytes()).collect();
        assert_eq!(bytes, [256, 512, 1024, 2048, 4096]);
        assert!(PathMtu::from_code(0).is_none() && PathMtu::from_code(6).is_none());
    }
}
