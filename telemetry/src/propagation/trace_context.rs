//! W3C Trace Context: read by the SDK's propagator, and written by hand, since formatting takes ten times as long and
//! a proxy writes such values with every request. <https://www.w3.org/TR/trace-context/#traceparent-header>

use opentelemetry::Context;
use opentelemetry::propagation::text_map_propagator::FieldIter;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt as _, TraceFlags, TraceId};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use super::headers::{TRACEPARENT, TRACESTATE};

/// The propagator of `traceparent` and `tracestate`.
#[derive(Debug)]
pub(super) struct TraceContext(TraceContextPropagator);

impl TraceContext {
    pub(super) fn new() -> Self {
        Self(TraceContextPropagator::new())
    }
}

impl TextMapPropagator for TraceContext {
    fn inject_context(&self, cx: &Context, injector: &mut dyn Injector) {
        let span = cx.span();
        let span = span.span_context();
        if span.is_valid() {
            injector.set(TRACEPARENT, traceparent(span));
            injector.set(TRACESTATE, span.trace_state().header());
        }
    }

    fn extract_with_context(&self, cx: &Context, extractor: &dyn Extractor) -> Context {
        self.0.extract_with_context(cx, extractor)
    }

    fn fields(&self) -> FieldIter<'_> {
        self.0.fields()
    }
}

/// `span` as the value of `traceparent` and `traceresponse`.
pub fn traceparent(span: &SpanContext) -> String {
    let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let flags = span.trace_flags() & TraceFlags::SAMPLED;
    write_hex(&span.trace_id().to_bytes(), &mut value[3..35]);
    write_hex(&span.span_id().to_bytes(), &mut value[36..52]);
    write_hex(&[flags.to_u8()], &mut value[53..]);
    text(&value)
}

/// The 32 digits of a trace id.
pub fn trace_id_digits(id: TraceId) -> String {
    let mut digits = [0; 32];
    write_hex(&id.to_bytes(), &mut digits);
    text(&digits)
}

/// `bytes` in lowercase hexadecimal digits, of which there is room for two each.
fn write_hex(bytes: &[u8], digits: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, digits) in bytes.iter().zip(digits.chunks_exact_mut(2)) {
        digits[0] = DIGITS[usize::from(byte >> 4)];
        digits[1] = DIGITS[usize::from(byte & 0xf)];
    }
}

fn text(digits: &[u8]) -> String {
    str::from_utf8(digits).expect("ASCII").to_owned()
}
