//! What all signals have (`common.proto` and `resource.proto`).

use super::Kind::{Bool, Bytes, Double, Int32, Int64, Text, Uint32};
use super::{Kind, Message, either, many, one};

pub(super) static RESOURCE: Message = Message::new(
    "Resource",
    &[
        many(1, "attributes", Kind::Message(&KEY_VALUE)),
        one(2, "droppedAttributesCount", Uint32),
        many(3, "entityRefs", Kind::Message(&ENTITY_REF)),
    ],
);

static ENTITY_REF: Message = Message::new(
    "EntityRef",
    &[
        one(1, "schemaUrl", Text),
        one(2, "type", Text),
        many(3, "idKeys", Text),
        many(4, "descriptionKeys", Text),
    ],
);

pub(super) static INSTRUMENTATION_SCOPE: Message = Message::new(
    "InstrumentationScope",
    &[
        one(1, "name", Text),
        one(2, "version", Text),
        many(3, "attributes", Kind::Message(&KEY_VALUE)),
        one(4, "droppedAttributesCount", Uint32),
    ],
);

pub(super) static KEY_VALUE: Message = Message::new(
    "KeyValue",
    &[
        one(1, "key", Text),
        one(2, "value", Kind::Message(&ANY_VALUE)),
        one(3, "keyStrindex", Int32),
    ],
);

pub(super) static ANY_VALUE: Message = Message::new(
    "AnyValue",
    &[
        either(1, "stringValue", Text),
        either(2, "boolValue", Bool),
        either(3, "intValue", Int64),
        either(4, "doubleValue", Double),
        either(5, "arrayValue", Kind::Message(&ARRAY_VALUE)),
        either(6, "kvlistValue", Kind::Message(&KEY_VALUE_LIST)),
        either(7, "bytesValue", Bytes),
        either(8, "stringValueStrindex", Int32),
    ],
);

static ARRAY_VALUE: Message = Message::new(
    "ArrayValue",
    &[many(1, "values", Kind::Message(&ANY_VALUE))],
);

static KEY_VALUE_LIST: Message = Message::new(
    "KeyValueList",
    &[many(1, "values", Kind::Message(&KEY_VALUE))],
);
