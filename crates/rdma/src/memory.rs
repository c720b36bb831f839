//! Memory that a wire can touch: allocated here, never by JavaScript. The crate's one file with `unsafe`.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ptr::NonNull;

use crate::{Error, ErrorCode, Result};

/// Page-aligned, zeroed memory of our own, with an inaccessible page before and after it.
///
/// A device may write here while we read: every access is a copy through raw pointers, and no reference to the
/// bytes is ever made. Contents are stable only after the completion that says so, and the same holds between
/// threads: whoever copies into a range that another copies from gets some of each.
pub struct Memory {
    mapping: NonNull<u8>,
    mapped: usize,
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping is owned by this value alone and is not tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared access is by copies through raw pointers only; see `write` and `read`.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `length` bytes, zeroed.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] for a length of 0 or beyond the address space, [`ErrorCode::NoMemory`] when
    /// the system gives none (RLIMIT_AS, overcommit).
    pub fn allocate(length: usize) -> Result<Self> {
        let page = page_size();
        let usable = length.checked_next_multiple_of(page).filter(|usable| *usable > 0);
        let Some(mapped) = usable.and_then(|usable| usable.checked_add(2 * page)) else {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("a region of {length} bytes cannot be allocated: give a length from 1 byte"),
            ));
        };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), mapped, libc::PROT_NONE, flags, -1, 0) };
        let Some(mapping) = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED) else {
            return Err(no_memory("mmap", length));
        };
        // SAFETY: `page` is inside the mapping, which is at least three pages long.
        let start = unsafe { mapping.add(page) };
        let memory = Self { mapping, mapped, start, length };
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range lies inside the mapping made above.
        if unsafe { libc::mprotect(start.as_ptr().cast(), mapped - 2 * page, protection) } != 0 {
            return Err(no_memory("mprotect", length));
        }
        // A child of fork(2) must not share pages that a device pins (ibv_fork_init(3)). Best effort: old kernels
        // without it only lose that protection.
        // SAFETY: the range lies inside the mapping made above.
        let _ = unsafe { libc::madvise(start.as_ptr().cast(), mapped - 2 * page, libc::MADV_DONTFORK) };
        Ok(memory)
    }

    /// The address of the first byte, for a device's registration call.
    #[must_use]
    pub fn address(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes, as asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never true: an empty region cannot be allocated.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] when the range does not lie inside; nothing is copied then.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = self.range(offset, bytes.len())?;
        // SAFETY: `range` has checked that the destination lies inside, and `bytes` is no part of this mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies from `offset` into `bytes`.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] when the range does not lie inside; nothing is copied then.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = self.range(offset, bytes.len())?;
        // SAFETY: `range` has checked that the source lies inside, and `bytes` is no part of this mapping.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Appends `length` bytes from `offset` to `bytes`, without zeroing them first.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] when the range does not lie inside; nothing is copied then.
    pub fn append_to(&self, offset: usize, length: usize, bytes: &mut Vec<u8>) -> Result<()> {
        let from = self.range(offset, length)?;
        bytes.reserve(length);
        let spare = bytes.spare_capacity_mut();
        // SAFETY: `range` has checked the source, and `reserve` made room for `length` bytes.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), spare.as_mut_ptr().cast(), length) };
        // SAFETY: the `length` bytes behind the old end were written just above.
        unsafe { bytes.set_len(bytes.len() + length) };
        Ok(())
    }

    fn range(&self, offset: usize, length: usize) -> Result<NonNull<u8>> {
        match offset.checked_add(length) {
            // SAFETY: `offset` is at most the mapping's usable length.
            Some(end) if end <= self.length => Ok(unsafe { self.start.add(offset) }),
            _ => Err(Error::new(
                ErrorCode::InvalidArgument,
                format!(
                    "{length} bytes at offset {offset} do not lie inside a region of {} bytes",
                    self.length
                ),
            )),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `allocate`, and nothing points into it once its last owner is gone.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("length", &self.length).finish_non_exhaustive()
    }
}

fn page_size() -> usize {
    // SAFETY: sysconf reads a constant.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

fn no_memory(syscall: &'static str, length: usize) -> Error {
    let cause = io::Error::last_os_error();
    Error::new(ErrorCode::NoMemory, format!("no memory for a region of {length} bytes: {cause}"))
        .with_syscall(syscall, cause.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_range_around_both_ends_is_judged_rightly() {
        let memory = Memory::allocate(64).unwrap();
        for offset in 0..=80_usize {
            for length in 0..=80_usize {
                let inside = offset + length <= 64;
                assert_eq!(memory.write(offset, &vec![7; length]).is_ok(), inside, "{length} at {offset}");
                assert_eq!(memory.read(offset, &mut vec![0; length]).is_ok(), inside);
                assert_eq!(memory.append_to(offset, length, &mut Vec::new()).is_ok(), inside);
            }
        }
        assert!(memory.write(usize::MAX, &[0; 2]).is_err());
        assert!(memory.append_to(2, usize::MAX, &mut Vec::new()).is_err());
    }

    #[test]
    fn what_was_written_is_read() {
        let memory = Memory::allocate(5000).unwrap();
        let bytes: Vec<u8> = (0..5000_u32).map(|i| i.to_le_bytes()[0]).collect();
        memory.write(0, &bytes).unwrap();
        let mut back = vec![1, 2];
        memory.append_to(100, 4000, &mut back).unwrap();
        assert_eq!(&back[..2], [1, 2]);
        assert_eq!(back[2..], bytes[100..4100]);
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0, usize::MAX, usize::MAX - 4096] {
            assert_eq!(Memory::allocate(length).unwrap_err().code(), ErrorCode::InvalidArgument);
        }
        assert_eq!(Memory::allocate(1 << 60).unwrap_err().code(), ErrorCode::NoMemory);
    }
}
