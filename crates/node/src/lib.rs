//! The napi-rs binding: picks a device, turns completions into promises. No logic of its own.
//!
//! Results cross to JavaScript as values: a function gives what it was asked for, or a [`NativeError`], which the
//! TypeScript side throws as `RdmaError`. What happens on other threads rings a [`bell`]; JavaScript is called once
//! per batch, and then asks every object that has news.

mod bell;
mod environment;
mod error;

pub use environment::Environment;
pub use error::{NativeError, error_codes};
