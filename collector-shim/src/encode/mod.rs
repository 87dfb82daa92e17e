//! OTLP/JSON out: a request's protobuf bytes become JSON, without being decoded into objects first.
//!
//! <https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>: ids are lowercase hex, 64-bit
//! integers are strings, enums are integers, keys are lowerCamelCase. The rest is proto3's own JSON:
//! bytes are base64, doubles that JSON has no number for are `"NaN"`, `"Infinity"` and `"-Infinity"`.
//!
//! What JSON cannot say is left out and counted ([`Lossy`]): fields that the tables of
//! [`crate::wire::schema`] do not know, and bytes of text that are no UTF-8. The request's own bytes stay as they are.
//!
//! Memory is that of the nesting: what is written has been read field by field, a message as often as
//! it has kinds of fields, since those of one kind need not stand together on the wire.

mod fields;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::io::{self, Write};
use std::ops::AddAssign;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;

use crate::signal::Signal;
use crate::wire::schema::{self, Field, Kind, Label, Message, PLACES};
use fields::{Fields, Found, Value};

/// Messages within messages. What came in by a receiver has fewer.
const MAX_DEPTH: u32 = 100;

/// Why bytes cannot be written as OTLP/JSON.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error("not protobuf: {0}")]
    Wire(#[from] prost::DecodeError),
    #[error("{field} is not of its type")]
    Type { field: &'static str },
    #[error("nested more than {MAX_DEPTH} deep")]
    Depth,
    #[error(transparent)]
    Io(#[from] io::Error),
}

type Result<T> = std::result::Result<T, EncodeError>;

/// What the protobuf had and its JSON has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Lossy {
    /// Fields that are not known here.
    pub(crate) unknown_fields: u64,
    /// Texts in which what is no UTF-8 became U+FFFD.
    pub(crate) repaired_texts: u64,
}

impl Lossy {
    /// Whether something is missing.
    pub(crate) fn is_any(&self) -> bool {
        *self != Lossy::default()
    }
}

impl AddAssign for Lossy {
    fn add_assign(&mut self, more: Lossy) {
        self.unknown_fields += more.unknown_fields;
        self.repaired_texts += more.repaired_texts;
    }
}

/// Writes the request of `signal` in `request` to `out`, on one line.
pub(crate) fn to_json(out: &mut impl Write, signal: Signal, request: &[u8]) -> Result<Lossy> {
    let mut encoder = Encoder {
        out,
        lossy: Lossy::default(),
    };
    encoder.message(request, schema::request(signal), MAX_DEPTH)?;
    Ok(encoder.lossy)
}

struct Encoder<'o, W> {
    out: &'o mut W,
    lossy: Lossy,
}

/// Which fields of a message are set.
#[derive(Default)]
struct Present {
    /// One bit for each field of the table.
    fields: u32,
    /// Of the fields that exclude one another the last, and where its run of occurrences begins.
    either: Option<(usize, usize)>,
}

const _: () = assert!(PLACES <= u32::BITS as usize);

