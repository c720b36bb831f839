//! The local bytes of work requests: judged when posted, gathered from and scattered to.

use secure_rdma_rdma::{Access, Error, ErrorCode, Result, Slice};
use smallvec::SmallVec;

use super::regions::Regions;

/// The longest message: 2^31 bytes (IBTA 9.7.7.2.1).
pub(super) const MAX_MESSAGE: u32 = 1 << 31;

/// What the slices of a request amount to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) length: u32,
    /// Whether all regions have LOCAL_WRITE.
    pub(super) writable: bool,
}

/// Judges the slices of a request: their number, their bounds, and that their regions are this engine's.
///
/// # Errors
/// [`ErrorCode::InvalidArgument`] with what is wrong, as the verbs device says it.
pub(super) fn check(slices: &[Slice], regions: &Regions, max_sge: u32) -> Result<Judged> {
    let invalid = |message: String| Err(Error::new(ErrorCode::InvalidArgument, message));
    if slices.len() > max_sge as usize {
        return invalid(format!("{} pieces in a work request; the queue pair takes {max_sge}", slices.len()));
    }
    let (mut total, mut writable) = (0_u64, true);
    for slice in slices {
        if !slice.is_inside() {
            return invalid(format!(
                "{} bytes at offset {} do not lie inside a region of {} bytes",
                slice.length,
                slice.offset,
                slice.region.memory().len()
            ));
        }
        let Some(access) = regions.local(slice.region.lkey()) else {
            return invalid("the region is not registered on this device".to_owned());
        };
        writable &= access.contains(Access::LOCAL_WRITE);
        total = total.saturating_add(slice.length as u64);
    }
    match u32::try_from(total).ok().filter(|length| *length <= MAX_MESSAGE) {
        Some(length) => Ok(Judged { length, writable }),
        None => invalid(format!("{total} bytes in a message; the device takes {MAX_MESSAGE}")),
    }
}

/// A copy of the slices: a count more on each region.
pub(super) fn copy(slices: &[Slice]) -> SmallVec<[Slice; 1]> {
    match slices {
        // What nearly all requests have, and quicker than a copy of any number.
        [one] => SmallVec::from_buf([one.clone()]),
        many => many.iter().cloned().collect(),
    }
}

/// Appends `length` bytes from `offset` of what the slices hold together. Tells whether they hold so much.
pub(super) fn gather(slices: &[Slice], offset: usize, length: usize, into: &mut Vec<u8>) -> bool {
    let mut append = |slice: &Slice, from, length| {
        let Some(from) = slice.offset.checked_add(from) else { return false };
        slice.region.memory().append_to(from, length, into).is_ok()
    };
    each_part(slices, offset, length, |slice, from, _, length| append(slice, from, length))
}

/// Writes `bytes` to `offset` of what the slices hold together. Tells whether they hold so much.
pub(super) fn scatter(slices: &[Slice], offset: usize, bytes: &[u8]) -> bool {
    each_part(slices, offset, bytes.len(), |slice, from, done, length| {
        let (Some(from), Some(part)) =
            (slice.offset.checked_add(from), bytes.get(done..).and_then(|rest| rest.get(..length)))
        else {
            return false;
        };
        slice.region.memory().write(from, part).is_ok()
    })
}

/// Calls `part` with each slice of the range, where in the slice its part begins, how many bytes came before it, and
/// how many it has.
fn each_part(
    slices: &[Slice],
    offset: usize,
    length: usize,
    mut part: impl FnMut(&Slice, usize, usize, usize) -> bool,
) -> bool {
    let (mut skip, mut done) = (offset, 0);
    for slice in slices {
        if skip >= slice.length && !(skip == slice.length && length == 0) {
            skip -= slice.length;
            continue;
        }
        let here = (slice.length - skip).min(length - done);
        if !part(slice, skip, done, here) {
            return false;
        }
        skip = 0;
        done += here;
        if done == length {
            return true;
        }
    }
    done == length
}
