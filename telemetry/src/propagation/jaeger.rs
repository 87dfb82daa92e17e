//! Jaeger's own header, `uber-trace-id: {trace id}:{span id}:{parent's span id}:{flags}`. Its baggage
//! headers (`uberctx-*`) are not read: use the `baggage` propagator.
//!
//! <https://www.jaegertracing.io/docs/1.57/client-libraries/#tracespan-identity>

use opentelemetry::Context;
use opentelemetry::propagation::text_map_propagator::FieldIter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanId, TraceContextExt, TraceId};
use percent_encoding::percent_decode_str;

use super::ids::{self, Sampling};

const HEADER: &str = "uber-trace-id";
const SAMPLED: u8 = 1;
const DEBUG: u8 = 2;

/// A propagator for Jaeger's header.
#[derive(Debug)]
pub(super) struct JaegerPropagator {
    fields: [String; 1],
}

impl JaegerPropagator {
    pub(super) fn new() -> Self {
        Self {
            fields: [HEADER.to_owned()],
        }
    }
}

impl TextMapPropagator for JaegerPropagator {
    fn inject_context(&self, cx: &Context, injector: &mut dyn Injector) {
        let span = cx.span();
        let parent = span.span_context();
        if !parent.is_valid() {
            return;
        }
        let flags = match Sampling::of(cx) {
            Sampling::Deny => 0,
            Sampling::Accept => SAMPLED,
            Sampling::Debug => SAMPLED | DEBUG,
        };
        // The parent's id is deprecated; 0 is what the format asks for instead.
        let value = format!("{}:{}:0:{flags:x}", parent.trace_id(), parent.span_id());
        injector.set(HEADER, value);
    }

    fn extract_with_context(&self, cx: &Context, extractor: &dyn Extractor) -> Context {
        extractor.get(HEADER).and_then(parse).map_or_else(
            || cx.clone(),
            |(parent, sampling)| ids::with_parent(cx, parent, sampling),
        )
    }

    fn fields(&self) -> FieldIter<'_> {
        FieldIter::new(&self.fields)
    }
}

fn parse(value: &str) -> Option<((TraceId, SpanId), Sampling)> {
    // Some clients encode the colons.
    let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
    let mut fields = value.split(':');
    let parent = (
        ids::trace_id(fields.next()?)?,
        ids::span_id(fields.next()?)?,
    );
    let _deprecated_parent = fields.next()?;
    let flags = u8::from_str_radix(fields.next()?, 16).ok()?;
    let sampling = match flags {
        flags if flags & DEBUG != 0 => Sampling::Debug,
        flags if flags & SAMPLED != 0 => Sampling::Accept,
        _ => Sampling::Deny,
    };
    fields.next().is_none().then_some((parent, sampling))
}
