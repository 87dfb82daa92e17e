//! Requests passed on while their senders wait: what a backend answers is answered.
//!
//! Nothing is kept and nothing tried again here: whoever sent it has it still, and is told when to
//! come back.

use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::Code;

use super::{Accepted, Answer, Outlet, Rejection};
use crate::counts::Counters;
use crate::intake::{RETRY_DELAY, Refusal};
use crate::queue::Payload;

/// What a request takes at least while its sender waits: two streams, two tasks, their headers.
const LEAST_BYTES: usize = 4 * 1024;

/// See the module.
#[derive(Debug)]
pub(crate) struct Direct {
    pub(crate) outlets: Vec<Arc<Outlet>>,
    counters: Arc<Counters>,
    max_bytes: usize,
    /// Bytes that may still be on their way.
    room: Semaphore,
}

impl Direct {
    pub(crate) fn new(
        outlets: Vec<Arc<Outlet>>,
        max_bytes: usize,
        counters: Arc<Counters>,
    ) -> Direct {
        Direct {
            outlets,
            counters,
            max_bytes,
            room: Semaphore::new(max_bytes.min(Semaphore::MAX_PERMITS)),
        }
    }

    pub(crate) fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Bytes on their way to the backends.
    pub(crate) fn held_bytes(&self) -> usize {
        self.max_bytes.saturating_sub(self.room.available_permits())
    }

    /// Sends a request in one part or more to every backend that takes its signal. Accepted once all
    /// have; refused as soon as one has refused it for good, unless that one turned out not to have
    /// the signal and another does.
    pub(crate) async fn send(&self, payloads: &[Payload]) -> Result<Accepted, Refusal> {
        let bytes: usize = payloads.iter().map(|payload| payload.bytes.len()).sum();
        // One that is larger than the bound takes all of it, and so is alone.
        let permits = u32::try_from(bytes.max(LEAST_BYTES).min(self.max_bytes)).ok();
        let Some(_room) = permits.and_then(|bytes| self.room.try_acquire_many(bytes).ok()) else {
            let max_bytes = self.max_bytes;
            let reason = format!("up to {max_bytes} bytes are on their way to the backend already");
            return Err(Refusal::unavailable(reason));
        };
        let mut accepted = Accepted::default();
        for payload in payloads {
            accepted = accepted.and(self.send_part(payload).await?);
        }
        Ok(accepted)
    }

    async fn send_part(&self, payload: &Payload) -> Result<Accepted, Refusal> {
        let mut sending = JoinSet::new();
        for (at, outlet) in self.outlets.iter().enumerate() {
            if outlet.takes(payload.signal) {
                let (outlet, payload) = (Arc::clone(outlet), payload.clone());
                sending.spawn(async move { (at, outlet.send(&payload).await) });
            } else {
                let unsent = &self.counters.backends[at].unsent;
                unsent.of(payload.signal).add(payload.items);
            }
        }
        let mut accepted: Option<Accepted> = None;
        let mut refusal = None;
        let mut lacking = Refusal::Signal {
            signal: payload.signal,
            reason: "no backend has them",
        };
        while let Some(answered) = sending.join_next().await {
            let (at, answer) = answered.map_err(|error| Refusal::unavailable(error.to_string()))?;
            let is_lacking = !self.outlets[at].takes(payload.signal);
            match self.judged(at, payload, answer) {
                Ok(more) => accepted = Some(accepted.unwrap_or_default().or_worse(more)),
                // What may be accepted later says more than what never will.
                Err(later @ Refusal::Unavailable { .. }) => refusal = Some(later),
                Err(other) if is_lacking => lacking = other,
                Err(other) => {
                    refusal.get_or_insert(other);
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None => accepted.ok_or(lacking),
        }
    }

    /// Counts what a backend has answered, and says it in our words.
    fn judged(&self, at: usize, payload: &Payload, answer: Answer) -> Result<Accepted, Refusal> {
        let (signal, items) = (payload.signal, payload.items);
        let counters = &self.counters.backends[at];
        match answer {
            Answer::Accepted(mut accepted) => {
                accepted.rejected = accepted.rejected.min(items);
                counters.rejected.of(signal).add(accepted.rejected);
                counters.delivered.of(signal).add(items - accepted.rejected);
                Ok(accepted)
            }
            Answer::Later { reason, after } => Err(Refusal::Unavailable {
                reason: format!("the backend does not take it now: {reason}"),
                retry_after: after.unwrap_or(RETRY_DELAY),
            }),
            Answer::Refused(Rejection { reason, code, .. }) => {
                counters.rejected.of(signal).add(items);
                // An answer of ours must not look like one that may be tried again.
                let is_final = !super::retry::grpc_is_retryable(code, false) && code != Code::Ok;
                let code = if is_final { code } else { Code::Internal };
                Err(Refusal::Backend { code, reason })
            }
        }
    }
}
