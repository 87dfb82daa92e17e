//! Tests of `lantern-inference` from outside, in one binary.

#![allow(clippy::unwrap_used, reason = "what a test helper unwraps is the test's to fail on")]

mod engine;
mod goldens;
mod hub;
mod loader;
mod support;
