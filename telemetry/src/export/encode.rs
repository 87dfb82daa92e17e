//! Spans in OTLP's protobuf, written straight from what the SDK hands over when a span ends.
//! <https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/trace/v1/trace.proto>
//!
//! By way of the generated types every span would be built a second time, with a key and a string of its
//! own for each attribute, and the gRPC exporter copies the batch before that: many times the cost of the
//! span itself. Those types are what the tests compare with.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry::trace::{Event, Link, SpanId, SpanKind, Status};
use opentelemetry::{Array, InstrumentationScope, KeyValue, StringValue, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::queue::Batch;

/// The bits of `flags` above those of the trace flags: whether it is known that the parent is remote, and
/// whether it is.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// What a request has besides its spans and its resource, with room to spare.
const FRAME_BYTES: usize = 256;
/// The longest that a varint can be.
const MAX_VARINT_BYTES: usize = 10;
/// Lengths below take one byte.
const ONE_BYTE: usize = 0x80;

/// Appends `span` as one of the `spans` of a `ScopeSpans`.
pub(super) fn span(span: &SpanData, out: &mut Vec<u8>) {
    message(2, out, |out| span_fields(span, out));
}

/// The fields of a `ResourceSpans` that say where its spans are from.
pub(crate) fn resource(resource: &Resource) -> Vec<u8> {
    let mut out = Vec::new();
    message(1, &mut out, |out| {
        for (key, value) in resource {
            attribute(1, key.as_str(), value, out);
        }
    });
    text(3, resource.schema_url().unwrap_or_default(), &mut out);
    out
}

/// An `ExportTraceServiceRequest` of all spans of `batch`, from `resource` as it was encoded.
pub(super) fn request(resource: &[u8], batch: &Batch) -> Vec<u8> {
    let mut out = Vec::with_capacity(resource.len() + batch.bytes() + FRAME_BYTES);
    message(1, &mut out, |out| {
        out.extend_from_slice(resource);
        for part in batch.parts() {
            message(2, out, |out| {
                message(1, out, |out| scope_fields(&part.scope, out));
                out.extend_from_slice(&part.spans);
                text(3, part.scope.schema_url().unwrap_or_default(), out);
            });
        }
    });
    out
}

fn scope_fields(scope: &InstrumentationScope, out: &mut Vec<u8>) {
    text(1, scope.name(), out);
    text(2, scope.version().unwrap_or_default(), out);
    for KeyValue { key, value, .. } in scope.attributes() {
        attribute(3, key.as_str(), value, out);
    }
}

fn span_fields(span: &SpanData, out: &mut Vec<u8>) {
    let context = &span.span_context;
    bytes(1, &context.trace_id().to_bytes(), out);
    bytes(2, &context.span_id().to_bytes(), out);
    text(3, &context.trace_state().header(), out);
    if span.parent_span_id != SpanId::INVALID {
        bytes(4, &span.parent_span_id.to_bytes(), out);
    }
    text(5, &span.name, out);
    let kind = match span.span_kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
        SpanKind::Producer => 4,
        SpanKind::Consumer => 5,
    };
    number(6, kind, out);
    time(7, span.start_time, out);
    time(8, span.end_time, out);
    attributes(9, &span.attributes, out);
    number(10, span.dropped_attributes_count.into(), out);
    for event in &span.events.events {
        message(11, out, |out| event_fields(event, out));
    }
    number(12, span.events.dropped_count.into(), out);
    for link in &span.links.links {
        message(13, out, |out| link_fields(link, out));
    }
    number(14, span.links.dropped_count.into(), out);
    message(15, out, |out| status_fields(&span.status, out));
    let trace_flags = context.trace_flags().to_u8();
    flags(16, trace_flags, span.parent_span_is_remote, out);
}

fn event_fields(event: &Event, out: &mut Vec<u8>) {
    time(1, event.timestamp, out);
    text(2, &event.name, out);
    attributes(3, &event.attributes, out);
    number(4, event.dropped_attributes_count.into(), out);
}

fn link_fields(link: &Link, out: &mut Vec<u8>) {
    let context = &link.span_context;
    bytes(1, &context.trace_id().to_bytes(), out);
    bytes(2, &context.span_id().to_bytes(), out);
    text(3, &context.trace_state().header(), out);
    attributes(4, &link.attributes, out);
    number(5, link.dropped_attributes_count.into(), out);
    let trace_flags = context.trace_flags().to_u8();
    flags(6, trace_flags, context.is_remote(), out);
}

fn status_fields(status: &Status, out: &mut Vec<u8>) {
    match status {
        Status::Unset => {}
        Status::Ok => number(3, 1, out),
        Status::Error { description } => {
            text(2, description, out);
            number(3, 2, out);
        }
    }
}

fn attributes(field: u32, attributes: &[KeyValue], out: &mut Vec<u8>) {
    for KeyValue { key, value, .. } in attributes {
        attribute(field, key.as_str(), value, out);
    }
}

