//! RLIMIT_MEMLOCK: how much memory a process may pin, and what to tell people whose limit is too low.

use std::fs;

/// How the limit is raised, for every message that speaks of it.
const REMEDY: &str = "Raise it: `ulimit -l` in the shell, a line `* - memlock unlimited` in \
                      /etc/security/limits.conf, or LimitMEMLOCK=infinity in the systemd unit";

/// What the process may pin, and what it has pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Usage {
    /// Bytes; `None` is no limit.
    limit: Option<u64>,
    /// Bytes of the heap and of mappings that are locked.
    locked: u64,
    /// Bytes that drivers have pinned.
    pinned: u64,
}

fn usage() -> Usage {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the two numbers.
    let answer = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    let unlimited = answer != 0 || limit.rlim_cur == libc::RLIM_INFINITY;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Usage {
        limit: (!unlimited).then_some(limit.rlim_cur),
        locked: field(&status, "VmLck:"),
        pinned: field(&status, "VmPin:"),
    }
}

/// A field of /proc/self/status in bytes; the file tells kibibytes.
fn field(status: &str, name: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib.saturating_mul(1024))
}

/// Why the kernel said ENOMEM to `what`, which wanted `wanted` bytes more: a sentence where it is the limit, `None`
/// where it is something else.
pub(crate) fn explain(what: &str, wanted: usize) -> Option<String> {
    judge(usage(), what, wanted as u64)
}

fn judge(usage: Usage, what: &str, wanted: u64) -> Option<String> {
    let limit = usage.limit?;
    // Drivers pin whole pages. They count against the limit by themselves, mlock(2) by itself.
    let pages = wanted.checked_next_multiple_of(4096)?;
    let used = usage.pinned.max(usage.locked);
    (used.saturating_add(pages) > limit).then(|| {
        format!(
            "{what} needs {} KiB of locked memory; RLIMIT_MEMLOCK is {} KiB, of which {} KiB are in use. {REMEDY}",
            pages / 1024,
            limit / 1024,
            used / 1024
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_names_limit_need_and_remedy() {
        let usage = Usage { limit: Some(8 << 20), locked: 0, pinned: 6 << 20 };
        let message = judge(usage, "registering 3000000 bytes on rxe0", 3_000_000).unwrap();
        for part in [
            "registering 3000000 bytes on rxe0",
            "2932 KiB",
            "8192 KiB",
            "6144 KiB",
            "ulimit -l",
            "LimitMEMLOCK",
        ] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }

    #[test]
    fn another_cause_is_not_blamed_on_the_limit() {
        let usage = Usage { limit: Some(8 << 20), locked: 0, pinned: 0 };
        assert_eq!(judge(usage, "x", 4096), None);
        assert_eq!(judge(Usage { limit: None, ..usage }, "x", 1 << 40), None);
    }

    #[test]
    fn fields_of_the_status_file_are_read() {
        assert_eq!(field("VmLck:\t     128 kB\nVmPin:\t  0 kB\n", "VmLck:"), 128 * 1024);
        assert_eq!(field("", "VmPin:"), 0);
    }
}
