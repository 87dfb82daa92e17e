//! Traces (`trace.proto`).

use super::Kind::{Enum, Fixed32, Fixed64, Item, Text, Uint32};
use super::common::{INSTRUMENTATION_SCOPE, KEY_VALUE, RESOURCE};
use super::{Kind, Message, SPAN_ID, SPAN_SPAN_ID, SPAN_TRACE_ID, TRACE_ID, many, one};

pub(super) static EXPORT_TRACE_SERVICE_REQUEST: Message = Message::new(
    "ExportTraceServiceRequest",
    &[many(1, "resourceSpans", Kind::Message(&RESOURCE_SPANS))],
);

static RESOURCE_SPANS: Message = Message::new(
    "ResourceSpans",
    &[
        one(1, "resource", Kind::Message(&RESOURCE)),
        many(2, "scopeSpans", Kind::Message(&SCOPE_SPANS)),
        one(3, "schemaUrl", Text),
    ],
);

static SCOPE_SPANS: Message = Message::new(
    "ScopeSpans",
    &[
        one(1, "scope", Kind::Message(&INSTRUMENTATION_SCOPE)),
        many(2, "spans", Item(Some(&SPAN))),
        one(3, "schemaUrl", Text),
    ],
);

pub(super) static SPAN: Message = Message::new(
    "Span",
    &[
        one(SPAN_TRACE_ID, "traceId", TRACE_ID),
        one(SPAN_SPAN_ID, "spanId", SPAN_ID),
        one(3, "traceState", Text),
        one(4, "parentSpanId", SPAN_ID),
        one(5, "name", Text),
        one(6, "kind", Enum(SPAN_KINDS)),
        one(7, "startTimeUnixNano", Fixed64),
        one(8, "endTimeUnixNano", Fixed64),
        many(9, "attributes", Kind::Message(&KEY_VALUE)),
        one(10, "droppedAttributesCount", Uint32),
        many(11, "events", Kind::Message(&EVENT)),
        one(12, "droppedEventsCount", Uint32),
        many(13, "links", Kind::Message(&LINK)),
        one(14, "droppedLinksCount", Uint32),
        one(15, "status", Kind::Message(&STATUS)),
        one(16, "flags", Fixed32),
    ],
);

static EVENT: Message = Message::new(
    "Event",
    &[
        one(1, "timeUnixNano", Fixed64),
        one(2, "name", Text),
        many(3, "attributes", Kind::Message(&KEY_VALUE)),
        one(4, "droppedAttributesCount", Uint32),
    ],
);

static LINK: Message = Message::new(
    "Link",
    &[
        one(1, "traceId", TRACE_ID),
        one(2, "spanId", SPAN_ID),
        one(3, "traceState", Text),
        many(4, "attributes", Kind::Message(&KEY_VALUE)),
        one(5, "droppedAttributesCount", Uint32),
        one(6, "flags", Fixed32),
    ],
);

static STATUS: Message = Message::new(
    "Status",
    &[one(2, "message", Text), one(3, "code", Enum(STATUS_CODES))],
);

static SPAN_KINDS: &[(&str, i32)] = &[
    ("SPAN_KIND_UNSPECIFIED", 0),
    ("SPAN_KIND_INTERNAL", 1),
    ("SPAN_KIND_SERVER", 2),
    ("SPAN_KIND_CLIENT", 3),
    ("SPAN_KIND_PRODUCER", 4),
    ("SPAN_KIND_CONSUMER", 5),
];

static STATUS_CODES: &[(&str, i32)] = &[
    ("STATUS_CODE_UNSET", 0),
    ("STATUS_CODE_OK", 1),
    ("STATUS_CODE_ERROR", 2),
];
