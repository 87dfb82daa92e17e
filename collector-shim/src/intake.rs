//! Where both receivers hand over a request: checked, counted, then queued, sent on or stored.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::coding::Coding;
use crate::counts::{Counters, Transport};
use crate::exporter::{Accepted, Direct, MAX_BATCH_BYTES, Outlet};
use crate::queue::{OfferError, Patience, Payload, Queue};
use crate::signal::{Signal, Signals};
use crate::store::{self, Store};
use crate::wire;

/// When a sender refused for lack of room is asked to come back.
pub(crate) const RETRY_DELAY: Duration = Duration::from_secs(1);
/// More bytes than this are worked on beside the threads that serve connections.
pub(crate) const INLINE_BYTES: usize = 256 * 1024;
/// The same for what is only walked over, ten times as fast as what is decoded.
const INLINE_WALK_BYTES: usize = 2 * 1024 * 1024;

/// Where accepted requests go.
#[derive(Debug, Clone)]
pub(crate) enum Sink {
    /// To backends, later.
    Queue(Arc<Queue>),
    /// To backends, now: the sender waits for their answer.
    Direct(Arc<Direct>),
    /// Into memory.
    Store(Arc<Store>),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) sink: Sink,
    pub(crate) counters: Arc<Counters>,
    pub(crate) signals: Signals,
    /// The backends, if there are any.
    pub(crate) outlets: Vec<Arc<Outlet>>,
    /// The largest request, before decompression and after.
    pub(crate) max_request_bytes: usize,
    /// With a queue that is full.
    pub(crate) patience: Patience,
}

/// A request as it came, and what is in it.
#[derive(Debug, Clone)]
pub(crate) struct Incoming {
    pub(crate) transport: Transport,
    pub(crate) signal: Signal,
    /// The export request, not compressed.
    pub(crate) plain: Bytes,
    /// The same as it came, if it came compressed and may leave so.
    pub(crate) compressed: Option<(Coding, Bytes)>,
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
    #[error("encoding {0:?} is not supported: use gzip, zstd or none")]
    Encoding(String),
    #[error("content type {0:?} is not supported: use application/x-protobuf or application/json")]
    MediaType(String),
    #[error("one of the bearer tokens of this receiver is needed")]
    Unauthorized,
    #[error("method {0} is not supported: use POST")]
    Method(String),
    #[error("{0} is not served here")]
    Path(String),
    #[error("{signal} are not taken: {reason}")]
    Signal {
        signal: Signal,
        reason: &'static str,
    },
    #[error("the backend refused it: {reason}")]
    Backend { code: tonic::Code, reason: String },
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
    /// Whether requests of `signal` may be taken, before one is read.
    pub(crate) fn check_signal(&self, signal: Signal) -> Result<(), Refusal> {
        let refused = |reason| Err(Refusal::Signal { signal, reason });
        if !self.signals.has(signal) {
            return refused("they are switched off (--signals)");
        }
        match &self.sink {
            Sink::Store(_) if signal != Signal::Traces => {
                refused("only traces are kept here, set a backend to forward them to")
            }
            Sink::Queue(_) | Sink::Direct(_)
                if !self.outlets.iter().any(|outlet| outlet.takes(signal)) =>
            {
                refused("no backend has them")
            }
            _ => Ok(()),
        }
    }

    /// Accepts a request, or refuses all of it.
    pub(crate) async fn accept(self: &Arc<Intake>, request: Incoming) -> Result<Accepted, Refusal> {
        let (signal, transport) = (request.signal, request.transport);
        let Some(checked) = self.checked(request).await? else {
            return Ok(Accepted::default());
        };
        let accepted = match &self.sink {
            Sink::Store(_) => Ok(Accepted::default()),
            Sink::Direct(direct) => direct.send(&checked.payloads).await,
            Sink::Queue(queue) => return self.queue(queue, signal, &checked).await,
        };
        self.count(signal, transport, checked.items, accepted.is_ok());
        accepted
    }

