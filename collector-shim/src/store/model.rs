//! A trace as the embedded store keeps it and hands it out.

use std::mem::size_of;
use std::sync::Arc;

use super::json::{base64_text, to_json};

/// The spans of one trace id, in the order in which they came.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// 32 lower-case hex digits.
    pub trace_id: String,
    /// Whatever has arrived so far.
    pub spans: Vec<Span>,
}

/// One finished operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Span {
    /// `service.name` of the resource, or Jaeger's name for a resource without one.
    pub service_name: Arc<str>,
    /// The operation.
    pub name: String,
    /// Which side of a call it is.
    pub kind: SpanKind,
    /// 16 lower-case hex digits.
    pub span_id: String,
    /// The span that caused it; none for a root.
    pub parent_span_id: Option<String>,
    /// The W3C `tracestate`, mostly empty.
    pub trace_state: String,
    /// Nanoseconds since the Unix epoch.
    pub start_unix_ns: u64,
    /// Nanoseconds since the Unix epoch.
    pub end_unix_ns: u64,
    /// In the order sent.
    pub attributes: Vec<Attribute>,
    /// In the order sent.
    pub events: Vec<Event>,
    /// In the order sent.
    pub links: Vec<Link>,
    /// How it ended.
    pub status: Status,
    /// Who ran it; shared by all spans of one batch.
    pub resource: Arc<Resource>,
    /// Which library made it; shared likewise.
    pub scope: Arc<Scope>,
}

impl Span {
    /// The value of attribute `key`.
    pub fn attribute(&self, key: &str) -> Option<&Value> {
        self.attributes
            .iter()
            .find(|attribute| attribute.key == key)
            .map(|found| &found.value)
    }

    /// From start to end; 0 where the clock ran backwards.
    pub fn duration_ns(&self) -> u64 {
        self.end_unix_ns.saturating_sub(self.start_unix_ns)
    }

    /// What it costs to keep behind an `Arc`, the shared parts left out.
    pub(crate) fn approx_bytes(&self) -> usize {
        let events: usize = self.events.iter().map(Event::approx_bytes).sum();
        let links: usize = self.links.iter().map(Link::approx_bytes).sum();
        shared_bytes(size_of::<Span>())
            + text_bytes(&self.name)
            + text_bytes(&self.span_id)
            + self.parent_span_id.as_ref().map_or(0, text_bytes)
            + text_bytes(&self.trace_state)
            + text_bytes(&self.status.message)
            + attributes_bytes(&self.attributes)
            + list_bytes(&self.events)
            + events
            + list_bytes(&self.links)
            + links
    }

    /// What the parts cost that it shares with the spans beside it.
    pub(crate) fn shared_bytes(&self) -> usize {
        shared_bytes(self.service_name.len())
            + shared_bytes(size_of::<Resource>())
            + attributes_bytes(&self.resource.attributes)
            + shared_bytes(size_of::<Scope>())
            + text_bytes(&self.scope.name)
            + text_bytes(&self.scope.version)
    }
}

/// The side of a call that a span describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SpanKind {
    /// Not said.
    Unspecified,
    /// Within one service.
    Internal,
    /// Answers a call.
    Server,
    /// Makes a call.
    Client,
    /// Puts a message into a queue.
    Producer,
    /// Takes a message out of one.
    Consumer,
}

impl SpanKind {
    /// Jaeger's word for it, empty when the kind is not said.
    pub fn as_str(self) -> &'static str {
        match self {
            SpanKind::Unspecified => "",
            SpanKind::Internal => "internal",
            SpanKind::Server => "server",
            SpanKind::Client => "client",
            SpanKind::Producer => "producer",
            SpanKind::Consumer => "consumer",
        }
    }
}

/// How a span ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// What the instrumentation decided.
    pub code: StatusCode,
    /// Why, for an error.
    pub message: String,
}

