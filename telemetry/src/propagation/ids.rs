//! Identifiers and the debug mark, as the older formats write them.

use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};

/// Marks a context whose trace its origin wants to see whatever the samplers say. OpenTelemetry has no
/// flag for it, so it travels beside the span.
#[derive(Debug)]
struct Debug;

/// The hexadecimal digits of an identifier of at most `max_digits`, or `None`.
fn hex(text: &str, max_digits: usize) -> Option<&str> {
    let valid =
        (1..=max_digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then_some(text)
}

/// A trace id; one that is shorter than 128 bits is padded with zeros on the left.
pub(super) fn trace_id(text: &str) -> Option<TraceId> {
    TraceId::from_hex(hex(text, 32)?)
        .ok()
        .filter(|id| *id != TraceId::INVALID)
}

pub(super) fn span_id(text: &str) -> Option<SpanId> {
    SpanId::from_hex(hex(text, 16)?)
        .ok()
        .filter(|id| *id != SpanId::INVALID)
}

/// `cx` with a remote parent.
pub(super) fn with_parent(
    cx: &Context,
    (trace_id, span_id): (TraceId, SpanId),
    sampling: Sampling,
) -> Context {
    let flags = match sampling {
        Sampling::Deny => TraceFlags::default(),
        Sampling::Accept | Sampling::Debug => TraceFlags::SAMPLED,
    };
    let parent = SpanContext::new(trace_id, span_id, flags, true, TraceState::default());
    let cx = cx.with_remote_span_context(parent);
    if sampling == Sampling::Debug {
        cx.with_value(Debug)
    } else {
        cx
    }
}

/// What the origin decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sampling {
    Deny,
    Accept,
    Debug,
}

impl Sampling {
    /// The decision that the span of `cx` carries on.
    pub(super) fn of(cx: &Context) -> Self {
        match cx.span().span_context().is_sampled() {
            true if cx.get::<Debug>().is_some() => Self::Debug,
            true => Self::Accept,
            false => Self::Deny,
        }
    }
}
