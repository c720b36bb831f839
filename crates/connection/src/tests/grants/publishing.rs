//! Publishing: what it takes of the device, what can be published, and what a failure leaves.

use secure_rdma_rdma::{Access, Device as _, ErrorCode};

use super::super::{message, until};
use super::{KINDS, READ, WRITE, done, end_of, pair, publish, region, settle, slice, world, write};
use crate::grants::MOST;
use crate::options::{ConnectionOptions, PoolOptions};
use crate::regions::RegionSlice;

#[test]
fn a_region_is_registered_once_however_many_connections_publish_it() {
    let world = world(KINDS[0]);
    let large = region(256 << 20);
    let first = pair(&world);
    let before = world.fabric.counters();
    let mut all = vec![first];
    for i in 0..64 {
        // Some with other sizes of buffers, on the same open device.
        let buffer_size = if i % 16 == 15 { 8192 } else { 4096 };
        let pool = PoolOptions { buffer_size, ..PoolOptions::default() };
        all.push(world.pair(&ConnectionOptions { pool, ..ConnectionOptions::default() }));
    }
    let connected = world.fabric.counters();
    let remotes: Vec<_> = all[1..]
        .iter()
        .map(|ends| publish(&world, ends, "large", &large.whole().unwrap(), READ | WRITE).1)
        .collect();
    let published = world.fabric.counters();
    assert_eq!(published.registrations, connected.registrations + 1);
    assert_eq!(published.bound_windows, before.bound_windows + 64);
    let keys: std::collections::HashSet<_> = remotes.iter().map(|remote| remote.whole().at(0).rkey).collect();
    assert_eq!(keys.len(), 64, "a key each");
    // It stays while something of it is published, whoever lets go of the region.
    large.close();
    drop(large);
    let id = write(&all[64][0], &slice(64), &remotes[63].slice(1 << 20, 64).unwrap()).unwrap();
    done(&world, &all[64][0], id);
    let regions = world.fabric.counters().regions;
    for ends in &all[1..] {
        ends[1].channel.unpublish("large").unwrap();
        settle(&world, ends);
    }
    let after = world.fabric.counters();
    assert_eq!((after.bound_windows, after.windows), (before.bound_windows, before.windows));
    assert_eq!(after.regions, regions - 1, "the large one is gone");
}

#[test]
fn publishing_goes_on_after_the_end_of_messages() {
    let world = world(KINDS[0]);
    let ends = pair(&world);
    ends[1].channel.end().unwrap();
    let (_, remote) = publish(&world, &ends, "inbox", &slice(64), WRITE);
    let id = write(&ends[0], &slice(64), &remote.whole()).unwrap();
    done(&world, &ends[0], id);
    ends[1].channel.unpublish("inbox").unwrap();
    settle(&world, &ends);
    assert_eq!(world.fabric.counters().bound_windows, 0);
}

#[test]
fn only_what_can_be_published_is() {
    let world = world(KINDS[0]);
    let ends = pair(&world);
    let channel = &ends[1].channel;
    let one = slice(64);
    let code =
        |name: &str, slice: &RegionSlice, access| channel.publish(name, slice, access).unwrap_err().code();
    assert_eq!(code("", &one, READ), ErrorCode::RegionName);
    assert_eq!(code(&"n".repeat(256), &one, READ), ErrorCode::RegionName);
    assert_eq!(code("a", &one, Access::empty()), ErrorCode::InvalidArgument);
    assert_eq!(code("a", &one, READ | Access::LOCAL_WRITE), ErrorCode::InvalidArgument);
    assert_eq!(code("a", &one, Access::MEMORY_WINDOW_BIND), ErrorCode::InvalidArgument);
    assert_eq!(code("a", &one.slice(64, 0).unwrap(), READ), ErrorCode::RegionBounds);
    let closed = slice(64);
    closed.region().close();
    assert_eq!(code("a", &closed, READ), ErrorCode::RegionClosed);
    assert_eq!(channel.unpublish("a").unwrap_err().code(), ErrorCode::RegionName);
    assert_eq!(channel.find_remote("").unwrap_err().code(), ErrorCode::RegionName);
    for i in 0..MOST {
        channel.publish(&format!("{i} {}", "ü".repeat(120)), &one, READ).unwrap();
    }
    assert_eq!(code("a", &one, READ), ErrorCode::RegionLimit);
    assert_eq!(code(&format!("7 {}", "ü".repeat(120)), &one, READ), ErrorCode::RegionName);
    settle(&world, &ends);
    assert_eq!(ends[0].channel.lock().grants.counts(), (0, MOST));
    channel.unpublish(&format!("7 {}", "ü".repeat(120))).unwrap();
    settle(&world, &ends);
    channel.publish("a", &one, READ).unwrap();
    settle(&world, &ends);
    assert!(ends[0].channel.find_remote("a").unwrap().is_some());
    end_of(world, ends);
}

#[test]
fn a_failure_to_register_or_to_make_a_window_leaves_nothing_behind() {
    use secure_rdma_rdma::fake::Call;
    let world = world(KINDS[0]);
    let ends = pair(&world);
    let before = world.fabric.counters();
    for call in [Call::Register, Call::CreateMemoryWindow] {
        let refusal = secure_rdma_rdma::Error::new(ErrorCode::Resource, "no more");
        world.devices[1].fail_next(call, refusal);
        let inbox = slice(64);
        let error = ends[1].channel.publish("inbox", &inbox, READ).unwrap_err();
        assert_eq!(error.code(), ErrorCode::Resource);
        drop(inbox);
        let after = world.fabric.counters();
        assert_eq!((after.regions, after.windows), (before.regions, before.windows));
    }
    publish(&world, &ends, "inbox", &slice(64), READ);
}

#[test]
fn each_connection_without_windows_has_a_domain_and_buffers_of_its_own() {
    let world = world(KINDS[2]);
    let before = world.fabric.counters();
    let ends = pair(&world);
    ends[0].channel.send(&message(3, 50_000)).unwrap();
    assert_eq!(ends[1].next().unwrap().unwrap(), message(3, 50_000));
    // Memory of such a connection is registered for it alone.
    let (local, again) = (region(64), pair(&world));
    for ends in [&ends, &again] {
        ends[0].channel.register(&local).unwrap();
        ends[0].channel.register(&local).unwrap();
    }
    let registered = world.fabric.counters().regions;
    local.close();
    assert_eq!(world.fabric.counters().regions, registered - 2);
    for ends in [ends, again] {
        ends.iter().for_each(|end| end.channel.destroy(None));
        drop(ends);
    }
    until("both to be gone", || world.fabric.counters().queue_pairs == before.queue_pairs);
    assert_eq!(world.devices[0].limits().max_shared_receives, 65_536, "the device itself has such queues");
}
