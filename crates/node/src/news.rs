//! What JavaScript is told of its connections: all of it, short messages too, in one crossing.
//!
//! It gives an array of doubles and one of bytes, and finds there, of each object that has rung,
//!
//! | word | |
//! | --- | --- |
//! | 0 | the object's id |
//! | 1 | flags of a connection: 1 it is over, 2 operations have outcomes, 4 there is more to receive; or -1: the object is none |
//! | 2 | every id up to this one has been acknowledged, as `sent` tells |
//! | 3 | number of messages |
//! | 4 … | the length of each; their bytes follow each other in the array of bytes, after those of the objects before |
//!
//! Messages come so until some are left over, for which JavaScript asks, or it says that it keeps some. `src/news.ts` reads it.

use std::sync::atomic::Ordering;

use napi::bindgen_prelude::{Float64ArraySlice, Uint8ArraySlice};
use napi_derive::napi;

use crate::connection::{Held, NativeConnection};
use crate::environment::Environment;
use crate::process::refuse_fork;
use crate::report::number;

/// Longer messages cross by themselves.
const SHORT: usize = 4096;

/// Messages of one connection at the most: others wait too.
const MOST_MESSAGES: usize = 128;

/// Words before the lengths of the messages.
const HEAD: usize = 4;

/// Flags of a connection.
const OVER: u32 = 1;
const OUTCOMES: u32 = 2;
const MORE: u32 = 4;

#[napi]
impl Environment {
    /// Moves the news of the objects that have rung to `words` and `bytes`. Gives how many words; if they have not all had
    /// room, less the number itself, -1.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn drain(&self, mut words: Float64ArraySlice<'_>, mut bytes: Uint8ArraySlice<'_>) -> i32 {
        // SAFETY: it is memory of JavaScript's, on whose thread this is, and no code of its runs meanwhile.
        let words = unsafe { words.as_mut() };
        // SAFETY: as above.
        let bytes = unsafe { bytes.as_mut() };
        let mut page = Page { words, bytes };
        let room = page.words.len();
        let all = self.house().drain(|id, held| page.write(id, held));
        let used = i32::try_from(room - page.words.len()).unwrap_or(i32::MAX);
        if all { used } else { -1 - used }
    }
}

#[napi]
impl NativeConnection {
    /// The same of one connection.
    #[napi(catch_unwind)]
    pub fn look(&self, mut words: Float64ArraySlice<'_>, mut bytes: Uint8ArraySlice<'_>) {
        // SAFETY: it is memory of JavaScript's, on whose thread this is, and no code of its runs meanwhile.
        let words = unsafe { words.as_mut() };
        // SAFETY: as above.
        let bytes = unsafe { bytes.as_mut() };
        Page { words, bytes }.write(0, Some(self.held()));
    }

    /// Moves short messages that are ready to `bytes`, one behind the other, and their lengths to `words`. Gives their number:
    /// the next ones come with the news. Where there is more already, it gives the number itself, less 1 and negative; -1 when
    /// `receive` gives what comes next.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn receive_short(&self, mut words: Float64ArraySlice<'_>, mut bytes: Uint8ArraySlice<'_>) -> i32 {
        if refuse_fork().is_err() {
            return -1;
        }
        // SAFETY: it is memory of JavaScript's, on whose thread this is, and no code of its runs meanwhile.
        let words = unsafe { words.as_mut() };
        // SAFETY: as above.
        let bytes = unsafe { bytes.as_mut() };
        let mut page = Page { words, bytes };
        let mut count = 0;
        let look = self.connection().look(|message| page.take(message, &mut count));
        self.held().wanted.store(!look.receives, Ordering::Relaxed);
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        if look.receives { -1 - count } else { count }
    }

    /// No messages with the news, until `receive_short` has given all there are: those that came last have not been taken yet.
    #[napi(catch_unwind)]
    pub fn keep_messages(&self) {
        self.held().wanted.store(false, Ordering::Relaxed);
    }
}

/// What is left of the room for news.
struct Page<'a> {
    words: &'a mut [f64],
    bytes: &'a mut [u8],
}

impl Page<'_> {
    /// Writes what there is of an object; tells whether it has room.
    fn write(&mut self, id: u32, held: Option<&Held>) -> bool {
        if self.words.len() < HEAD {
            return false;
        }
        let (head, rest) = std::mem::take(&mut self.words).split_at_mut(HEAD);
        self.words = rest;
        let (flags, done, count) = held.map_or((-1.0, 0, 0), |held| self.look(held));
        head.copy_from_slice(&[id.into(), flags, number(done), number(count as u64)]);
        true
    }

    fn look(&mut self, held: &Held) -> (f64, u64, usize) {
        if refuse_fork().is_err() {
            return ((OVER | MORE).into(), 0, 0);
        }
        let wanted = held.wanted.load(Ordering::Relaxed);
        let mut count = 0;
        let look = held.connection.look(|message| wanted && self.take(message, &mut count));
        if look.receives {
            held.wanted.store(false, Ordering::Relaxed);
        }
        let flag = |is: bool, flag: u32| if is { flag } else { 0 };
        let flags = flag(look.is_over, OVER) | flag(look.has_outcomes, OUTCOMES) | flag(look.receives, MORE);
        (flags.into(), look.done, count)
    }

    /// Takes a message if it is short and there is room.
    fn take(&mut self, message: &[u8], count: &mut usize) -> bool {
        if message.len() > SHORT || message.len() > self.bytes.len() || *count == MOST_MESSAGES {
            return false;
        }
        let Some((length, words)) = std::mem::take(&mut self.words).split_first_mut() else { return false };
        self.words = words;
        *length = number(message.len() as u64);
        let (place, bytes) = std::mem::take(&mut self.bytes).split_at_mut(message.len());
        self.bytes = bytes;
        place.copy_from_slice(message);
        *count += 1;
        true
    }
}
