//! The RDMA extended transport header: which remote memory (brief §2.2).
//!
//! `0..8` virtual address · `8..12` R_Key · `12..16` DMA length

use std::fmt;

use crate::PacketKey;

/// Bytes of a RETH.
pub const LENGTH: usize = 16;

/// The fields of a RETH. `Debug` and `Display` hide the R_Key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reth {
    /// The first byte's address, as the region was registered.
    pub virtual_address: u64,
    /// The region's R_Key.
    pub rkey: PacketKey,
    /// Bytes of the whole message, without padding; at most 2^31 in a legal request.
    pub dma_length: u32,
}

impl Reth {
    /// Reads the fields.
    #[inline]
    #[must_use]
    pub fn parse(bytes: &[u8; LENGTH]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, k0, k1, k2, k3, l0, l1, l2, l3] = *bytes;
        Self {
            virtual_address: u64::from_be_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            rkey: PacketKey::from_bytes([k0, k1, k2, k3]),
            dma_length: u32::from_be_bytes([l0, l1, l2, l3]),
        }
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub const fn to_bytes(&self) -> [u8; LENGTH] {
        let [a0, a1, a2, a3, a4, a5, a6, a7] = self.virtual_address.to_be_bytes();
        let [k0, k1, k2, k3] = self.rkey.to_bytes();
        let [l0, l1, l2, l3] = self.dma_length.to_be_bytes();
        [a0, a1, a2, a3, a4, a5, a6, a7, k0, k1, k2, k3, l0, l1, l2, l3]
    }
}

impl fmt::Display for Reth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VA 0x{:x}, length {}", self.virtual_address, self.dma_length)
    }
}
