//! A reverse proxy for LLM servers that gives every HTTP request its server span, so that the server
//! behind it needs no tracing of HTTP at all.
//!
//! It continues the trace that a request brings, or starts one; tells the upstream its own span as
//! the parent; and ends the span with the last byte of the answer. Bodies pass through as they
//! come, in both directions: nothing is buffered, parsed or changed.
//!
//! # Layout
//!
//! - [`Args`] → [`Config`]: flags, checked before anything binds (`config`), and the environment of
//!   the HTTP instrumentation ([`Instrumentation`]).
//! - [`Proxy`]: binds, accepts, bounds connections, drains (`server`); `connection` is the client's
//!   socket as pingora sees it.
//! - `service`: a request's life in pingora's phases; retries; `upstream`: whose turn it is;
//!   `resolver`: where a name is.
//! - `span`: the span and the guard that ends it; `route`, `redact`, `headers` and `sse` find out
//!   what goes onto it; `propagation`: trace headers in and out.
//! - `program`: arguments to exit, for `lantern-proxy` and for `lantern proxy`.
//! - [`Error`], and what a failed request looks like to its client and on its span (`error`).
//!
//! # What a span says
//!
//! The attributes are those of the stable HTTP conventions. Of its own it adds
//!
//! | attribute | type | |
//! |---|---|---|
//! | `lantern.http.response.time_to_first_byte` | double, s | from the request's head to the first byte of the answer's |
//! | `lantern.http.response.chunk_count` | int | pieces in which a body without Content-Length arrived |
//! | `lantern.sse.event_count` | int | complete events of a `text/event-stream`, a closing `[DONE]` included |
//!
//! `error.type` is the status code for an upstream's 5xx; otherwise `client_disconnected`,
//! `client_timeout`, `invalid_request`, `upstream_unresolved`, `upstream_connection_refused`,
//! `upstream_connect_timeout`, `upstream_connect_failed`, `upstream_timeout`, `upstream_closed`,
//! `upstream_invalid_response`, `out_of_file_descriptors`, `internal_error`, or `aborted` for a request that the proxy gave up
//! on shutdown. A status code is there only if the client was sent one.
//!
//! # What leaves no span
//!
//! pingora answers requests that it cannot parse (400), `CONNECT` (405) and connections over the
//! bound (503) before any code of ours runs. These have no span.

mod config;
mod connection;
mod error;
mod headers;
mod instrumentation;
mod limited_log;
mod program;
mod propagation;
mod redact;
mod resolver;
mod route;
mod server;
mod service;
mod span;
mod sse;
mod upstream;

pub use config::{Args, Config};
pub use error::Error;
pub use instrumentation::Instrumentation;
pub use program::{AFTER_HELP, DEFAULT_SERVICE_NAME, run};
pub use server::Proxy;
pub use upstream::Upstream;
