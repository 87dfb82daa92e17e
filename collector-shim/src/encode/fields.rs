//! Protobuf's wire format: the fields of one message, one after the other.

use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

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
            WireType::Varint => Value::Varint(decode_varint(&mut self.rest)?),
            WireType::ThirtyTwoBit => Value::Fixed32(u32::from_le_bytes(self.array()?)),
            WireType::SixtyFourBit => Value::Fixed64(u64::from_le_bytes(self.array()?)),
            WireType::LengthDelimited => Value::Block(self.block()?),
            WireType::StartGroup | WireType::EndGroup => {
                skip_field(wire_type, number, &mut self.rest, DecodeContext::default())?;
                Value::Group
            }
        };
        Ok(Found { number, value })
    }

    fn block(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = decode_varint(&mut self.rest)?;
        let block = usize::try_from(length)
            .ok()
            .and_then(|length| self.rest.split_at_checked(length));
        let (block, rest) = block.ok_or_else(truncated)?;
        self.rest = rest;
        Ok(block)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or_else(truncated)?;
        self.rest = rest;
        Ok(*array)
    }
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
