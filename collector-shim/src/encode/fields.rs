//! Protobuf's wire format: the fields of one message, one after the other.

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::wire::schema::Kind;

/// A field as it stands in the bytes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Found<'a> {
    pub(super) number: u32,
    pub(super) value: Value<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Block(&'a [u8]),
    /// No message of OTLP has one.
    Group,
}

impl<'a> Value<'a> {
    /// The values of a repeated field of `kind`: of numbers there may be many in a row.
    pub(super) fn unpacked(
        self,
        kind: &Kind,
    ) -> impl Iterator<Item = Result<Value<'a>, DecodeError>> + use<'a> {
        let wire_type = kind.wire_type();
        let (whole, mut row) = match self {
            Value::Block(row) if wire_type != WireType::LengthDelimited as u8 => (None, row),
            whole => (Some(whole), &[][..]),
        };
        let in_a_row = std::iter::from_fn(move || {
            if row.is_empty() {
                return None;
            }
            let value = read_value(&mut row, WireType::try_from(u64::from(wire_type)).ok()?);
            if value.is_err() {
                row = &[];
            }
            Some(value)
        });
        whole.map(Ok).into_iter().chain(in_a_row)
    }
}

/// See the module. Ends after the first error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn of(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message }
    }

    /// What has not been read yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    fn read(&mut self) -> Result<Found<'a>, DecodeError> {
        let (number, wire_type) = decode_key(&mut self.rest)?;
        let value = match wire_type {
            WireType::StartGroup | WireType::EndGroup => {
                skip_field(wire_type, number, &mut self.rest, DecodeContext::default())?;
                Value::Group
            }
            _ => read_value(&mut self.rest, wire_type)?,
        };
        Ok(Found { number, value })
    }
}

/// Reads a value that is no group.
fn read_value<'a>(bytes: &mut &'a [u8], wire_type: WireType) -> Result<Value<'a>, DecodeError> {
    Ok(match wire_type {
        WireType::Varint => Value::Varint(decode_varint(bytes)?),
        WireType::ThirtyTwoBit => Value::Fixed32(u32::from_le_bytes(array(bytes)?)),
        WireType::SixtyFourBit => Value::Fixed64(u64::from_le_bytes(array(bytes)?)),
        WireType::LengthDelimited => Value::Block(block(bytes)?),
        WireType::StartGroup | WireType::EndGroup => return Err(truncated()),
    })
}

fn block<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], DecodeError> {
    let length = decode_varint(bytes)?;
    let block = usize::try_from(length)
        .ok()
        .and_then(|length| bytes.split_at_checked(length));
    let (block, rest) = block.ok_or_else(truncated)?;
    *bytes = rest;
    Ok(block)
}

fn array<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], DecodeError> {
    let (array, rest) = bytes.split_first_chunk().ok_or_else(truncated)?;
    *bytes = rest;
    Ok(*array)
}

/// prost gives its own error no constructor, and a truncated varint is the same mistake.
fn truncated() -> DecodeError {
    decode_varint(&mut &[][..]).expect_err("nothing is no number")
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Found<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = self.read();
        if found.is_err() {
            self.rest = &[];
        }
        Some(found)
    }
}
