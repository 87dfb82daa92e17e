//! Requests to send.

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;

pub(crate) const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// 2026-01-02T03:04:05.000006Z
const START_NS: u64 = 1_767_323_045_000_006_000;

pub(crate) fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

pub(crate) fn attribute(key: &str, value: Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue {
        key: key.to_owned(),
        value,
        ..KeyValue::default()
    }
}

/// A span of trace [`TRACE_ID`].
pub(crate) fn span(id: u8, parent: u8, name: &str, kind: SpanKind) -> Span {
    let id_bytes = |id: u8| vec![0, 0, 0, 0, 0, 0, 0xf0, id];
    Span {
        trace_id: (0..16)
            .map(|at| u8::from_str_radix(&TRACE_ID[2 * at..2 * at + 2], 16).expect("hex"))
            .collect(),
        span_id: id_bytes(id),
        parent_span_id: if parent == 0 {
            Vec::new()
        } else {
            id_bytes(parent)
        },
        name: name.to_owned(),
        kind: kind as i32,
        start_time_unix_nano: START_NS + u64::from(id) * 1_000_000,
        end_time_unix_nano: START_NS + 100_000_000 - u64::from(id) * 1_000_000,
        ..Span::default()
    }
}

pub(crate) fn resource_spans(service: &str, spans: Vec<Span>) -> ResourceSpans {
    let resource = Resource {
        attributes: vec![
            attribute("service.name", text(service)),
            attribute("host.name", text("node-1")),
        ],
        ..Resource::default()
    };
    let scope = InstrumentationScope {
        name: "lantern-test".to_owned(),
        version: "1.2.3".to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_spans = ScopeSpans {
        scope: Some(scope),
        spans,
        schema_url: "https://example.com/1".to_owned(),
    };
    ResourceSpans {
        resource: Some(resource),
        scope_spans: vec![scope_spans],
        schema_url: String::new(),
    }
}

pub(crate) fn encode(resource_spans: Vec<ResourceSpans>) -> Bytes {
    ExportTraceServiceRequest { resource_spans }
        .encode_to_vec()
        .into()
}

/// A request of `count` spans, told from others by `mark`.
pub(crate) fn request(mark: &str, count: usize) -> Bytes {
    let spans = (0..count)
        .map(|at| span((at + 1) as u8, 0, mark, SpanKind::Internal))
        .collect();
    encode(vec![resource_spans("marked", spans)])
}

/// How many spans a request of ours holds.
pub(crate) fn count(request: &[u8]) -> u64 {
    let request = ExportTraceServiceRequest::decode(request).expect("a request");
    let scopes = request
        .resource_spans
        .iter()
        .flat_map(|resource| &resource.scope_spans);
    scopes.map(|scope| scope.spans.len() as u64).sum()
}

/// The marks of a request's spans.
pub(crate) fn marks(request: &[u8]) -> Vec<String> {
    let request = ExportTraceServiceRequest::decode(request).expect("a request");
    let scopes = request
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans);
    scopes
        .flat_map(|scope| scope.spans)
        .map(|span| span.name)
        .collect()
}

/// A trace over two services with everything that a span can hold.
pub(crate) fn full_trace() -> Bytes {
    let mut client = span(1, 0, "client-span", SpanKind::Client);
    client.attributes = vec![
        attribute("text", text("<b>caf\u{e9}</b>")),
        attribute("flag", Value::BoolValue(true)),
        attribute("count", Value::IntValue(42)),
        attribute("huge", Value::IntValue(i64::MAX)),
        attribute("ratio", Value::DoubleValue(0.5)),
        attribute("not_a_number", Value::DoubleValue(f64::NAN)),
        attribute("bytes", Value::BytesValue(vec![0, 1, 254, 255])),
        attribute(
            "list",
            Value::ArrayValue(ArrayValue {
                values: ["a", "b"]
                    .map(|item| AnyValue {
                        value: Some(text(item)),
                    })
                    .to_vec(),
            }),
        ),
        attribute(
            "map",
            Value::KvlistValue(KeyValueList {
                values: vec![attribute("inner", Value::IntValue(1))],
            }),
        ),
    ];
    client.trace_state = "vendor=1".to_owned();
    let mut server = span(2, 1, "POST /v1/completions", SpanKind::Server);
    server.status = Some(Status {
        code: StatusCode::Error as i32,
        message: "upstream went away".to_owned(),
    });
    server.events = vec![Event {
        name: "exception".to_owned(),
        time_unix_nano: server.start_time_unix_nano + 5_000_000,
        attributes: vec![attribute("exception.type", text("BrokenPipe"))],
        ..Event::default()
    }];
    let mut request = span(3, 2, "llm_request", SpanKind::Internal);
    request.status = Some(Status {
        code: StatusCode::Ok as i32,
        message: String::new(),
    });
    request.links = vec![Link {
        trace_id: [vec![0; 8], vec![7; 8]].concat(),
        span_id: vec![9; 8],
        ..Link::default()
    }];
    encode(vec![
        resource_spans("client-service", vec![client]),
        resource_spans("lantern-proxy", vec![server, request]),
    ])
}
