//! See `secure_rdma_session::fuzzing::frame`. Run: `cargo fuzz run frame` in `crates/session`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secure_rdma_session::fuzzing::frame(bytes));
