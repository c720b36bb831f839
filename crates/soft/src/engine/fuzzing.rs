//! The table of regions as a function of bytes, beside a model with integers that cannot overflow: what the fuzz target
//! `regions` calls, and what each test run replays with the committed corpus. It panics where the two disagree, which is
//! its purpose.
#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use secure_rdma_rdma::{Access, LKey, Memory, OsEntropy, Qpn, RKey};

use super::regions::{Refusal, Regions, WindowId};

/// What the model knows of a key.
struct Opening {
    key: RKey,
    first: i128,
    length: i128,
    /// Where the first byte is in the region.
    offset: usize,
    access: Access,
    bound: Option<(u32, WindowId)>,
    region: usize,
}

struct Registered {
    lkey: LKey,
    address: u64,
    length: usize,
    access: Access,
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }
}

const REMOTE: Access = Access::REMOTE_WRITE.union(Access::REMOTE_READ).union(Access::REMOTE_ATOMIC);

fn qpn(byte: u8) -> Qpn {
    Qpn::new(0x100 + u32::from(byte & 3)).expect("a QPN")
}

/// Target 7: registrations, windows and look-ups in any order.
pub fn regions(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut table = Regions::new(Arc::new(OsEntropy)).expect("entropy");
    let (mut registered, mut openings): (Vec<Registered>, Vec<Opening>) = (Vec::new(), Vec::new());
    let mut keys: Vec<RKey> = Vec::new();
    while step(&mut input, &mut table, &mut registered, &mut openings, &mut keys).is_some() {}
}

fn step(
    input: &mut Input<'_>,
    table: &mut Regions,
    registered: &mut Vec<Registered>,
    openings: &mut Vec<Opening>,
    keys: &mut Vec<RKey>,
) -> Option<()> {
    match input.byte()? % 8 {
        0 if registered.len() < 8 => {
            let (length, access) =
                (usize::from(input.byte()?) + 1, Access::from_bits_truncate(input.byte()?.into()));
            let memory = Arc::new(Memory::allocate(length).expect("memory"));
            let changes = access.intersects(Access::REMOTE_WRITE | Access::REMOTE_ATOMIC);
            let made = table.register(memory, access);
            assert_eq!(made.is_err(), changes && !access.contains(Access::LOCAL_WRITE));
            let Ok(made) = made else { return Some(()) };
            keys.extend([made.rkey, RKey::new(made.lkey.0)]);
            let region = registered.len();
            registered.push(Registered { lkey: made.lkey, address: made.address, length, access });
            if access.intersects(REMOTE) {
                let (first, length) = (made.address.into(), length as i128);
                openings.push(Opening {
                    key: made.rkey,
                    first,
                    length,
                    offset: 0,
                    access,
                    bound: None,
                    region,
                });
            }
        }
        1 => {
            // A bind: of a new window, to a range near the region's ends.
            let index = usize::from(input.byte()?);
            let region = registered.get(index % registered.len().max(1))?;
            let (number, access) = (input.byte()?, Access::from_bits_truncate(input.byte()?.into()));
            let offset = usize::from(input.byte()?);
            let length = match input.byte()? {
                255 => usize::try_from(input.u64()?).ok()?,
                byte => usize::from(byte),
            };
            let window = table.create_window();
            let key = table.next_key(window).expect("a key");
            keys.push(key);
            let changes = access.intersects(Access::REMOTE_WRITE | Access::REMOTE_ATOMIC);
            let fits = length > 0 && offset as i128 + length as i128 <= region.length as i128;
            let rights = !access.is_empty() && REMOTE.contains(access);
            let alive = region.length > 0;
            let may = region.access.contains(Access::MEMORY_WINDOW_BIND)
                && (!changes || region.access.contains(Access::LOCAL_WRITE));
            let bound = table.bind(qpn(number), window, key, region.lkey, offset, length, access);
            assert_eq!(bound.is_ok(), fits && rights && may && alive, "{bound:?}");
            if bound.is_ok() {
                let first = i128::from(region.address) + offset as i128;
                let (bound, region) = (Some((qpn(number).get(), window)), index % registered.len());
                openings.push(Opening { key, first, length: length as i128, offset, access, bound, region });
            }
        }
        2 => {
            let index = usize::from(input.byte()?) % registered.len().max(1);
            let region = registered.get_mut(index)?;
            table.deregister(region.lkey);
            // A length of 0 marks that it is gone.
            region.length = 0;
            openings.retain(|opening| opening.region != index);
        }
        3 => {
            let key = *keys.get(usize::from(input.byte()?) % keys.len().max(1))?;
            let number = qpn(input.byte()?);
            let at = openings.iter().position(|opening| {
                opening.key == key && opening.bound.is_some_and(|(bound, _)| bound == number.get())
            });
            assert_eq!(table.invalidate(number, key).is_ok(), at.is_some());
            at.map(|at| openings.remove(at));
        }
        4 => {
            let number = qpn(input.byte()?);
            table.unbind_all(number);
            openings.retain(|opening| opening.bound.is_none_or(|(bound, _)| bound != number.get()));
        }
        5 => {
            let at = usize::from(input.byte()?) % openings.len().max(1);
            if let Some((_, window)) = openings.get(at).and_then(|opening| opening.bound) {
                table.destroy_window(window);
                openings.remove(at);
            }
        }
        _ => look_up(input, table, openings, keys)?,
    }
    Some(())
}

