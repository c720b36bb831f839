//! See `secure_rdma_soft::engine::fuzzing::regions`. Run: `cargo fuzz run regions` in `crates/soft`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secure_rdma_soft::engine::fuzzing::regions(bytes));
