//! See `secure_rdma_connection::fuzzing::grant_message`. Run: `cargo fuzz run grant_message` in `crates/connection`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secure_rdma_connection::fuzzing::grant_message(bytes));
