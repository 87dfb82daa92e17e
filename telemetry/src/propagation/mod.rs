//! Trace context in HTTP headers: `OTEL_PROPAGATORS` as one object.
//!
//! tracecontext and baggage are the SDK's; b3, b3multi and jaeger are ours, because the crates that
//! have them are deprecated and follow other versions of the API.

mod b3;
mod headers;
mod ids;
mod jaeger;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use http::HeaderMap;
use opentelemetry::Context;
use opentelemetry::propagation::{TextMapCompositePropagator, TextMapPropagator};
use opentelemetry_sdk::propagation::{BaggagePropagator, TraceContextPropagator};

use crate::config::PropagatorKind;
use b3::{B3Propagator, Form};
use headers::{HeaderReader, HeaderWriter};
use jaeger::JaegerPropagator;

/// Reads trace context from request headers and writes it into them.
#[derive(Clone)]
pub struct Propagator {
    composite: Arc<TextMapCompositePropagator>,
}

impl fmt::Debug for Propagator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Propagator").field(&self.fields()).finish()
    }
}

impl Propagator {
    pub(crate) fn new(kinds: &[PropagatorKind]) -> Self {
        let propagators = kinds.iter().map(|kind| propagator(*kind)).collect();
        Self {
            composite: Arc::new(TextMapCompositePropagator::new(propagators)),
        }
    }

    /// The context that `headers` carry; an empty one when they carry none.
    pub fn extract(&self, headers: &HeaderMap) -> Context {
        self.composite
            .extract_with_context(&Context::new(), &HeaderReader::new(headers))
    }

    /// Writes `context` into `headers`, in place of what they carried. A context without a valid span
    /// leaves them as they are.
    pub fn inject(&self, context: &Context, headers: &mut HeaderMap) {
        self.composite
            .inject_context(context, &mut HeaderWriter(headers));
    }

    /// The names of the headers that are read and written, sorted.
    pub fn fields(&self) -> Vec<&str> {
        let mut fields: Vec<_> = self.composite.fields().collect();
        fields.sort_unstable();
        fields
    }
}

fn propagator(kind: PropagatorKind) -> Box<dyn TextMapPropagator + Send + Sync> {
    match kind {
        PropagatorKind::TraceContext => Box::new(TraceContextPropagator::new()),
        PropagatorKind::Baggage => Box::new(BaggagePropagator::new()),
        PropagatorKind::B3 => Box::new(B3Propagator::new(Form::Single)),
        PropagatorKind::B3Multi => Box::new(B3Propagator::new(Form::Multi)),
        PropagatorKind::Jaeger => Box::new(JaegerPropagator::new()),
    }
}
