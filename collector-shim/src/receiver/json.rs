//! OTLP/JSON in: a trace export request becomes protobuf.
//!
//! Not opentelemetry-proto's own serde, which refuses what senders send: `null` for unset,
//! `"NaN"`, `arrayValue` without values, 32-bit numbers as strings; and which takes ids of any
//! length. <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>: ids are hex of any
//! case, enums are integers, keys are lowerCamelCase, unknown ones are ignored, 64-bit integers
//! are strings or numbers. Enum names, which proto3's own JSON has, are taken too.

mod repair;
mod scalar;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1 as common;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1 as resource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use prost::Message as _;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use scalar::{
    SPAN_ID_BYTES, Scalar, TRACE_ID_BYTES, base64_bytes, double, enumeration, id, integer,
};

use crate::intake::Refusal;
use crate::wire::{Tally, TooMany};

/// Why a body is not OTLP/JSON.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JsonError {
    #[error("not OTLP/JSON: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("{field}: {value} is not {expected}")]
    Value {
        field: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error(transparent)]
    TooMany(#[from] TooMany),
}

impl From<JsonError> for Refusal {
    fn from(error: JsonError) -> Refusal {
        match error {
            JsonError::TooMany(bound) => Refusal::TooMuch(bound.to_string()),
            other => Refusal::Malformed(other.to_string()),
        }
    }
}

type Result<T> = std::result::Result<T, JsonError>;

/// The request in `json`, as protobuf.
pub(crate) fn to_protobuf(json: &[u8]) -> Result<Bytes> {
    let request = match parse(json) {
        // Rare, so that text is searched for what is broken only then.
        Err(JsonError::Shape(error)) => match repair::repaired(json) {
            Some(repaired) => parse(&repaired)?,
            None => return Err(error.into()),
        },
        parsed => parsed?,
    };
    let resource_spans = convert_all(request.resource_spans, ResourceSpans::convert)?;
    Ok(ExportTraceServiceRequest { resource_spans }
        .encode_to_vec()
        .into())
}

/// What the parse at hand has met, and the bound that it broke off at.
#[derive(Clone, Copy, Default)]
struct Met {
    tally: Tally,
    over: Option<TooMany>,
}

thread_local! {
    /// serde hands nothing of ours to the types that it reads, and a parse stays on its thread.
    static MET: Cell<Met> = const { Cell::new(Met { tally: Tally::NONE, over: None }) };
}

fn parse(json: &[u8]) -> Result<Request> {
    MET.set(Met::default());
    let parsed = serde_json::from_slice(json);
    match MET.get().over {
        Some(bound) => Err(bound.into()),
        None => Ok(parsed?),
    }
}

/// Counts an object before it is made: three bytes of JSON may be two hundred in memory.
fn count<E: serde::de::Error>(
    count: impl Fn(&mut Tally) -> std::result::Result<(), TooMany>,
) -> std::result::Result<(), E> {
    let mut met = MET.get();
    let counted = count(&mut met.tally);
    met.over = counted.err();
    MET.set(met);
    counted.map_err(E::custom)
}

/// One of a list of strings.
struct Item(String);

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        count(Tally::element)?;
        String::deserialize(json).map(Item)
    }
}

type List<T> = Option<Vec<T>>;

/// Declares a JSON object, each field of which may be absent or null.
///
/// Left to itself serde would also read a list as an object's fields in a row.
macro_rules! object {
    ($name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default, remote = "Self")]
        struct $name { $($field: Option<$type>),* }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
                struct Fields;
                impl<'de> Visitor<'de> for Fields {
                    type Value = $name;

                    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
                        text.write_str(concat!("an object, the ", stringify!($name)))
                    }

                    fn visit_map<A: MapAccess<'de>>(
                        self,
                        fields: A,
                    ) -> std::result::Result<$name, A::Error> {
                        match stringify!($name) {
                            "Span" => count(Tally::span)?,
                            _ => count(Tally::element)?,
                        }
                        $name::deserialize(MapAccessDeserializer::new(fields))
                    }
                }
                json.deserialize_map(Fields)
            }
        }
    };
}

