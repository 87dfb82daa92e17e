//! Trace context in HTTP headers: `OTEL_PROPAGATORS` as one object.
//!
//! tracecontext is read and baggage read and written by the SDK; b3, b3multi and jaeger are ours, because the crates that
//! have them are deprecated and follow other versions of the API.

mod b3;
mod headers;
mod ids;
mod jaeger;
#[cfg(test)]
mod tests;
mod trace_context;

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{TextMapCompositePropagator, TextMapPropagator};
use opentelemetry::trace::TraceContextExt as _;
use opentelemetry_sdk::propagation::BaggagePropagator;

use crate::config::PropagatorKind;
use b3::{B3Propagator, Form};
use headers::{HeaderReader, HeaderWriter};
use jaeger::JaegerPropagator;
use trace_context::TraceContext;
pub use trace_context::{trace_id_digits, traceparent};

/// Baggage is the caller's, whatever span it comes with.
const BAGGAGE: &str = "baggage";

/// Reads trace context from request headers and writes it into them.
#[derive(Clone)]
pub struct Propagator {
    composite: Arc<TextMapCompositePropagator>,
    /// What belongs to one span, and goes when another takes its place.
    of_a_span: Arc<[HeaderName]>,
}

impl fmt::Debug for Propagator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Propagator").field(&self.fields()).finish()
    }
}

impl Propagator {
    pub(crate) fn new(kinds: &[PropagatorKind]) -> Self {
        let propagators = kinds.iter().map(|kind| propagator(*kind)).collect();
        let composite = TextMapCompositePropagator::new(propagators);
        let of_a_span = composite.fields().filter(|&field| field != BAGGAGE);
        Self {
            of_a_span: of_a_span
                .map(|field| field.parse().expect("propagators name valid headers"))
                .collect(),
            composite: Arc::new(composite),
        }
    }

    /// The context that `headers` carry; an empty one when they carry none.
    pub fn extract(&self, headers: &HeaderMap) -> Context {
        self.composite
            .extract_with_context(&Context::new(), &HeaderReader::new(headers))
    }

    /// Writes `context` into `headers`, in place of what they carried in any of the formats. A context
    /// without a valid span leaves them as they are.
    pub fn inject(&self, context: &Context, headers: &mut HeaderMap) {
        // Once and before all formats write: two of them may share headers.
        if context.span().span_context().is_valid() {
            for name in &*self.of_a_span {
                headers.remove(name);
            }
        }
        self.write(context, |name, value| {
            headers.insert(name, value);
        });
    }

    /// Hands each header that carries the span of `context` to `set`: all that [`Propagator::inject`]
    /// writes but the baggage.
    pub fn inject_span(&self, context: &Context, mut set: impl FnMut(HeaderName, HeaderValue)) {
        self.write(context, |name, value| {
            if name != BAGGAGE {
                set(name, value);
            }
        });
    }

    /// The names of the headers that belong to one span, and go when another takes its place.
    pub fn span_fields(&self) -> &[HeaderName] {
        &self.of_a_span
    }

    fn write(&self, context: &Context, set: impl FnMut(HeaderName, HeaderValue)) {
        let known = &self.of_a_span;
        self.composite
            .inject_context(context, &mut HeaderWriter { known, set });
    }

    /// The names of the headers that are read or replaced, sorted.
    pub fn fields(&self) -> Vec<&str> {
        let mut fields: Vec<_> = self.composite.fields().collect();
        fields.sort_unstable();
        fields.dedup();
        fields
    }
}

fn propagator(kind: PropagatorKind) -> Box<dyn TextMapPropagator + Send + Sync> {
    match kind {
        PropagatorKind::TraceContext => Box::new(TraceContext::new()),
        PropagatorKind::Baggage => Box::new(BaggagePropagator::new()),
        PropagatorKind::B3 => Box::new(B3Propagator::new(Form::Single)),
        PropagatorKind::B3Multi => Box::new(B3Propagator::new(Form::Multi)),
        PropagatorKind::Jaeger => Box::new(JaegerPropagator::new()),
    }
}
