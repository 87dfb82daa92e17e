//! From the bytes of an export request to the store's model. Only the embedded store decodes.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{self as common, any_value};
use opentelemetry_proto::tonic::trace::v1 as proto;
use prost::Message as _;

use super::model::{
    Attribute, Event, Link, Resource, Scope, Span, SpanKind, Status, StatusCode, Trace, Value,
};
use crate::wire::{WireError, replace_invalid_text};

/// Jaeger's name for the service of a resource that names none.
const NO_SERVICE_NAME: &str = "OTLPResourceNoServiceName";

/// Why a request cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Prost(#[from] prost::DecodeError),
}

/// The spans of `request` by trace id, in the order in which their traces first appear.
pub(crate) fn decode(request: &[u8]) -> Result<Vec<Trace>, DecodeError> {
    // Decoding fails on invalid UTF-8; rare, so it is cleaned only then.
    let request = match ExportTraceServiceRequest::decode(request) {
        Ok(request) => request,
        Err(_) => ExportTraceServiceRequest::decode(&replace_invalid_text(request)?[..])?,
    };
    let mut traces = Vec::<Trace>::new();
    let mut places = HashMap::new();
    for resource_spans in request.resource_spans {
        let resource = Arc::new(resource(resource_spans.resource.unwrap_or_default()));
        let service_name = service_name(&resource);
        for scope_spans in resource_spans.scope_spans {
            let scope = scope_spans.scope.unwrap_or_default();
            let scope = Arc::new(Scope {
                name: scope.name,
                version: scope.version,
            });
            for span in scope_spans.spans {
                let trace_id = padded_hex(&span.trace_id, TRACE_ID_DIGITS);
                let place = *places.entry(trace_id.clone()).or_insert_with(|| {
                    traces.push(Trace {
                        trace_id,
                        spans: Vec::new(),
                    });
                    traces.len() - 1
                });
                let owner = (&service_name, &resource, &scope);
                traces[place].spans.push(convert_span(span, owner));
            }
        }
    }
    Ok(traces)
}

const TRACE_ID_DIGITS: usize = 32;
const SPAN_ID_DIGITS: usize = 16;

fn resource(resource: opentelemetry_proto::tonic::resource::v1::Resource) -> Resource {
    Resource {
        attributes: convert_attributes(resource.attributes),
    }
}

fn service_name(resource: &Resource) -> Arc<str> {
    let named = resource
        .attributes
        .iter()
        .find(|attribute| attribute.key == "service.name");
    match named.map(|attribute| attribute.value.to_string()) {
        Some(name) if !name.is_empty() => name.into(),
        _ => NO_SERVICE_NAME.into(),
    }
}

fn convert_span(span: proto::Span, owner: (&Arc<str>, &Arc<Resource>, &Arc<Scope>)) -> Span {
    let (service_name, resource, scope) = owner;
    let parent_is_set = span.parent_span_id.iter().any(|byte| *byte != 0);
    Span {
        service_name: Arc::clone(service_name),
        kind: kind(span.kind),
        span_id: padded_hex(&span.span_id, SPAN_ID_DIGITS),
        parent_span_id: parent_is_set.then(|| padded_hex(&span.parent_span_id, SPAN_ID_DIGITS)),
        trace_state: span.trace_state,
        start_unix_ns: span.start_time_unix_nano,
        end_unix_ns: span.end_time_unix_nano,
        attributes: convert_attributes(span.attributes),
        events: span.events.into_iter().map(convert_event).collect(),
        links: span.links.into_iter().map(convert_link).collect(),
        status: span.status.map(convert_status).unwrap_or_default(),
        resource: Arc::clone(resource),
        scope: Arc::clone(scope),
        name: span.name,
    }
}

fn kind(number: i32) -> SpanKind {
    use proto::span::SpanKind as Proto;
    match Proto::try_from(number) {
        Ok(Proto::Internal) => SpanKind::Internal,
        Ok(Proto::Server) => SpanKind::Server,
        Ok(Proto::Client) => SpanKind::Client,
        Ok(Proto::Producer) => SpanKind::Producer,
        Ok(Proto::Consumer) => SpanKind::Consumer,
        Ok(Proto::Unspecified) | Err(_) => SpanKind::Unspecified,
    }
}

fn convert_status(status: proto::Status) -> Status {
    use proto::status::StatusCode as Proto;
    let code = match status.code() {
        Proto::Unset => StatusCode::Unset,
        Proto::Ok => StatusCode::Ok,
        Proto::Error => StatusCode::Error,
    };
    Status {
        code,
        message: status.message,
    }
}

fn convert_event(event: proto::span::Event) -> Event {
    Event {
        name: event.name,
        time_unix_ns: event.time_unix_nano,
        attributes: convert_attributes(event.attributes),
    }
}

fn convert_link(link: proto::span::Link) -> Link {
    Link {
        trace_id: padded_hex(&link.trace_id, TRACE_ID_DIGITS),
        span_id: padded_hex(&link.span_id, SPAN_ID_DIGITS),
        attributes: convert_attributes(link.attributes),
    }
}

fn convert_attributes(attributes: Vec<common::KeyValue>) -> Vec<Attribute> {
    attributes
        .into_iter()
        .map(|attribute| Attribute {
            key: attribute.key,
            value: convert_value(attribute.value.unwrap_or_default()),
        })
        .collect()
}

fn convert_value(value: common::AnyValue) -> Value {
    use any_value::Value as Proto;
    match value.value {
        // An index into the string table of a profile, which a trace has not.
        None | Some(Proto::StringValueStrindex(_)) => Value::Empty,
        Some(Proto::StringValue(text)) => Value::String(text),
        Some(Proto::BoolValue(value)) => Value::Bool(value),
        Some(Proto::IntValue(value)) => Value::Int(value),
        Some(Proto::DoubleValue(value)) => Value::Double(value),
        Some(Proto::BytesValue(bytes)) => Value::Bytes(bytes),
        Some(Proto::ArrayValue(array)) => {
            Value::Array(array.values.into_iter().map(convert_value).collect())
        }
        Some(Proto::KvlistValue(list)) => Value::Map(convert_attributes(list.values)),
    }
}

/// `bytes` in lower-case hex, zeros before it up to `digits`.
fn padded_hex(bytes: &[u8], digits: usize) -> String {
    let mut hex = "0".repeat(digits.saturating_sub(2 * bytes.len()));
    for byte in bytes {
        write!(hex, "{byte:02x}").expect("a string takes what is written");
    }
    hex
}
