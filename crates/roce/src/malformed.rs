//! Why a datagram is no packet of a reliable connection.

use std::fmt;

/// The reason; each is a drop of its own to count. Such a datagram is dropped in silence (brief §6, step 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Malformed {
    /// Shorter than a BTH: its length.
    TooShort(usize),
    /// A transport version other than 0.
    TransportVersion(u8),
    /// An opcode of another transport (UC, RD, UD, XRC): its code.
    OtherTransport(u8),
    /// A reserved opcode: its code.
    UnknownOpcode(u8),
    /// Shorter than its headers, its padding and the ICRC together.
    CutOff {
        /// Bytes that the opcode and PadCnt ask for at least.
        needed: usize,
        /// Bytes that there are.
        length: usize,
    },
}

impl Malformed {
    /// Of an opcode's code that is none of a reliable connection.
    pub(crate) const fn opcode(code: u8) -> Self {
        // Bits 7..5 name the transport: 001 UC, 010 RD, 011 UD, 101 XRC (brief §2.3).
        match code >> 5 {
            1..=3 | 5 => Self::OtherTransport(code),
            _ => Self::UnknownOpcode(code),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort(length) => write!(f, "{length} bytes are no RoCEv2 packet: a BTH alone has 12"),
            Self::TransportVersion(version) => write!(f, "transport version {version} instead of 0"),
            Self::OtherTransport(code) => {
                let transport = match code >> 5 {
                    1 => "unreliable connections (UC)",
                    2 => "reliable datagrams (RD)",
                    3 => "unreliable datagrams (UD)",
                    _ => "extended reliable connections (XRC)",
                };
                write!(f, "opcode 0x{code:02x} belongs to {transport}")
            }
            Self::UnknownOpcode(code) => write!(f, "opcode 0x{code:02x} is reserved"),
            Self::CutOff { needed, length } => {
                write!(f, "{length} bytes, but headers, padding and ICRC take {needed}")
            }
        }
    }
}

impl std::error::Error for Malformed {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_a_sentence() {
        let told = |reason: Malformed| reason.to_string();
        assert_eq!(told(Malformed::TooShort(11)), "11 bytes are no RoCEv2 packet: a BTH alone has 12");
        assert_eq!(told(Malformed::TransportVersion(3)), "transport version 3 instead of 0");
        assert_eq!(told(Malformed::opcode(0x24)), "opcode 0x24 belongs to unreliable connections (UC)");
        assert_eq!(told(Malformed::opcode(0x44)), "opcode 0x44 belongs to reliable datagrams (RD)");
        assert_eq!(told(Malformed::opcode(0x64)), "opcode 0x64 belongs to unreliable datagrams (UD)");
        assert_eq!(
            told(Malformed::opcode(0xA4)),
            "opcode 0xa4 belongs to extended reliable connections (XRC)"
        );
        assert_eq!(told(Malformed::opcode(0x15)), "opcode 0x15 is reserved");
        assert_eq!(
            told(Malformed::CutOff { needed: 16, length: 12 }),
            "12 bytes, but headers, padding and ICRC take 16"
        );
    }
}
