//! A walk over the protobuf bytes of a trace export request, without decoding it.
//!
//! Forwarding needs three answers about a request: is it sound, how many spans does it hold, and
//! where may it be cut ([`split()`]). The walk gives them and allocates nothing, so the bytes that came
//! in are the bytes that go out, fields that we do not know included. What decodes later is
//! bounded here too: two bytes of a request may be a hundred once decoded ([`Tally`]).
//!
//! The walk goes to the leaves. Stopping at the spans would be cheaper, but a batch merges the
//! requests of many senders, and one broken span would make the backend refuse them all.
//!
//! Invalid UTF-8 in a string is let through: the Collector accepts it and Jaeger cleans it. The
//! embedded store, which has to decode, cleans it with [`replace_invalid_text`].

mod schema;
mod split;
mod tally;
#[cfg(test)]
mod tests;

use std::ops::Range;

use schema::{Kind, Message};
pub(crate) use split::split;
#[cfg(test)]
pub(crate) use tally::{MAX_ELEMENTS, MAX_SPANS};
pub(crate) use tally::{Tally, TooMany};

/// Messages within messages. The decoder behind the store allows 100.
const MAX_DEPTH: u32 = 90;

/// Why bytes are not a trace export request.
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
    #[error(transparent)]
    TooMany(#[from] TooMany),
    #[error("{bytes} bytes that cannot be cut further, where {max_bytes} can be sent on")]
    TooLarge { bytes: usize, max_bytes: usize },
}

impl WireError {
    /// Whether the request is sound and only too much.
    pub(crate) fn is_over_a_bound(&self) -> bool {
        matches!(self.fault, Fault::TooMany(_) | Fault::TooLarge { .. })
    }
}

/// How many spans `request` holds, once all of it is found sound.
pub(crate) fn count_spans(request: &[u8]) -> Result<u64, WireError> {
    let mut tally = Tally::default();
    walk(request, &mut |found| match found {
        Found::Span => tally.span(),
        Found::Element => tally.element(),
        Found::Text(_) => Ok(()),
    })?;
    Ok(tally.spans())
}

/// `request` with every byte that breaks UTF-8 in a string field replaced by `?`.
///
/// One byte for one byte, so that no length before it changes; U+FFFD would take three.
pub(crate) fn replace_invalid_text(request: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut texts = Vec::new();
    walk(request, &mut |found| {
        if let Found::Text(range) = found
            && std::str::from_utf8(&request[range.clone()]).is_err()
        {
            texts.push(range);
        }
        Ok(())
    })?;
    let mut clean = request.to_vec();
    for range in texts {
        replace_invalid(&mut clean[range]);
    }
    Ok(clean)
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
enum Found {
    Span,
    /// Anything else of which there may be many: each has a place of its own once decoded.
    Element,
    /// Where the bytes of a string field lie.
    Text(Range<usize>),
}

fn walk(
    request: &[u8],
    visit: &mut impl FnMut(Found) -> Result<(), TooMany>,
) -> Result<(), WireError> {
    let cursor = Cursor::over(request);
    walk_message(cursor, &schema::EXPORT_TRACE_SERVICE_REQUEST, 0, visit)
}

fn walk_message(
    mut cursor: Cursor<'_>,
    message: &'static Message,
    depth: u32,
    visit: &mut impl FnMut(Found) -> Result<(), TooMany>,
) -> Result<(), WireError> {
    if depth > MAX_DEPTH {
        return Err(cursor.fault(Fault::Depth));
    }
    while cursor.at < cursor.end {
        let (field, wire_type) = cursor.key()?;
        let Some((_, kind)) = message.fields.iter().find(|(number, _)| *number == field) else {
            cursor.skip(field, wire_type, depth)?;
            continue;
        };
        if wire_type != kind.wire_type() {
            let found = wire_type;
            return Err(cursor.fault(Fault::WireType {
                message: message.name,
                field,
                found,
            }));
        }
        match kind {
            Kind::Varint | Kind::Fixed32 | Kind::Fixed64 | Kind::Bytes => {
                cursor.skip(field, wire_type, depth)?;
            }
            Kind::Text => {
                let text = Found::Text(cursor.block()?);
                visit(text).map_err(|many| cursor.fault(many.into()))?;
            }
            Kind::Texts => {
                visit(Found::Element).map_err(|many| cursor.fault(many.into()))?;
                let text = Found::Text(cursor.block()?);
                visit(text).map_err(|many| cursor.fault(many.into()))?;
            }
            Kind::Id(expected) => {
                let (at, block) = (cursor.at, cursor.block()?);
                if !block.is_empty() && block.len() != *expected {
                    let (found, expected) = (block.len(), *expected);
                    let fault = Fault::IdLength {
                        message: message.name,
                        field,
                        found,
                        expected,
                    };
                    return Err(WireError { at, fault });
                }
            }
            Kind::Message(inner) => {
                visit(Found::Element).map_err(|many| cursor.fault(many.into()))?;
                let block = cursor.block()?;
                walk_message(cursor.within(block), inner, depth + 1, visit)?;
            }
            Kind::Span(inner) => {
                visit(Found::Span).map_err(|many| cursor.fault(many.into()))?;
                let block = cursor.block()?;
                walk_message(cursor.within(block.clone()), inner, depth + 1, visit)?;
                require_ids(cursor.within(block), depth + 1)?;
            }
        }
    }
    Ok(())
}

/// A span is known by its ids: one without them belongs to no trace, and backends refuse it or
/// take all such spans for one.
fn require_ids(mut span: Cursor<'_>, depth: u32) -> Result<(), WireError> {
    let start = span.at;
    let (mut has_trace_id, mut has_span_id) = (false, false);
    while span.at < span.end {
        let field = span.field(depth)?;
        let is_set = || span.data[field.content].iter().any(|byte| *byte != 0);
        match field.number {
            schema::SPAN_TRACE_ID => has_trace_id = is_set(),
            schema::SPAN_SPAN_ID => has_span_id = is_set(),
            _ => {}
        }
    }
    let missing = match (has_trace_id, has_span_id) {
        (true, true) => return Ok(()),
        (false, _) => "a trace id",
        (true, false) => "a span id",
    };
    Err(WireError {
        at: start,
        fault: Fault::NoId(missing),
    })
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH_DELIMITED: u8 = 2;
const GROUP_START: u8 = 3;
const GROUP_END: u8 = 4;
const FIXED32: u8 = 5;

impl Kind {
    fn wire_type(&self) -> u8 {
        match self {
            Kind::Varint => VARINT,
            Kind::Fixed64 => FIXED64,
            Kind::Fixed32 => FIXED32,
            Kind::Text
            | Kind::Texts
            | Kind::Bytes
            | Kind::Id(_)
            | Kind::Message(_)
            | Kind::Span(_) => LENGTH_DELIMITED,
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

    fn varint(&mut self) -> Result<u64, WireError> {
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
