//! Memory that a wire can touch: allocated here, never by JavaScript. The crate's one file with `unsafe`.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::{Error, ErrorCode, Result};

/// Page-aligned, zeroed memory of our own, with an inaccessible page before and after it.
///
/// A device may write here while we read: every access is a copy through raw pointers, and no reference to the
/// bytes is ever made but that to an `AtomicU64` while [`Memory::compare_swap`] or [`Memory::fetch_add`] runs.
/// Contents are stable only after the completion that says so, and the same holds between threads: whoever copies
/// into a range that another copies from gets some of each.
///
/// In builds with debug assertions the addresses of a dropped region are never used again, so that an access that
/// comes too late, by whatever kept the address, ends in SIGSEGV instead of in another region's bytes. At most
/// 1 TiB of addresses is kept back so; it costs no memory. Fuzz targets keep back 1 GiB, since to AddressSanitizer
/// each address that was ever mapped costs an eighth of a byte of shadow.
pub struct Memory {
    mapping: NonNull<u8>,
    mapped: usize,
    start: NonNull<u8>,
    length: usize,
    outlived: AtomicBool,
}

// SAFETY: the mapping is owned by this value alone and is not tied to a thread.
unsafe impl Send for Memory {}
// SAFETY: shared access is by copies through raw pointers and by atomic instructions only; see `write` and `read`.
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
        let memory = Self { mapping, mapped, start, length, outlived: AtomicBool::new(false) };
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

    /// Says that somebody may keep the address beyond the last owner, whom nobody can ask: a language's runtime that has
    /// moved the memory to a thread of which it tells nothing. When the last owner is gone, the pages are given back, but the
    /// addresses never: zeroes are there then, which may be written to.
    pub fn keep_readable(&self) {
        self.outlived.store(true, Ordering::Release);
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

    /// Stores `swap` in the 8 bytes at `offset` if they hold `compare`, and answers what they held, in one atomic
    /// step. The bytes are an integer in the host's order.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidArgument`] when the bytes do not lie inside or `offset` is no multiple of 8; nothing is
    /// changed then.
    pub fn compare_swap(&self, offset: usize, compare: u64, swap: u64) -> Result<u64> {
        let held = self.atomic(offset)?.compare_exchange(compare, swap, Ordering::SeqCst, Ordering::SeqCst);
        Ok(held.unwrap_or_else(|other| other))
    }

    /// Adds to the 8 bytes at `offset`, modulo 2^64, and answers what they held, in one atomic step. The bytes are
    /// an integer in the host's order.
    ///
    /// # Errors
    /// As for [`Memory::compare_swap`].
    pub fn fetch_add(&self, offset: usize, add: u64) -> Result<u64> {
        Ok(self.atomic(offset)?.fetch_add(add, Ordering::SeqCst))
    }

    fn atomic(&self, offset: usize) -> Result<&AtomicU64> {
        let at = self.range(offset, 8)?;
        if !offset.is_multiple_of(8) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("an atomic at offset {offset}: give a multiple of 8"),
            ));
        }
        // SAFETY: `range` has checked the 8 bytes, which are aligned since the region starts a page.
        Ok(unsafe { AtomicU64::from_ptr(at.as_ptr().cast()) })
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
        if self.outlived.load(Ordering::Acquire) {
            // Where there is no memory even for the note, the pages stay as they are.
            let _ = self.replace(libc::PROT_READ | libc::PROT_WRITE);
            return;
        }
        if cfg!(debug_assertions) && self.keep_addresses() {
            return;
        }
        // SAFETY: the mapping was made by `allocate`, and nothing points into it once its last owner is gone.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

impl Memory {
    /// Gives the pages back but keeps their addresses, unless too many are kept already: a process has 2^47.
    fn keep_addresses(&self) -> bool {
        static KEPT: AtomicUsize = AtomicUsize::new(0);
        const MOST: usize = if cfg!(fuzzing) { 1 << 30 } else { usize::MAX >> 24 };
        if KEPT.fetch_add(self.mapped, Ordering::Relaxed).saturating_add(self.mapped) > MOST {
            KEPT.fetch_sub(self.mapped, Ordering::Relaxed);
            return false;
        }
        self.replace(libc::PROT_NONE)
    }

