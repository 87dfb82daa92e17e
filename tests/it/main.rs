//! Lantern end to end, as a user runs it: processes, real sockets, real backends, real clients.
//!
//! # Layout
//! - `support`: processes, ports, the path of a trace, Jaeger's query API.
//! - the others: one file a promise.

mod cancelled_stream;
mod configuration;
mod instrument;
mod one_trace;
mod other_servers;
mod python_clients;
mod shared_steps;
mod shutdown;
mod support;
mod up;
mod upstream_down;
