//! Runs seeds, on all cores, and shrinks what fails.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::coverage::Coverage;
use super::scenario::{Fault, Scenario};
use super::world::{Violation, World};

/// Runs one scenario. An engine that panics breaks an invariant too.
pub fn run(scenario: &Scenario) -> Result<Coverage, Violation> {
    let scenario = scenario.clone();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(scenario);
        world.run().map(|()| world.coverage)
    }));
    ran.unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        Err(Violation { invariant: 0, what: format!("a panic: {what}"), at: 0 })
    })
}

/// Leaves out faults and packets as long as the scenario still fails.
pub fn shrink(scenario: &Scenario) -> (Scenario, Violation) {
    let mut least = scenario.clone();
    let mut violation = run(&least).expect_err("it fails");
    for fault in Fault::ALL {
        if !least.has(fault) {
            continue;
        }
        let fewer = Scenario { faults: least.faults.without(fault), ..least.clone() };
        if let Err(other) = run(&fewer) {
            (least, violation) = (fewer, other);
        }
    }
    while least.packets > 16 {
        let shorter = Scenario { packets: least.packets / 2, ..least.clone() };
        let Err(other) = run(&shorter) else { break };
        (least, violation) = (shorter, other);
    }
    (least, violation)
}

/// A failing seed, for whoever has to reproduce it.
pub fn report(scenario: &Scenario) -> String {
    let (least, violation) = shrink(scenario);
    let faults: Vec<Fault> = least.faults.iter().collect();
    format!(
        "seed {} of commit {} fails: {violation}\n  with {faults:?}, path MTU code {}, {} packets{}\n  again: \
         SIM_SEED={} cargo test -p secure-rdma-soft --test simulation one_seed -- --ignored --nocapture",
        least.seed,
        commit(),
        least.path_mtu,
        least.packets,
        least.defect.map(|defect| format!(", defect {defect}")).unwrap_or_default(),
        least.seed,
    )
}

fn commit() -> String {
    std::process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map_or_else(|| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// Runs seeds `first..first + count` on all cores. The error is the report of the first that fails.
pub fn run_seeds(
    first: u64,
    count: u64,
    prepare: impl Fn(Scenario) -> Scenario + Sync,
) -> Result<Coverage, String> {
    let next = AtomicU64::new(first);
    let stop = AtomicBool::new(false);
    let failed: Mutex<Option<Scenario>> = Mutex::new(None);
    let total = Mutex::new(Coverage::default());
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut sum = Coverage::default();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let scenario = prepare(Scenario::new(seed));
                    match run(&scenario) {
                        Ok(coverage) => sum.add(&coverage),
                        Err(_) => {
                            failed.lock().unwrap().get_or_insert(scenario);
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                }
                total.lock().unwrap().add(&sum);
            });
        }
    });
    match failed.into_inner().unwrap() {
        Some(scenario) => Err(report(&scenario)),
        None => Ok(total.into_inner().unwrap()),
    }
}
