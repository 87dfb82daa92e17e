//! The leaves of OTLP/JSON: numbers that may be in quotes, ids, enums, bytes.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use prost::encoding::encode_varint;
use serde::de::Visitor;

use crate::wire::schema::{Field, Kind};

/// A leaf as it is written.
#[derive(Debug)]
pub(super) enum Scalar<'a> {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Cow<'a, str>),
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scalar::Bool(value) => value.fmt(f),
            Scalar::Unsigned(number) => number.fmt(f),
            Scalar::Signed(number) => number.fmt(f),
            Scalar::Float(number) => number.fmt(f),
            Scalar::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// Reads any leaf.
pub(super) struct Read;

impl<'de> Visitor<'de> for Read {
    type Value = Scalar<'de>;

    fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str("a number, a text or a boolean")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Bool(value))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Unsigned(number))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Signed(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }
}

type Result<T, E = &'static str> = std::result::Result<T, E>;

impl Scalar<'_> {
    /// Writes the leaf as `field` has it in protobuf, its key set aside; or says what was expected.
    pub(super) fn write(&self, field: &Field, out: &mut Vec<u8>) -> Result<()> {
        match &field.kind {
            Kind::Bool => match self {
                Scalar::Bool(value) => encode_varint(u64::from(*value), out),
                _ => return Err("true or false"),
            },
            Kind::Int32 => encode_varint(i64::from(self.integer::<i32>()?) as u64, out),
            Kind::Int64 => encode_varint(self.integer::<i64>()? as u64, out),
            Kind::Uint32 => encode_varint(self.integer::<u32>()?.into(), out),
            Kind::Uint64 => encode_varint(self.integer()?, out),
            Kind::Sint32 => {
                let number: i32 = self.integer()?;
                // Zigzag.
                encode_varint(((number << 1) ^ (number >> 31)) as u32 as u64, out);
            }
            Kind::Enum(names) => encode_varint(i64::from(self.enumeration(names)?) as u64, out),
            Kind::Fixed32 => out.extend(self.integer::<u32>()?.to_le_bytes()),
            Kind::Fixed64 => out.extend(self.integer::<u64>()?.to_le_bytes()),
            Kind::Sfixed64 => out.extend(self.integer::<i64>()?.to_le_bytes()),
            Kind::Double => out.extend(self.double()?.to_le_bytes()),
            Kind::Text => put_bytes(out, self.text().ok_or("a text")?.as_bytes()),
            Kind::Bytes => put_bytes(out, &base64_bytes(self.text().ok_or(BASE64)?)?),
            Kind::Id(length_bytes) => put_bytes(out, &self.id(*length_bytes)?),
            Kind::Message(_) | Kind::Item(_) => return Err("an object"),
        }
        Ok(())
    }

    fn text(&self) -> Option<&str> {
        match self {
            Scalar::Text(text) => Some(text),
            _ => None,
        }
    }

    /// An integer that fits `T`. `1e3` and `5.0` are integers too.
    fn integer<T: TryFrom<i128>>(&self) -> Result<T> {
        let wide = match self {
            Scalar::Bool(_) => None,
            Scalar::Unsigned(number) => Some(i128::from(*number)),
            Scalar::Signed(number) => Some(i128::from(*number)),
            Scalar::Float(number) => (number.fract() == 0.0).then_some(*number as i128),
            Scalar::Text(text) => text.trim().parse().ok(),
        };
        wide.and_then(|wide| T::try_from(wide).ok())
            .ok_or("an integer of its field's size")
    }

    /// An integer, known or not, or one of `names`.
    fn enumeration(&self, names: &[(&str, i32)]) -> Result<i32> {
        let named = self
            .text()
            .and_then(|text| names.iter().find(|(name, _)| *name == text));
        match named {
            Some((_, number)) => Ok(*number),
            None => self.integer(),
        }
    }

    fn double(&self) -> Result<f64> {
        match self {
            Scalar::Bool(_) => None,
            Scalar::Unsigned(number) => Some(*number as f64),
            Scalar::Signed(number) => Some(*number as f64),
            Scalar::Float(number) => Some(*number),
            // Rust reads NaN, Infinity and -Infinity as proto3's JSON writes them.
            Scalar::Text(text) => text.trim().parse().ok(),
        }
        .ok_or("a number")
    }

    /// The hex of exactly `length_bytes`, or nothing.
    fn id(&self, length_bytes: usize) -> Result<Vec<u8>> {
        let expected = match length_bytes {
            16 => "32 hex digits",
            _ => "16 hex digits",
        };
        let digits = self.text().ok_or(expected)?.as_bytes();
        if !digits.is_empty() && digits.len() != 2 * length_bytes {
            return Err(expected);
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let pairs = digits.chunks(2);
        let bytes: Option<Vec<u8>> = pairs
            .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
            .collect();
        bytes.ok_or(expected)
    }
}

const BASE64: &str = "base64";

/// Standard or URL-safe, padded or not, as proto3's JSON allows.
fn base64_bytes(text: &str) -> Result<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const ENGINE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, CONFIG);
    let standard = text.replace('-', "+").replace('_', "/");
    ENGINE.decode(standard).map_err(|_| BASE64)
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}
