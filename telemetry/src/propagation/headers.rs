//! HTTP headers as the propagation API reads and writes them, with the rules of W3C Trace Context that
//! the SDK's propagator leaves to its carrier.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector};

/// Headers that may be split over several lines, which then count as one, joined by commas.
/// <https://www.w3.org/TR/trace-context/#tracestate-header>
const LISTS: [&str; 2] = [TRACESTATE, "baggage"];
pub(super) const TRACEPARENT: &str = "traceparent";
pub(super) const TRACESTATE: &str = "tracestate";

/// Request headers to extract from.
pub(super) struct HeaderReader<'a> {
    headers: &'a HeaderMap,
    joined: [Option<String>; LISTS.len()],
}

impl<'a> HeaderReader<'a> {
    pub(super) fn new(headers: &'a HeaderMap) -> Self {
        Self {
            headers,
            joined: LISTS.map(|name| joined(headers, name)),
        }
    }
}

/// The values of a list header as one, when there are several.
fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let values = headers.get_all(name);
    values.iter().nth(1)?;
    let values: Vec<_> = values
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    Some(values.join(","))
}

impl Extractor for HeaderReader<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let list = LISTS.iter().position(|name| key.eq_ignore_ascii_case(name));
        if let Some(joined) = list.and_then(|index| self.joined[index].as_deref()) {
            return Some(joined);
        }
        let mut values = self.headers.get_all(key).iter();
        let value = values.next()?.to_str().ok()?;
        if key.eq_ignore_ascii_case(TRACEPARENT) {
            return (values.next().is_none() && is_traceparent(value)).then_some(value);
        }
        Some(value)
    }

    fn keys(&self) -> Vec<&str> {
        self.headers.keys().map(HeaderName::as_str).collect()
    }
}

/// Whether the value has the shape that the standard asks for: fields of fixed length in lowercase hex,
/// and nothing after them in version 00. The SDK's parser takes shorter fields.
/// <https://www.w3.org/TR/trace-context/#traceparent-header-field-values>
fn is_traceparent(value: &str) -> bool {
    const LENGTHS: [usize; 4] = [2, 32, 16, 2];
    let fields: Vec<_> = value.trim().split('-').collect();
    let hex = |field: &str| {
        field
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    fields.len() >= LENGTHS.len()
        && (fields.len() == LENGTHS.len() || fields[0] != "00")
        && fields
            .iter()
            .zip(LENGTHS)
            .all(|(field, length)| field.len() == length && hex(field))
}

/// Takes headers one by one.
pub(super) struct HeaderWriter<'a, F> {
    /// The names that propagators use, which need not be parsed.
    pub(super) known: &'a [HeaderName],
    pub(super) set: F,
}

impl<F: FnMut(HeaderName, HeaderValue)> Injector for HeaderWriter<'_, F> {
    fn set(&mut self, key: &str, value: String) {
        let known = self.known.iter().find(|name| name.as_str() == key);
        let name = known.map_or_else(
            || HeaderName::from_bytes(key.as_bytes()),
            |name| Ok(name.clone()),
        );
        // An empty `tracestate` says that there is none, and is not sent.
        if let (Ok(name), false, Ok(value)) = (name, value.is_empty(), HeaderValue::try_from(value))
        {
            (self.set)(name, value);
        }
    }
}
