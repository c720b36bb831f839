//! What the process has once, whatever the number of environments: the runtime and the devices. Leaked on purpose:
//! threads touch it until the very end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use secure_rdma_connection::Registry;
use secure_rdma_rdma::{Devices, Error, ErrorCode, Result};
use secure_rdma_session::Runtime;
use secure_rdma_soft::SoftDevices;
use secure_rdma_verbs::Verbs;

/// Whether this process has come out of fork(2), without exec, of one that had started.
static FORKED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_fork() {
    FORKED.store(true, Ordering::Relaxed);
}

/// Refuses a call in a forked child: it has memory of its parent's and none of its threads, so that locks may be held for
/// ever and nothing would be answered. Node's own `child_process` and `cluster` start a new program, which is none.
///
/// # Errors
/// `ERR_RDMA_DEVICE_OPEN`.
pub(crate) fn refuse_fork() -> Result<()> {
    if !FORKED.load(Ordering::Relaxed) {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::DeviceOpen,
        "secure-rdma was in use before fork(2): a forked child cannot use it; start a new program, as node:child_process \
         and node:cluster do",
    ))
}

/// The runtime and the devices.
pub(crate) struct Process {
    pub(crate) runtime: Runtime,
    pub(crate) registry: Arc<Registry>,
}

impl Process {
    /// The one of this process; made when it is first asked for.
    pub(crate) fn get() -> Result<&'static Self> {
        static PROCESS: OnceLock<Result<Process>> = OnceLock::new();
        refuse_fork()?;
        PROCESS.get_or_init(Self::start).as_ref().map_err(Clone::clone)
    }

    fn start() -> Result<Self> {
        // SAFETY: the hook only writes an atomic, which is allowed in the child of a threaded process.
        let _ = unsafe { libc::pthread_atfork(None, None, Some(note_fork)) };
        Ok(Self { runtime: Runtime::start()?, registry: Registry::new(families()) })
    }
}

/// Drops what takes its time to drop on the pool for blocking calls: memory to unmap, and to unpin.
pub(crate) fn drop_elsewhere<T: Send + 'static>(value: T) {
    match Process::get() {
        Ok(process) => process.runtime.spawn_blocking(move || drop(value)),
        // In a forked child: the memory is a copy, and the registrations are the parent's.
        Err(_) => std::mem::forget(value),
    }
}

fn families() -> Vec<Arc<dyn Devices>> {
    let mut families: Vec<Arc<dyn Devices>> = vec![Arc::new(Verbs)];
    // Two of its addresses are loopback's: in a test of the embedded device they would take its place.
    #[cfg(feature = "fake")]
    if std::env::var_os("SECURE_RDMA_TEST_DEVICE").is_some_and(|device| device == "fake") {
        families.push(Arc::new(fake()));
    }
    // The last that is listed, since it is the last that is thought of.
    families.push(Arc::new(SoftDevices));
    families
}

/// Two devices on one wire, at two loopback addresses.
#[cfg(feature = "fake")]
fn fake() -> secure_rdma_rdma::fake::Fabric {
    let fabric = secure_rdma_rdma::fake::Fabric::new();
    for (name, last) in [("fake0", 1), ("fake1", 2)] {
        // The fabric keeps its devices; the handle is not needed.
        let _ = fabric.device(name, std::net::Ipv4Addr::new(127, 0, 0, last).into());
    }
    fabric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_is_refused_and_its_parent_is_not() {
        assert!(Process::get().is_ok());
        // SAFETY: the child makes no call that may wait for another thread, and ends without cleaning up.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let refused = refuse_fork().is_err();
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(if refused { 7 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: `status` is ours.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert!(child > 0 && waited == child);
        assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 7));
        assert!(Process::get().is_ok());
    }
}
