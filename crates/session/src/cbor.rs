//! Strict CBOR: the deterministic encoding of RFC 8949 §4.2.1, and nothing else.
//!
//! One value has one spelling, so that what is checked is what is meant: definite lengths, shortest heads, map keys
//! ascending and once each, no tags, no floats, bounded depth, nothing behind the value.

use crate::FrameError;

/// Arrays and maps inside each other, at the most.
const MAX_DEPTH: usize = 4;

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const TAG: u8 = 6;

/// Checks that `bytes` is exactly one value in the strict encoding.
pub(crate) fn check(bytes: &[u8]) -> Result<(), FrameError> {
    let mut walker = Walker { bytes, at: 0 };
    walker.value(0)?;
    if walker.at == bytes.len() { Ok(()) } else { Err(walker.fault("there are bytes behind the value")) }
}

struct Walker<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Walker<'b> {
    fn fault(&self, fault: &'static str) -> FrameError {
        FrameError::Encoding { at: self.at, fault }
    }

    fn take(&mut self, count: u64) -> Result<&'b [u8], FrameError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let taken = taken.ok_or_else(|| self.fault("it ends in the middle of a value"))?;
        self.at += taken.len();
        Ok(taken)
    }

    /// Major type and argument.
    fn head(&mut self) -> Result<(u8, u64), FrameError> {
        let first = self.take(1)?.first().copied().unwrap_or_default();
        let (major, info) = (first >> 5, first & 0x1F);
        if major == 7 {
            return match info {
                20..=22 => Ok((major, u64::from(info))),
                25..=27 => Err(self.fault("it holds a floating-point number")),
                31 => Err(self.fault("it holds a break of an indefinite length")),
                _ => Err(self.fault("it holds a simple value other than false, true and null")),
            };
        }
        let width = match info {
            0..=23 => return Ok((major, u64::from(info))),
            24..=27 => 1_u64 << (info - 24),
            31 => return Err(self.fault("it holds an indefinite length")),
            _ => return Err(self.fault("it holds a reserved head")),
        };
        let argument = self.take(width)?.iter().fold(0, |value, byte| (value << 8) | u64::from(*byte));
        let least = match width {
            1 => 24,
            2 => 1 << 8,
            4 => 1 << 16,
            _ => 1 << 32,
        };
        if argument < least {
            return Err(self.fault("a number or length is not in its shortest form"));
        }
        Ok((major, argument))
    }

    fn value(&mut self, depth: usize) -> Result<(), FrameError> {
        let (major, argument) = self.head()?;
        match major {
            UNSIGNED => {}
            NEGATIVE if i64::try_from(argument).is_err() => {
                return Err(self.fault("a negative number is below -2^63"));
            }
            BYTES => {
                self.take(argument)?;
            }
            TEXT => {
                let text = self.take(argument)?;
                std::str::from_utf8(text).map_err(|_| self.fault("a text is not UTF-8"))?;
            }
            ARRAY | MAP if depth == MAX_DEPTH => return Err(self.fault("it is nested too deeply")),
            ARRAY => {
                for _ in 0..argument {
                    self.value(depth + 1)?;
                }
            }
            MAP => self.map(argument, depth + 1)?,
            TAG => return Err(self.fault("it holds a tag")),
            _ => {}
        }
        Ok(())
    }

    fn map(&mut self, entries: u64, depth: usize) -> Result<(), FrameError> {
        let mut previous: Option<&[u8]> = None;
        for _ in 0..entries {
            let start = self.at;
            self.value(depth)?;
            let key = self.bytes.get(start..self.at).unwrap_or_default();
            match previous.map(|previous| previous.cmp(key)) {
                Some(std::cmp::Ordering::Equal) => return Err(self.fault("a map has a key twice")),
                Some(std::cmp::Ordering::Greater) => return Err(self.fault("map keys are not ascending")),
                _ => previous = Some(key),
            }
            self.value(depth)?;
        }
        Ok(())
    }
}
