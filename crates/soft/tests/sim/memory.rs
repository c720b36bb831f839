//! Memory of a simulated host, and the model's copy of it.

use std::sync::Arc;

use secure_rdma_rdma::{Access, LKey, Memory, RKey, Region, Registration, Slice};
use secure_rdma_soft::engine::Keys;

use super::random::Random;

/// A range of one of a host's regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub region: usize,
    pub offset: usize,
    pub length: usize,
}

pub type Pieces = smallvec::SmallVec<[Piece; 4]>;

/// The bytes of a region as the model has them, and the region itself where the host is an engine's.
pub struct Shadow {
    pub bytes: Vec<u8>,
    pub address: u64,
    pub access: Access,
    pub rkey: u32,
    pub region: Option<Arc<Region>>,
    /// How many posted requests name it.
    pub named: usize,
    /// Whether it is registered.
    pub alive: bool,
}

struct Unregistered;
impl Registration for Unregistered {}

impl Shadow {
    /// A pattern that no other offset has, so that bytes in the wrong place show.
    pub fn pattern(length: usize, random: &mut Random) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&random.u64().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    pub fn new(memory: &Arc<Memory>, bytes: Vec<u8>, keys: &Keys, access: Access) -> Self {
        memory.write(0, &bytes).unwrap();
        let region =
            Region::new(Box::new(Unregistered), Arc::clone(memory), keys.address, keys.lkey, keys.rkey);
        Self {
            bytes,
            address: keys.address,
            access,
            rkey: keys.rkey.expose(),
            region: Some(Arc::new(region)),
            named: 0,
            alive: true,
        }
    }

    /// A region of a host that is no engine's.
    pub fn foreign(bytes: Vec<u8>, address: u64, rkey: u32, access: Access) -> Self {
        Self { bytes, address, access, rkey, region: None, named: 0, alive: true }
    }

    pub fn lkey(&self) -> Option<LKey> {
        self.region.as_ref().map(|region| region.lkey())
    }

    pub fn rkey(&self) -> RKey {
        RKey::new(self.rkey)
    }

    /// Whether the region holds what the model has, within a range.
    pub fn agrees(&self, offset: usize, length: usize, scratch: &mut Vec<u8>) -> bool {
        let Some(region) = &self.region else { return true };
        scratch.clear();
        region.memory().append_to(offset, length, scratch).is_ok()
            && scratch[..] == self.bytes[offset..offset + length]
    }
}

/// All regions of a host.
#[derive(Default)]
pub struct Shadows {
    pub regions: Vec<Shadow>,
    /// What was written since the last look.
    pub touched: Vec<Piece>,
    scratch: Vec<u8>,
}

impl Shadows {
    /// The slices of a work request. Each holds a count on its region, as the model notes.
    pub fn slices(&mut self, pieces: &Pieces) -> smallvec::SmallVec<[Slice; 1]> {
        pieces
            .iter()
            .map(|piece| {
                let shadow = &mut self.regions[piece.region];
                shadow.named += 1;
                Slice::new(shadow.region.as_ref().unwrap(), piece.offset, piece.length)
            })
            .collect()
    }

    /// A request that named these is finished.
    pub fn finished(&mut self, pieces: &Pieces) {
        for piece in pieces {
            self.regions[piece.region].named -= 1;
        }
    }

    /// Calls `with` for the parts of a message's `length` bytes from `offset`.
    fn parts(pieces: &Pieces, mut offset: usize, mut length: usize, mut with: impl FnMut(Piece, usize)) {
        let mut at = 0;
        for piece in pieces {
            if offset >= piece.length {
                offset -= piece.length;
                continue;
            }
            let taken = (piece.length - offset).min(length);
            with(Piece { region: piece.region, offset: piece.offset + offset, length: taken }, at);
            at += taken;
            length -= taken;
            offset = 0;
            if length == 0 {
                return;
            }
        }
    }

    /// Whether the model's memory holds `payload` at `offset` of the message.
    pub fn holds(&self, pieces: &Pieces, offset: usize, payload: &[u8]) -> bool {
        let mut equal = true;
        let mut seen = 0;
        Self::parts(pieces, offset, payload.len(), |part, at| {
            let bytes = &self.regions[part.region].bytes[part.offset..part.offset + part.length];
            equal &= bytes == &payload[at..at + part.length];
            seen += part.length;
        });
        equal && seen == payload.len()
    }

    /// Writes `payload` at `offset` of the message into the model.
    pub fn scatter(&mut self, pieces: &Pieces, offset: usize, payload: &[u8]) {
        let (regions, touched) = (&mut self.regions, &mut self.touched);
        Self::parts(pieces, offset, payload.len(), |part, at| {
            regions[part.region].bytes[part.offset..part.offset + part.length]
                .copy_from_slice(&payload[at..at + part.length]);
            touched.push(part);
        });
    }

    /// Whether the real memory holds `payload` at `offset` of the message.
    pub fn really_holds(&mut self, pieces: &Pieces, offset: usize, payload: &[u8]) -> bool {
        let (regions, scratch) = (&self.regions, &mut self.scratch);
        let mut equal = true;
        Self::parts(pieces, offset, payload.len(), |part, at| {
            scratch.clear();
            let memory = regions[part.region].region.as_ref().unwrap().memory();
            memory.append_to(part.offset, part.length, scratch).unwrap();
            equal &= scratch[..] == payload[at..at + part.length];
        });
        equal
    }

    pub fn write(&mut self, piece: Piece, payload: &[u8]) {
        self.regions[piece.region].bytes[piece.offset..piece.offset + piece.length].copy_from_slice(payload);
        self.touched.push(piece);
    }

    /// Whether the engine has written what the model says, and nothing in the 16 bytes beside it.
    pub fn check_touched(&mut self) -> Result<(), String> {
        while let Some(piece) = self.touched.pop() {
            let shadow = &self.regions[piece.region];
            let from = piece.offset.saturating_sub(16);
            let to = (piece.offset + piece.length + 16).min(shadow.bytes.len());
            if !shadow.agrees(from, to - from, &mut self.scratch) {
                return Err(format!(
                    "region {} differs near {}+{}",
                    piece.region, piece.offset, piece.length
                ));
            }
        }
        Ok(())
    }

    /// Whether all memory is as the model has it.
    pub fn check_all(&mut self) -> Result<(), String> {
        self.touched.clear();
        for (index, shadow) in self.regions.iter().enumerate() {
            if !shadow.agrees(0, shadow.bytes.len(), &mut self.scratch) {
                let at = self.scratch.iter().zip(&shadow.bytes).position(|(a, b)| a != b);
                return Err(format!("region {index} differs at byte {at:?}"));
            }
        }
        Ok(())
    }

    /// Whether each region has at least as many counts as posted requests name it.
    pub fn check_counts(&self, exactly: bool) -> Result<(), String> {
        for (index, shadow) in self.regions.iter().enumerate() {
            let Some(region) = &shadow.region else { continue };
            let held = Arc::strong_count(region) - 1;
            if held < shadow.named || exactly && held != shadow.named {
                return Err(format!("region {index}: {held} counts held, {} requests name it", shadow.named));
            }
        }
        Ok(())
    }
}
