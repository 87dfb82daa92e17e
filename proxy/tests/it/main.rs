//! The proxy over real sockets. Each test is client and upstream itself, so that it decides what
//! happens next and never waits for a time to pass.

mod access;
mod asking;
mod conformance;
mod failures;
mod genai;
mod lifecycle;
mod limits;
mod metrics;
mod program;
mod propagation;
mod sampling;
mod settings;
mod streaming;
mod support;
mod tls;
mod upgrade;
mod upstreams;
