//! Pinned keys.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use secure_rdma_rdma::{Error, ErrorCode, Result};

/// SHA-256 of a certificate's SubjectPublicKeyInfo (DER), as RFC 7469 pins a key.
///
/// Parses from 64 hexadecimal digits (colons allowed), from base64, and from `sha256/` followed by base64.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pin([u8; 32]);

impl Pin {
    /// From the digest itself.
    #[must_use]
    pub const fn new(sha256: [u8; 32]) -> Self {
        Self(sha256)
    }

    /// Of a SubjectPublicKeyInfo in DER.
    #[must_use]
    pub fn of_spki(der: &[u8]) -> Self {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
        Self(sha256)
    }

    /// The digest.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin({self})")
    }
}

impl FromStr for Pin {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bare: String = text.chars().filter(|c| *c != ':').collect();
        let bytes = if bare.len() == 64 && bare.bytes().all(|c| c.is_ascii_hexdigit()) {
            from_hex(&bare)
        } else {
            from_base64(text.strip_prefix("sha256/").unwrap_or(text))
        };
        bytes.and_then(|bytes| bytes.try_into().ok()).map(Self).ok_or_else(|| {
            Error::new(
                ErrorCode::TlsConfig,
                format!("{text:?} is no pin: give the SHA-256 of a SubjectPublicKeyInfo as 64 hexadecimal digits or base64"),
            )
        })
    }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect()
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(32);
    let (mut bits, mut count) = (0_u32, 0);
    for c in text.bytes() {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xFF).ok()?);
        }
    }
    (bits & ((1 << count) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_gives_the_same_pin() {
        let pin = Pin::of_spki(b"abc");
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(pin.to_string(), hex);
        let colons: Vec<_> = hex.as_bytes().chunks(2).map(|c| std::str::from_utf8(c).unwrap()).collect();
        let base64 = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
        for text in [hex, &hex.to_uppercase(), &colons.join(":"), base64, &format!("sha256/{base64}")] {
            assert_eq!(text.parse::<Pin>().unwrap(), pin, "{text}");
        }
    }

    #[test]
    fn what_is_no_pin_is_refused() {
        let base64 = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
        for text in ["", "abc", &base64[1..], &"f".repeat(63), &"g".repeat(64), &format!("{base64}AAAA")] {
            assert_eq!(text.parse::<Pin>().unwrap_err().code(), ErrorCode::TlsConfig, "{text}");
        }
    }
}
