//! The simulation, as every test run has it: see `sim`.

#![allow(clippy::print_stdout, clippy::panic)]

mod sim;

use sim::run::{report, run, run_seeds, shrink};
use sim::scenario::Scenario;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `SIM_SEEDS` seeds from `SIM_FIRST`.
#[test]
fn seeds() {
    let started = std::time::Instant::now();
    let coverage = run_seeds(number("SIM_FIRST", 0), number("SIM_SEEDS", 5_000), |scenario| scenario)
        .unwrap_or_else(|report| panic!("{report}"));
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{} seeds, {} packets, {:.0} simulated hours, {} completions in {seconds:.1} s: {:.0} packets/s",
        coverage.seeds,
        coverage.packets,
        coverage.hours(),
        coverage.completions,
        coverage.packets as f64 / seconds,
    );
    for (name, count) in &coverage.counts {
        println!("  {name}: {count}");
    }
}

/// The seed in `SIM_SEED`, alone; where it fails, shrunk and with every packet.
#[test]
#[ignore = "for whoever looks into a failing seed"]
fn one_seed() {
    let scenario = Scenario::new(number("SIM_SEED", 0));
    println!("{:?}", scenario.faults.iter().collect::<Vec<_>>());
    if run(&scenario).is_ok() {
        return;
    }
    let (least, _) = shrink(&scenario);
    let _ = run(&Scenario { trace: true, ..least });
    panic!("{}", report(&scenario));
}
