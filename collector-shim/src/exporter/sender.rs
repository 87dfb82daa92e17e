//! From the queue to one backend: senders take batches and stay with each until the backend has
//! answered for it.

mod shares;

use std::sync::Arc;

use lantern_telemetry::LimitedLog;
use tokio::task::JoinSet;

use super::retry::Backoff;
use super::{Accepted, Answer, Cause, MAX_BATCH_BYTES, Outlet, Rejection};
use crate::counts::{BackendCounters, Counters};
use crate::queue::{Batch, Payload};
use crate::tail::Source;

/// See the module.
pub(crate) struct Exporter {
    /// To all backends.
    outlets: Vec<Arc<Outlet>>,
    /// The place of the one that this sends to.
    backend: usize,
    source: Source,
    counters: Arc<Counters>,
    retry_log: LimitedLog,
    rejection_log: LimitedLog,
}

impl Exporter {
    pub(crate) fn new(
        outlets: Vec<Arc<Outlet>>,
        backend: usize,
        source: impl Into<Source>,
        counters: Arc<Counters>,
    ) -> Exporter {
        Exporter {
            outlets,
            backend,
            source: source.into(),
            counters,
            retry_log: LimitedLog::default(),
            rejection_log: LimitedLog::default(),
        }
    }

    /// Starts the senders. Each ends once the queue is closed and empty.
    pub(crate) fn start(self, senders: &mut JoinSet<()>) {
        let exporter = Arc::new(self);
        for _ in 0..exporter.source.senders() {
            let exporter = Arc::clone(&exporter);
            senders.spawn(async move {
                let take = || exporter.source.take(exporter.backend, MAX_BATCH_BYTES);
                while let Some(batch) = take().await {
                    exporter.deliver(&batch).await;
                }
            });
        }
    }

    /// Sends `batch` until the backend has answered for all of it.
    async fn deliver(&self, batch: &Batch) {
        if self.outlet().share().is_some() {
            return self.deliver_shares(batch).await;
        }
        match self.send_until_answered(batch).await {
            // One sender's broken data must not take the others' with it: each alone. They are
            // new requests, not the refused one again.
            Final::Refused(Rejection {
                cause: Cause::Data, ..
            }) if batch.payloads().len() > 1 => {
                for payload in batch.payloads() {
                    let alone = Batch::of(payload.clone());
                    let answer = self.send_until_answered(&alone).await;
                    self.settle(alone.payloads(), answer).await;
                }
            }
            answer => self.settle(batch.payloads(), answer).await,
        }
    }

    async fn send_until_answered(&self, batch: &Batch) -> Final {
        let signal = batch.payloads()[0].signal;
        let mut backoff = Backoff::default();
        loop {
            if !self.outlet().takes(signal) {
                return Final::Unsent;
            }
            match self.outlet().send_batch(batch).await {
                Answer::Accepted(mut accepted) => {
                    accepted.rejected = accepted.rejected.min(batch.items());
                    return Final::Accepted(accepted);
                }
                Answer::Refused(rejection) => return Final::Refused(rejection),
                Answer::Later { reason, after } => {
                    self.tell_of_retry(&reason);
                    tokio::time::sleep(backoff.next_delay(after)).await;
                }
            }
        }
    }

    fn tell_of_retry(&self, reason: &str) {
        self.counters().retries.add(1);
        if let Some(attempts) = self.retry_log.due(1) {
            let waiting_items = self.source.queue().level(self.backend).total_items();
            let endpoint = &self.outlet().endpoint;
            tracing::warn!(
                endpoint,
                reason,
                attempts,
                waiting_items,
                "backend does not take data, trying again"
            );
        }
    }

    /// Counts what became of `payloads` and gives up their place in the queue.
    async fn settle(&self, payloads: &[Payload], answer: Final) {
        self.account(payloads, answer).await;
        self.leave_queue(payloads);
    }

    fn leave_queue(&self, payloads: &[Payload]) {
        for payload in payloads {
            self.source.settle(self.backend, payload);
        }
    }

    /// Counts what became of `payloads`, and keeps letters of what was refused.
    async fn account(&self, payloads: &[Payload], answer: Final) {
        let (mut rejected, reason) = match answer {
            Final::Accepted(Accepted { rejected, message }) => (rejected, message),
            Final::Refused(Rejection { reason, .. }) => {
                // Before it leaves the queue: a crash between the two must not lose it.
                for payload in payloads {
                    self.source
                        .queue()
                        .bury(self.backend, payload, &reason)
                        .await;
                }
                (u64::MAX, reason)
            }
            Final::Unsent => {
                self.account_for_unsent(payloads).await;
                return;
            }
        };
        let counters = self.counters();
        let mut rejected_items = 0;
        for payload in payloads {
            let of_this = rejected.min(payload.items);
            rejected = rejected.saturating_sub(of_this);
            rejected_items += of_this;
            counters.rejected.of(payload.signal).add(of_this);
            let delivered = payload.items - of_this;
            counters.delivered.of(payload.signal).add(delivered);
        }
        if rejected_items == 0 && reason.is_empty() {
            return;
        }
        if let Some(rejected_items) = self.rejection_log.due(rejected_items) {
            let endpoint = &self.outlet().endpoint;
            tracing::warn!(
                endpoint,
                reason,
                rejected_items,
                "backend rejected data for good"
            );
        }
    }

    /// What was acknowledged, for a backend that turned out not to have the signal. Were there
    /// letters for each backend that lacks what another takes, they would push out all others.
    async fn account_for_unsent(&self, payloads: &[Payload]) {
        for payload in payloads {
            // The last backend to find out sees that none is left.
            if !self.outlets.iter().any(|one| one.takes(payload.signal)) {
                let reason = "no backend has this signal";
                self.source
                    .queue()
                    .bury(self.backend, payload, reason)
                    .await;
            }
            let unsent = &self.counters().unsent;
            unsent.of(payload.signal).add(payload.items);
        }
    }

    fn outlet(&self) -> &Outlet {
        &self.outlets[self.backend]
    }

    fn counters(&self) -> &BackendCounters {
        &self.counters.backends[self.backend]
    }
}

/// An [`Answer`] that needs no further attempt.
enum Final {
    Accepted(Accepted),
    Refused(Rejection),
    /// It was not asked.
    Unsent,
}