/// Asks for a range, and compares with what the model says.
fn look_up(input: &mut Input<'_>, table: &Regions, openings: &[Opening], keys: &[RKey]) -> Option<()> {
    let choice = input.byte()?;
    let key = match choice {
        255 => RKey::new(u32::try_from(input.u64()? & 0xFFFF_FFFF).ok()?),
        _ => *keys.get(usize::from(choice) % keys.len().max(1))?,
    };
    let number = qpn(input.byte()?);
    let needed = match input.byte()? % 3 {
        0 => Access::REMOTE_WRITE,
        1 => Access::REMOTE_READ,
        _ => Access::REMOTE_ATOMIC,
    };
    let found = openings.iter().find(|opening| opening.key == key);
    let near =
        |value: i128, byte: u8| u64::try_from((value + i128::from(byte) - 128) & i128::from(u64::MAX)).ok();
    let (first, length) = found.map_or((0, 0), |opening| (opening.first, opening.length));
    let address = match input.byte()? {
        0..100 => near(first, input.byte()?)?,
        100..200 => near(first + length, input.byte()?)?,
        _ => input.u64()?,
    };
    let asked = match input.byte()? {
        0..100 => near(length, input.byte()?)?,
        100..200 => near(first + length - i128::from(address), input.byte()?)?,
        _ => input.u64()?,
    };
    let model = match found {
        None => Err(Refusal::UnknownKey),
        Some(opening) if opening.bound.is_some_and(|(bound, _)| bound != number.get()) => {
            Err(Refusal::OtherQueuePair)
        }
        Some(opening) if !opening.access.contains(needed) => Err(Refusal::Rights),
        Some(opening) => {
            let from = i128::from(address) - opening.first;
            if from >= 0 && from + i128::from(asked) <= opening.length {
                Ok(opening.offset + usize::try_from(from).ok()?)
            } else {
                Err(Refusal::Bounds)
            }
        }
    };
    let answer = table.remote(number, key, address, asked, needed).map(|(_, offset)| offset);
    assert_eq!(answer, model, "{asked:#x} bytes at {address:#x}");
    Some(())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    fn corpus() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/regions")
    }

    fn random(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    #[test]
    fn the_corpus_is_replayed() {
        let mut paths: Vec<_> =
            std::fs::read_dir(corpus()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert!(paths.len() >= 8);
        paths.iter().for_each(|path| regions(&std::fs::read(path).unwrap()));
    }

    #[test]
    fn random_inputs_agree_with_the_model() {
        let mut state = 0x9E37_79B9_7F4A_7C15;
        for round in 0..2_000 {
            // Begins with regions, so that the rest finds something.
            let mut input: Vec<u8> = vec![0, 200, 0x1F, 0, 63, 0x1F, 0, 100, 0x04];
            input.extend((0..round % 400).flat_map(|_| random(&mut state).to_le_bytes()));
            regions(&input);
        }
    }

    #[test]
    #[ignore = "writes fuzz/corpus anew"]
    fn write_corpus() {
        std::fs::create_dir_all(corpus()).unwrap();
        let mut state = 0x2545_F491_4F6C_DD1D;
        for index in 0..12 {
            let mut input: Vec<u8> = vec![0, 200, 0x1F, 0, 63, 0x1F, 0, 100, 0x04];
            input.extend((0..8 << (index % 5)).flat_map(|_| random(&mut state).to_le_bytes()));
            std::fs::write(corpus().join(format!("seed-{index:02}")), input).unwrap();
        }
    }
}
