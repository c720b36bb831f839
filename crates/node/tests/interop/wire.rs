//! The wire between rxe2 and the namespace `peer`.

use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The network namespace of the embedded device.
pub(crate) const NAMESPACE: &str = "peer";

/// Packets over the wire are one test's at a time.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wire, which loses packets in both directions until it is dropped.
pub(crate) struct Wire {
    loss: u32,
}

impl Wire {
    /// `loss` is in percent.
    pub(crate) fn new(loss: u32) -> Self {
        for end in ["-n peer qdisc replace dev p0", "qdisc replace dev v2"] {
            tc(&format!("{end} root netem loss {loss}% limit 10000"));
        }
        Self { loss }
    }

    /// That packets were lost is seen, or that none was.
    pub(crate) fn check(&self) {
        for end in ["-n peer -s -j qdisc show dev p0", "-s -j qdisc show dev v2"] {
            let text = tc(end);
            let (_, rest) = text.split_once("\"drops\":").expect("tc tells of drops");
            let dropped: u64 = rest.split([',', '}']).next().unwrap().trim().parse().unwrap();
            println!("{dropped} packets dropped ({end})");
            assert_eq!(dropped > 0, self.loss > 0);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        for end in ["-n peer qdisc delete dev p0 root", "qdisc delete dev v2 root"] {
            tc(end);
        }
    }
}

fn tc(arguments: &str) -> String {
    let output = Command::new("tc").args(arguments.split(' ')).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "tc {arguments}: {told}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Moves this thread, and those that it will start, into the namespace.
pub(crate) fn enter() {
    let namespace = std::fs::File::open(format!("/run/netns/{NAMESPACE}")).expect("peer.sh has run");
    // SAFETY: the descriptor is open, and the call changes nothing but this thread's network namespace.
    let result = unsafe { libc::setns(std::os::fd::AsRawFd::as_raw_fd(&namespace), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "setns: {}", std::io::Error::last_os_error());
}
