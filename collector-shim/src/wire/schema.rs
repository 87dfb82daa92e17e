//! The shape of an `ExportTraceServiceRequest`, as tables that [`super`] walks by.
//!
//! Field numbers are those of opentelemetry-proto 1.11 (`trace.proto`, `common.proto`,
//! `resource.proto`). A field that is not in a table is unknown: it is skipped by its wire type
//! and kept.

/// One message type.
#[derive(Debug)]
pub(super) struct Message {
    /// Its protobuf name, for error messages.
    pub(super) name: &'static str,
    /// Field number and what it holds.
    pub(super) fields: &'static [(u32, Kind)],
}

/// What a known field holds.
#[derive(Debug)]
pub(super) enum Kind {
    Varint,
    Fixed32,
    Fixed64,
    /// A `string`: UTF-8 by the protobuf rules, yet not always by the sender.
    Text,
    /// A `repeated string`.
    Texts,
    Bytes,
    /// A trace or span id of exactly this many bytes, or none.
    Id(usize),
    Message(&'static Message),
    /// A span: a message that is counted.
    Span(&'static Message),
}

use Kind::{Bytes, Fixed32, Fixed64, Id, Span, Text, Texts, Varint};

const TRACE_ID: Kind = Id(16);
const SPAN_ID: Kind = Id(8);

/// `Span.trace_id`.
pub(super) const SPAN_TRACE_ID: u32 = 1;
/// `Span.span_id`.
pub(super) const SPAN_SPAN_ID: u32 = 2;

pub(super) static EXPORT_TRACE_SERVICE_REQUEST: Message = Message {
    name: "ExportTraceServiceRequest",
    fields: &[(1, Kind::Message(&RESOURCE_SPANS))],
};

static RESOURCE_SPANS: Message = Message {
    name: "ResourceSpans",
    fields: &[
        (1, Kind::Message(&RESOURCE)),
        (2, Kind::Message(&SCOPE_SPANS)),
        (3, Text),
    ],
};

static RESOURCE: Message = Message {
    name: "Resource",
    fields: &[
        (1, Kind::Message(&KEY_VALUE)),
        (2, Varint),
        (3, Kind::Message(&ENTITY_REF)),
    ],
};

static ENTITY_REF: Message = Message {
    name: "EntityRef",
    fields: &[(1, Text), (2, Text), (3, Texts), (4, Texts)],
};

static SCOPE_SPANS: Message = Message {
    name: "ScopeSpans",
    fields: &[(1, Kind::Message(&SCOPE)), (2, Span(&SPAN)), (3, Text)],
};

static SCOPE: Message = Message {
    name: "InstrumentationScope",
    fields: &[
        (1, Text),
        (2, Text),
        (3, Kind::Message(&KEY_VALUE)),
        (4, Varint),
    ],
};

static SPAN: Message = Message {
    name: "Span",
    fields: &[
        (SPAN_TRACE_ID, TRACE_ID),
        (SPAN_SPAN_ID, SPAN_ID),
        (3, Text),
        (4, SPAN_ID),
        (5, Text),
        (6, Varint),
        (7, Fixed64),
        (8, Fixed64),
        (9, Kind::Message(&KEY_VALUE)),
        (10, Varint),
        (11, Kind::Message(&EVENT)),
        (12, Varint),
        (13, Kind::Message(&LINK)),
        (14, Varint),
        (15, Kind::Message(&STATUS)),
        (16, Fixed32),
    ],
};

static EVENT: Message = Message {
    name: "Event",
    fields: &[
        (1, Fixed64),
        (2, Text),
        (3, Kind::Message(&KEY_VALUE)),
        (4, Varint),
    ],
};

static LINK: Message = Message {
    name: "Link",
    fields: &[
        (1, TRACE_ID),
        (2, SPAN_ID),
        (3, Text),
        (4, Kind::Message(&KEY_VALUE)),
        (5, Varint),
        (6, Fixed32),
    ],
};

static STATUS: Message = Message {
    name: "Status",
    fields: &[(2, Text), (3, Varint)],
};

static KEY_VALUE: Message = Message {
    name: "KeyValue",
    fields: &[(1, Text), (2, Kind::Message(&ANY_VALUE)), (3, Varint)],
};

static ANY_VALUE: Message = Message {
    name: "AnyValue",
    fields: &[
        (1, Text),
        (2, Varint),
        (3, Varint),
        (4, Fixed64),
        (5, Kind::Message(&ARRAY_VALUE)),
        (6, Kind::Message(&KEY_VALUE_LIST)),
        (7, Bytes),
        (8, Varint),
    ],
};

static ARRAY_VALUE: Message = Message {
    name: "ArrayValue",
    fields: &[(1, Kind::Message(&ANY_VALUE))],
};

static KEY_VALUE_LIST: Message = Message {
    name: "KeyValueList",
    fields: &[(1, Kind::Message(&KEY_VALUE))],
};