impl<W: Write> Encoder<'_, W> {
    fn message(&mut self, bytes: &[u8], message: &'static Message, depth: u32) -> Result<()> {
        if depth == 0 {
            return Err(EncodeError::Depth);
        }
        let present = self.survey(bytes, message)?;
        self.out.write_all(b"{")?;
        let is_set = |index: &usize| present.fields & (1 << index) != 0;
        let mut separator = "";
        for index in (0..message.fields.len()).filter(is_set) {
            let field = &message.fields[index];
            let bytes = match (field.label, present.either) {
                (Label::Either, Some((last, from))) if last == index => &bytes[from..],
                (Label::Either, _) => continue,
                (Label::One | Label::Many, _) => bytes,
            };
            write!(self.out, "{separator}\"{}\":", field.name)?;
            separator = ",";
            let occurrences = Fields::of(bytes).filter(|found| match found {
                Ok(found) => found.number == field.number,
                Err(_) => true,
            });
            match field.label {
                Label::Many => self.list(occurrences, field, depth)?,
                Label::One | Label::Either => self.single(occurrences, field, depth)?,
            }
        }
        self.out.write_all(b"}")?;
        Ok(())
    }

    /// Reads all of a message once, to its own depth.
    fn survey(&mut self, bytes: &[u8], message: &'static Message) -> Result<Present> {
        let mut present = Present::default();
        let mut fields = Fields::of(bytes);
        loop {
            let start = bytes.len() - fields.rest().len();
            let Some(found) = fields.next().transpose()? else {
                return Ok(present);
            };
            // Of the content of some messages nothing is known.
            let known = |field: &Field| {
                field.number == found.number && !matches!(field.kind, Kind::Item(None))
            };
            let Some(index) = message.fields.iter().position(known) else {
                self.lossy.unknown_fields += 1;
                continue;
            };
            present.fields |= 1 << index;
            let is_either = message.fields[index].label == Label::Either;
            if is_either && present.either.is_none_or(|(last, _)| last != index) {
                present.either = Some((index, start));
            }
        }
    }

    /// The last of `occurrences`; of messages all together, as protobuf merges them.
    fn single<'a>(
        &mut self,
        occurrences: impl Iterator<Item = std::result::Result<Found<'a>, prost::DecodeError>>,
        field: &'static Field,
        depth: u32,
    ) -> Result<()> {
        let mut last: Option<Value<'a>> = None;
        let mut merged: Cow<'a, [u8]> = Cow::Borrowed(&[]);
        for found in occurrences {
            let value = found?.value;
            match value {
                Value::Block(block) if last.is_some() => merged.to_mut().extend_from_slice(block),
                Value::Block(block) => merged = Cow::Borrowed(block),
                _ => {}
            }
            last = Some(value);
        }
        match (&field.kind, last) {
            (Kind::Message(inner) | Kind::Item(Some(inner)), Some(Value::Block(_))) => {
                self.message(&merged, inner, depth - 1)
            }
            (_, Some(value)) => self.value(value, field, depth),
            (_, None) => Err(EncodeError::Type { field: field.name }),
        }
    }

    fn list<'a>(
        &mut self,
        occurrences: impl Iterator<Item = std::result::Result<Found<'a>, prost::DecodeError>>,
        field: &'static Field,
        depth: u32,
    ) -> Result<()> {
        self.out.write_all(b"[")?;
        let mut separator: &[u8] = b"";
        for found in occurrences {
            for value in found?.value.unpacked(&field.kind) {
                self.out.write_all(separator)?;
                separator = b",";
                self.value(value?, field, depth)?;
            }
        }
        self.out.write_all(b"]")?;
        Ok(())
    }

    fn value(&mut self, value: Value<'_>, field: &'static Field, depth: u32) -> Result<()> {
        let out = &mut *self.out;
        match (&field.kind, value) {
            (Kind::Bool, Value::Varint(bits)) => write!(out, "{}", bits != 0)?,
            // Protobuf keeps the low bits of a number too long for its field.
            (Kind::Int32 | Kind::Enum(_), Value::Varint(bits)) => write!(out, "{}", bits as i32)?,
            (Kind::Sint32, Value::Varint(bits)) => {
                // Zigzag.
                let bits = bits as u32;
                write!(out, "{}", (bits >> 1) as i32 ^ -((bits & 1) as i32))?;
            }
            (Kind::Uint64, Value::Varint(number)) => write!(out, "\"{number}\"")?,
            (Kind::Sfixed64, Value::Fixed64(bits)) => write!(out, "\"{}\"", bits as i64)?,
            (Kind::Uint32, Value::Varint(bits)) => write!(out, "{}", bits as u32)?,
            (Kind::Int64, Value::Varint(bits)) => write!(out, "\"{}\"", bits as i64)?,
            (Kind::Fixed32, Value::Fixed32(number)) => write!(out, "{number}")?,
            (Kind::Fixed64, Value::Fixed64(number)) => write!(out, "\"{number}\"")?,
            (Kind::Double, Value::Fixed64(bits)) => double(out, f64::from_bits(bits))?,
            (Kind::Id(_), Value::Block(id)) => hex(out, id)?,
            (Kind::Bytes, Value::Block(bytes)) => {
                write!(out, "\"{}\"", Base64Display::new(bytes, &STANDARD))?;
            }
            (Kind::Text, Value::Block(bytes)) => {
                let text = String::from_utf8_lossy(bytes);
                self.lossy.repaired_texts += u64::from(matches!(text, Cow::Owned(_)));
                serde_json::to_writer(out, &*text).map_err(io::Error::from)?;
            }
            (Kind::Message(inner) | Kind::Item(Some(inner)), Value::Block(bytes)) => {
                self.message(bytes, inner, depth - 1)?;
            }
            _ => return Err(EncodeError::Type { field: field.name }),
        }
        Ok(())
    }
}

fn double(out: &mut impl Write, number: f64) -> Result<()> {
    if number.is_nan() {
        out.write_all(b"\"NaN\"")?;
    } else if number.is_infinite() {
        let sign = if number < 0.0 { "-" } else { "" };
        write!(out, "\"{sign}Infinity\"")?;
    } else {
        serde_json::to_writer(out, &number).map_err(io::Error::from)?;
    }
    Ok(())
}

fn hex(out: &mut impl Write, id: &[u8]) -> Result<()> {
    out.write_all(b"\"")?;
    id.iter().try_for_each(|byte| write!(out, "{byte:02x}"))?;
    out.write_all(b"\"")?;
    Ok(())
}
