//! Tests of `lantern-inference` from outside, in one binary.

#![allow(
    clippy::unwrap_used,
    reason = "what a test helper unwraps is the test's to fail on"
)]

mod api;
mod beam;
mod disconnects;
mod engine;
mod gguf;
mod goldens;
mod harness;
mod hub;
mod lifecycle;
mod loader;
mod metrics;
mod refusals;
mod served;
mod spans;
mod streaming;
mod structured;
mod support;
mod tools;
