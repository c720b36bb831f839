//! WRITEs, READs and atomics between two channels, with memory that the tests grant.

mod flow;
mod given_up;
mod refusals;
mod transfer;

use std::sync::Arc;

use secure_rdma_rdma::{Access, Device as _, Error, Memory, Region};

use super::{End, World};
use crate::operations::Operation;
use crate::remote::RemoteRegion;

pub(crate) const ALL: Access = Access::REMOTE_READ.union(Access::REMOTE_WRITE).union(Access::REMOTE_ATOMIC);

/// Memory of the second end, and what the first one knows of it.
pub(crate) struct Granted {
    pub(crate) memory: Arc<Memory>,
    pub(crate) remote: RemoteRegion,
    _region: Arc<Region>,
}

/// Grants `bytes` of the second device to `end`, without the messages that announce it.
pub(crate) fn grant(world: &World, end: &End, id: u32, bytes: usize, access: Access) -> Granted {
    let memory = Arc::new(Memory::allocate(bytes).unwrap());
    let region = world.devices[1].register(Arc::clone(&memory), access | Access::LOCAL_WRITE).unwrap();
    let name = format!("grant {id}");
    let range = (region.address(), bytes as u64);
    let remote = RemoteRegion::new(end.channel.myself.clone(), (id, name), access, range, region.rkey());
    Granted { memory, remote, _region: region }
}

pub(crate) fn done(end: &End) -> u64 {
    end.channel.lock().transmit.done()
}

fn outcome(end: &End, id: u64) -> Option<Result<u64, Error>> {
    end.channel.lock().transmit.outcome(id)
}

fn bytes(memory: &Memory, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    memory.read(offset, &mut bytes).unwrap();
    bytes
}

/// Posts and waits until all of it is done.
fn carry_out(end: &End, operations: &[Operation<'_>]) -> std::ops::Range<u64> {
    let ids = end.channel.post(operations).unwrap();
    end.until("the operations to be done", |end| end.lock().transmit.done() >= ids.end - 1);
    ids
}
