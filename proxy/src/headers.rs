//! Captured headers: which request and response headers a span carries, and which of their values
//! are hidden. Off unless the environment names some, since headers hold credentials.
//!
//! A name is matched whole and without case. As in the other OpenTelemetry instrumentations it may
//! be a regular expression (`x-.*`); plain names, the common case, are looked up without one.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{Array, Key, KeyValue, StringValue, Value};
use regex::{RegexSet, RegexSetBuilder};

const SANITIZED: &str = "[REDACTED]";

/// Header names, plain ones apart from those that need a regular expression.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeaderNames {
    plain: Vec<HeaderName>,
    patterns: Option<RegexSet>,
}

impl HeaderNames {
    /// From a comma-separated list.
    pub(crate) fn parse(list: &str) -> Result<Self, regex::Error> {
        let mut plain = Vec::new();
        let mut patterns = Vec::new();
        for entry in list
            .split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
        {
            match HeaderName::try_from(entry) {
                // `.`, `*`, `+` and `^` are allowed in header names, yet nobody means them there.
                Ok(name) if !entry.contains(['.', '*', '+', '^', '$', '|']) => plain.push(name),
                _ => patterns.push(format!("^(?:{entry})$")),
            }
        }
        let patterns = if patterns.is_empty() {
            None
        } else {
            Some(
                RegexSetBuilder::new(patterns)
                    .case_insensitive(true)
                    .build()?,
            )
        };
        Ok(Self { plain, patterns })
    }

    fn matches(&self, name: &HeaderName) -> bool {
        self.plain.contains(name) || self.matches_pattern(name)
    }

    fn matches_pattern(&self, name: &HeaderName) -> bool {
        self.patterns
            .as_ref()
            .is_some_and(|patterns| patterns.is_match(name.as_str()))
    }
}

/// The headers of one direction that go onto the span.
#[derive(Clone, Debug)]
pub(crate) struct CapturedHeaders {
    prefix: &'static str,
    names: HeaderNames,
    /// The attribute key of each plain name, made once.
    keys: Vec<Key>,
    sanitize: HeaderNames,
}

impl CapturedHeaders {
    /// `prefix` is `http.request.header` or `http.response.header`.
    pub(crate) fn new(prefix: &'static str, names: HeaderNames, sanitize: HeaderNames) -> Self {
        let keys = names.plain.iter().map(|name| key(prefix, name)).collect();
        Self {
            prefix,
            names,
            keys,
            sanitize,
        }
    }

    /// Appends the attributes of the headers that are captured.
    pub(crate) fn capture(&self, headers: &HeaderMap, attributes: &mut Vec<KeyValue>) {
        for (name, key) in self.names.plain.iter().zip(&self.keys) {
            if headers.contains_key(name) {
                attributes.push(self.attribute(key.clone(), name, headers));
            }
        }
        if self.names.patterns.is_some() {
            for name in headers.keys() {
                if self.names.matches_pattern(name) && !self.names.plain.contains(name) {
                    attributes.push(self.attribute(key(self.prefix, name), name, headers));
                }
            }
        }
    }

    fn attribute(&self, key: Key, name: &HeaderName, headers: &HeaderMap) -> KeyValue {
        let sanitized = self.sanitize.matches(name);
        let values = headers.get_all(name).iter().map(|value| {
            if sanitized {
                StringValue::from(SANITIZED)
            } else {
                text(value).into()
            }
        });
        KeyValue::new(key, Value::Array(Array::String(values.collect())))
    }
}

/// The value as text; bytes that are not UTF-8 become U+FFFD.
pub(crate) fn text(value: &HeaderValue) -> String {
    String::from_utf8_lossy(value.as_bytes()).into_owned()
}

fn key(prefix: &str, name: &HeaderName) -> Key {
    Key::new(format!("{prefix}.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(names: &str, sanitize: &str, headers: &[(&str, &str)]) -> Vec<String> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                (
                    name.parse().expect("a name"),
                    value.parse().expect("a value"),
                )
            })
            .collect::<Vec<(HeaderName, HeaderValue)>>()
            .into_iter()
            .fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            });
        let names = HeaderNames::parse(names).expect("valid names");
        let sanitize = HeaderNames::parse(sanitize).expect("valid names");
        let mut attributes = Vec::new();
        CapturedHeaders::new("h", names, sanitize).capture(&headers, &mut attributes);
        let mut shown: Vec<_> = attributes
            .iter()
            .map(|kv| format!("{}={}", kv.key, kv.value))
            .collect();
        shown.sort();
        shown
    }

    #[test]
    fn only_named_headers_are_captured_with_all_their_values() {
        let headers = [("X-A", "1"), ("X-A", "2"), ("Cookie", "c")];
        assert_eq!(captured("x-a,x-b", "", &headers), [r#"h.x-a=["1","2"]"#]);
        assert_eq!(captured("", "", &headers), Vec::<String>::new());
    }

    #[test]
    fn a_pattern_matches_the_whole_name_without_case() {
        let headers = [("x-request-id", "1"), ("not-x-request-id", "2")];
        assert_eq!(captured("X-.*", "", &headers), [r#"h.x-request-id=["1"]"#]);
    }

    #[test]
    fn sanitized_headers_show_that_they_were_there_but_not_their_value() {
        let headers = [("authorization", "Bearer sk-1"), ("accept", "*/*")];
        assert_eq!(
            captured("authorization,accept", ".*auth.*", &headers),
            [r#"h.accept=["*/*"]"#, r#"h.authorization=["[REDACTED]"]"#]
        );
    }

    #[test]
    fn a_header_both_named_and_matched_is_captured_once() {
        assert_eq!(
            captured("x-a,x-.*", "", &[("x-a", "1")]),
            [r#"h.x-a=["1"]"#]
        );
    }
}