    /// Counts a request that was refused before its items could be.
    pub(crate) fn count_refused(&self, transport: Transport) {
        self.counters.refused_requests.of(transport).add(1);
    }

    fn count(&self, signal: Signal, transport: Transport, items: u64, is_accepted: bool) {
        let counter = if is_accepted {
            &self.counters.accepted
        } else {
            &self.counters.refused
        };
        counter.of(signal).of(transport).add(items);
    }

    async fn checked(self: &Arc<Intake>, request: Incoming) -> Result<Option<Checked>, Refusal> {
        let is_only_walked = !matches!(self.sink, Sink::Store(_));
        let bytes = request.plain.len();
        if is_only_walked && bytes <= INLINE_WALK_BYTES {
            return self.check(request);
        }
        let intake = Arc::clone(self);
        beside_if_large(bytes, move || intake.check(request)).await
    }

    /// Checks a request, and stores it or says what is to be sent. None when there is nothing in it.
    fn check(&self, request: Incoming) -> Result<Option<Checked>, Refusal> {
        let tally = wire::tally(request.signal, &request.plain)?;
        if tally.items == 0 {
            return Ok(None);
        }
        let (items, transport) = (tally.items, request.transport);
        let payloads = match &self.sink {
            Sink::Queue(_) | Sink::Direct(_) => payloads(request, items)?,
            Sink::Store(store) => {
                let too_much = |error: &dyn std::fmt::Display| Refusal::TooMuch(error.to_string());
                tally.check_decodable().map_err(|error| too_much(&error))?;
                let traces = store::decode(&request.plain)
                    .map_err(|error| Refusal::Malformed(error.to_string()))?;
                store.insert(traces);
                self.counters.stored_spans.add(items);
                Vec::new()
            }
        };
        Ok(Some(Checked {
            payloads,
            items,
            transport,
        }))
    }

    async fn queue(
        self: &Arc<Intake>,
        queue: &Arc<Queue>,
        signal: Signal,
        checked: &Checked,
    ) -> Result<Accepted, Refusal> {
        let (items, transport) = (checked.items, checked.transport);
        let attempt = || {
            let (queue, intake) = (Arc::clone(queue), Arc::clone(self));
            let payloads = checked.payloads.clone();
            // On its own, so that a sender that goes away meanwhile does not undo the counting.
            let queueing = tokio::spawn(async move {
                queue.offer(payloads).await?;
                intake.count(signal, transport, items, true);
                Ok(())
            });
            async { queueing.await.unwrap_or(Err(OfferError::Closed)) }
        };
        let bytes = checked.payloads.iter().map(|one| one.bytes.len()).sum();
        match self.patience.offer(queue, bytes, attempt).await {
            Ok(()) => Ok(Accepted::default()),
            Err(error) => {
                self.count(signal, transport, items, false);
                if error != OfferError::Closed {
                    self.counters.enqueue_failed.of(signal).add(items);
                }
                Err(Refusal::unavailable(error.to_string()))
            }
        }
    }
}

/// A request that is sound.
struct Checked {
    /// To be sent, unless it is stored.
    payloads: Vec<Payload>,
    items: u64,
    transport: Transport,
}

/// The request whole, compressed as it came; or in parts that backends with the common limit of
/// 4 MiB take. The limit is for what comes out of a decompression.
fn payloads(request: Incoming, items: u64) -> Result<Vec<Payload>, wire::WireError> {
    let Incoming { signal, plain, .. } = request;
    if plain.len() <= MAX_BATCH_BYTES || !signal.is_divisible() {
        let whole = Payload::plain(signal, plain, items);
        return Ok(vec![match request.compressed {
            Some((coding, bytes)) => Payload {
                coding,
                bytes,
                ..whole
            },
            None => whole,
        }]);
    }
    let parts = wire::split(&plain, MAX_BATCH_BYTES)?;
    parts
        .into_iter()
        .map(|part| {
            let items = wire::tally(signal, &part)?.items;
            // A part waits for itself, and is not to keep all the others in memory.
            let bytes = Bytes::copy_from_slice(&part);
            Ok(Payload::plain(signal, bytes, items))
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
