//! The spans that are sent, and the counting of those that arrive.

use bytes::{BufMut as _, Bytes, BytesMut};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;

/// What a server span of HTTP says, which makes most of its size.
const ATTRIBUTES: [(&str, &str); 9] = [
    ("http.request.method", "POST"),
    ("http.route", "/v1/chat/completions"),
    ("url.scheme", "https"),
    ("server.address", "api.example.com"),
    ("client.address", "203.0.113.195"),
    ("network.protocol.version", "1.1"),
    ("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64)"),
    ("gen_ai.request.model", "facebook/opt-125m"),
    ("gen_ai.operation.name", "chat"),
];
const START_NANOS: u64 = 1_750_000_000_000_000_000;
/// A compression flag and a length.
const GRPC_HEADER_BYTES: usize = 5;

/// A request of `count` spans with ids from `first_id` on, each of some `span_bytes`.
pub(crate) fn request(first_id: u64, count: u64, span_bytes: usize) -> Bytes {
    let spans = (first_id..first_id + count).map(|id| span(id, span_bytes));
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", "bench")],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                scope: Some(InstrumentationScope {
                    name: "lantern-bench".to_owned(),
                    ..InstrumentationScope::default()
                }),
                spans: spans.collect(),
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    request.encode_to_vec().into()
}

fn span(id: u64, span_bytes: usize) -> Span {
    let trace_id = u128::from(id / 8 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let mut span = Span {
        trace_id: trace_id.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        name: "POST /v1/chat/completions".to_owned(),
        kind: 2,
        start_time_unix_nano: START_NANOS + id * 1_000,
        end_time_unix_nano: START_NANOS + id * 1_000 + 250_000_000,
        ..Span::default()
    };
    let known = ATTRIBUTES.map(|(key, value)| attribute(key, value));
    span.attributes.extend(known);
    // Different in each, so that compression has something to do.
    let query = format!("{:032x}", trace_id.wrapping_mul(u128::from(id) | 1)).repeat(8);
    let left = span_bytes.saturating_sub(span.encoded_len() + "url.query".len() + 8);
    let query = &query[..left.min(query.len())];
    span.attributes.push(attribute("url.query", query));
    span
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue {
            value: Some(Value::StringValue(value.to_owned())),
        }),
        ..KeyValue::default()
    }
}

/// `message` as gRPC frames it.
pub(crate) fn framed(message: &[u8], is_compressed: bool) -> Bytes {
    let length = u32::try_from(message.len()).expect("requests of a bench are small");
    let mut frame = BytesMut::with_capacity(GRPC_HEADER_BYTES + message.len());
    frame.put_u8(u8::from(is_compressed));
    frame.put_u32(length);
    frame.put_slice(message);
    frame.freeze()
}

/// The message in a frame of gRPC, and whether it is compressed.
pub(crate) fn unframed(frame: &Bytes) -> Option<(Bytes, bool)> {
    let is_compressed = *frame.first()? == 1;
    (frame.len() >= GRPC_HEADER_BYTES).then(|| (frame.slice(GRPC_HEADER_BYTES..), is_compressed))
}

/// A request that is decoded as far as its spans, so that counting them costs next to nothing.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Shallow {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ShallowResource>,
}

#[derive(Clone, PartialEq, Message)]
struct ShallowResource {
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ShallowScope>,
}

#[derive(Clone, PartialEq, Message)]
struct ShallowScope {
    #[prost(bytes = "bytes", repeated, tag = "2")]
    spans: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct ShallowSpan {
    #[prost(bytes = "bytes", tag = "2")]
    span_id: Bytes,
}

impl Shallow {
    pub(crate) fn spans(&self) -> u64 {
        self.encoded_spans().count() as u64
    }

    /// The ids that [`request`] gave.
    pub(crate) fn ids(&self) -> impl Iterator<Item = u64> {
        self.encoded_spans().filter_map(|span| {
            let span = ShallowSpan::decode(span.clone()).ok()?;
            Some(u64::from_be_bytes(span.span_id[..].try_into().ok()?))
        })
    }

    fn encoded_spans(&self) -> impl Iterator<Item = &Bytes> {
        let scopes = self.resource_spans.iter().flat_map(|one| &one.scope_spans);
        scopes.flat_map(|scope| &scope.spans)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_spans_and_the_size_that_were_asked_for() {
        let request = request(7, 512, 540);
        let shallow = Shallow::decode(request.clone()).expect("sound");
        assert_eq!(shallow.spans(), 512);
        assert!(shallow.ids().eq(7..519));
        let span_bytes = request.len() as f64 / 512.0;
        assert!((530.0..550.0).contains(&span_bytes), "{span_bytes}");
    }

    #[test]
    fn a_frame_is_taken_apart_again() {
        let message = Bytes::from_static(b"message");
        assert_eq!(unframed(&framed(&message, true)), Some((message, true)));
        assert_eq!(unframed(&Bytes::from_static(&[0, 0])), None);
    }
}
