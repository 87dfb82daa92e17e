//! A walk over the protobuf bytes of an export request, without decoding it.
//!
//! Forwarding needs three answers about a request: is it sound, how many items (spans, data points,
//! log records, profiles) does it hold, and where may it be cut ([`split()`]). The walk gives them and
//! allocates nothing, so the bytes that came in are the bytes that go out, fields that we do not know
//! included. It also counts what would be decoded: two bytes of a request may then be a hundred
//! ([`Tally`]).
//!
//! The walk goes to the leaves. Stopping at the items would be cheaper, but a batch merges the
//! requests of many senders, and one broken span would make the backend refuse them all.
//!
//! Invalid UTF-8 in a string is let through: the Collector accepts it and Jaeger cleans it. The
//! embedded store, which has to decode, cleans it with [`replace_invalid_text`].

pub(crate) mod schema;
mod spans;
mod split;
mod tally;
#[cfg(test)]
mod tests;
mod usual;

use std::ops::Range;

use crate::signal::Signal;
use schema::{Field, Kind, Message};
pub(crate) use spans::{Heads, RawSpan, SpanGroup, put_together, span_groups};
pub(crate) use split::split;
pub(crate) use tally::Tally;

/// Messages within messages. The decoder behind the store allows 100.
const MAX_DEPTH: u32 = 90;

/// Why bytes are not an export request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {fault}")]
pub(crate) struct WireError {
    at: usize,
    fault: Fault,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("a number runs past the end or past 64 bits")]
    Varint,
    #[error("field key {0} is not one")]
    Key(u64),
    #[error("{length} bytes are announced, {left} are left")]
    Truncated { length: u64, left: usize },
    #[error("field {field} of {message} has wire type {found}")]
    WireType {
        message: &'static str,
        field: u32,
        found: u8,
    },
    #[error("an id of {found} bytes instead of {expected}, in field {field} of {message}")]
    IdLength {
        message: &'static str,
        field: u32,
        found: usize,
        expected: usize,
    },
    #[error("a group is not closed, or closed twice")]
    Group,
    #[error("nested more than {MAX_DEPTH} deep")]
    Depth,
    #[error("a span without {0}")]
    NoId(&'static str),
    #[error("{bytes} bytes that cannot be cut further, where {max_bytes} can be sent on")]
    TooLarge { bytes: usize, max_bytes: usize },
}

impl WireError {
    /// Whether the request is sound and only too much.
    pub(crate) fn is_over_a_bound(&self) -> bool {
        matches!(self.fault, Fault::TooLarge { .. })
    }
}

/// What `request` holds, once all of it is found sound.
pub(crate) fn tally(signal: Signal, request: &[u8]) -> Result<Tally, WireError> {
    let mut tally = Tally::default();
    walk(signal, request, &mut tally)?;
    Ok(tally)
}

/// `request` with every byte that breaks UTF-8 in a string field replaced by `?`.
///
/// One byte for one byte, so that no length before it changes; U+FFFD would take three.
pub(crate) fn replace_invalid_text(request: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut broken = BrokenTexts {
        request,
        texts: Vec::new(),
    };
    walk(Signal::Traces, request, &mut broken)?;
    let mut clean = request.to_vec();
    for range in broken.texts {
        replace_invalid(&mut clean[range]);
    }
    Ok(clean)
}

struct BrokenTexts<'a> {
    request: &'a [u8],
    texts: Vec<Range<usize>>,
}

impl Visit for BrokenTexts<'_> {
    fn text(&mut self, at: Range<usize>) {
        if std::str::from_utf8(&self.request[at.clone()]).is_err() {
            self.texts.push(at);
        }
    }
}

/// Fills what is no UTF-8 with `?`.
pub(crate) fn replace_invalid(mut text: &mut [u8]) {
    while let Err(error) = std::str::from_utf8(text) {
        let from = error.valid_up_to();
        let to = from + error.error_len().unwrap_or(text.len() - from);
        text[from..to].fill(b'?');
        text = &mut text[to..];
    }
}

