//! See `network` in `tests/sim/fuzzing.rs`. Run: `cargo fuzz run network` in `crates/soft`.
#![no_main]

#[path = "../../tests/sim/mod.rs"]
mod sim;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sim::fuzzing::network(bytes));
