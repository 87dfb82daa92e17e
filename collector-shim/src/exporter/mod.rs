//! The ways out. An [`Outlet`] carries a request to its backend once, by [`grpc`] or [`http`], into
//! [`files`], or in [`parts`]: to the members of a [`balance`], or as records of Kafka. It reads the answer;
//! [`retry`] knows which answers are worth another attempt, and when. [`as_json`] is for those that do not
//! take protobuf.
//!
//! Two make use of it. An [`Exporter`] takes batches from the queue and stays with each until the
//! backend has answered for it. [`Direct`] passes a request on while its sender waits, and the
//! answer back.

mod accepted;
mod as_json;
mod balance;
mod batched;
mod direct;
mod files;
mod grpc;
mod http;
#[cfg(feature = "kafka")]
mod kafka;
mod message;
mod outlet;
mod parts;
mod retry;
mod sender;

use std::time::Duration;

use tonic::Code;

use crate::queue::Payload;

pub(crate) use accepted::Accepted;
pub use balance::{Resolve, Resolving, SystemResolver};
pub(crate) use direct::Direct;
use message::Message;
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

    /// What it says of each of the `payloads` that were sent as one.
    fn for_each_of(self, payloads: Vec<Payload>) -> Vec<(Payload, Answer)> {
        let mut rejected = match &self {
            Answer::Accepted(accepted) => accepted.rejected,
            Answer::Later { .. } | Answer::Refused(_) => 0,
        };
        let of_each = |payload: Payload| {
            let mut answer = self.clone();
            if let Answer::Accepted(accepted) = &mut answer {
                accepted.rejected = rejected.min(payload.items);
                rejected -= accepted.rejected;
            }
            (payload, answer)
        };
        payloads.into_iter().map(of_each).collect()
    }

    /// What is to be said of a request of which parts were `answered` for. Who sends it again sends
    /// all of it, so that what was refused of one part is told as rejected.
    fn of_parts(answered: Vec<(Payload, Answer)>) -> Answer {
        let mut all = Accepted::default();
        let mut later: Option<(String, Option<Duration>)> = None;
        let mut refusal = None;
        let parts = answered.len();
        let mut refused = 0;
        for (part, answer) in answered {
            match answer {
                Answer::Accepted(accepted) => all = all.and(accepted),
                Answer::Later { reason, after } => {
                    let before = later.and_then(|(_, after)| after);
                    later = Some((reason, after.max(before)));
                }
                Answer::Refused(rejection) => {
                    refused += 1;
                    all = all.and(Accepted {
                        rejected: part.items,
                        message: rejection.reason.clone(),
                    });
                    refusal = Some(rejection);
                }
            }
        }
        match (later, refusal) {
            (Some((reason, after)), _) => Answer::Later { reason, after },
            (None, Some(rejection)) if refused == parts => Answer::Refused(rejection),
            (None, _) => Answer::Accepted(all),
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