/// What the walk reports on its way.
trait Visit {
    /// A span, data point, log record or profile.
    fn item(&mut self) {}

    /// Anything else of which there may be many: each has a place of its own once decoded.
    fn elements(&mut self, _count: u64) {}

    /// Where the bytes of a string field lie.
    fn text(&mut self, _at: Range<usize>) {}

    /// Whether all that is wanted of what is sound is how much there is.
    fn only_counts(&self) -> bool {
        false
    }
}

impl Visit for Tally {
    fn item(&mut self) {
        self.items += 1;
    }

    fn elements(&mut self, count: u64) {
        self.elements += count;
    }

    fn only_counts(&self) -> bool {
        true
    }
}

fn walk(signal: Signal, request: &[u8], visit: &mut impl Visit) -> Result<(), WireError> {
    let cursor = Cursor::over(request);
    walk_message(cursor, schema::request(signal), 0, visit).map(drop)
}

/// The ids of a message that are set, a bit for each field number.
type IdsSet = u32;

fn walk_message(
    mut cursor: Cursor<'_>,
    message: &'static Message,
    depth: u32,
    visit: &mut impl Visit,
) -> Result<IdsSet, WireError> {
    if depth > MAX_DEPTH {
        return Err(cursor.fault(Fault::Depth));
    }
    let mut ids_set = 0;
    while cursor.at < cursor.end {
        let (number, wire_type) = cursor.key()?;
        let Some(field) = message.field(number) else {
            cursor.skip(number, wire_type, depth)?;
            continue;
        };
        if wire_type != field.kind.wire_type() {
            if field.is_repeated() && wire_type == LENGTH_DELIMITED {
                cursor.packed(&field.kind)?;
                continue;
            }
            let message = message.name;
            return Err(cursor.fault(Fault::WireType {
                message,
                field: number,
                found: wire_type,
            }));
        }
        match &field.kind {
            Kind::Text => {
                if field.is_repeated() {
                    visit.elements(1);
                }
                visit.text(cursor.block()?);
            }
            Kind::Id(expected) => {
                let is_set = cursor.id(message, field, *expected)?;
                ids_set = ids_set & !(1 << number) | u32::from(is_set) << number;
            }
            Kind::Message(inner) => {
                visit.elements(1);
                let inside = cursor.enter()?;
                if visit.only_counts()
                    && inner.is_attribute()
                    && let Some(elements) = usual::attribute(inside.rest())
                {
                    visit.elements(elements - 1);
                    continue;
                }
                walk_message(inside, inner, depth + 1, visit)?;
            }
            Kind::Item(inner) => {
                visit.item();
                let inside = cursor.enter()?;
                let start = inside.at;
                if let Some(inner) = inner {
                    if visit.only_counts()
                        && inner.is_span()
                        && let Some(elements) = usual::span(inside.rest())
                    {
                        visit.elements(elements);
                        continue;
                    }
                    let ids_set = walk_message(inside, inner, depth + 1, visit)?;
                    schema::missing_id(inner, ids_set).map_or(Ok(()), |missing| {
                        Err(WireError {
                            at: start,
                            fault: Fault::NoId(missing),
                        })
                    })?;
                }
            }
            kind => cursor.skip(number, kind.wire_type(), depth)?,
        }
    }
    Ok(ids_set)
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const GROUP_START: u8 = 3;
const GROUP_END: u8 = 4;
const FIXED32: u8 = 5;

impl Kind {
    pub(crate) fn wire_type(&self) -> u8 {
        match self {
            Kind::Bool
            | Kind::Int32
            | Kind::Int64
            | Kind::Uint32
            | Kind::Uint64
            | Kind::Sint32
            | Kind::Enum(_) => VARINT,
            Kind::Fixed64 | Kind::Sfixed64 | Kind::Double => FIXED64,
            Kind::Fixed32 => FIXED32,
            Kind::Text | Kind::Bytes | Kind::Id(_) | Kind::Message(_) | Kind::Item(_) => {
                LENGTH_DELIMITED
            }
        }
    }
}

/// A place in the request, and the end of the message that it is in.
struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    fn over(data: &'a [u8]) -> Cursor<'a> {
        Cursor {
            data,
            at: 0,
            end: data.len(),
        }
    }

    fn within(&self, block: Range<usize>) -> Cursor<'a> {
        Cursor {
            data: self.data,
            at: block.start,
            end: block.end,
        }
    }

    fn rest(&self) -> &'a [u8] {
        &self.data[self.at..self.end]
    }

    fn fault(&self, fault: Fault) -> WireError {
        WireError { at: self.at, fault }
    }

    /// Reads a field's number and wire type.
    fn key(&mut self) -> Result<(u32, u8), WireError> {
        let at = self.at;
        let key = self.varint()?;
        match u32::try_from(key) {
            Ok(narrow) if narrow >> 3 > 0 => Ok((narrow >> 3, (narrow & 7) as u8)),
            _ => Err(WireError {
                at,
                fault: Fault::Key(key),
            }),
        }
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, WireError> {
        // Nearly every key and length is one byte.
        if let Some(&byte) = self.data[..self.end].get(self.at)
            && byte < 0x80
        {
            self.at += 1;
            return Ok(u64::from(byte));
        }
        self.long_varint()
    }

    fn long_varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0_u64;
        for (index, byte) in self.data[self.at..self.end].iter().take(10).enumerate() {
            // The tenth byte has room for one bit.
            if index == 9 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if *byte < 0x80 {
                self.at += index + 1;
                return Ok(value);
            }
        }
        Err(self.fault(Fault::Varint))
    }

    /// Reads a length and steps over as many bytes; answers where they lie.
    fn block(&mut self) -> Result<Range<usize>, WireError> {
        let length = self.varint()?;
        self.advance(length)
    }

    /// Steps over a message; what is inside.
    fn enter(&mut self) -> Result<Cursor<'a>, WireError> {
        let block = self.block()?;
        Ok(self.within(block))
    }

    /// Reads an id of `field`; whether it says anything.
    fn id(&mut self, message: &Message, field: &Field, expected: usize) -> Result<bool, WireError> {
        let (at, block) = (self.at, self.block()?);
        if !block.is_empty() && block.len() != expected {
            let fault = Fault::IdLength {
                message: message.name,
                field: field.number,
                found: block.len(),
                expected,
            };
            return Err(WireError { at, fault });
        }
        Ok(self.data[block].iter().any(|byte| *byte != 0))
    }

    /// Steps over the numbers of a repeated field in a row.
    fn packed(&mut self, kind: &Kind) -> Result<(), WireError> {
        let mut inside = self.enter()?;
        while inside.at < inside.end {
            inside.skip(0, kind.wire_type(), 0)?;
        }
        Ok(())
    }

    #[inline]
    fn advance(&mut self, length: u64) -> Result<Range<usize>, WireError> {
        let left = self.end - self.at;
        match usize::try_from(length) {
            Ok(step) if step <= left => {
                let start = self.at;
                self.at += step;
                Ok(start..self.at)
            }
            _ => Err(self.fault(Fault::Truncated { length, left })),
        }
    }

    /// Steps over a field's value, a whole group included.
    fn skip(&mut self, field: u32, wire_type: u8, depth: u32) -> Result<(), WireError> {
        match wire_type {
            VARINT => self.varint().map(drop),
            FIXED64 => self.advance(8).map(drop),
            LENGTH_DELIMITED => self.block().map(drop),
            FIXED32 => self.advance(4).map(drop),
            GROUP_START => self.skip_group(field, depth + 1),
            _ => Err(self.fault(Fault::Group)),
        }
    }

    fn skip_group(&mut self, group: u32, depth: u32) -> Result<(), WireError> {
        if depth > MAX_DEPTH {
            return Err(self.fault(Fault::Depth));
        }
        while self.at < self.end {
            let (field, wire_type) = self.key()?;
            if wire_type == GROUP_END {
                return if field == group {
                    Ok(())
                } else {
                    Err(self.fault(Fault::Group))
                };
            }
            self.skip(field, wire_type, depth)?;
        }
        Err(self.fault(Fault::Group))
    }
}
