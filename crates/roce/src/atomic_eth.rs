//! The atomic extended transport header: which remote 8 bytes, and what to do with them (brief §2.2).
//!
//! `0..8` virtual address · `8..12` R_Key · `12..20` value to swap in or to add · `20..28` value to compare with

use std::fmt;

use crate::PacketKey;

/// Bytes of an `AtomicETH`.
pub const LENGTH: usize = 28;

/// The fields of an `AtomicETH`. `Debug` and `Display` hide the R_Key and the values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AtomicEth {
    /// The address of the 8 bytes; a multiple of 8 in a legal request.
    pub virtual_address: u64,
    /// The region's R_Key.
    pub rkey: PacketKey,
    /// What `CmpSwap` stores and `FetchAdd` adds.
    pub swap_or_add: u64,
    /// What `CmpSwap` compares with. Of a `FetchAdd` ignored on receipt (rxe leaves chance bytes there), sent as zero.
    pub compare: u64,
}

impl AtomicEth {
    /// Reads the fields.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &[u8; LENGTH]) -> Self {
        let quad = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]));
        Self {
            virtual_address: quad(0),
            rkey: PacketKey::from_bytes(std::array::from_fn(|i| bytes[8 + i])),
            swap_or_add: quad(12),
            compare: quad(20),
        }
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub fn to_bytes(&self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(&self.virtual_address.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.rkey.to_bytes());
        bytes[12..20].copy_from_slice(&self.swap_or_add.to_be_bytes());
        bytes[20..].copy_from_slice(&self.compare.to_be_bytes());
        bytes
    }
}

impl fmt::Debug for AtomicEth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AtomicEth").field("virtual_address", &self.virtual_address).finish_non_exhaustive()
    }
}

impl fmt::Display for AtomicEth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VA 0x{:x}", self.virtual_address)
    }
}
