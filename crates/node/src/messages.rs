//! Short messages, several in one crossing.

use napi::bindgen_prelude::{Uint8ArraySlice, Uint32ArraySlice};
use napi_derive::napi;

use crate::connection::NativeConnection;
use crate::process::refuse_fork;

#[napi]
impl NativeConnection {
    /// Moves messages that are ready to `bytes`, one behind the other, as long as they are not longer than `longest` and
    /// there is room, and their lengths to `lengths`. Gives their number; 0 says nothing of why.
    #[napi(catch_unwind)]
    #[must_use]
    pub fn receive_short(
        &self,
        mut bytes: Uint8ArraySlice<'_>,
        mut lengths: Uint32ArraySlice<'_>,
        longest: u32,
    ) -> u32 {
        if refuse_fork().is_err() {
            return 0;
        }
        // SAFETY: it is memory of JavaScript's, on whose thread this is, and no code of its runs meanwhile.
        let bytes = unsafe { bytes.as_mut() };
        // SAFETY: as above.
        let lengths = unsafe { lengths.as_mut() };
        let (mut used, mut count) = (0, 0);
        self.connection().receive_many(|message| {
            let room = bytes.get_mut(used..used + message.len());
            let (Some(room), Some(length), Ok(short)) =
                (room, lengths.get_mut(count), u32::try_from(message.len()))
            else {
                return false;
            };
            if short > longest {
                return false;
            }
            room.copy_from_slice(message);
            *length = short;
            used += message.len();
            count += 1;
            true
        });
        u32::try_from(count).unwrap_or(u32::MAX)
    }
}