/// A string or a number, as nearly all are, has a known length and is written straight on.
fn attribute(field: u32, key: &str, value: &Value, out: &mut Vec<u8>) {
    let length = match value {
        Value::String(value) => length_delimited(value.as_str().len()),
        Value::Bool(_) => 2,
        Value::I64(value) => 1 + encoded_len_varint(value.cast_unsigned()),
        Value::F64(_) => 1 + size_of::<f64>(),
        _ => {
            return message(field, out, |out| {
                text(1, key, out);
                message(2, out, |out| any_value(value, out));
            });
        }
    };
    let key_length = if key.is_empty() {
        0
    } else {
        length_delimited(key.len())
    };
    tag(field, WireType::LengthDelimited, out);
    varint((key_length + length_delimited(length)) as u64, out);
    text(1, key, out);
    tag(2, WireType::LengthDelimited, out);
    varint(length as u64, out);
    any_value(value, out);
}

fn any_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::String(value) => string_value(value, out),
        Value::Bool(value) => bool_value(value, out),
        Value::I64(value) => int_value(value, out),
        Value::F64(value) => double_value(value, out),
        Value::Array(array) => message(5, out, |out| match array {
            Array::String(values) => elements(values, string_value, out),
            Array::Bool(values) => elements(values, bool_value, out),
            Array::I64(values) => elements(values, int_value, out),
            Array::F64(values) => elements(values, double_value, out),
            // Kinds that may come to the SDK.
            _ => {}
        }),
        _ => {}
    }
}

fn elements<T>(values: &[T], write: impl Fn(&T, &mut Vec<u8>), out: &mut Vec<u8>) {
    for value in values {
        message(1, out, |out| write(value, out));
    }
}

fn string_value(value: &StringValue, out: &mut Vec<u8>) {
    bytes(1, value.as_str().as_bytes(), out);
}

fn bool_value(value: &bool, out: &mut Vec<u8>) {
    tag(2, WireType::Varint, out);
    varint((*value).into(), out);
}

fn int_value(value: &i64, out: &mut Vec<u8>) {
    tag(3, WireType::Varint, out);
    varint(value.cast_unsigned(), out);
}

fn double_value(value: &f64, out: &mut Vec<u8>) {
    tag(4, WireType::SixtyFourBit, out);
    out.extend_from_slice(&value.to_le_bytes());
}

/// A nested message, whose length stands before it and is known behind it. Most are short enough for the
/// one byte that is kept free; what is longer moves.
fn message(field: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    tag(field, WireType::LengthDelimited, out);
    let at = out.len();
    out.push(0);
    write(out);
    let length = out.len() - at - 1;
    let mut varint = [0; MAX_VARINT_BYTES];
    let mut rest = &mut varint[..];
    encode_varint(length as u64, &mut rest);
    let used = MAX_VARINT_BYTES - rest.len();
    if length < ONE_BYTE {
        out[at] = varint[0];
    } else {
        out.splice(at..=at, varint[..used].iter().copied());
    }
}

/// What a field of so many bytes takes with its tag and its length; the field is one of the first 15.
fn length_delimited(bytes: usize) -> usize {
    1 + encoded_len_varint(bytes as u64) + bytes
}

/// Nearly all tags and numbers take one byte, for which the general way is a long one.
fn tag(field: u32, wire_type: WireType, out: &mut Vec<u8>) {
    match u8::try_from(field << 3 | wire_type as u32) {
        Ok(tag) if usize::from(tag) < ONE_BYTE => out.push(tag),
        _ => encode_key(field, wire_type, out),
    }
}

fn varint(value: u64, out: &mut Vec<u8>) {
    match u8::try_from(value) {
        Ok(byte) if usize::from(byte) < ONE_BYTE => out.push(byte),
        _ => encode_varint(value, out),
    }
}

