//! A stored trace as Jaeger's JSON has it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value as Json;

use crate::store::{
    Attribute, ERROR_TAG, Event, Resource, Scope, Span, StoredTrace, Value, double_to_json,
    made_tags,
};

/// JavaScript's numbers are exact up to here; beyond it an integer is sent as a string.
const MAX_SAFE_INTEGER: i64 = (1 << 53) - 1;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trace {
    #[serde(rename = "traceID")]
    trace_id: String,
    spans: Vec<JaegerSpan>,
    processes: BTreeMap<String, Process>,
    warnings: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JaegerSpan {
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "spanID")]
    span_id: String,
    operation_name: String,
    references: Vec<Reference>,
    /// Microseconds since the Unix epoch.
    start_time: u64,
    /// Microseconds.
    duration: u64,
    tags: Vec<Tag>,
    logs: Vec<Log>,
    #[serde(rename = "processID")]
    process_id: String,
    warnings: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    ref_type: &'static str,
    #[serde(rename = "traceID")]
    trace_id: String,
    #[serde(rename = "spanID")]
    span_id: String,
}

#[derive(Serialize)]
struct Log {
    timestamp: u64,
    fields: Vec<Tag>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    service_name: String,
    tags: Vec<Tag>,
}

#[derive(Serialize)]
struct Tag {
    key: String,
    r#type: &'static str,
    value: Json,
}

/// An id as Jaeger writes it: 16 digits when the upper half is zero, else 32.
pub(in crate::viewer) fn trace_id_text(trace_id: &str) -> String {
    let padded = format!("{:0>32}", trace_id.to_ascii_lowercase());
    match padded.split_at(16) {
        ("0000000000000000", lower) => lower.to_owned(),
        _ => padded,
    }
}

pub(super) fn trace(stored: &StoredTrace) -> Trace {
    let trace_id = trace_id_text(&stored.trace_id);
    let mut owners: Vec<(&Arc<str>, &Arc<Resource>)> = Vec::new();
    let mut spans = Vec::with_capacity(stored.spans.len());
    for stored_span in &stored.spans {
        let owner = (&stored_span.service_name, &stored_span.resource);
        let place = owners
            .iter()
            .position(|known| *known == owner)
            .unwrap_or_else(|| {
                owners.push(owner);
                owners.len() - 1
            });
        spans.push(span(stored_span, &trace_id, process_id(place)));
    }
    let processes = owners
        .into_iter()
        .enumerate()
        .map(|(place, (service_name, resource))| {
            let attributes = resource.attributes.iter();
            let tags = attributes
                .filter(|attribute| attribute.key != "service.name")
                .map(tag);
            let process = Process {
                service_name: service_name.to_string(),
                tags: tags.collect(),
            };
            (process_id(place), process)
        });
    Trace {
        processes: processes.collect(),
        trace_id,
        spans,
        warnings: None,
    }
}

fn process_id(place: usize) -> String {
    format!("p{}", place + 1)
}

fn span(span: &Span, trace_id: &str, process_id: String) -> JaegerSpan {
    JaegerSpan {
        trace_id: trace_id.to_owned(),
        span_id: span.span_id.clone(),
        operation_name: span.name.clone(),
        references: references(span, trace_id),
        start_time: span.start_unix_ns / 1_000,
        duration: span.duration_ns() / 1_000,
        tags: tags(span),
        logs: span.events.iter().map(log).collect(),
        process_id,
        warnings: None,
    }
}

fn references(span: &Span, trace_id: &str) -> Vec<Reference> {
    let parent = span.parent_span_id.iter().map(|parent| Reference {
        ref_type: "CHILD_OF",
        trace_id: trace_id.to_owned(),
        span_id: parent.clone(),
    });
    let links = span.links.iter().map(|link| Reference {
        ref_type: "FOLLOWS_FROM",
        trace_id: trace_id_text(&link.trace_id),
        span_id: link.span_id.clone(),
    });
    parent.chain(links).collect()
}

/// The scope, the span's own attributes, then what Jaeger has no fields for.
fn tags(span: &Span) -> Vec<Tag> {
    let Scope { name, version } = &*span.scope;
    let mut tags = Vec::new();
    let add_text = |tags: &mut Vec<Tag>, key: &str, value: &str| {
        if !value.is_empty() {
            tags.push(Tag {
                key: key.to_owned(),
                r#type: "string",
                value: value.into(),
            });
        }
    };
    add_text(&mut tags, "otel.scope.name", name);
    add_text(&mut tags, "otel.scope.version", version);
    tags.extend(span.attributes.iter().map(tag));
    tags.extend(made_tags(span).into_iter().map(|(key, value)| Tag {
        key: key.to_owned(),
        r#type: if key == ERROR_TAG { "bool" } else { "string" },
        value: if key == ERROR_TAG {
            true.into()
        } else {
            value.into()
        },
    }));
    add_text(&mut tags, "otel.status_description", &span.status.message);
    add_text(&mut tags, "w3c.tracestate", &span.trace_state);
    tags
}

fn log(event: &Event) -> Log {
    let name = (!event.name.is_empty()).then(|| Tag {
        key: "event".to_owned(),
        r#type: "string",
        value: event.name.as_str().into(),
    });
    Log {
        timestamp: event.time_unix_ns / 1_000,
        fields: name
            .into_iter()
            .chain(event.attributes.iter().map(tag))
            .collect(),
    }
}

fn tag(attribute: &Attribute) -> Tag {
    let (r#type, value) = match &attribute.value {
        Value::Bool(value) => ("bool", (*value).into()),
        Value::Int(value) if value.unsigned_abs() > MAX_SAFE_INTEGER as u64 => {
            ("int64", value.to_string().into())
        }
        Value::Int(value) => ("int64", (*value).into()),
        Value::Double(value) => ("float64", double_to_json(*value)),
        // As Jaeger keeps what came by OTLP: bytes in base64, arrays and maps as their JSON.
        Value::Empty | Value::String(_) | Value::Bytes(_) | Value::Array(_) | Value::Map(_) => {
            ("string", attribute.value.to_string().into())
        }
    };
    Tag {
        key: attribute.key.clone(),
        r#type,
        value,
    }
}
