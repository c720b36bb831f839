//! Forged packets against a live connection, ten million of each class: exactly those are executed that the model
//! predicts, memory outside of what was granted stays as it was, and the counters say why each was dropped
//! (reliability §D.4 and §F.4).
#![allow(clippy::print_stdout, clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod sim;

use sim::drops::Reason;
use sim::endpoint::Stage;
use sim::forger::Class;
use sim::scenario::{Fault, Faults, Scenario};
use sim::world::World;
use std::io::Write as _;

/// How many packets of each class.
fn packets() -> u64 {
    std::env::var("SIM_FORGED").ok().and_then(|text| text.parse().ok()).unwrap_or(10_000_000)
}

/// A world in which nothing goes wrong by itself, and all operations happen.
fn world(seed: u64) -> World {
    let faults = [Fault::Reads, Fault::Atomics, Fault::Windows, Fault::Gather, Fault::ManyQueuePairs];
    let faults = Faults(faults.into_iter().fold(0, |bits, fault| bits | 1 << (fault as u8)));
    let mut world = World::new(Scenario { faults, path_mtu: 1, packets: u64::MAX, ..Scenario::new(seed) });
    for _ in 0..2_000 {
        world.step().unwrap();
    }
    world
}

/// Forges `count` packets of a class to one endpoint after the other, while the connections go on.
fn forge(class: Class, count: u64) -> World {
    let mut world = world(class as u64);
    let mut forged = 0;
    while forged < count {
        let index = world.random.index(world.endpoints.len());
        if world.endpoints[index].stage != Stage::Up {
            world.step().unwrap();
            continue;
        }
        let host = world.endpoints[index].host;
        for _ in 0..500.min(count - forged) {
            let Some(datagram) = world.forgery(index, class) else { continue };
            world.deliver(host, datagram).unwrap_or_else(|violation| panic!("{class:?}: {violation}"));
            forged += 1;
            if world.endpoints[index].stage != Stage::Up {
                break;
            }
        }
        world.flush(host).unwrap_or_else(|violation| panic!("{class:?}: {violation}"));
        for _ in 0..20 {
            world.step().unwrap_or_else(|violation| panic!("{class:?}: {violation}"));
        }
    }
    world.finish().unwrap_or_else(|violation| panic!("{class:?}: {violation}"));
    world
}

/// Forges on all cores, and sums what `of` tells of each part.
fn forge_all(class: Class, of: impl Fn(&World) -> Vec<u64> + Sync) -> Vec<u64> {
    let count = packets();
    let started = std::time::Instant::now();
    let world = forge(class, count);
    let seconds = started.elapsed().as_secs_f64();
    say(&format!("{class:?}: {count} packets in {seconds:.1} s, {:.0} a second", count as f64 / seconds));
    of(&world)
}

/// What a class of packets can meet, and what it cannot.
fn reasons(world: &World) -> Vec<u64> {
    let reasons = [
        Reason::OutOfSequence,
        Reason::Duplicate,
        Reason::QueuePair,
        Reason::ResponsePsn,
        Reason::Icrc,
        Reason::SourcePort,
        Reason::PKey,
        Reason::Version,
        Reason::Transport,
        Reason::Opcode,
        Reason::Length,
    ];
    reasons.into_iter().map(|reason| world.reasons.of(reason)).collect()
}

#[test]
fn requests_with_a_random_psn() {
    let met = forge_all(Class::RandomPsn, reasons);
    // The right one is one in 2^24; all others are after it or before it. (The model judges each; this is the sum.)
    assert!(met[0] + met[1] >= packets() - packets() / 100_000 - 10, "{met:?}");
    assert!(met[0].abs_diff(met[1]) < packets() / 10, "half each: {met:?}");
}

#[test]
fn requests_with_a_random_qpn() {
    assert_eq!(forge_all(Class::RandomQueuePair, reasons)[2], packets());
}

#[test]
fn acknowledgements_outside_the_window() {
    let met = forge_all(Class::Acknowledge, reasons);
    assert!(met[3] >= packets(), "{met:?}");
}

#[test]
fn naks_outside_the_window() {
    let met = forge_all(Class::Nak, reasons);
    assert!(met[3] >= packets(), "{met:?}");
}

#[test]
fn answers_outside_the_window() {
    let met = forge_all(Class::Answer, reasons);
    assert!(met[3] >= packets(), "{met:?}");
}

#[test]
fn broken_packets() {
    let met = forge_all(Class::Broken, reasons);
    assert!(met[4..].iter().all(|count| *count > packets() / 1000), "{met:?}");
}

/// Says something even where a passing test's output is kept back.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
