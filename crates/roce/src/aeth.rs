//! The acknowledge extended transport header: how a request went (brief §2.2, §4).
//!
//! `0` syndrome · `1..4` MSN. The syndrome has its kind in bits 7..5 and the kind's code in bits 4..0.

use std::fmt;
use std::time::Duration;

/// Bytes of an AETH.
pub const LENGTH: usize = 4;

/// The fields of an AETH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aeth {
    /// How the request went.
    pub syndrome: Syndrome,
    /// Messages that the responder has completed, modulo 2^24; only the low 24 bits are sent.
    pub msn: u32,
}

/// How a request went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syndrome {
    /// It and all before it are done.
    Ack(Credits),
    /// No receive work request is posted: try again after this time.
    RnrNak(RnrTimer),
    /// It is refused.
    Nak(NakCode),
    /// A reserved kind: the whole byte. To be discarded, and never sent.
    Reserved(u8),
}

impl Syndrome {
    /// The syndrome of a byte. Every byte has one.
    #[inline]
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        let code = byte & 0x1F;
        match byte >> 5 {
            0 => Self::Ack(Credits(code)),
            1 => Self::RnrNak(RnrTimer(code)),
            3 => Self::Nak(NakCode::from_code(code)),
            _ => Self::Reserved(byte),
        }
    }

    /// The byte.
    #[inline]
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Ack(credits) => credits.0,
            Self::RnrNak(timer) => 0x20 | timer.0,
            Self::Nak(code) => 0x60 | code.code(),
            Self::Reserved(byte) => byte,
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NakCode {
    /// 0: packets are missing before it; the PSN is the expected one.
    PsnSequenceError,
    /// 1: not a legal request here.
    InvalidRequest,
    /// 2: the R_Key does not permit it.
    RemoteAccessError,
    /// 3: the responder failed.
    RemoteOperationalError,
    /// 4: of reliable datagrams only.
    InvalidRdRequest,
    /// 5 to 31.
    Reserved(u8),
}

impl NakCode {
    /// The code in a syndrome's low five bits.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code & 0x1F {
            0 => Self::PsnSequenceError,
            1 => Self::InvalidRequest,
            2 => Self::RemoteAccessError,
            3 => Self::RemoteOperationalError,
            4 => Self::InvalidRdRequest,
            other => Self::Reserved(other),
        }
    }

    /// The number, 0 to 31.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::PsnSequenceError => 0,
            Self::InvalidRequest => 1,
            Self::RemoteAccessError => 2,
            Self::RemoteOperationalError => 3,
            Self::InvalidRdRequest => 4,
            Self::Reserved(code) => code & 0x1F,
        }
    }
}

/// Credits of an ACK: how many receive work requests the responder has beyond the MSN (brief §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Credits(u8);

impl Credits {
    /// No limit told: what rxe and we always send.
    pub const UNLIMITED: Self = Self(31);

    /// The credits of a code; only its low five bits count.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        Self(code & 0x1F)
    }

    /// The code, 0 to 31.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0
    }

    /// The number of work requests; `None` if no limit is told.
    #[must_use]
    pub const fn count(self) -> Option<u16> {
        // 0, 1, then 2^n and 3·2^(n-1) in turn.
        match self.0 {
            31 => None,
            code @ 0..=1 => Some(code as u16),
            code if code % 2 == 0 => Some(1 << (code / 2)),
            code => Some(3 << (code / 2 - 1)),
        }
    }
}

/// The least time to wait after an RNR NAK (brief §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RnrTimer(u8);

/// In units of 10 µs, by code. Code 0 is the longest.
const RNR_TIMES: [u32; 32] = [
    65536, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
    3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152,
];

impl RnrTimer {
    /// The timer of a code; only its low five bits count.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        Self(code & 0x1F)
    }

    /// The code, 0 to 31.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.0
    }

    /// The time, from 10 µs to 655.36 ms.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_micros(RNR_TIMES[(self.0 & 0x1F) as usize] as u64 * 10)
    }
}

impl Aeth {
    /// Reads the fields.
    #[inline]
    #[must_use]
    pub const fn parse([syndrome, high, middle, low]: [u8; LENGTH]) -> Self {
        Self { syndrome: Syndrome::from_byte(syndrome), msn: u32::from_be_bytes([0, high, middle, low]) }
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; LENGTH] {
        let [_, high, middle, low] = self.msn.to_be_bytes();
        [self.syndrome.to_byte(), high, middle, low]
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ack(credits) => match credits.count() {
                None => f.write_str("ACK"),
                Some(count) => write!(f, "ACK, credits {count}"),
            },
            Self::RnrNak(timer) => write!(f, "RNR NAK {:?}", timer.duration()),
            Self::Nak(code) => write!(f, "NAK {code}"),
            Self::Reserved(byte) => write!(f, "reserved syndrome 0x{byte:02x}"),
        }
    }
}

impl fmt::Display for NakCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PsnSequenceError => "PSN sequence error",
            Self::InvalidRequest => "invalid request",
            Self::RemoteAccessError => "remote access error",
            Self::RemoteOperationalError => "remote operational error",
            Self::InvalidRdRequest => "invalid RD request",
            Self::Reserved(code) => return write!(f, "reserved code {code}"),
        })
    }
}

impl fmt::Display for Aeth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, MSN {}", self.syndrome, self.msn & 0x00FF_FFFF)
    }
}
