//! The fake device's own tests.

mod data;
mod faults;
mod harness;
mod lifetimes;
mod rules;
mod windows;
