//! See `secure_rdma_roce::fuzzing::packet`. Run: `cargo fuzz run packet` in `crates/roce`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secure_rdma_roce::fuzzing::packet(bytes));
