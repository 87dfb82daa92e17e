//! OTLP/JSON in: an export request becomes protobuf as it is read, by the tables of
//! [`crate::wire::schema`].
//!
//! Not opentelemetry-proto's own serde, which refuses what senders send: `null` for unset,
//! `"NaN"`, `arrayValue` without values, 32-bit numbers as strings; and which takes ids of any
//! length. <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>: ids are hex of any
//! case, enums are integers, keys are lowerCamelCase, unknown ones are ignored, 64-bit integers
//! are strings or numbers. Enum names, which proto3's own JSON has, are taken too.
//!
//! Nothing is built but the protobuf: a field that is met is written at once, and the length before
//! a message is put in when its end is known.

mod repair;
mod scalar;
#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;
use prost::encoding::encode_varint;
use serde::Deserialize as _;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_json::value::RawValue;

use crate::intake::Refusal;
use crate::signal::Signal;
use crate::wire::schema::{self, Field, Kind, Message};
use scalar::Scalar;

/// Why a body is not OTLP/JSON.
#[derive(Debug, thiserror::Error)]
#[error("not OTLP/JSON: {0}")]
pub(crate) struct JsonError(#[from] serde_json::Error);

impl From<JsonError> for Refusal {
    fn from(error: JsonError) -> Refusal {
        Refusal::Malformed(error.to_string())
    }
}

/// The request for `signal` in `json`, as protobuf.
pub(crate) fn to_protobuf(signal: Signal, json: &[u8]) -> Result<Bytes, JsonError> {
    parse(signal, json).or_else(|error| {
        // Rare, so that text is searched for what is broken only then.
        match repair::repaired(json) {
            Some(repaired) => parse(signal, &repaired),
            None => Err(error),
        }
    })
}

fn parse(signal: Signal, json: &[u8]) -> Result<Bytes, JsonError> {
    let mut out = Vec::with_capacity(json.len() / 2);
    let mut reader = serde_json::Deserializer::from_slice(json);
    let request = Content {
        message: schema::request(signal),
        out: &mut out,
    };
    request.deserialize(&mut reader)?;
    reader.end()?;
    Ok(out.into())
}

/// Reads an object as the content of `message`.
struct Content<'a> {
    message: &'static Message,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Content<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Content<'_> {
    type Value = ();

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(text, "an object, the {}", self.message.name)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(field) = fields.next_key_seed(Key(self.message))? {
            let out = &mut *self.out;
            match field {
                Some(field) if field.is_repeated() => {
                    fields.next_value_seed(List { field, out })?;
                }
                Some(field) => fields.next_value_seed(Value { field, out })?,
                None => fields.next_value::<IgnoredAny>().map(drop)?,
            }
        }
        Ok(())
    }
}

/// Reads a key; none for one that is unknown.
struct Key(&'static Message);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static Field>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static Field>;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.named(key))
    }
}

/// Reads a list, or null.
struct List<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for List<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for List<'_> {
    type Value = ();

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(text, "a list, the {}", self.field.name)
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }

    /// Numbers are written unpacked, which every decoder takes as well.
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let (field, out) = (self.field, self.out);
        loop {
            let out = &mut *out;
            let entry = Entry(Value { field, out });
            if items.next_element_seed(entry)?.is_none() {
                return Ok(());
            }
        }
    }
}

/// Reads a value that is not null.
struct Entry<'a>(Value<'a>);

impl<'de> DeserializeSeed<'de> for Entry<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        self.0.visit_some(json)
    }
}

/// Reads one value of a field, or null, and writes both.
struct Value<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = ();

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(text, "the {}", self.field.name)
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        let Value { field, out } = self;
        encode_varint(
            u64::from(field.number << 3 | u32::from(field.kind.wire_type())),
            out,
        );
        match field.kind {
            Kind::Message(message) | Kind::Item(Some(message)) => {
                let start = out.len();
                let content = Content {
                    message,
                    out: &mut *out,
                };
                content.deserialize(json)?;
                put_length(out, start);
                Ok(())
            }
            // Of what is not known nothing can be converted.
            Kind::Item(None) => {
                let message = format!("{} are taken in protobuf alone", field.name);
                Err(D::Error::custom(message))
            }
            _ => {
                let scalar = match field.kind {
                    Kind::Double => double(json)?,
                    _ => json.deserialize_any(scalar::Read)?,
                };
                scalar.write(field, out).map_err(|expected| {
                    let name = field.name;
                    D::Error::custom(format!("{name}: {scalar} is not {expected}"))
                })
            }
        }
    }
}

/// Reads what is to be a double as it is written. The reader of leaves of any kind rounds a number of
/// seventeen digits to the next but one at times.
fn double<'de, D: Deserializer<'de>>(json: D) -> Result<Scalar<'de>, D::Error> {
    let written = <&RawValue>::deserialize(json)?.get();
    match written.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(Scalar::Float(number)),
        _ => serde_json::Deserializer::from_str(written)
            .deserialize_any(scalar::Read)
            .map_err(D::Error::custom),
    }
}

/// Puts the length of what was written from `start` on before it.
fn put_length(out: &mut Vec<u8>, start: usize) {
    let end = out.len();
    encode_varint((end - start) as u64, out);
    let length_bytes = out.len() - end;
    out[start..].rotate_right(length_bytes);
}
