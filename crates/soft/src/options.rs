//! How a device is opened.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use secure_rdma_rdma::{Entropy, OsEntropy};

use crate::engine::Config;

/// How [`crate::SoftDevice::open`] opens a device of its own. The defaults are those of the device that
/// [`crate::SoftDevices`] opens.
#[derive(Clone)]
pub struct SoftOptions {
    /// Its name: `soft`.
    pub name: String,
    /// The UDP port that it receives on. `None` is 4791 where that is free, and otherwise any; 0 is any. Peers that are
    /// NICs or the kernel's soft-RoCE can only be served on 4791.
    pub port: Option<u16>,
    /// Bytes asked for as each socket's receive buffer: 4 MiB. The kernel gives at most net.core.rmem_max of them, and
    /// twice that number counts (socket(7)).
    pub receive_buffer: usize,
    /// Whether the kernel cuts batches into packets (`UDP_SEGMENT`, Linux 4.18). Off where a NIC does not count up the
    /// IPv4 ID while it cuts: the ICRC covers that.
    pub segmentation: bool,
    /// Whether the kernel hands packets over in batches (`UDP_GRO`, Linux 5.0).
    pub merging: bool,
    /// How the engine behaves.
    pub engine: Config,
    /// Where random numbers come from.
    pub entropy: Arc<dyn Entropy>,
    /// A pcapng file to write all packets to, from the start. **Whoever reads it sees all data, PSNs and R_Keys.**
    pub capture: Option<PathBuf>,
}

impl Default for SoftOptions {
    fn default() -> Self {
        Self {
            name: crate::NAME.to_owned(),
            port: None,
            receive_buffer: 4 << 20,
            segmentation: true,
            merging: true,
            engine: Config::default(),
            entropy: Arc::new(OsEntropy),
            capture: None,
        }
    }
}

impl fmt::Debug for SoftOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoftOptions")
            .field("name", &self.name)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}
