//! What the prompts of one HTTP request share: its id, arrival, trace context and fate.

use std::fmt::Display;
use std::sync::OnceLock;

use opentelemetry::Context;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;
use crate::spans::Spans;

use super::timeline::Clock;

/// What the client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `/v1/completions`
    TextCompletion,
    /// `/v1/chat/completions`
    Chat,
}

impl Operation {
    /// `gen_ai.operation.name`, as the GenAI semantic conventions name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TextCompletion => "text_completion",
            Self::Chat => "chat",
        }
    }

    /// How the ids of its responses begin.
    pub fn id_prefix(self) -> &'static str {
        match self {
            Self::TextCompletion => "cmpl-",
            Self::Chat => "chatcmpl-",
        }
    }
}

/// Who is told what requests do. Cheap to clone.
#[derive(Clone)]
pub struct Observers {
    /// Makes the spans.
    pub spans: Spans,
    /// Counts.
    pub metrics: Metrics,
    /// Cancelled when the server drops what it still has in flight: tells a shutdown from a
    /// client that went away.
    pub abandoned: CancellationToken,
}

/// One HTTP request.
pub struct Exchange {
    /// The id that the API returns.
    pub id: String,
    /// What was asked for.
    pub operation: Operation,
    /// Its arrival.
    pub clock: Clock,
    /// The caller's trace context.
    pub parent: Context,
    /// Who is told.
    pub observers: Observers,
    reason: OnceLock<Reason>,
}

/// Why a prompt ended without a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// `error.type` of the span.
    pub error_type: &'static str,
    /// The description of the span's status.
    pub message: String,
}

impl Exchange {
    /// A request that arrives now.
    pub fn new(id: String, operation: Operation, parent: Context, observers: Observers) -> Self {
        let clock = Clock::now();
        Self {
            id,
            operation,
            clock,
            parent,
            observers,
            reason: OnceLock::new(),
        }
    }

    /// One prompt failed: those dropped unfinished from now on failed for the same reason.
    pub fn give_up(&self, error_type: &'static str, message: &impl Display) {
        // Only the first reason counts: what follows it is its consequence.
        self.reason.get_or_init(|| Reason {
            error_type,
            message: message.to_string(),
        });
    }

    /// Why a prompt was dropped unfinished.
    pub(super) fn drop_reason(&self) -> Reason {
        if let Some(reason) = self.reason.get() {
            return reason.clone();
        }
        if self.observers.abandoned.is_cancelled() {
            let message = "the server shut down before the request was complete".to_owned();
            return Reason {
                error_type: "server_shutdown",
                message,
            };
        }
        let message = "the client went away before the request was complete".to_owned();
        Reason {
            error_type: "client_disconnected",
            message,
        }
    }
}
