//! How a list of operations crosses from JavaScript: in one call, whatever its length.
//!
//! One array of 64-bit words holds all of them, one after the other; what is no 64-bit integer by nature is a double.
//! The bytes of all messages follow each other in a second array, and regions are named by their place in a list.
//!
//! | operation | words |
//! | --- | --- |
//! | message | 0, length |
//! | WRITE | 1, flags, immediate, remote, its offset, number of slices, then of each: region, offset, length |
//! | READ | 2, otherwise as a WRITE |
//! | compare-and-swap | 3, flags, remote, its offset, expected as integer, desired as integer |
//! | fetch-and-add | 4, flags, remote, its offset, addend as integer |
//!
//! Flags: 1 fence, 2 there is an immediate. `src/commands.ts` writes it.

use std::ops::Range;

use napi::bindgen_prelude::ClassInstance;
use secure_rdma_connection::{Operation, RegionSlice, RemoteSlice};
use secure_rdma_rdma::{Error, Result};

use crate::region::NativeRegion;
use crate::remote::NativeRemote;

/// Bytes that an atomic works on.
const ATOMIC: u64 = 8;

/// Flags of an operation.
const FENCE: usize = 1;
const IMMEDIATE: usize = 2;

/// A list of operations, with what they name.
pub(crate) struct Commands<'a> {
    list: Vec<Command<'a>>,
    local: Vec<RegionSlice>,
    remote: Vec<RemoteSlice>,
}

/// One of them. Slices are named by their places.
enum Command<'a> {
    Send(&'a [u8]),
    Write { local: Range<usize>, remote: usize, immediate: Option<u32>, fence: bool },
    Read { local: Range<usize>, remote: usize, fence: bool },
    CompareAndSwap { remote: usize, compare: u64, swap: u64, fence: bool },
    FetchAndAdd { remote: usize, add: u64, fence: bool },
}

/// What operations may name.
struct Named<'a, 'env> {
    regions: &'a [ClassInstance<'env, NativeRegion>],
    remotes: &'a [ClassInstance<'env, NativeRemote>],
}

impl<'a> Commands<'a> {
    /// # Errors
    /// `ERR_RDMA_REGION_BOUNDS`, `ERR_RDMA_REGION_CLOSED`; an internal one for words that cannot be.
    pub(crate) fn read(
        words: &[u64],
        mut messages: &'a [u8],
        regions: &[ClassInstance<'_, NativeRegion>],
        remotes: &[ClassInstance<'_, NativeRemote>],
    ) -> Result<Self> {
        let named = Named { regions, remotes };
        let mut words = Words(words);
        let mut commands = Self { list: Vec::new(), local: Vec::new(), remote: Vec::new() };
        while !words.0.is_empty() {
            let command = match words.length()? {
                0 => {
                    let split = messages.split_at_checked(words.length()?);
                    let (message, rest) = split.ok_or_else(malformed)?;
                    messages = rest;
                    Command::Send(message)
                }
                kind @ (1 | 2) => commands.transfer(&mut words, kind == 1, &named)?,
                kind @ (3 | 4) => commands.atomic(&mut words, kind == 3, &named)?,
                _ => return Err(malformed()),
            };
            commands.list.push(command);
        }
        Ok(commands)
    }

    fn transfer(
        &mut self,
        words: &mut Words<'_>,
        is_write: bool,
        named: &Named<'_, '_>,
    ) -> Result<Command<'a>> {
        let (flags, immediate) = (words.length()?, words.number()?);
        let (remote, offset) = (named.remote(words)?, words.number()?);
        let first = self.local.len();
        let mut length = 0;
        for _ in 0..words.length()? {
            let region = named.regions.get(words.length()?).ok_or_else(malformed)?;
            let slice = region.region()?.slice(words.length()?, words.length()?)?;
            length += slice.len() as u64;
            self.local.push(slice);
        }
        self.remote.push(remote.region().slice(offset, length)?);
        let (local, remote) = (first..self.local.len(), self.remote.len() - 1);
        let fence = flags & FENCE != 0;
        Ok(if is_write {
            let immediate = (flags & IMMEDIATE != 0).then(|| u32::try_from(immediate)).transpose();
            Command::Write { local, remote, immediate: immediate.map_err(|_| malformed())?, fence }
        } else {
            Command::Read { local, remote, fence }
        })
    }

    fn atomic(&mut self, words: &mut Words<'_>, is_swap: bool, named: &Named<'_, '_>) -> Result<Command<'a>> {
        let fence = words.length()? & FENCE != 0;
        let (remote, offset) = (named.remote(words)?, words.number()?);
        self.remote.push(remote.region().slice(offset, ATOMIC)?);
        let (remote, operand) = (self.remote.len() - 1, words.next()?);
        Ok(if is_swap {
            Command::CompareAndSwap { remote, compare: operand, swap: words.next()?, fence }
        } else {
            Command::FetchAndAdd { remote, add: operand, fence }
        })
    }

    /// The same as `Connection::post` takes them.
    ///
    /// # Errors
    /// None: what is named was put there by `read`.
    pub(crate) fn operations(&self) -> Result<Vec<Operation<'_>>> {
        let local = |range: &Range<usize>| self.local.get(range.clone()).ok_or_else(malformed);
        let remote = |place: usize| self.remote.get(place).ok_or_else(malformed);
        let operation = |command: &Command<'a>| {
            Ok(match *command {
                Command::Send(message) => Operation::Send { message },
                Command::Write { local: ref range, remote: place, immediate, fence } => {
                    Operation::Write { local: local(range)?, remote: remote(place)?, immediate, fence }
                }
                Command::Read { local: ref range, remote: place, fence } => {
                    Operation::Read { remote: remote(place)?, local: local(range)?, fence }
                }
                Command::CompareAndSwap { remote: place, compare, swap, fence } => {
                    Operation::CompareAndSwap { remote: remote(place)?, compare, swap, fence }
                }
                Command::FetchAndAdd { remote: place, add, fence } => {
                    Operation::FetchAndAdd { remote: remote(place)?, add, fence }
                }
            })
        };
        self.list.iter().map(operation).collect()
    }
}

impl Named<'_, '_> {
    fn remote(&self, words: &mut Words<'_>) -> Result<&NativeRemote> {
        Ok(self.remotes.get(words.length()?).ok_or_else(malformed)?)
    }
}

/// What is left to read.
struct Words<'a>(&'a [u64]);

impl Words<'_> {
    fn next(&mut self) -> Result<u64> {
        let (first, rest) = self.0.split_first().ok_or_else(malformed)?;
        self.0 = rest;
        Ok(*first)
    }

    /// A double that is a whole number.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "JavaScript has checked it")]
    fn number(&mut self) -> Result<u64> {
        Ok(f64::from_bits(self.next()?) as u64)
    }

    fn length(&mut self) -> Result<usize> {
        usize::try_from(self.number()?).map_err(|_| malformed())
    }
}

fn malformed() -> Error {
    Error::internal("a list of operations came from JavaScript in an unknown form")
}
