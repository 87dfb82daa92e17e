//! The collector shim: any OTLP client reaches any OTLP backend, whichever protocol each speaks;
//! and without a backend it keeps traces itself and shows them.
//!
//! Spans come in by gRPC or HTTP as one protobuf message, are checked by a walk over its bytes,
//! and leave as the same bytes. Only the embedded store decodes them.
//!
//! # Layout
//!
//! - [`config`]: the command line and the environment, made ready to use.
//! - `shim`: [`Shim`], which binds and runs all of it, and [`ShimHandle`], which tells how it goes.
//! - `receiver`: OTLP in: `grpc`, `http`, `json`, bounded bodies, bearer tokens, refusals in each
//!   protocol's words.
//! - `wire`: the walk: sound or not, how many spans, where to cut.
//! - `intake`: where requests of both receivers meet: checked, counted, then queued or stored.
//! - `queue`: bounded in bytes, between the receivers and the senders; in memory or on disk.
//! - `log`: the queue on disk: a checksummed log in segments, its cursor, recovery, dead letters.
//! - `encode`: protobuf as OTLP/JSON.
//! - `exporter`: OTLP out: senders, `grpc`, `http`, and which answers are tried again.
//! - `store`: the embedded store, its model of a trace, and searches.
//! - `viewer`: Jaeger's query API over the store, one page, health and metrics.
//! - `counts`: what came in and what became of it. `report` tells it in the log, `readiness` whether
//!   more should come.
//! - `tool`: `queue` and `dead-letters`, which show and send what lies in a queue's directory.
//! - `program`: arguments to exit, for `lantern-shim` and for `lantern shim`.

pub mod config;
mod counts;
mod encode;
mod exporter;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod intake;
mod log;
mod program;
mod queue;
mod readiness;
mod receiver;
mod report;
mod shim;
mod store;
mod tool;
mod viewer;
mod wire;

pub use config::{
    Ack, Args, Config, Destination, Door, DoorArgs, LimitArgs, Origins, Pace, QueueDir,
};
pub use counts::Counts;
pub use log::QueueDirError;
pub use program::{AFTER_HELP, Cli, run};
pub use receiver::tokens::Tokens;
pub use shim::{Error, Shim, ShimHandle};
pub use store::{
    Attribute, Event, Link, Resource, Scope, Span, SpanKind, Status, StatusCode, Trace, Value,
};
