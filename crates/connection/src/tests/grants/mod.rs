//! Regions that are published and taken back, between two channels on the in-memory device.

mod messages;
mod opening;
mod publishing;
mod unpublishing;

use std::sync::Arc;

use secure_rdma_rdma::fake::FakeDevice;
use secure_rdma_rdma::{Access, ErrorCode};
use secure_rdma_session::UpperLayer;

use super::{End, World, until};
use crate::channel::{Channel, Life};
use crate::grants::PublicationState;
use crate::operations::Operation;
use crate::options::ConnectionOptions;
use crate::regions::{RegionSlice, SharedRegion};
use crate::remote::{RemoteRegion, RemoteSlice};

const READ: Access = Access::REMOTE_READ;
const WRITE: Access = Access::REMOTE_WRITE;
const ATOMIC: Access = Access::REMOTE_ATOMIC;

/// How a device opens something to one peer.
type Kind = (&'static str, fn(&FakeDevice));

const KINDS: [Kind; 3] = [
    ("windows that keep their ranges", |_| {}),
    ("windows that open all below them", |device| device.set_windows_keep_ranges(false)),
    ("a domain for each connection", |device| device.set_memory_windows(false)),
];

fn world(kind: Kind) -> World {
    let world = World::new();
    world.devices.iter().for_each(|device| kind.1(device));
    world
}

fn pair(world: &World) -> [End; 2] {
    world.pair(&ConnectionOptions::default())
}

/// What the control channel would do: tells each side what the other has to say.
fn carry(ends: &[End; 2]) -> bool {
    let mut any = false;
    for i in 0..2 {
        loop {
            let told = ends[i].channel.lock().grants.next_told();
            let Some(told) = told else { break };
            any = true;
            ends[1 - i].upper.told(&told.encode()).unwrap();
        }
    }
    any
}

/// Lets everything happen that can.
fn settle(world: &World, ends: &[End; 2]) {
    loop {
        world.fabric.settle();
        if !carry(ends) {
            return;
        }
    }
}

fn region(length: usize) -> SharedRegion {
    SharedRegion::allocate(length).unwrap()
}

fn slice(length: usize) -> RegionSlice {
    region(length).whole().unwrap()
}

/// Publishes on the second end, for the first.
fn publish(
    world: &World,
    ends: &[End; 2],
    name: &str,
    slice: &RegionSlice,
    access: Access,
) -> (u32, RemoteRegion) {
    let id = ends[1].channel.publish(name, slice, access).unwrap();
    settle(world, ends);
    assert_eq!(ends[1].channel.publication(id), PublicationState::Announced);
    (id, ends[0].channel.find_remote(name).unwrap().unwrap())
}

/// The same range as another connection's grant, for `channel`: what a hostile peer would make of it.
fn forged(of: &RemoteRegion, channel: &Arc<Channel>, (address, length): (u64, u64)) -> RemoteSlice {
    let at = of.whole().at(0);
    let name = (7, of.name().to_owned());
    let all = READ | WRITE | ATOMIC;
    RemoteRegion::new(Arc::downgrade(channel), name, all, (address, length), at.rkey).whole()
}

fn write(end: &End, local: &RegionSlice, remote: &RemoteSlice) -> Result<u64, ErrorCode> {
    let local = std::slice::from_ref(local);
    let posted = end.channel.post(&[Operation::write(local, remote)]);
    posted.map(|ids| ids.start).map_err(|error| error.code())
}

fn done(world: &World, end: &End, id: u64) {
    world.fabric.settle();
    let mut state = end.channel.lock();
    assert!(state.transmit.done() >= id, "{} of {id}, {:?}", state.transmit.done(), state.life);
    assert!(state.transmit.outcome(id).is_none_or(|outcome| outcome.is_ok()));
}

fn is_open(end: &End) -> bool {
    matches!(end.channel.lock().life, Life::Open)
}

/// How a connection failed.
fn error(end: &End) -> (ErrorCode, Option<u32>) {
    match &end.channel.lock().life {
        Life::Over(closed) => {
            let error = closed.error.as_ref().unwrap();
            (error.code(), error.wc_status())
        }
        life => panic!("{life:?}"),
    }
}

fn end_of(world: World, ends: [End; 2]) {
    let fabric = world.fabric.clone();
    for end in &ends {
        end.channel.destroy(None);
    }
    drop((ends, world));
    until("everything to be unmade", || {
        let counters = fabric.counters();
        counters.all_unmade() && counters.bound_windows == 0
    });
}
