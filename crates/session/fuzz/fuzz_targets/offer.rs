//! See `secure_rdma_session::fuzzing::offer`. Run: `cargo fuzz run offer` in `crates/session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secure_rdma_session::fuzzing::offer(bytes));
