//! Pairs of engines, in memory and in virtual time.
#![allow(clippy::cast_possible_truncation, reason = "a test's own numbers")]

mod admission;
mod batching;
mod bounded;
mod duplicates;
mod errors;
mod holding;
mod limits;
mod loss;
mod pair;
mod revoked;
mod transfer;
mod windows;
