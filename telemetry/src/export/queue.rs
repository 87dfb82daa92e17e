//! The queue before the batch processor. The SDK's processor drops spans when its channel is full and
//! tells nobody how many, so this one counts what is inside and drops first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

use super::DropLedger;

/// A processor that lets at most `capacity` spans wait in the one behind it.
#[derive(Debug)]
pub(crate) struct CountedQueue<P> {
    processor: P,
    waiting: Arc<Waiting>,
    capacity: usize,
    ledger: Arc<DropLedger>,
    full: String,
}

/// The spans between the end of a span and the end of its export.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    queued: AtomicUsize,
    in_flight: AtomicUsize,
}

impl Waiting {
    /// Spans that were accepted and have neither been sent nor given up.
    pub(crate) fn spans(&self) -> usize {
        self.queued.load(Ordering::Acquire) + self.in_flight.load(Ordering::Acquire)
    }

    /// `spans` left the queue and are being exported.
    pub(super) fn export_starts(&self, spans: usize) {
        self.in_flight.fetch_add(spans, Ordering::AcqRel);
        self.queued.fetch_sub(spans, Ordering::AcqRel);
    }

    pub(super) fn export_ends(&self, spans: usize) {
        self.in_flight.fetch_sub(spans, Ordering::AcqRel);
    }

    /// Takes a place in a queue of `capacity`, if there is one.
    fn enter(&self, capacity: usize) -> bool {
        let enter = |queued| (queued < capacity).then_some(queued + 1);
        self.queued
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, enter)
            .is_ok()
    }
}

impl<P: SpanProcessor> CountedQueue<P> {
    /// `capacity` must be that of `processor`, whose exporter must count into `waiting`: a span then
    /// leaves the count after it left the processor's channel, which is therefore never full.
    pub(crate) fn new(
        processor: P,
        waiting: Arc<Waiting>,
        capacity: usize,
        ledger: Arc<DropLedger>,
    ) -> Self {
        let full = format!("the queue of {capacity} spans is full");
        Self {
            processor,
            waiting,
            capacity,
            ledger,
            full,
        }
    }
}

impl<P: SpanProcessor> SpanProcessor for CountedQueue<P> {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        self.processor.on_start(span, cx);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.enter(self.capacity) {
            self.processor.on_end(span);
        } else {
            self.ledger.lost(1, &self.full);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.processor.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.processor.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.processor.set_resource(resource);
    }
}
