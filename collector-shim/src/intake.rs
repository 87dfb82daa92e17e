//! Where both receivers hand over a request's bytes: checked, counted, then queued or stored.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::counts::{Counters, Transport};
use crate::exporter::MAX_BATCH_BYTES;
use crate::queue::{OfferError, Payload, Queue};
use crate::store::{self, Store};
use crate::wire;

/// When a sender refused for lack of room is asked to come back.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// More bytes than this are worked on beside the threads that serve connections.
pub(crate) const INLINE_BYTES: usize = 256 * 1024;

/// Where accepted requests go.
#[derive(Debug, Clone)]
pub(crate) enum Sink {
    /// To a backend.
    Queue(Arc<Queue>),
    /// Into memory.
    Store(Arc<Store>),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) sink: Sink,
    pub(crate) counters: Arc<Counters>,
    /// The largest request, before decompression and after.
    pub(crate) max_request_bytes: usize,
}

/// Why a request is not accepted. `receiver::status` says it in each protocol's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("malformed request: {0}")]
    Malformed(String),
    #[error("request larger than {max_bytes} bytes")]
    TooLarge { max_bytes: usize },
    #[error("request too large: {0}")]
    TooMuch(String),
    #[error("encoding {0:?} is not supported: use gzip or none")]
    Encoding(String),
    #[error("content type {0:?} is not supported: use application/x-protobuf or application/json")]
    MediaType(String),
    #[error("one of the bearer tokens of this receiver is needed")]
    Unauthorized,
    #[error("method {0} is not supported: use POST")]
    Method(String),
    #[error("{0} is not served here")]
    Path(String),
    #[error("{reason}")]
    Unavailable {
        reason: String,
        retry_after: Duration,
    },
}

impl From<wire::WireError> for Refusal {
    fn from(error: wire::WireError) -> Refusal {
        if error.is_over_a_bound() {
            return Refusal::TooMuch(error.to_string());
        }
        Refusal::Malformed(error.to_string())
    }
}

impl Refusal {
    pub(crate) fn unavailable(reason: impl Into<String>) -> Refusal {
        Refusal::Unavailable {
            reason: reason.into(),
            retry_after: RETRY_DELAY,
        }
    }
}

impl Intake {
    /// Accepts an uncompressed `ExportTraceServiceRequest`, or refuses all of it.
    pub(crate) async fn accept(
        self: &Arc<Intake>,
        request: Bytes,
        transport: Transport,
    ) -> Result<(), Refusal> {
        let intake = Arc::clone(self);
        let checked = beside_if_large(request.len(), move || intake.check(&request, transport));
        let Some(offer) = checked.await? else {
            return Ok(());
        };
        // On its own, so that a sender that goes away meanwhile does not undo the counting.
        let intake = Arc::clone(self);
        let queueing = tokio::spawn(async move { intake.queue(offer, transport).await });
        queueing
            .await
            .unwrap_or_else(|error| Err(Refusal::unavailable(error.to_string())))
    }

    /// Counts a request that was refused before its spans could be.
    pub(crate) fn count_refused(&self, transport: Transport) {
        self.counters.refused_requests.of(transport).add(1);
    }

    /// Checks a request, and stores it or says what is to be queued.
    fn check(&self, request: &Bytes, transport: Transport) -> Result<Option<Offer>, Refusal> {
        let malformed = |error: &dyn std::fmt::Display| Refusal::Malformed(error.to_string());
        let spans = wire::count_spans(request)?;
        if spans == 0 {
            return Ok(None);
        }
        match &self.sink {
            Sink::Queue(queue) => {
                let payloads = payloads(request, spans)?;
                let queue = Arc::clone(queue);
                Ok(Some(Offer {
                    queue,
                    payloads,
                    spans,
                }))
            }
            Sink::Store(store) => {
                let traces = store::decode(request).map_err(|error| malformed(&error))?;
                store.insert(traces);
                self.counters.accepted_spans.of(transport).add(spans);
                self.counters.delivered_spans.add(spans);
                Ok(None)
            }
        }
    }

    async fn queue(&self, offer: Offer, transport: Transport) -> Result<(), Refusal> {
        let Offer {
            queue,
            payloads,
            spans,
        } = offer;
        if let Err(error) = queue.offer(payloads).await {
            self.counters.refused_spans.of(transport).add(spans);
            if error != OfferError::Closed {
                self.counters.enqueue_failed_spans.add(spans);
            }
            return Err(Refusal::unavailable(error.to_string()));
        }
        self.counters.accepted_spans.of(transport).add(spans);
        Ok(())
    }
}

/// A request that is sound and goes to a backend.
struct Offer {
    queue: Arc<Queue>,
    payloads: Vec<Payload>,
    spans: u64,
}

/// The request whole, or in parts that backends with the common limit of 4 MiB take.
fn payloads(request: &Bytes, spans: u64) -> Result<Vec<Payload>, wire::WireError> {
    if request.len() <= MAX_BATCH_BYTES {
        return Ok(vec![Payload::new(request.clone(), spans)]);
    }
    let parts = wire::split(request, MAX_BATCH_BYTES)?;
    parts
        .into_iter()
        .map(|bytes| {
            let spans = wire::count_spans(&bytes)?;
            Ok(Payload::new(bytes, spans))
        })
        .collect()
}

/// Runs `work` here, or on a thread of its own when there is much of it.
pub(crate) async fn beside_if_large<T: Send + 'static>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    if bytes <= INLINE_BYTES {
        return work();
    }
    let work = tokio::task::spawn_blocking(work);
    work.await
        .unwrap_or_else(|error| Err(Refusal::unavailable(error.to_string())))
}
