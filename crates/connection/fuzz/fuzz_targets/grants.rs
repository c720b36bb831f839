//! See `secure_rdma_connection::fuzzing::grants`. Run: `cargo fuzz run grants` in `crates/connection`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secure_rdma_connection::fuzzing::grants(bytes));
