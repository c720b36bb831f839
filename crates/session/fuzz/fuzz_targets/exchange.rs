//! See `secure_rdma_session::fuzzing::exchange`. Run: `cargo fuzz run exchange` in `crates/session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secure_rdma_session::fuzzing::exchange(bytes));
