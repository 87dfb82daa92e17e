//! OTLP out: senders take batches from the queue and stay with each until the backend has
//! answered for it.
//!
//! [`grpc`] and [`http`] carry a batch once and read the answer; [`retry`] knows which answers
//! are worth another attempt, and when; here is what follows from them.

mod grpc;
mod http;
mod retry;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lantern_telemetry::{ExporterSettings, LimitedLog, Protocol};
use tokio::task::JoinSet;

use crate::counts::Counters;
use crate::queue::{Batch, Payload, Queue};
use retry::Backoff;

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
    /// It has them, but for `rejected_spans`, which are never sent again. `message` may be a
    /// warning even when it has them all.
    Accepted {
        rejected_spans: u64,
        message: String,
    },
    /// It may take them later, not before `after` if it says so.
    Later {
        reason: String,
        after: Option<Duration>,
    },
    /// It will never take them.
    Refused { reason: String, cause: Cause },
}

/// What a refusal is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    /// These bytes. Of several merged requests, the others may be sound.
    Data,
    /// Whatever we send: the address, the credentials, the method.
    Sender,
}

enum Client {
    Grpc(grpc::GrpcClient),
    Http(http::HttpClient),
}

/// See the module.
pub(crate) struct Exporter {
    client: Client,
    endpoint: String,
    timeout: Duration,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    retry_log: LimitedLog,
    rejection_log: LimitedLog,
}

impl Exporter {
    pub(crate) fn new(
        settings: &ExporterSettings,
        queue: Arc<Queue>,
        counters: Arc<Counters>,
    ) -> Exporter {
        let client = match settings.protocol {
            Protocol::Grpc => Client::Grpc(grpc::GrpcClient::new(settings)),
            Protocol::HttpProtobuf => Client::Http(http::HttpClient::new(settings)),
        };
        Exporter {
            client,
            endpoint: settings.endpoint.clone(),
            timeout: settings.timeout,
            queue,
            counters,
            retry_log: LimitedLog::default(),
            rejection_log: LimitedLog::default(),
        }
    }

    /// Starts the senders. Each ends once the queue is closed and empty.
    pub(crate) fn start(self) -> JoinSet<()> {
        let exporter = Arc::new(self);
        let mut senders = JoinSet::new();
        for _ in 0..exporter.queue.senders() {
            let exporter = Arc::clone(&exporter);
            senders.spawn(async move {
                while let Some(batch) = exporter.queue.take(MAX_BATCH_BYTES).await {
                    exporter.deliver(&batch).await;
                }
            });
        }
        senders
    }

    /// Sends `batch` until the backend has answered for all of it.
    async fn deliver(&self, batch: &Batch) {
        match self
            .send_until_answered(batch.merged(), batch.spans())
            .await
        {
            // One sender's broken data must not take the others' with it: each alone. They are
            // new requests, not the refused one again.
            Final::Refused {
                cause: Cause::Data, ..
            } if batch.payloads.len() > 1 => {
                for payload in &batch.payloads {
                    let answer = self
                        .send_until_answered(payload.bytes.clone(), payload.spans)
                        .await;
                    self.settle(std::slice::from_ref(payload), answer).await;
                }
            }
            answer => self.settle(&batch.payloads, answer).await,
        }
    }

    async fn send_until_answered(&self, request: Bytes, spans: u64) -> Final {
        let mut backoff = Backoff::default();
        loop {
            match self.send(request.clone()).await {
                Answer::Accepted {
                    rejected_spans,
                    message,
                } => {
                    return Final::Accepted {
                        rejected_spans: rejected_spans.min(spans),
                        message,
                    };
                }
                Answer::Refused { reason, cause } => return Final::Refused { reason, cause },
                Answer::Later { reason, after } => {
                    self.counters.retries.add(1);
                    if let Some(attempts) = self.retry_log.due(1) {
                        let waiting_spans = self.queue.level().spans;
                        let endpoint = &self.endpoint;
                        tracing::warn!(
                            endpoint,
                            reason,
                            attempts,
                            waiting_spans,
                            "backend does not take spans, trying again"
                        );
                    }
                    tokio::time::sleep(backoff.next_delay(after)).await;
                }
            }
        }
    }

    async fn send(&self, request: Bytes) -> Answer {
        let sending = async {
            match &self.client {
                Client::Grpc(client) => client.send(request).await,
                Client::Http(client) => client.send(request).await,
            }
        };
        tokio::time::timeout(self.timeout, sending)
            .await
            .unwrap_or_else(|_| Answer::Later {
                reason: format!("no answer within {:?}", self.timeout),
                after: None,
            })
    }

    /// Counts what became of `payloads` and gives up their place in the queue.
    async fn settle(&self, payloads: &[Payload], answer: Final) {
        let spans = payloads.iter().map(|payload| payload.spans).sum::<u64>();
        let (rejected_spans, reason) = match answer {
            Final::Accepted {
                rejected_spans,
                message,
            } => (rejected_spans, message),
            Final::Refused { reason, .. } => {
                // Before it leaves the queue: a crash between the two must not lose it.
                for payload in payloads {
                    self.queue.bury(payload, &reason).await;
                }
                (spans, reason)
            }
        };
        self.counters.delivered_spans.add(spans - rejected_spans);
        self.counters.rejected_spans.add(rejected_spans);
        payloads
            .iter()
            .for_each(|payload| self.queue.settle(payload));
        if rejected_spans == 0 && reason.is_empty() {
            return;
        }
        if let Some(rejected_spans) = self.rejection_log.due(rejected_spans) {
            let endpoint = &self.endpoint;
            tracing::warn!(
                endpoint,
                reason,
                rejected_spans,
                "backend rejected spans for good"
            );
        }
    }
}

/// An [`Answer`] that needs no further attempt.
enum Final {
    Accepted {
        rejected_spans: u64,
        message: String,
    },
    Refused {
        reason: String,
        cause: Cause,
    },
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
