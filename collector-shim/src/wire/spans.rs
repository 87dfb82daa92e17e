//! The spans of a request one by one, for who decides about each: where its bytes lie, and the few
//! facts that decisions are made by. No span is decoded.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::split::{ENTRIES, RESOURCE_SPANS, apart, put_field};
use super::{Cursor, WireError, schema};

/// `ResourceSpans.resource`, `Resource.attributes`, `KeyValue` and `AnyValue.string_value`.
const RESOURCE: u32 = 1;
const ATTRIBUTES: u32 = 1;
const KEY: u32 = 1;
const VALUE: u32 = 2;
const STRING: u32 = 1;
const SERVICE_NAME: &[u8] = b"service.name";
/// Of `Span`.
const START: u32 = 7;
const END: u32 = 8;
const STATUS: u32 = 15;
/// `Status.code`, and its value for an error.
const CODE: u32 = 3;
const ERROR: u64 = 2;

/// Spans that share a resource and a scope.
#[derive(Debug)]
pub(crate) struct SpanGroup {
    pub(crate) heads: Heads,
    /// The resource's `service.name`; empty when it has none. Shared, as a request may have many
    /// scopes below one long name.
    pub(crate) service: Arc<str>,
    pub(crate) spans: Vec<RawSpan>,
}

/// What stands around the spans: every field of their `ResourceSpans` and `ScopeSpans` but them.
#[derive(Debug)]
pub(crate) struct Heads {
    /// Which of the request's resources it is.
    resource_number: usize,
    resource: Bytes,
    scope: Bytes,
}

/// A span's bytes, with the key and the length before it, and what is known of it.
#[derive(Debug)]
pub(crate) struct RawSpan {
    pub(crate) bytes: Bytes,
    pub(crate) trace_id: [u8; 16],
    pub(crate) is_error: bool,
    pub(crate) duration: Duration,
}

/// Takes a sound request apart. Scopes without spans are left out.
pub(crate) fn span_groups(request: &Bytes) -> Result<Vec<SpanGroup>, WireError> {
    let mut groups = Vec::new();
    let mut cursor = Cursor::over(request);
    let mut resource_number = 0;
    while cursor.at < cursor.end {
        let entry = cursor.field(0)?;
        if entry.number != RESOURCE_SPANS {
            continue;
        }
        resource_number += 1;
        let resource = apart(request, &entry.content)?;
        let service = service_name(&resource.head)?;
        for scope_spans in &resource.entries {
            let scope = apart(request, &scope_spans.content)?;
            if scope.entries.is_empty() {
                continue;
            }
            let spans = scope.entries.iter().map(|span| {
                let bytes = request.slice(span.whole.clone());
                raw_span(request, &span.content, bytes)
            });
            groups.push(SpanGroup {
                spans: spans.collect::<Result<_, _>>()?,
                heads: Heads {
                    resource_number,
                    resource: resource.head.clone(),
                    scope: scope.head,
                },
                service: Arc::clone(&service),
            });
        }
    }
    Ok(groups)
}

/// A request of `kept`: spans as they were taken apart, by the place of their heads in `heads`. Each
/// head stands in it once, so that it is no longer than what it was taken from, but for lengths.
pub(crate) fn put_together(heads: &[Heads], kept: &BTreeMap<usize, Vec<Bytes>>) -> Bytes {
    let mut request = BytesMut::new();
    let mut scopes = BytesMut::new();
    let mut kept = kept.iter().peekable();
    while let Some((place, spans)) = kept.next() {
        let Heads {
            resource_number,
            resource,
            scope,
        } = &heads[*place];
        let contents: Vec<&[u8]> = std::iter::once(&scope[..])
            .chain(spans.iter().map(|span| &span[..]))
            .collect();
        put_field(&mut scopes, ENTRIES, &contents);
        let next = kept.peek().map(|(place, _)| &heads[**place]);
        if next.is_none_or(|next| next.resource_number != *resource_number) {
            put_field(&mut request, RESOURCE_SPANS, &[resource, &scopes]);
            scopes.clear();
        }
    }
    request.freeze()
}

fn raw_span(request: &Bytes, content: &Range<usize>, bytes: Bytes) -> Result<RawSpan, WireError> {
    let mut cursor = Cursor::over(request).within(content.clone());
    let (mut trace_id, mut start, mut end, mut is_error) = ([0; 16], 0, 0, false);
    while cursor.at < cursor.end {
        let field = cursor.field(0)?;
        let content = &request[field.content.clone()];
        match field.number {
            schema::SPAN_TRACE_ID => trace_id = content.try_into().unwrap_or_default(),
            START => start = fixed64(content),
            END => end = fixed64(content),
            STATUS => {
                let code = last_of(request, field.content, CODE)?;
                is_error = code.is_some_and(|code| {
                    let varint = Cursor::over(request).within(code).varint();
                    varint.is_ok_and(|code| code == ERROR)
                });
            }
            _ => {}
        }
    }
    Ok(RawSpan {
        bytes,
        trace_id,
        is_error,
        duration: Duration::from_nanos(end.saturating_sub(start)),
    })
}

fn fixed64(content: &[u8]) -> u64 {
    content.try_into().map(u64::from_le_bytes).unwrap_or(0)
}

/// From the head of a `ResourceSpans`.
fn service_name(head: &Bytes) -> Result<Arc<str>, WireError> {
    let mut service = Arc::default();
    for resource in all_of(head, 0..head.len(), RESOURCE)? {
        for attribute in all_of(head, resource, ATTRIBUTES)? {
            let key = last_of(head, attribute.clone(), KEY)?;
            if key.is_none_or(|key| &head[key] != SERVICE_NAME) {
                continue;
            }
            let value = last_of(head, attribute, VALUE)?;
            let text = value
                .map(|value| last_of(head, value, STRING))
                .transpose()?;
            if let Some(text) = text.flatten() {
                service = String::from_utf8_lossy(&head[text]).into();
            }
        }
    }
    Ok(service)
}

fn all_of(data: &[u8], message: Range<usize>, number: u32) -> Result<Vec<Range<usize>>, WireError> {
    let mut cursor = Cursor::over(data).within(message);
    let mut found = Vec::new();
    while cursor.at < cursor.end {
        let field = cursor.field(0)?;
        if field.number == number {
            found.push(field.content);
        }
    }
    Ok(found)
}

fn last_of(
    data: &[u8],
    message: Range<usize>,
    number: u32,
) -> Result<Option<Range<usize>>, WireError> {
    Ok(all_of(data, message, number)?.pop())
}
