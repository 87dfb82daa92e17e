//! The one that exports: a task that takes batches from the queue when one is complete, when it is time,
//! and when somebody asks for a flush.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::DropLedger;
use super::encode;
use super::otlp::OtlpClient;
use super::queue::{Batch, Command, MAX_COMMANDS, QueueProcessor, SpanQueue};

/// How an export is made.
pub(crate) struct ExportContext {
    pub(crate) client: OtlpClient,
    /// As it stands in every request.
    pub(crate) resource: Vec<u8>,
    pub(crate) queue: Arc<SpanQueue>,
    pub(crate) ledger: Arc<DropLedger>,
    /// The longest that one request may take, its retries included.
    pub(crate) limit: Duration,
    /// The longest that a span waits for others.
    pub(crate) delay: Duration,
}

/// Starts to export on the current runtime; the processor gives it what there is to export.
pub(crate) fn start(context: ExportContext) -> QueueProcessor {
    let (commands, asked) = mpsc::channel(MAX_COMMANDS);
    let (queue, ledger) = (Arc::clone(&context.queue), Arc::clone(&context.ledger));
    let processor = QueueProcessor::new(queue, commands, ledger);
    tokio::spawn(context.run(asked));
    processor
}

impl ExportContext {
    /// Ends when it is told to, or when nobody can ask any more.
    async fn run(self, mut commands: mpsc::Receiver<Command>) {
        let mut due = Instant::now() + self.delay;
        loop {
            tokio::select! {
                biased;
                command = commands.recv() => match command {
                    Some(Command::Flush(answer)) => {
                        // Who asked may have gone.
                        let _ = answer.send(self.export_all().await);
                    }
                    Some(Command::Shutdown(answer)) => {
                        let _ = answer.send(self.export_all().await);
                        return;
                    }
                    None => return,
                },
                () = self.queue.completed() => {
                    while let Some(batch) = self.queue.take(true) {
                        // The ledger knows what was lost.
                        let _ = self.export(batch).await;
                    }
                }
                () = sleep_until(due) => {
                    let _ = self.export_all().await;
                    due = Instant::now() + self.delay;
                }
            }
        }
    }

    /// Exports what is there now; what comes meanwhile has time.
    async fn export_all(&self) -> OTelSdkResult {
        let mut result = Ok(());
        for _ in 0..self.queue.batches() {
            let Some(batch) = self.queue.take(false) else {
                break;
            };
            result = result.and(self.export(batch).await);
        }
        result
    }

    /// Sends one request and enters its outcome into the ledger.
    async fn export(&self, batch: Batch) -> OTelSdkResult {
        let spans = batch.spans();
        let request = encode::request(&self.resource, &batch).into();
        drop(batch);
        let result = match timeout(self.limit, self.client.export(request)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {:?}", self.limit)),
        };
        match &result {
            Err(reason) => self.ledger.lost(spans, reason),
            Ok(rejection) if rejection.count > 0 => {
                let reason = format!("it rejected spans: {}", rejection.message);
                self.ledger.lost(rejection.count, &reason);
            }
            Ok(_) => self.ledger.delivered(),
        }
        self.queue.export_ends(spans);
        result.map(drop).map_err(OTelSdkError::InternalFailure)
    }
}
