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

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds by code, as the brief prints them (§4.2), row by row.
    const RNR_TABLE: &str = "
        0 655.36 8 0.16 16 2.56 24 40.96
        1 0.01 9 0.24 17 3.84 25 61.44
        2 0.02 10 0.32 18 5.12 26 81.92
        3 0.03 11 0.48 19 7.68 27 122.88
        4 0.04 12 0.64 20 10.24 28 163.84
        5 0.06 13 0.96 21 15.36 29 245.76
        6 0.08 14 1.28 22 20.48 30 327.68
        7 0.12 15 1.92 23 30.72 31 491.52";

    const CREDITS: [u16; 31] = [
        0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
        3072, 4096, 6144, 8192, 12288, 16384, 24576, 32768,
    ];

    #[test]
    fn rnr_times_are_the_tables() {
        let cells: Vec<&str> = RNR_TABLE.split_whitespace().collect();
        assert_eq!(cells.len(), 64);
        for pair in cells.chunks(2) {
            let timer = RnrTimer::from_code(pair[0].parse().unwrap());
            // In units of 10 µs, from text: no rounding.
            let (whole, hundredths) = pair[1].split_once('.').unwrap();
            let units = whole.parse::<u64>().unwrap() * 100 + hundredths.parse::<u64>().unwrap();
            assert_eq!(timer.duration(), Duration::from_micros(units * 10), "code {}", timer.code());
        }
    }

    #[test]
    fn credits_are_the_tables() {
        for code in 0..=31 {
            let count = CREDITS.get(usize::from(code)).copied();
            assert_eq!(Credits::from_code(code).count(), count, "code {code}");
        }
        assert_eq!(Credits::UNLIMITED.count(), None);
    }

    #[test]
    fn every_syndrome_survives() {
        for byte in 0..=u8::MAX {
            let syndrome = Syndrome::from_byte(byte);
            assert_eq!(syndrome.to_byte(), byte);
            let code = byte % 32;
            let expected = match byte {
                0x00..=0x1F => Syndrome::Ack(Credits::from_code(code)),
                0x20..=0x3F => Syndrome::RnrNak(RnrTimer::from_code(code)),
                0x60 => Syndrome::Nak(NakCode::PsnSequenceError),
                0x61 => Syndrome::Nak(NakCode::InvalidRequest),
                0x62 => Syndrome::Nak(NakCode::RemoteAccessError),
                0x63 => Syndrome::Nak(NakCode::RemoteOperationalError),
                0x64 => Syndrome::Nak(NakCode::InvalidRdRequest),
                0x65..=0x7F => Syndrome::Nak(NakCode::Reserved(code)),
                _ => Syndrome::Reserved(byte),
            };
            assert_eq!(syndrome, expected, "0x{byte:02x}");
        }
    }

    #[test]
    fn golden_bytes() {
        let aeth = Aeth { syndrome: Syndrome::RnrNak(RnrTimer::from_code(12)), msn: 0x12_3456 };
        assert_eq!(aeth.to_bytes(), [0x2C, 0x12, 0x34, 0x56]);
        assert_eq!(Aeth::parse([0x2C, 0x12, 0x34, 0x56]), aeth);
        assert_eq!(aeth.to_string(), "RNR NAK 640µs, MSN 1193046");
        assert_eq!(Syndrome::from_byte(0x9F).to_string(), "reserved syndrome 0x9f");
        assert_eq!(Syndrome::from_byte(0x05).to_string(), "ACK, credits 6");
        assert_eq!(Syndrome::from_byte(0x61).to_string(), "NAK invalid request");
    }
}