fn bytes(field: u32, value: &[u8], out: &mut Vec<u8>) {
    tag(field, WireType::LengthDelimited, out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// Like all below it leaves out what is the default.
fn text(field: u32, value: &str, out: &mut Vec<u8>) {
    if !value.is_empty() {
        bytes(field, value.as_bytes(), out);
    }
}

fn number(field: u32, value: u64, out: &mut Vec<u8>) {
    if value != 0 {
        tag(field, WireType::Varint, out);
        varint(value, out);
    }
}

/// Nanoseconds since 1970.
fn time(field: u32, time: SystemTime, out: &mut Vec<u8>) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    if nanos != 0 {
        tag(field, WireType::SixtyFourBit, out);
        out.extend_from_slice(&nanos.to_le_bytes());
    }
}

fn flags(field: u32, trace_flags: u8, is_remote: bool, out: &mut Vec<u8>) {
    let remote = if is_remote { IS_REMOTE } else { 0 };
    let flags = u32::from(trace_flags) | HAS_IS_REMOTE | remote;
    tag(field, WireType::ThirtyTwoBit, out);
    out.extend_from_slice(&flags.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::time::Duration;

    use opentelemetry::trace::{SpanContext, TraceFlags, TraceState};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
    use opentelemetry_sdk::trace::{SpanEvents, SpanLinks};
    use prost::Message as _;

    use super::*;

    fn plain() -> SpanData {
        SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind: SpanKind::Internal,
            name: "".into(),
            start_time: UNIX_EPOCH,
            end_time: UNIX_EPOCH,
            attributes: Vec::new(),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::default(),
        }
    }

    fn context(is_remote: bool) -> SpanContext {
        let state = TraceState::from_key_value([("a", "1"), ("b", "2")]).expect("a state");
        let flags = TraceFlags::SAMPLED;
        SpanContext::new(7.into(), u64::MAX.into(), flags, is_remote, state)
    }

    fn values() -> Vec<KeyValue> {
        let of = |value: Value| KeyValue::new("key", value);
        let texts: Vec<StringValue> = vec!["".into(), "ä".into(), "x".repeat(200).into()];
        vec![
            of("".into()),
            of("text".into()),
            of("x".repeat(127).into()),
            of("x".repeat(128).into()),
            of("x".repeat(70_000).into()),
            of(false.into()),
            of(true.into()),
            of(0.into()),
            of((-1).into()),
            of(i64::MIN.into()),
            of(i64::MAX.into()),
            of(0.0.into()),
            of((-1.5).into()),
            of(Value::Array(texts.into())),
            of(Value::Array(vec![true, false].into())),
            of(Value::Array(vec![0, -1, 300].into())),
            of(Value::Array(vec![0.0, 0.25].into())),
            of(Value::Array(Vec::<i64>::new().into())),
            KeyValue::new("", "no key"),
        ]
    }

    fn full(scope: InstrumentationScope) -> SpanData {
        let at = |nanos| UNIX_EPOCH + Duration::from_nanos(nanos);
        let mut events = SpanEvents::default();
        events.events = vec![
            Event::new("first", at(5), values(), 3),
            Event::new("", UNIX_EPOCH, Vec::new(), 0),
        ];
        events.dropped_count = 300;
        let mut links = SpanLinks::default();
        links.links = vec![
            Link::new(context(true), values(), 1),
            Link::new(context(false), Vec::new(), 0),
        ];
        links.dropped_count = 1;
        SpanData {
            span_context: context(true),
            parent_span_id: 9.into(),
            parent_span_is_remote: true,
            name: Cow::Borrowed("POST /v1/completions"),
            start_time: at(1_750_000_000_123_456_789),
            end_time: at(1_750_000_001_000_000_000),
            attributes: values(),
            dropped_attributes_count: 2,
            events,
            links,
            instrumentation_scope: scope,
            ..plain()
        }
    }

    /// The request that the generated types make of the same spans.
    fn expected(spans: Vec<SpanData>, resource: &Resource) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(spans, &resource.into()),
        }
    }

    fn encoded(spans: &[SpanData], of: &Resource) -> ExportTraceServiceRequest {
        let mut batch = Batch::default();
        for data in spans {
            let mut bytes = Vec::new();
            span(data, &mut bytes);
            batch.push(&data.instrumentation_scope, &bytes);
        }
        let request = request(&resource(of), &batch);
        ExportTraceServiceRequest::decode(&*request).expect("a request")
    }

    #[track_caller]
    fn check(spans: &[SpanData]) {
        let schema = "https://opentelemetry.io/schemas/1.40.0";
        let of = Resource::builder_empty()
            .with_schema_url([KeyValue::new("service.name", "shop")], schema)
            .build();
        assert_eq!(encoded(spans, &of), expected(spans.to_vec(), &of));
    }

    #[test]
    fn a_span_says_what_the_generated_types_say_of_it() {
        check(&[plain()]);
        check(&[full(InstrumentationScope::default())]);
    }

    #[test]
    fn every_kind_and_every_status_is_told() {
        for kind in [
            SpanKind::Internal,
            SpanKind::Server,
            SpanKind::Client,
            SpanKind::Producer,
            SpanKind::Consumer,
        ] {
            check(&[SpanData {
                span_kind: kind,
                ..plain()
            }]);
        }
        for status in [Status::Ok, Status::error(""), Status::error("it broke")] {
            check(&[SpanData { status, ..plain() }]);
        }
    }

    #[test]
    fn spans_are_together_with_those_of_their_scope() {
        let scope = |name: &'static str| {
            let scope = InstrumentationScope::builder(name).with_version("1.2.3");
            let scope = scope.with_schema_url("https://example.com/schema");
            scope.with_attributes([KeyValue::new("x", 1)]).build()
        };
        check(&[full(scope("a")), full(scope("b")), full(scope("a"))]);
    }

    #[test]
    fn a_request_without_spans_still_names_its_resource() {
        let of = Resource::builder_empty().with_service_name("shop").build();
        assert_eq!(encoded(&[], &of), expected(Vec::new(), &of));
    }
}
