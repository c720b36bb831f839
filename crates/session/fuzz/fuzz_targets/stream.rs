//! See `secure_rdma_session::fuzzing::stream`. Run: `cargo fuzz run stream` in `crates/session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secure_rdma_session::fuzzing::stream(bytes));
