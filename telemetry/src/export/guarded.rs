//! The exporter that the batch processor sees: it runs the real one on a runtime of its own, bounds it
//! in time, and enters what cannot be exported into the ledger.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use tokio::runtime::Handle;

use super::limits::truncate_values;
use super::{DropLedger, Waiting};

/// An exporter whose failures are counted and told.
#[derive(Debug)]
pub(crate) struct GuardedExporter<E> {
    pub(crate) exporter: Arc<E>,
    /// Where the export runs: the batch thread has no runtime, and a caller's may be stopping.
    pub(crate) runtime: Handle,
    pub(crate) ledger: Arc<DropLedger>,
    pub(crate) waiting: Arc<Waiting>,
    /// The longest that one export may take.
    pub(crate) limit: Duration,
    pub(crate) value_chars: Option<usize>,
}

/// An exporter that can say more about its last failure than its error does.
pub(crate) trait Explain {
    /// The cause of the failure that `error` reports.
    fn explain(&self, error: &OTelSdkError) -> String;
}

impl<E: SpanExporter + Explain + 'static> SpanExporter for GuardedExporter<E> {
    async fn export(&self, mut batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.waiting.export_starts(spans);
        if let Some(limit) = self.value_chars {
            batch
                .iter_mut()
                .for_each(|span| truncate_values(span, limit));
        }
        let result = self.export_in_runtime(batch).await;
        match &result {
            Ok(()) => self.ledger.delivered(),
            Err(reason) => self.ledger.lost(spans, reason),
        }
        self.waiting.export_ends(spans);
        result.map_err(OTelSdkError::InternalFailure)
    }
}

impl<E: SpanExporter + Explain + 'static> GuardedExporter<E> {
    async fn export_in_runtime(&self, batch: Vec<SpanData>) -> Result<(), String> {
        let (exporter, limit) = (Arc::clone(&self.exporter), self.limit);
        let export = self.runtime.spawn(async move {
            match tokio::time::timeout(limit, exporter.export(batch)).await {
                Ok(result) => result.map_err(|error| exporter.explain(&error)),
                Err(_) => Err(format!("no answer within {limit:?}")),
            }
        });
        // The runtime ends with the guard: an export it cut off is one that failed.
        export
            .await
            .unwrap_or_else(|_| Err("the program is shutting down".to_owned()))
    }
}
