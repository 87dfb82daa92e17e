//! Cutting a request into requests that a backend takes.
//!
//! Between two `ResourceSpans` a cut costs nothing. An SDK sends one alone, so that it may have to be
//! cut inside: each part then repeats the bytes of its resource and scope under fresh lengths, and
//! spans move over whole. No span is decoded or encoded again.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{Cursor, Fault, LENGTH_DELIMITED, WireError};

/// `ExportTraceServiceRequest.resource_spans`.
pub(super) const RESOURCE_SPANS: u32 = 1;
/// `ResourceSpans.scope_spans` and `ScopeSpans.spans`.
pub(super) const ENTRIES: u32 = 2;
/// A field's key and length: a byte, and a length of 32 bits.
const FIELD_BYTES: usize = 6;

/// Cuts `request` into requests of at most `max_bytes`, or tells of a span too large for one.
pub(crate) fn split(request: &Bytes, max_bytes: usize) -> Result<Vec<Bytes>, WireError> {
    let mut parts = Vec::new();
    let mut cursor = Cursor::over(request);
    let mut start = 0;
    while cursor.at < cursor.end {
        let entry = cursor.field(0)?;
        if entry.whole.end - start <= max_bytes {
            continue;
        }
        if entry.whole.start > start {
            parts.push(request.slice(start..entry.whole.start));
        }
        start = entry.whole.start;
        if entry.whole.len() > max_bytes {
            if entry.number != RESOURCE_SPANS {
                return Err(too_large(&entry.whole, max_bytes));
            }
            parts.extend(cut_inside(request, &entry, max_bytes)?);
            start = entry.whole.end;
        }
    }
    if start < request.len() || parts.is_empty() {
        parts.push(request.slice(start..));
    }
    Ok(parts)
}

/// A field with its key: where all of it lies, and its content.
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) whole: Range<usize>,
    pub(super) content: Range<usize>,
}

impl Cursor<'_> {
    /// Reads one field of any type.
    pub(super) fn field(&mut self, depth: u32) -> Result<Field, WireError> {
        let start = self.at;
        let (number, wire_type) = self.key()?;
        let content = if wire_type == LENGTH_DELIMITED {
            self.block()?
        } else {
            let start = self.at;
            self.skip(number, wire_type, depth)?;
            start..self.at
        };
        Ok(Field {
            number,
            whole: start..self.at,
            content,
        })
    }
}

fn too_large(found: &Range<usize>, max_bytes: usize) -> WireError {
    WireError {
        at: found.start,
        fault: Fault::TooLarge {
            bytes: found.len(),
            max_bytes,
        },
    }
}

/// A message taken apart: the entries that parts share out, and the rest, which each part repeats.
pub(super) struct Apart {
    pub(super) head: Bytes,
    pub(super) entries: Vec<Field>,
}

pub(super) fn apart(request: &[u8], message: &Range<usize>) -> Result<Apart, WireError> {
    let mut cursor = Cursor::over(request).within(message.clone());
    let mut head = BytesMut::new();
    let mut entries = Vec::new();
    while cursor.at < cursor.end {
        let field = cursor.field(0)?;
        if field.number == ENTRIES {
            entries.push(field);
        } else {
            head.put_slice(&request[field.whole]);
        }
    }
    Ok(Apart {
        head: head.freeze(),
        entries,
    })
}

fn cut_inside(request: &Bytes, entry: &Field, max_bytes: usize) -> Result<Vec<Bytes>, WireError> {
    let resource = apart(request, &entry.content)?;
    let mut packer = Packer {
        head: resource.head,
        max_bytes,
        scopes: BytesMut::new(),
        parts: Vec::new(),
    };
    for scope_spans in resource.entries {
        let scope = apart(request, &scope_spans.content)?;
        // What is repeated is bounded by what it is repeated for: parts never are more than four
        // times what came.
        let repeated = packer.head.len() + scope.head.len() + 3 * FIELD_BYTES;
        if repeated > max_bytes / 2 {
            return Err(too_large(&scope_spans.whole, max_bytes / 2));
        }
        let mut run = BytesMut::new();
        for span in scope.entries {
            let needed = FIELD_BYTES + scope.head.len() + run.len() + span.whole.len();
            if !packer.has_room(needed) {
                packer.put_scope(&scope.head, &mut run);
                packer.finish();
                let alone = repeated + span.whole.len();
                if alone > max_bytes {
                    return Err(too_large(&span.whole, max_bytes - repeated));
                }
            }
            run.put_slice(&request[span.whole]);
        }
        packer.put_scope(&scope.head, &mut run);
    }
    packer.finish();
    Ok(packer.parts)
}

/// Fills one part after the other.
struct Packer {
    head: Bytes,
    max_bytes: usize,
    /// The `ScopeSpans` of the part at hand, with their keys.
    scopes: BytesMut,
    parts: Vec<Bytes>,
}

impl Packer {
    fn has_room(&self, more_bytes: usize) -> bool {
        FIELD_BYTES + self.head.len() + self.scopes.len() + more_bytes <= self.max_bytes
    }

    /// Adds the spans of `run`, if any, under their scope.
    fn put_scope(&mut self, head: &[u8], run: &mut BytesMut) {
        if !run.is_empty() {
            put_field(&mut self.scopes, ENTRIES, &[head, run]);
            run.clear();
        }
    }

    fn finish(&mut self) {
        if !self.scopes.is_empty() {
            let mut part = BytesMut::new();
            put_field(&mut part, RESOURCE_SPANS, &[&self.head, &self.scopes]);
            self.parts.push(part.freeze());
            self.scopes.clear();
        }
    }
}

pub(super) fn put_field(to: &mut BytesMut, number: u32, contents: &[&[u8]]) {
    let length: usize = contents.iter().map(|content| content.len()).sum();
    to.reserve(FIELD_BYTES + length);
    prost::encoding::encode_varint(u64::from(number << 3) | u64::from(LENGTH_DELIMITED), to);
    prost::encoding::encode_varint(length as u64, to);
    contents.iter().for_each(|content| to.put_slice(content));
}
