//! What the process has once, whatever the number of environments: the runtime and the devices. Leaked on purpose:
//! threads touch it until the very end.

use std::sync::{Arc, OnceLock};

use secure_rdma_connection::Registry;
use secure_rdma_rdma::{Devices, Result};
use secure_rdma_session::Runtime;
use secure_rdma_soft::SoftDevices;
use secure_rdma_verbs::Verbs;

/// The runtime and the devices.
pub(crate) struct Process {
    pub(crate) runtime: Runtime,
    pub(crate) registry: Arc<Registry>,
}

impl Process {
    /// The one of this process; made when it is first asked for.
    pub(crate) fn get() -> Result<&'static Self> {
        static PROCESS: OnceLock<Result<Process>> = OnceLock::new();
        PROCESS.get_or_init(Self::start).as_ref().map_err(Clone::clone)
    }

    fn start() -> Result<Self> {
        Ok(Self { runtime: Runtime::start()?, registry: Registry::new(families()) })
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
