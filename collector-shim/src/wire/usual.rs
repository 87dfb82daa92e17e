//! The short way: spans and attributes as nearly all of them are, found sound in a small part of the
//! time that the walk takes.
//!
//! Usual are the known fields in their types, with lengths of two bytes at most. What is anything else
//! is left to the walk, which finds the same of what is usual.

const fn text(number: u8) -> u8 {
    number << 3 | super::LENGTH_DELIMITED
}

const fn varint(number: u8) -> u8 {
    number << 3 | super::VARINT
}

const fn fixed64(number: u8) -> u8 {
    number << 3 | super::FIXED64
}

/// The first byte of a key of two.
const LONG_FIXED32: u8 = (16 << 3 | super::FIXED32) & 0x7f | 0x80;

/// The elements of a span that is usual and sound and has its ids; `span` is what is inside.
pub(super) fn span(span: &[u8]) -> Option<u64> {
    const TRACE_ID: u8 = text(1);
    const SPAN_ID: u8 = text(2);
    const TRACE_STATE: u8 = text(3);
    const PARENT_SPAN_ID: u8 = text(4);
    const NAME: u8 = text(5);
    const KIND: u8 = varint(6);
    const START: u8 = fixed64(7);
    const END: u8 = fixed64(8);
    const ATTRIBUTE: u8 = text(9);
    const STATUS: u8 = text(15);

    let (mut elements, mut has_trace_id, mut has_span_id) = (0, false, false);
    let mut rest = span;
    while let [key, field @ ..] = rest {
        rest = match (*key, field) {
            (ATTRIBUTE, field) => {
                let (inside, rest) = block(field)?;
                elements += attribute(inside)?;
                rest
            }
            (START | END, field) => field.get(8..)?,
            (TRACE_ID, [16, field @ ..]) => {
                let (id, rest) = field.split_first_chunk::<16>()?;
                has_trace_id = *id != [0; 16];
                rest
            }
            (SPAN_ID, [8, field @ ..]) => {
                let (id, rest) = field.split_first_chunk::<8>()?;
                has_span_id = *id != [0; 8];
                rest
            }
            (PARENT_SPAN_ID, [8, field @ ..]) => field.get(8..)?,
            (NAME | TRACE_STATE, field) => block(field)?.1,
            (KIND, [0..0x80, rest @ ..]) => rest,
            (STATUS, field) => {
                let (inside, rest) = block(field)?;
                is_status(inside).then_some(())?;
                elements += 1;
                rest
            }
            (LONG_FIXED32, [1, field @ ..]) => field.get(4..)?,
            _ => return None,
        };
    }
    (has_trace_id && has_span_id).then_some(elements)
}

/// The elements of an attribute that is usual and sound: a key, then a value of one plain type.
pub(super) fn attribute(inside: &[u8]) -> Option<u64> {
    const KEY: u8 = text(1);
    const VALUE: u8 = text(2);
    const STRING: u8 = text(1);
    const BOOL: u8 = varint(2);
    const INT: u8 = varint(3);
    const DOUBLE: u8 = fixed64(4);

    let [KEY, rest @ ..] = inside else {
        return None;
    };
    let (_, rest) = block(rest)?;
    let [VALUE, rest @ ..] = rest else {
        return None;
    };
    let (value, rest) = block(rest)?;
    let is_usual = rest.is_empty()
        && match value {
            [STRING, text @ ..] => block(text)?.1.is_empty(),
            [DOUBLE, number @ ..] => number.len() == 8,
            [BOOL | INT, number @ .., last] => {
                *last < 0x80 && number.len() < 9 && number.iter().all(|byte| *byte >= 0x80)
            }
            _ => false,
        };
    // Itself and its value.
    is_usual.then_some(2)
}

/// Whether this is the inside of a status with a code at most.
fn is_status(inside: &[u8]) -> bool {
    const CODE: u8 = varint(3);
    matches!(inside, [] | [CODE, 0..0x80])
}

/// What a length of two bytes at most announces, and what comes after it.
#[inline]
fn block(field: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match field {
        [length @ 0..0x80, rest @ ..] => (usize::from(*length), rest),
        [low, high @ 0..0x80, rest @ ..] => {
            let low = usize::from(*low & 0x7f);
            (usize::from(*high) << 7 | low, rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}
