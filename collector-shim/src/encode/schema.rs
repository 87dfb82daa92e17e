//! The shape of OTLP's messages with their JSON names, as tables that [`super`] writes by.
//!
//! Names, numbers and types are those of opentelemetry-proto 1.11 (`trace.proto`, `common.proto`,
//! `resource.proto`). The walk over requests has tables of its own (`crate::wire`): it has no use for
//! names, and every request goes through it.

/// One message type. It has at most [`MAX_FIELDS`] fields.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) fields: &'static [Field],
}

/// The presence of a message's fields is kept in the bits of a `u32`.
pub(super) const MAX_FIELDS: usize = 32;

#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) name: &'static str,
    pub(super) label: Label,
    pub(super) kind: Kind,
}

/// How often a field counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Label {
    /// Once: the last one.
    One,
    /// Each time.
    Many,
    /// Once, and of all such fields of the message only the last.
    Either,
}

/// What a field holds, and with that its form on the wire and in JSON.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Bool,
    /// An enum or an `int32`.
    Int32,
    Uint32,
    Int64,
    Fixed32,
    Fixed64,
    Double,
    Text,
    /// A `bytes` field that holds a trace or span id.
    Id,
    Bytes,
    Message(&'static Message),
}

use Kind::{Bool, Bytes, Double, Fixed32, Fixed64, Id, Int32, Int64, Text, Uint32};
use Label::{Either, Many, One};

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, One, kind)
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, Many, kind)
}

const fn either(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, Either, kind)
}

const fn field(number: u32, name: &'static str, label: Label, kind: Kind) -> Field {
    Field {
        number,
        name,
        label,
        kind,
    }
}

pub(super) static EXPORT_TRACE_SERVICE_REQUEST: Message = Message {
    fields: &[many(1, "resourceSpans", Kind::Message(&RESOURCE_SPANS))],
};

static RESOURCE_SPANS: Message = Message {
    fields: &[
        one(1, "resource", Kind::Message(&RESOURCE)),
        many(2, "scopeSpans", Kind::Message(&SCOPE_SPANS)),
        one(3, "schemaUrl", Text),
    ],
};

static RESOURCE: Message = Message {
    fields: &[
        many(1, "attributes", Kind::Message(&KEY_VALUE)),
        one(2, "droppedAttributesCount", Uint32),
        many(3, "entityRefs", Kind::Message(&ENTITY_REF)),
    ],
};

static ENTITY_REF: Message = Message {
    fields: &[
        one(1, "schemaUrl", Text),
        one(2, "type", Text),
        many(3, "idKeys", Text),
        many(4, "descriptionKeys", Text),
    ],
};

static SCOPE_SPANS: Message = Message {
    fields: &[
        one(1, "scope", Kind::Message(&SCOPE)),
        many(2, "spans", Kind::Message(&SPAN)),
        one(3, "schemaUrl", Text),
    ],
};

static SCOPE: Message = Message {
    fields: &[
        one(1, "name", Text),
        one(2, "version", Text),
        many(3, "attributes", Kind::Message(&KEY_VALUE)),
        one(4, "droppedAttributesCount", Uint32),
    ],
};

static SPAN: Message = Message {
    fields: &[
        one(1, "traceId", Id),
        one(2, "spanId", Id),
        one(3, "traceState", Text),
        one(4, "parentSpanId", Id),
        one(16, "flags", Fixed32),
        one(5, "name", Text),
        one(6, "kind", Int32),
        one(7, "startTimeUnixNano", Fixed64),
        one(8, "endTimeUnixNano", Fixed64),
        many(9, "attributes", Kind::Message(&KEY_VALUE)),
        one(10, "droppedAttributesCount", Uint32),
        many(11, "events", Kind::Message(&EVENT)),
        one(12, "droppedEventsCount", Uint32),
        many(13, "links", Kind::Message(&LINK)),
        one(14, "droppedLinksCount", Uint32),
        one(15, "status", Kind::Message(&STATUS)),
    ],
};

static EVENT: Message = Message {
    fields: &[
        one(1, "timeUnixNano", Fixed64),
        one(2, "name", Text),
        many(3, "attributes", Kind::Message(&KEY_VALUE)),
        one(4, "droppedAttributesCount", Uint32),
    ],
};

static LINK: Message = Message {
    fields: &[
        one(1, "traceId", Id),
        one(2, "spanId", Id),
        one(3, "traceState", Text),
        many(4, "attributes", Kind::Message(&KEY_VALUE)),
        one(5, "droppedAttributesCount", Uint32),
        one(6, "flags", Fixed32),
    ],
};

static STATUS: Message = Message {
    fields: &[one(2, "message", Text), one(3, "code", Int32)],
};

static KEY_VALUE: Message = Message {
    fields: &[
        one(1, "key", Text),
        one(2, "value", Kind::Message(&ANY_VALUE)),
        one(3, "keyStrindex", Int32),
    ],
};

static ANY_VALUE: Message = Message {
    fields: &[
        either(1, "stringValue", Text),
        either(2, "boolValue", Bool),
        either(3, "intValue", Int64),
        either(4, "doubleValue", Double),
        either(5, "arrayValue", Kind::Message(&ARRAY_VALUE)),
        either(6, "kvlistValue", Kind::Message(&KEY_VALUE_LIST)),
        either(7, "bytesValue", Bytes),
        either(8, "stringValueStrindex", Int32),
    ],
};

static ARRAY_VALUE: Message = Message {
    fields: &[many(1, "values", Kind::Message(&ANY_VALUE))],
};

static KEY_VALUE_LIST: Message = Message {
    fields: &[many(1, "values", Kind::Message(&KEY_VALUE))],
};
