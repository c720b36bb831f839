//! Pairs of engines, in memory and in virtual time.

mod errors;
mod pair;
mod transfer;
