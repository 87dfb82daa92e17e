//! B3, the headers of Zipkin, in one header or in several. Both forms are read, whichever is written,
//! and the single one wins, as OpenTelemetry asks.
//!
//! A decision without identifiers (`b3: 0`) starts no remote trace, and identifiers without a decision
//! are not sampled: both as in OpenTelemetry's other languages.
//!
//! <https://github.com/openzipkin/b3-propagation>,
//! <https://opentelemetry.io/docs/specs/otel/context/api-propagators/#b3-requirements>

use opentelemetry::Context;
use opentelemetry::propagation::text_map_propagator::FieldIter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanId, TraceContextExt, TraceId};

use super::ids::{self, Sampling};

const SINGLE: &str = "b3";
const TRACE_ID: &str = "x-b3-traceid";
const SPAN_ID: &str = "x-b3-spanid";
const PARENT_SPAN_ID: &str = "x-b3-parentspanid";
const SAMPLED: &str = "x-b3-sampled";
const FLAGS: &str = "x-b3-flags";
const MULTI: [&str; 5] = [TRACE_ID, SPAN_ID, PARENT_SPAN_ID, SAMPLED, FLAGS];
/// B3 trace ids have 64 or 128 bits, span ids 64.
const SHORT_DIGITS: usize = 16;
const LONG_DIGITS: usize = 32;

/// Which of the two forms is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Single,
    Multi,
}

/// A propagator that reads both forms and writes one.
#[derive(Debug)]
pub(super) struct B3Propagator {
    form: Form,
    /// Of both forms: a reader may prefer the one that is not written, so neither may be left standing.
    fields: Vec<String>,
}

impl B3Propagator {
    pub(super) fn new(form: Form) -> Self {
        let fields = MULTI.into_iter().chain([SINGLE]);
        Self {
            form,
            fields: fields.map(ToOwned::to_owned).collect(),
        }
    }
}

impl TextMapPropagator for B3Propagator {
    fn inject_context(&self, cx: &Context, injector: &mut dyn Injector) {
        let span = cx.span();
        let parent = span.span_context();
        if !parent.is_valid() {
            return;
        }
        let (trace_id, span_id) = (parent.trace_id().to_string(), parent.span_id().to_string());
        let sampling = Sampling::of(cx);
        let state = match sampling {
            Sampling::Deny => "0",
            Sampling::Accept => "1",
            Sampling::Debug => "d",
        };
        match self.form {
            Form::Single => injector.set(SINGLE, format!("{trace_id}-{span_id}-{state}")),
            Form::Multi => {
                injector.set(TRACE_ID, trace_id);
                injector.set(SPAN_ID, span_id);
                // Debug implies the decision; the two are not sent together.
                match sampling {
                    Sampling::Debug => injector.set(FLAGS, "1".to_owned()),
                    _ => injector.set(SAMPLED, state.to_owned()),
                }
            }
        }
    }

    fn extract_with_context(&self, cx: &Context, extractor: &dyn Extractor) -> Context {
        let found = extractor
            .get(SINGLE)
            .and_then(single)
            .or_else(|| multi(extractor));
        found.map_or_else(
            || cx.clone(),
            |(parent, sampling)| ids::with_parent(cx, parent, sampling),
        )
    }

    fn fields(&self) -> FieldIter<'_> {
        FieldIter::new(&self.fields)
    }
}

type Parent = (TraceId, SpanId);

/// `{trace id}-{span id}-{decision}-{parent's span id}`, the last two optional.
fn single(value: &str) -> Option<(Parent, Sampling)> {
    let mut fields = value.trim().split('-');
    let parent = parent(fields.next()?, fields.next()?)?;
    let sampling = match fields.next() {
        None | Some("0") => Sampling::Deny,
        Some("1") => Sampling::Accept,
        Some("d") => Sampling::Debug,
        Some(_) => return None,
    };
    if let Some(grandparent) = fields.next() {
        ids::span_id(grandparent)?;
    }
    fields.next().is_none().then_some((parent, sampling))
}

fn multi(extractor: &dyn Extractor) -> Option<(Parent, Sampling)> {
    let parent = parent(
        extractor.get(TRACE_ID)?.trim(),
        extractor.get(SPAN_ID)?.trim(),
    )?;
    if extractor.get(FLAGS).map(str::trim) == Some("1") {
        return Some((parent, Sampling::Debug));
    }
    // Early tracers wrote booleans.
    let sampling = match extractor.get(SAMPLED).map(str::trim) {
        Some("1" | "true") => Sampling::Accept,
        _ => Sampling::Deny,
    };
    Some((parent, sampling))
}

fn parent(trace_id: &str, span_id: &str) -> Option<Parent> {
    let lengths_fit =
        matches!(trace_id.len(), SHORT_DIGITS | LONG_DIGITS) && span_id.len() == SHORT_DIGITS;
    lengths_fit.then_some((ids::trace_id(trace_id)?, ids::span_id(span_id)?))
}
