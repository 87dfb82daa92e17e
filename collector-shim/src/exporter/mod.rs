//! OTLP out. An [`Outlet`] carries a request to its backend once, by [`grpc`] or [`http`], and reads
//! the answer; [`retry`] knows which answers are worth another attempt, and when.
//!
//! Two make use of it. An [`Exporter`] takes batches from the queue and stays with each until the
//! backend has answered for it. [`Direct`] passes a request on while its sender waits, and the
//! answer back.

mod accepted;
mod direct;
mod grpc;
mod http;
mod outlet;
mod retry;
mod sender;

use std::time::Duration;

use tonic::Code;

pub(crate) use accepted::Accepted;
pub(crate) use direct::Direct;
pub(crate) use outlet::Outlet;
pub(crate) use sender::Exporter;

/// The largest batch that is merged. gRPC servers refuse 4 MiB and more unless told otherwise;
/// what remains is for the frame.
pub(crate) const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024 - 1024;
/// An answer holds a status and a message; more of it is not read.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;
/// How much of a backend's message goes into a log line.
const MAX_REASON_CHARS: usize = 200;
/// A connection that nothing uses is pinged, and given up when no answer comes.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_LIMIT: Duration = Duration::from_secs(10);
const USER_AGENT: &str = concat!("lantern-shim/", env!("CARGO_PKG_VERSION"));

/// What the backend made of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// It has it, but for what it says to have rejected, which is never sent again.
    Accepted(Accepted),
    /// It may take it later, not before `after` if it says so.
    Later {
        reason: String,
        after: Option<Duration>,
    },
    /// It will never take it.
    Refused(Rejection),
}

/// Why a backend will never take a request.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rejection {
    reason: String,
    cause: Cause,
    /// What was said, or what gRPC would have said.
    code: Code,
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// These bytes. Of several merged requests, the others may be sound.
    Data,
    /// Whatever we send: the address, the credentials, the method.
    Sender,
    /// The signal or the coding, one of which it does not know.
    Kind,
}

impl Answer {
    fn later(reason: String) -> Answer {
        Answer::Later {
            reason,
            after: None,
        }
    }
}

/// An error and its causes on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    shortened(&lantern_telemetry::chain(error))
}

/// `text` on one line, no longer than a log line bears.
fn shortened(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    words.join(" ").chars().take(MAX_REASON_CHARS).collect()
}
