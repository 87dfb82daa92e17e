//! The shapes of OTLP's export requests, as tables: the walk ([`super`]), the JSON of the
//! receiver and that of [`crate::encode`] go by them.
//!
//! Field numbers, types and JSON names are those of opentelemetry-proto 1.11. A field that is
//! not in a table is unknown: it is skipped by its wire type and kept.

mod common;
mod logs;
mod metrics;
mod profiles;
mod traces;

use crate::signal::Signal;

/// One message type.
#[derive(Debug)]
pub(crate) struct Message {
    /// Its protobuf name, for error messages.
    pub(crate) name: &'static str,
    pub(crate) fields: &'static [Field],
    /// For each field number, one more than the field's place in `fields`.
    places: [u8; PLACES],
}

/// No field that is known has a number as high as this.
pub(crate) const PLACES: usize = 17;

/// A field that is known.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) number: u32,
    /// Its key in JSON.
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) label: Label,
}

/// How often a field counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    /// Once: the last one.
    One,
    /// Each time.
    Many,
    /// Once, and of all such fields of the message only the last.
    Either,
}

impl Field {
    pub(crate) fn is_repeated(&self) -> bool {
        self.label == Label::Many
    }
}

/// What a known field holds.
#[derive(Debug)]
pub(crate) enum Kind {
    Bool,
    Int32,
    Int64,
    Uint32,
    Uint64,
    Sint32,
    /// With the names that its numbers have.
    Enum(&'static [(&'static str, i32)]),
    Fixed32,
    Fixed64,
    Sfixed64,
    Double,
    /// A `string`: UTF-8 by the protobuf rules, yet not always by the sender.
    Text,
    Bytes,
    /// A trace or span id of exactly this many bytes, or none.
    Id(usize),
    Message(&'static Message),
    /// What is counted: a message, or nothing known of it.
    Item(Option<&'static Message>),
}

impl Message {
    const fn new(name: &'static str, fields: &'static [Field]) -> Message {
        let mut places = [0; PLACES];
        let mut at = 0;
        while at < fields.len() {
            places[fields[at].number as usize] = at as u8 + 1;
            at += 1;
        }
        Message {
            name,
            fields,
            places,
        }
    }

    /// Whether this is an attribute, of which there are more than of all else.
    pub(super) fn is_attribute(&self) -> bool {
        std::ptr::eq(self, &common::KEY_VALUE)
    }

    pub(super) fn is_span(&self) -> bool {
        std::ptr::eq(self, &traces::SPAN)
    }

    /// The field of that number, if it is known.
    pub(super) fn field(&self, number: u32) -> Option<&'static Field> {
        let place = *self.places.get(number as usize)?;
        self.fields.get(usize::from(place).wrapping_sub(1))
    }

    /// The field of that key in JSON, if it is known.
    pub(crate) fn named(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

const fn one(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, Label::One, kind)
}

const fn many(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, Label::Many, kind)
}

const fn either(number: u32, name: &'static str, kind: Kind) -> Field {
    field(number, name, Label::Either, kind)
}

const fn field(number: u32, name: &'static str, label: Label, kind: Kind) -> Field {
    Field {
        number,
        name,
        kind,
        label,
    }
}

/// The request that carries `signal`.
pub(crate) fn request(signal: Signal) -> &'static Message {
    match signal {
        Signal::Traces => &traces::EXPORT_TRACE_SERVICE_REQUEST,
        Signal::Metrics => &metrics::EXPORT_METRICS_SERVICE_REQUEST,
        Signal::Logs => &logs::EXPORT_LOGS_SERVICE_REQUEST,
        Signal::Profiles => &profiles::EXPORT_PROFILES_SERVICE_REQUEST,
    }
}

const TRACE_ID: Kind = Kind::Id(16);
const SPAN_ID: Kind = Kind::Id(8);

/// `Span.trace_id`.
pub(in crate::wire) const SPAN_TRACE_ID: u32 = 1;
/// `Span.span_id`.
pub(super) const SPAN_SPAN_ID: u32 = 2;

/// A span is known by its ids: one without them belongs to no trace, and backends refuse it or take
/// all such spans for one. `ids_set` has a bit for the number of each id that is set.
pub(super) fn missing_id(item: &'static Message, ids_set: u32) -> Option<&'static str> {
    let is_set = |number: u32| ids_set & (1 << number) != 0;
    if !item.is_span() || (is_set(SPAN_TRACE_ID) && is_set(SPAN_SPAN_ID)) {
        return None;
    }
    Some(if is_set(SPAN_TRACE_ID) {
        "a span id"
    } else {
        "a trace id"
    })
}