    /// Gives the pages back; at their addresses there are others from now on, or none.
    fn replace(&self, protection: libc::c_int) -> bool {
        // A new mapping in place of the old, rather than mprotect and madvise: neighbours merge into one, of which
        // a process may have only so many (vm.max_map_count), and nothing stays charged as committed.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        let start = self.mapping.as_ptr().cast();
        // SAFETY: it replaces exactly what `allocate` mapped, whose last owner is gone.
        let kept = unsafe { libc::mmap(start, self.mapped, protection, flags, -1, 0) };
        kept != libc::MAP_FAILED
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
    Error::new(
        ErrorCode::NoMemory,
        format!(
            "no memory for a region of {length} bytes: {cause}. Free some, or raise the limit (ulimit -v)"
        ),
    )
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
    fn what_may_be_looked_at_later_is_zeroed_and_stays_mapped() {
        let memory = Memory::allocate(5000).unwrap();
        memory.write(4990, &[7; 10]).unwrap();
        memory.keep_readable();
        let last = memory.address().as_ptr().wrapping_add(4999);
        drop(memory);
        // SAFETY: that is what `keep_readable` promises.
        let before = unsafe { last.read_volatile() };
        // SAFETY: as above.
        unsafe { last.write_volatile(5) };
        // SAFETY: as above.
        let after = unsafe { last.read_volatile() };
        assert_eq!((before, after), (0, 5));
    }

    #[test]
    fn impossible_lengths_are_refused() {
        for length in [0, usize::MAX, usize::MAX - 4096] {
            assert_eq!(Memory::allocate(length).unwrap_err().code(), ErrorCode::InvalidArgument);
        }
        assert_eq!(Memory::allocate(1 << 60).unwrap_err().code(), ErrorCode::NoMemory);
    }

    #[test]
    fn atomics_around_both_ends_are_judged_rightly() {
        for length in [1, 7, 8, 9, 15, 16, 63, 64] {
            let memory = Memory::allocate(length).unwrap();
            for offset in (0..=80_usize).chain([usize::MAX - 8, usize::MAX - 7, usize::MAX]) {
                let good = offset % 8 == 0 && offset.checked_add(8).is_some_and(|end| end <= length);
                let before = bytes_of(&memory);
                assert_eq!(memory.fetch_add(offset, 1).is_ok(), good, "{offset} of {length}");
                assert_eq!(memory.compare_swap(offset, 1, 0).is_ok(), good, "{offset} of {length}");
                assert_eq!(bytes_of(&memory), before, "{offset} of {length}");
            }
        }
    }

    #[test]
    fn atomics_answer_what_was_there_and_change_only_their_bytes() {
        let memory = Memory::allocate(24).unwrap();
        memory.write(0, &[0xAA; 24]).unwrap();
        memory.write(8, &5_u64.to_ne_bytes()).unwrap();
        assert_eq!(memory.fetch_add(8, 10).unwrap(), 5);
        assert_eq!(memory.compare_swap(8, 14, 1).unwrap(), 15, "not what was compared with");
        assert_eq!(memory.compare_swap(8, 15, u64::MAX).unwrap(), 15);
        assert_eq!(memory.fetch_add(8, 3).unwrap(), u64::MAX);
        assert_eq!(bytes_of(&memory), [&[0xAA; 8][..], &2_u64.to_ne_bytes(), &[0xAA; 8]].concat());
    }

    #[test]
    fn atomics_of_several_threads_lose_nothing() {
        let memory = Memory::allocate(8).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| (0..100_000).for_each(|_| assert!(memory.fetch_add(0, 1).is_ok())));
                scope.spawn(|| {
                    for _ in 0..100_000 {
                        let mut held = memory.compare_swap(0, 0, 0).unwrap();
                        while let before = memory.compare_swap(0, held, held + 1).unwrap()
                            && before != held
                        {
                            held = before;
                        }
                    }
                });
            }
        });
        assert_eq!(memory.fetch_add(0, 0).unwrap(), 400_000);
    }

    fn bytes_of(memory: &Memory) -> Vec<u8> {
        let mut bytes = Vec::new();
        memory.append_to(0, memory.len(), &mut bytes).unwrap();
        bytes
    }

    #[cfg(debug_assertions)]
    mod late_access {
        use std::io::Write as _;
        use std::os::unix::process::ExitStatusExt;
        use std::process::{Command, ExitStatus};

        use super::*;

        const VARIABLE: &str = "SECURE_RDMA_TEST_READ";

        /// Runs `reads_when_told` alone in a process of its own.
        fn child(when: &str) -> ExitStatus {
            let name = "memory::tests::late_access::reads_when_told";
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture", "--test-threads=1"])
                .env(VARIABLE, when)
                .output()
                .unwrap();
            assert!(
                String::from_utf8_lossy(&output.stdout).contains("read now"),
                "the child came to its read"
            );
            output.status
        }

        #[test]
        fn reads_when_told() {
            let Ok(when) = std::env::var(VARIABLE) else { return };
            let length = 3 * page_size();
            let memory = Memory::allocate(length).unwrap();
            memory.write(length - 1, &[7]).unwrap();
            // SAFETY: the offset is inside the region.
            let last = unsafe { memory.address().add(length - 1) };
            let mut later = Vec::new();
            if when == "late" {
                drop(memory);
                // Were the addresses free, one of these would get them, and the read would find its bytes.
                later.extend((0..64).map(|_| Memory::allocate(length).unwrap()));
            } else {
                later.push(memory);
            }
            std::io::stdout().write_all(b"read now\n").unwrap();
            // SAFETY: in time it is inside the region; late it is the fault that this test is about.
            let byte = unsafe { last.as_ptr().read_volatile() };
            assert_eq!(byte, 7);
            drop(later);
        }

        #[test]
        fn a_late_access_is_caught() {
            assert_eq!(child("in time").code(), Some(0));
            assert_eq!(child("late").signal(), Some(libc::SIGSEGV));
        }

        #[test]
        fn kept_addresses_merge_into_few_mappings() {
            let mappings = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
            let before = mappings();
            for _ in 0..2000 {
                let memory = Memory::allocate(16 << 20).unwrap();
                memory.write(5 << 20, &[1; 100]).unwrap();
            }
            assert!(mappings() < before + 500, "{before} mappings became {}", mappings());
        }
    }
}
