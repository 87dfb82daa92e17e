//! Requests that receivers take: a batch is bounded in spans by the SDK, but receivers bound bytes, and a
//! few captured prompts make a large batch.

use opentelemetry::{Array, KeyValue, Value};
use opentelemetry_sdk::trace::SpanData;

/// Deployed gRPC receivers refuse messages of more than 4 MiB; the rest is for the resource and for what
/// the estimate leaves out.
pub(super) const MAX_REQUEST_BYTES: usize = 3 * 1024 * 1024;
/// Identifiers, times, kind, status and field tags of a span.
const SPAN_BYTES: usize = 128;
/// The same of an event or a link.
const PART_BYTES: usize = 64;
/// Tags and a number.
const VALUE_BYTES: usize = 16;

/// `batch` in parts of at most `max_bytes`, in order; a larger span is a part of its own.
pub(super) fn split(batch: Vec<SpanData>, max_bytes: usize) -> Vec<Vec<SpanData>> {
    let mut parts = Vec::with_capacity(1);
    let (mut part, mut part_bytes) = (Vec::with_capacity(batch.len()), 0);
    for span in batch {
        let bytes = estimated_bytes(&span);
        if part_bytes + bytes > max_bytes && !part.is_empty() {
            parts.push(std::mem::take(&mut part));
            part_bytes = 0;
        }
        part_bytes += bytes;
        part.push(span);
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// The encoded size, within some per cent: texts dominate where it matters.
fn estimated_bytes(span: &SpanData) -> usize {
    let events = span
        .events
        .iter()
        .map(|event| PART_BYTES + event.name.len() + attribute_bytes(&event.attributes));
    let links = span
        .links
        .iter()
        .map(|link| PART_BYTES + attribute_bytes(&link.attributes));
    SPAN_BYTES
        + span.name.len()
        + attribute_bytes(&span.attributes)
        + events.sum::<usize>()
        + links.sum::<usize>()
}

fn attribute_bytes(attributes: &[KeyValue]) -> usize {
    let value_bytes = |value: &Value| match value {
        Value::String(text) => text.as_str().len(),
        Value::Array(Array::String(texts)) => texts
            .iter()
            .map(|text| VALUE_BYTES + text.as_str().len())
            .sum(),
        Value::Array(Array::I64(numbers)) => numbers.len() * VALUE_BYTES,
        Value::Array(Array::F64(numbers)) => numbers.len() * VALUE_BYTES,
        Value::Array(Array::Bool(values)) => values.len() * VALUE_BYTES,
        _ => 0,
    };
    let sizes = attributes.iter().map(|attribute| {
        VALUE_BYTES + attribute.key.as_str().len() + value_bytes(&attribute.value)
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use opentelemetry::InstrumentationScope;
    use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status};
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};

    use super::*;

    fn span(text_bytes: usize) -> SpanData {
        SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "".into(),
            start_time: SystemTime::UNIX_EPOCH,
            end_time: SystemTime::UNIX_EPOCH,
            attributes: vec![KeyValue::new("", "x".repeat(text_bytes))],
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        }
    }

    fn check(texts: &[usize], expect: &[usize]) {
        let parts = split(texts.iter().map(|bytes| span(*bytes)).collect(), 1_000);
        assert_eq!(
            parts.iter().map(Vec::len).collect::<Vec<_>>(),
            expect,
            "{texts:?}"
        );
    }

    #[test]
    fn parts_stay_within_the_bound_and_keep_every_span() {
        check(&[], &[]);
        check(&[0; 6], &[6]);
        check(&[0; 7], &[6, 1]);
        check(&[300, 300, 300], &[2, 1]);
        check(&[5_000, 0, 0], &[1, 2]);
        check(&[0, 5_000, 0], &[1, 1, 1]);
    }
}