object!(Request { resource_spans: Vec<ResourceSpans> });
object!(ResourceSpans { resource: Resource, scope_spans: Vec<ScopeSpans>, schema_url: String });
object!(Resource {
    attributes: Vec<KeyValue>,
    dropped_attributes_count: Scalar,
    entity_refs: Vec<EntityRef>,
});
object!(EntityRef {
    schema_url: String,
    r#type: String,
    id_keys: Vec<Item>,
    description_keys: Vec<Item>,
});
object!(ScopeSpans { scope: Scope, spans: Vec<Span>, schema_url: String });
object!(Scope {
    name: String,
    version: String,
    attributes: Vec<KeyValue>,
    dropped_attributes_count: Scalar,
});
object!(Span {
    trace_id: String,
    span_id: String,
    trace_state: String,
    parent_span_id: String,
    flags: Scalar,
    name: String,
    kind: Scalar,
    start_time_unix_nano: Scalar,
    end_time_unix_nano: Scalar,
    attributes: Vec<KeyValue>,
    dropped_attributes_count: Scalar,
    events: Vec<Event>,
    dropped_events_count: Scalar,
    links: Vec<Link>,
    dropped_links_count: Scalar,
    status: Status,
});
object!(Event {
    time_unix_nano: Scalar,
    name: String,
    attributes: Vec<KeyValue>,
    dropped_attributes_count: Scalar,
});
object!(Link {
    trace_id: String,
    span_id: String,
    trace_state: String,
    attributes: Vec<KeyValue>,
    dropped_attributes_count: Scalar,
    flags: Scalar,
});
object!(Status {
    message: String,
    code: Scalar
});
object!(KeyValue {
    key: String,
    value: AnyValue
});
object!(AnyValue {
    string_value: String,
    bool_value: bool,
    int_value: Scalar,
    double_value: Scalar,
    array_value: ArrayValue,
    kvlist_value: KeyValueList,
    bytes_value: String,
});
object!(ArrayValue { values: Vec<AnyValue> });
object!(KeyValueList { values: Vec<KeyValue> });

fn convert_all<T, U>(list: List<T>, convert: impl Fn(T) -> Result<U>) -> Result<Vec<U>> {
    list.unwrap_or_default().into_iter().map(convert).collect()
}

impl ResourceSpans {
    fn convert(self) -> Result<trace::ResourceSpans> {
        Ok(trace::ResourceSpans {
            resource: self.resource.map(Resource::convert).transpose()?,
            scope_spans: convert_all(self.scope_spans, ScopeSpans::convert)?,
            schema_url: self.schema_url.unwrap_or_default(),
        })
    }
}

impl Resource {
    fn convert(self) -> Result<resource::Resource> {
        Ok(resource::Resource {
            attributes: convert_all(self.attributes, KeyValue::convert)?,
            dropped_attributes_count: dropped(self.dropped_attributes_count)?,
            entity_refs: convert_all(self.entity_refs, |entity| Ok(entity.convert()))?,
        })
    }
}

impl EntityRef {
    fn convert(self) -> common::EntityRef {
        let texts = |items: List<Item>| {
            let items = items.unwrap_or_default().into_iter();
            items.map(|item| item.0).collect()
        };
        common::EntityRef {
            schema_url: self.schema_url.unwrap_or_default(),
            r#type: self.r#type.unwrap_or_default(),
            id_keys: texts(self.id_keys),
            description_keys: texts(self.description_keys),
        }
    }
}

impl ScopeSpans {
    fn convert(self) -> Result<trace::ScopeSpans> {
        Ok(trace::ScopeSpans {
            scope: self.scope.map(Scope::convert).transpose()?,
            spans: convert_all(self.spans, Span::convert)?,
            schema_url: self.schema_url.unwrap_or_default(),
        })
    }
}

impl Scope {
    fn convert(self) -> Result<common::InstrumentationScope> {
        Ok(common::InstrumentationScope {
            name: self.name.unwrap_or_default(),
            version: self.version.unwrap_or_default(),
            attributes: convert_all(self.attributes, KeyValue::convert)?,
            dropped_attributes_count: dropped(self.dropped_attributes_count)?,
        })
    }
}

