//! Regions: bounds, and when they are registered.

use secure_rdma_rdma::ErrorCode;

use super::World;
use crate::options::ConnectionOptions;
use crate::regions::SharedRegion;

#[test]
fn no_range_that_is_not_inside_is_a_slice() {
    let region = SharedRegion::allocate(64).unwrap();
    let part = region.slice(16, 32).unwrap();
    let edges = [0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, usize::MAX - 1, usize::MAX];
    for offset in edges {
        for length in edges {
            for (whole, sliced) in [(64, region.slice(offset, length)), (32, part.slice(offset, length))] {
                let inside = (offset as u128 + length as u128) <= whole;
                assert_eq!(sliced.is_ok(), inside, "{offset} + {length} in {whole}");
                if let Err(error) = sliced {
                    assert_eq!(error.code(), ErrorCode::RegionBounds);
                }
            }
        }
    }
    part.write(31, &[7]).unwrap();
    assert_eq!(part.write(31, &[8, 8]).unwrap_err().code(), ErrorCode::RegionBounds);
    let mut bytes = [0; 64];
    region.read(0, &mut bytes).unwrap();
    assert_eq!(bytes.iter().position(|byte| *byte == 7), Some(47));
    assert_eq!(part.read(1, &mut [0; 32]).unwrap_err().code(), ErrorCode::RegionBounds);
}

#[test]
fn a_region_is_registered_once_and_until_it_is_closed_or_dropped() {
    let world = World::new();
    let ends = world.pair(&ConnectionOptions::default());
    let before = world.fabric.counters();
    let (closed, dropped) = (SharedRegion::allocate(64).unwrap(), SharedRegion::allocate(64).unwrap());
    // Both at once, from many threads, on both devices.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            for end in &ends {
                scope.spawn(|| {
                    end.channel.register(&closed).unwrap();
                    end.channel.register(&dropped).unwrap();
                });
            }
        }
    });
    assert_eq!(world.fabric.counters().registrations, before.registrations + 4);
    closed.close();
    closed.close();
    assert!(closed.is_closed());
    assert_eq!(world.fabric.counters().regions, before.regions + 2);
    drop(dropped);
    assert_eq!(world.fabric.counters().regions, before.regions);
    for result in [
        ends[0].channel.register(&closed),
        closed.slice(0, 1).map(drop),
        closed.read(0, &mut [0]),
        closed.write(0, &[0]),
    ] {
        assert_eq!(result.unwrap_err().code(), ErrorCode::RegionClosed);
    }
}

#[test]
fn a_region_that_is_closed_while_it_is_registered_does_not_stay_so() {
    for _ in 0..200 {
        let world = World::new();
        let ends = world.pair(&ConnectionOptions::default());
        let before = world.fabric.counters().regions;
        let region = SharedRegion::allocate(64).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| region.close());
            let _ = ends[0].channel.register(&region);
        });
        assert_eq!(world.fabric.counters().regions, before);
    }
}

#[test]
fn regions_outlive_the_device_they_were_registered_with() {
    let region = SharedRegion::allocate(64).unwrap();
    for _ in 0..3 {
        let world = World::new();
        let ends = world.pair(&ConnectionOptions::default());
        ends[0].channel.register(&region).unwrap();
        ends.iter().for_each(|end| end.channel.destroy(None));
        drop(ends);
        super::until("nothing to be left", || world.fabric.counters().all_unmade());
    }
    region.write(0, &[1]).unwrap();
}
