//! See `secure_rdma_roce::fuzzing::id_solver`. Run: `cargo fuzz run id_solver` in `crates/roce`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| secure_rdma_roce::fuzzing::id_solver(bytes));