/// The decision within a [`Status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatusCode {
    /// None was made.
    #[default]
    Unset,
    /// It went well.
    Ok,
    /// It failed.
    Error,
}

/// What happened at one moment of a span.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Nanoseconds since the Unix epoch.
    pub time_unix_ns: u64,
    /// In the order sent.
    pub attributes: Vec<Attribute>,
}

impl Event {
    fn approx_bytes(&self) -> usize {
        text_bytes(&self.name) + attributes_bytes(&self.attributes)
    }
}

/// A span elsewhere that has to do with this one.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// 32 lower-case hex digits.
    pub trace_id: String,
    /// 16 lower-case hex digits.
    pub span_id: String,
    /// In the order sent.
    pub attributes: Vec<Attribute>,
}

impl Link {
    fn approx_bytes(&self) -> usize {
        text_bytes(&self.trace_id) + text_bytes(&self.span_id) + attributes_bytes(&self.attributes)
    }
}

/// The process, container or machine that made spans.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Resource {
    /// In the order sent, `service.name` included.
    pub attributes: Vec<Attribute>,
}

/// The library that made spans.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    /// Its name, empty when not said.
    pub name: String,
    /// Its version, empty when not said.
    pub version: String,
}

/// A key and its value.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// By semantic convention, dotted and in lower case.
    pub key: String,
    /// Typed as it was sent.
    pub value: Value,
}

/// What an attribute can hold.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Set, yet to nothing.
    Empty,
    /// Text, any invalid UTF-8 in it replaced.
    String(String),
    /// True or false.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number.
    Double(f64),
    /// Raw bytes.
    Bytes(Vec<u8>),
    /// A list.
    Array(Vec<Value>),
    /// Keys and values, in the order sent.
    Map(Vec<Attribute>),
}

impl Value {
    /// What it costs beside the place that it lies in.
    fn approx_bytes(&self) -> usize {
        match self {
            Value::Empty | Value::Bool(_) | Value::Int(_) | Value::Double(_) => 0,
            Value::String(text) => text_bytes(text),
            Value::Bytes(bytes) => list_bytes(bytes),
            Value::Array(values) => {
                let inner: usize = values.iter().map(Value::approx_bytes).sum();
                list_bytes(values) + inner
            }
            Value::Map(attributes) => attributes_bytes(attributes),
        }
    }
}

/// As a terminal or a tag would show it: bytes in base64, arrays and maps as JSON.
impl std::fmt::Display for Value {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Empty => Ok(()),
            Value::String(text) => formatter.write_str(text),
            Value::Bool(value) => value.fmt(formatter),
            Value::Int(value) => value.fmt(formatter),
            Value::Double(value) => value.fmt(formatter),
            Value::Bytes(bytes) => formatter.write_str(&base64_text(bytes)),
            Value::Array(_) | Value::Map(_) => to_json(self).fmt(formatter),
        }
    }
}

fn attributes_bytes(attributes: &Vec<Attribute>) -> usize {
    let inner = attributes
        .iter()
        .map(|attribute| text_bytes(&attribute.key) + attribute.value.approx_bytes());
    list_bytes(attributes) + inner.sum::<usize>()
}

/// What an allocation of `bytes` takes: malloc keeps a length with it, rounds it up to 16 bytes and
/// hands out no fewer than 32.
pub(super) fn allocated_bytes(bytes: usize) -> usize {
    match bytes {
        0 => 0,
        _ => (bytes + size_of::<usize>()).next_multiple_of(16).max(32),
    }
}

/// The same behind an `Arc`, which counts its owners beside it.
pub(super) fn shared_bytes(bytes: usize) -> usize {
    allocated_bytes(bytes + 2 * size_of::<usize>())
}

fn text_bytes(text: &String) -> usize {
    allocated_bytes(text.capacity())
}

fn list_bytes<T>(list: &Vec<T>) -> usize {
    allocated_bytes(list.capacity() * size_of::<T>())
}
