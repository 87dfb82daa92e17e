//! The collector shim: any OTLP client reaches any OTLP backend, whichever protocol each speaks;
//! and without a backend it keeps traces itself and shows them.
//!
//! Traces, metrics, logs and profiles come in by gRPC or HTTP as protobuf, are checked by a walk over
//! their bytes, and leave as the same bytes, compressed as they came. Only the embedded store, which
//! is for traces, decodes them.
//!
//! # Layout
//!
//! - [`config`]: the command line and the environment, made ready to use.
//! - `shim`: [`Shim`], which binds and runs all of it.
//! - `handle`: [`ShimHandle`]: what it is made of behind its ports, and what it tells of itself.
//! - `receiver`: OTLP in: `grpc`, `http`, `json`, bounded bodies, bearer tokens, refusals in each
//!   protocol's words.
//! - [`Signal`]: traces, metrics, logs and profiles, and where each is posted.
//! - `wire`: the walk: sound or not, how many spans or data points or the like, where to cut; its tables.
//! - `coding`: gzip and zstd, undone in bounded memory.
//! - `intake`: where requests of both receivers meet: checked, counted, then queued, sent or stored.
//! - `queue`: bounded in bytes, between the receivers and the senders; in memory or on disk. Where it is
//!   full, requests wait for room with bounded `patience`.
//! - `log`: the queue on disk: a checksummed log in segments, a cursor for each backend, recovery, dead
//!   letters.
//! - `encode`: protobuf as OTLP/JSON.
//! - `exporter`: the ways out: an `outlet` to each backend by `grpc`, on `batched` connections, or `http`, in parts
//!   to all addresses of a name (`balance`), as records of `kafka`, or into `files`; senders from the queue, `direct` with the sender
//!   waiting, and which answers are tried again.
//! - `tail`: which traces are sent on, when not all are.
//! - `store`: the embedded store, its model of a trace, and searches.
//! - `viewer`: Jaeger's query API over the store, one page, health and metrics.
//! - `counts`: what came in and what became of it. `report` tells it in the log, `readiness` whether
//!   more should come.
//! - `tool`: `queue` and `dead-letters`, which show and send what lies in a queue's directory.
//! - `program`: arguments to exit, for `lantern-shim` and for `lantern shim`.

#![forbid(unsafe_code)]

mod coding;
pub mod config;
mod counts;
mod encode;
mod exporter;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod handle;
mod intake;
mod log;
mod program;
mod queue;
mod readiness;
mod receiver;
mod report;
mod shim;
mod signal;
mod store;
mod tail;
mod tool;
mod viewer;
mod wire;

pub use config::{
    Ack, Args, Backend, Balance, Config, Destination, Door, DoorArgs, FileSettings, KafkaSettings,
    LimitArgs, LogAck, Origins, Pace, QueueDir, TailArgs, Waiting, Way,
};
pub use counts::Counts;
pub use exporter::{Resolve, Resolving, SystemResolver};
pub use handle::ShimHandle;
pub use log::QueueDirError;
pub use program::{AFTER_HELP, Cli, run};
pub use receiver::tokens::Tokens;
pub use shim::{Error, Shim};
pub use signal::{Signal, Signals};
pub use store::{
    Attribute, Event, Link, Resource, Scope, Span, SpanKind, Status, StatusCode, Trace, Value,
};
pub use tail::{Rules, TailPolicy};
