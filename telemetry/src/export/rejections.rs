//! Spans that an endpoint answers for with success and yet rejects. The OTLP exporter returns success
//! for them too and only logs the rejection, so its log is listened to while it exports. That keeps the
//! rest of its log, and that of its transport, out of the program's.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};

/// Where the exporter logs.
const EXPORTER_TARGET: &str = "opentelemetry-otlp";
/// The fields of its event.
const REJECTED_SPANS: &str = "rejected_spans";
const ERROR_MESSAGE: &str = "error_message";

/// What an endpoint rejected.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rejection {
    pub(super) spans: usize,
    pub(super) message: String,
}

/// Listens to one exporter, whose exports come one after the other.
#[derive(Clone, Debug)]
pub(super) struct Rejections {
    heard: Arc<Mutex<Rejection>>,
    dispatch: Dispatch,
}

impl Rejections {
    pub(super) fn new() -> Self {
        let heard = Arc::default();
        let dispatch = Dispatch::new(Listener {
            heard: Arc::clone(&heard),
        });
        Self { heard, dispatch }
    }

    /// The subscriber to export under.
    pub(super) fn dispatch(&self) -> Dispatch {
        self.dispatch.clone()
    }

    /// What was rejected since the last call.
    pub(super) fn take(&self) -> Rejection {
        std::mem::take(&mut *self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Listener {
    heard: Arc<Mutex<Rejection>>,
}

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && *metadata.level() <= Level::WARN
            && metadata.target() == EXPORTER_TARGET
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::WARN)
    }

    fn event(&self, event: &Event<'_>) {
        let mut rejection = Rejection::default();
        event.record(&mut rejection);
        if rejection.spans > 0 {
            *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = rejection;
        }
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Visit for Rejection {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == REJECTED_SPANS {
            self.spans = usize::try_from(value).unwrap_or(0);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == ERROR_MESSAGE {
            value.clone_into(&mut self.message);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}
