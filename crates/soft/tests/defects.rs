//! Proof that the simulation can fail: each of these defects, planted into the engines, is found within 500 seeds.
#![cfg(feature = "defects")]
#![allow(clippy::print_stdout, clippy::panic)]

mod sim;

use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use secure_rdma_soft::engine::Defect;
use sim::run::run;
use sim::scenario::Scenario;

/// Within how many seeds each has to be found.
const SEEDS: u64 = 500;

#[test]
fn each_planted_defect_is_found() {
    // Engines that panic, which some defects make them do, need not say so.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(defect) = Defect::ALL.get(index) else { return };
                    let first = (0..SEEDS).find_map(|seed| {
                        let scenario = Scenario { defect: u8::try_from(index).ok(), ..Scenario::new(seed) };
                        run(&scenario).err().map(|violation| (seed, violation))
                    });
                    found.lock().unwrap_or_else(|_| unreachable!()).push((index, *defect, first));
                }
            });
        }
    });
    drop(std::panic::take_hook());
    let mut found = found.into_inner().unwrap_or_else(|_| unreachable!());
    found.sort_by_key(|(index, ..)| *index);
    for (_, defect, first) in &found {
        match first {
            Some((seed, violation)) => say(&format!("{defect:?}: seed {seed}, {violation}")),
            None => say(&format!("{defect:?}: not found")),
        }
    }
    assert_eq!(found.len(), Defect::ALL.len());
    assert!(
        found.iter().all(|(_, _, first)| first.is_some()),
        "a planted defect is not found in {SEEDS} seeds"
    );
}

/// Says something even where a passing test's output is kept back.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
