//! A deterministic simulation of engines, connections and a network that does everything but what one would like.
//!
//! A seed decides everything. The model in [`responder`] and [`requester`] is written from the brief, apart from the
//! engine; it sees every packet that reaches an engine and every packet that leaves one, and after each step memory,
//! completions and packets are compared with it: the nine invariants of reliability §E.1.
//!
//! After quinn's `Pair` (virtual time, two ends in one struct), smoltcp's fault injector and TigerBeetle's VOPR (swarm:
//! each seed enables a random subset of the faults).
#![allow(
    dead_code,
    unreachable_pub,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::needless_pass_by_value,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

pub mod coverage;
pub mod drops;
pub mod endpoint;
pub mod forger;
pub mod fuzzing;
pub mod host;
pub mod memory;
pub mod model;
pub mod network;
pub mod node;
pub mod random;
pub mod requester;
pub mod requests;
pub mod responder;
pub mod run;
pub mod scenario;
pub mod workload;
pub mod world;
