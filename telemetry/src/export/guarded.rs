//! The exporter that the batch processor sees: it runs the real one on a runtime of its own, bounds it
//! in time and in bytes, and enters what cannot be exported into the ledger.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::runtime::Handle;
use tracing::instrument::WithSubscriber as _;

use super::limits::truncate_values;
use super::rejections::Rejections;
use super::split::{MAX_REQUEST_BYTES, split};
use super::{DropLedger, Waiting};

/// An exporter whose failures are counted and told.
#[derive(Debug)]
pub(crate) struct GuardedExporter<E> {
    exporter: Arc<E>,
    rejections: Rejections,
    context: ExportContext,
}

/// What an exporter works with.
#[derive(Debug)]
pub(crate) struct ExportContext {
    /// Where the export runs: the batch thread has no runtime, and a caller's may be stopping.
    pub(crate) runtime: Handle,
    pub(crate) ledger: Arc<DropLedger>,
    pub(crate) waiting: Arc<Waiting>,
    /// The longest that one request may take, its retries included.
    pub(crate) limit: Duration,
    /// The longest that a string value may be.
    pub(crate) value_chars: Option<usize>,
}

/// An exporter that can say more about its last failure than its error does.
pub(crate) trait Explain {
    /// The cause of the failure that `error` reports.
    fn explain(&self, error: &OTelSdkError) -> String;
}

impl<E: SpanExporter + Explain + 'static> GuardedExporter<E> {
    pub(crate) fn new(exporter: E, context: ExportContext) -> Self {
        Self {
            exporter: Arc::new(exporter),
            rejections: Rejections::new(),
            context,
        }
    }

    /// Sends one request and enters its outcome into the ledger.
    async fn send(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let count = spans.len();
        let Some(result) = self.send_in_runtime(spans).await else {
            let reason = "the program is shutting down".to_owned();
            return Err(OTelSdkError::InternalFailure(reason));
        };
        let rejection = self.rejections.take();
        match &result {
            Err(reason) => self.context.ledger.lost(count, reason),
            Ok(()) if rejection.spans > 0 => {
                let reason = format!("it rejected spans: {}", rejection.message);
                self.context.ledger.lost(rejection.spans, &reason);
            }
            Ok(()) => self.context.ledger.delivered(),
        }
        self.context.waiting.export_ends(count);
        result.map_err(OTelSdkError::InternalFailure)
    }

    /// `None` when the runtime ended meanwhile. It ends with the guard, which has told by then how many
    /// spans still waited: to enter them here would be to tell them twice.
    async fn send_in_runtime(&self, spans: Vec<SpanData>) -> Option<Result<(), String>> {
        let (exporter, limit) = (Arc::clone(&self.exporter), self.context.limit);
        let send = async move {
            match tokio::time::timeout(limit, exporter.export(spans)).await {
                Ok(result) => result.map_err(|error| exporter.explain(&error)),
                Err(_) => Err(format!("no answer within {limit:?}")),
            }
        };
        let send = send.with_subscriber(self.rejections.dispatch());
        self.context.runtime.spawn(send).await.ok()
    }
}

impl<E: SpanExporter + Explain + 'static> SpanExporter for GuardedExporter<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        self.context.waiting.export_starts(batch.len());
        if let Some(limit) = self.context.value_chars {
            batch
                .iter_mut()
                .for_each(|span| truncate_values(span, limit));
        }
        let mut result = Ok(());
        for part in split(batch, MAX_REQUEST_BYTES) {
            result = result.and(self.send(part).await);
        }
        result
    }
}
