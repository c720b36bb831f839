//! One tokio runtime for callers that have none.

use std::future::Future;
use std::time::Duration;

use secure_rdma_rdma::{Error, ErrorCode, Result};
use tokio::runtime::{Builder, Handle};

/// Threads for blocking calls (device opening, address resolution, INIT→RTR). They end after 10 s without work.
pub(crate) const BLOCKING_THREADS: usize = 32;

/// A current-thread tokio runtime on a thread named `secure-rdma-ctl`, which lives as long as the process: what it
/// touches is leaked on purpose, so that `exit` handlers cannot pull it away under the thread.
///
/// Clones are handles to the same runtime.
#[derive(Clone, Debug)]
pub struct Runtime {
    handle: Handle,
}

impl Runtime {
    /// Starts the thread. Call it once per process and keep the result.
    ///
    /// # Errors
    /// `ERR_RDMA_RESOURCE` when there is no thread or no descriptor to be had.
    pub fn start() -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_keep_alive(Duration::from_secs(10))
            .thread_name("secure-rdma-blk")
            .build()
            .map_err(|cause| resource("the event loop", &cause))?;
        let handle = runtime.handle().clone();
        let runtime = Box::leak(Box::new(runtime));
        std::thread::Builder::new()
            .name("secure-rdma-ctl".to_owned())
            .spawn(|| runtime.block_on(std::future::pending::<()>()))
            .map_err(|cause| resource("the control thread", &cause))?;
        Ok(Self { handle })
    }

    /// Runs `future` on the runtime's thread.
    pub fn spawn<F>(&self, future: F) -> Task
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Task { handle: self.handle.spawn(future).abort_handle() }
    }

    /// Runs `blocking` on the pool for blocking calls (32 threads; more calls wait their turn).
    pub fn spawn_blocking<F>(&self, blocking: F)
    where
        F: FnOnce() + Send + 'static,
    {
        drop(self.handle.spawn_blocking(blocking));
    }

    /// Waits for `future` on the calling thread, which must not be the runtime's own.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.handle.block_on(future)
    }
}

/// A future that runs on a [`Runtime`]. Dropping this leaves it running.
#[derive(Debug)]
pub struct Task {
    handle: tokio::task::AbortHandle,
}

impl Task {
    /// Drops the future at its next suspension point. Idempotent.
    pub fn abort(&self) {
        self.handle.abort();
    }

    /// Whether the future has ended or was dropped.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

fn resource(what: &str, cause: &std::io::Error) -> Error {
    Error::new(ErrorCode::Resource, format!("{what} could not be started: {cause}. Raise the limits on threads (ulimit -u) and open files (ulimit -n)"))
        .with_syscall("clone", cause.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_waits_and_aborts() {
        let runtime = Runtime::start().unwrap();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let name = std::thread::current().name().map(str::to_owned);
            let _ = sender.send(name);
        });
        assert_eq!(runtime.block_on(receiver).unwrap().as_deref(), Some("secure-rdma-ctl"));

        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        let task = runtime.spawn(async move {
            std::future::pending::<()>().await;
            drop(sender);
        });
        assert!(!task.is_finished());
        task.abort();
        assert!(runtime.block_on(receiver).is_err(), "aborting drops the future");
    }
}