impl Span {
    fn convert(self) -> Result<trace::Span> {
        let kind_number =
            |name: &str| trace::span::SpanKind::from_str_name(name).map(|kind| kind as i32);
        Ok(trace::Span {
            trace_id: id("traceId", self.trace_id, TRACE_ID_BYTES)?,
            span_id: id("spanId", self.span_id, SPAN_ID_BYTES)?,
            trace_state: self.trace_state.unwrap_or_default(),
            parent_span_id: id("parentSpanId", self.parent_span_id, SPAN_ID_BYTES)?,
            flags: integer("flags", self.flags)?,
            name: self.name.unwrap_or_default(),
            kind: enumeration("kind", self.kind, kind_number)?,
            start_time_unix_nano: integer("startTimeUnixNano", self.start_time_unix_nano)?,
            end_time_unix_nano: integer("endTimeUnixNano", self.end_time_unix_nano)?,
            attributes: convert_all(self.attributes, KeyValue::convert)?,
            dropped_attributes_count: dropped(self.dropped_attributes_count)?,
            events: convert_all(self.events, Event::convert)?,
            dropped_events_count: integer("droppedEventsCount", self.dropped_events_count)?,
            links: convert_all(self.links, Link::convert)?,
            dropped_links_count: integer("droppedLinksCount", self.dropped_links_count)?,
            status: self.status.map(Status::convert).transpose()?,
        })
    }
}

impl Event {
    fn convert(self) -> Result<trace::span::Event> {
        Ok(trace::span::Event {
            time_unix_nano: integer("timeUnixNano", self.time_unix_nano)?,
            name: self.name.unwrap_or_default(),
            attributes: convert_all(self.attributes, KeyValue::convert)?,
            dropped_attributes_count: dropped(self.dropped_attributes_count)?,
        })
    }
}

impl Link {
    fn convert(self) -> Result<trace::span::Link> {
        Ok(trace::span::Link {
            trace_id: id("traceId", self.trace_id, TRACE_ID_BYTES)?,
            span_id: id("spanId", self.span_id, SPAN_ID_BYTES)?,
            trace_state: self.trace_state.unwrap_or_default(),
            attributes: convert_all(self.attributes, KeyValue::convert)?,
            dropped_attributes_count: dropped(self.dropped_attributes_count)?,
            flags: integer("flags", self.flags)?,
        })
    }
}

impl Status {
    fn convert(self) -> Result<trace::Status> {
        let code_number =
            |name: &str| trace::status::StatusCode::from_str_name(name).map(|code| code as i32);
        Ok(trace::Status {
            message: self.message.unwrap_or_default(),
            code: enumeration("code", self.code, code_number)?,
        })
    }
}

impl KeyValue {
    fn convert(self) -> Result<common::KeyValue> {
        Ok(common::KeyValue {
            key: self.key.unwrap_or_default(),
            value: self.value.map(AnyValue::convert).transpose()?,
            ..common::KeyValue::default()
        })
    }
}

impl AnyValue {
    /// The first that is set; a well-formed one has no second.
    fn convert(self) -> Result<common::AnyValue> {
        let value = if let Some(text) = self.string_value {
            Some(Value::StringValue(text))
        } else if let Some(value) = self.bool_value {
            Some(Value::BoolValue(value))
        } else if self.int_value.is_some() {
            Some(Value::IntValue(integer("intValue", self.int_value)?))
        } else if let Some(value) = self.double_value {
            Some(Value::DoubleValue(double(&value)?))
        } else if let Some(array) = self.array_value {
            let values = convert_all(array.values, AnyValue::convert)?;
            Some(Value::ArrayValue(common::ArrayValue { values }))
        } else if let Some(list) = self.kvlist_value {
            let values = convert_all(list.values, KeyValue::convert)?;
            Some(Value::KvlistValue(common::KeyValueList { values }))
        } else if let Some(text) = self.bytes_value {
            Some(Value::BytesValue(base64_bytes(&text)?))
        } else {
            None
        };
        Ok(common::AnyValue { value })
    }
}

fn dropped(count: Option<Scalar>) -> Result<u32> {
    integer("droppedAttributesCount", count)
}
