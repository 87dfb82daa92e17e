//! What `GET /api/traces` may ask for: Jaeger's parameters, read and applied.

use std::collections::BTreeMap;
use std::time::Duration;

use super::model::{Attribute, Span};

/// Traces answered when the query does not say how many.
const DEFAULT_LIMIT: usize = 100;
/// How far back a query without a start looks.
const DEFAULT_LOOKBACK: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// A search: a trace is found when one of its spans fits all of it.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct TraceQuery {
    /// None finds the traces of every service.
    pub(crate) service: Option<String>,
    pub(crate) operation: Option<String>,
    pub(crate) start_min_ns: u64,
    pub(crate) start_max_ns: u64,
    pub(crate) duration_min_ns: Option<u64>,
    pub(crate) duration_max_ns: Option<u64>,
    pub(crate) tags: BTreeMap<String, String>,
    pub(crate) limit: usize,
    /// Ids asked for by name; a query with some needs no service.
    pub(crate) trace_ids: Vec<String>,
}

/// Why a query cannot be answered, in Jaeger's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueryError {
    #[error("parameter 'service' is required")]
    ServiceRequired,
    #[error("unable to parse param '{parameter}': {reason}: {value:?}")]
    Unparsable {
        parameter: &'static str,
        reason: &'static str,
        value: String,
    },
    #[error("'maxDuration' should be greater than 'minDuration'")]
    DurationOrder,
    #[error("malformed 'tag' parameter, expecting key:value, received: {0}")]
    Tag(String),
    #[error("malformed 'tags' parameter, cannot unmarshal JSON: {0}")]
    Tags(String),
}

impl TraceQuery {
    /// Any trace that starts before or at `start_max_ns`, at most `limit`.
    pub(crate) fn newest(start_max_ns: u64, limit: usize) -> TraceQuery {
        TraceQuery {
            start_max_ns,
            limit,
            ..TraceQuery::default()
        }
    }

    /// Reads the parameters of a search made at `now_ns`.
    pub(crate) fn parse(
        parameters: &[(String, String)],
        now_ns: u64,
    ) -> Result<TraceQuery, QueryError> {
        let mut query = TraceQuery::newest(now_ns, DEFAULT_LIMIT);
        let (mut start_ns, mut lookback) = (None, DEFAULT_LOOKBACK);
        for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
            match name.as_str() {
                "service" => query.service = Some(value.clone()),
                "operation" => query.operation = Some(value.clone()),
                "traceID" => query.trace_ids.push(value.clone()),
                "start" => start_ns = Some(micros("start", value)?),
                "end" => query.start_max_ns = micros("end", value)?,
                // "custom" is what the UI says beside an explicit start.
                "lookback" => lookback = parse_duration(value).unwrap_or(DEFAULT_LOOKBACK),
                "limit" => query.limit = number("limit", value)?,
                "minDuration" => query.duration_min_ns = Some(duration("minDuration", value)?),
                "maxDuration" => query.duration_max_ns = Some(duration("maxDuration", value)?),
                "tag" => {
                    let (key, value) = value
                        .split_once(':')
                        .ok_or_else(|| QueryError::Tag(value.clone()))?;
                    query.tags.insert(key.to_owned(), value.to_owned());
                }
                "tags" => query.tags.append(
                    &mut serde_json::from_str::<BTreeMap<String, String>>(value)
                        .map_err(|error| QueryError::Tags(error.to_string()))?,
                ),
                _ => {}
            }
        }
        query.start_min_ns =
            start_ns.unwrap_or_else(|| query.start_max_ns.saturating_sub(nanos(lookback)));
        if query.service.is_none() && query.trace_ids.is_empty() {
            return Err(QueryError::ServiceRequired);
        }
        match (query.duration_min_ns, query.duration_max_ns) {
            (Some(min), Some(max)) if max < min => Err(QueryError::DurationOrder),
            _ => Ok(query),
        }
    }

    /// Whether `span` fits, ids apart.
    pub(crate) fn matches(&self, span: &Span) -> bool {
        let duration_ns = span.duration_ns();
        self.service
            .as_ref()
            .is_none_or(|service| **service == *span.service_name)
            && self
                .operation
                .as_ref()
                .is_none_or(|operation| *operation == span.name)
            && (self.start_min_ns..=self.start_max_ns).contains(&span.start_unix_ns)
            && self.duration_min_ns.is_none_or(|min| duration_ns >= min)
            && self.duration_max_ns.is_none_or(|max| duration_ns <= max)
            && self
                .tags
                .iter()
                .all(|(key, value)| has_tag(span, key, value))
    }
}

/// A tag is looked for where Jaeger looks: on the span, its events and its process, and among
/// the tags that Jaeger makes of a span's own fields.
fn has_tag(span: &Span, key: &str, value: &str) -> bool {
    let listed = |attributes: &[Attribute]| {
        attributes
            .iter()
            .any(|tag| tag.key == key && tag.value.to_string() == value)
    };
    listed(&span.attributes)
        || listed(&span.resource.attributes)
        || span
            .events
            .iter()
            .any(|event| (key == "event" && event.name == value) || listed(&event.attributes))
        || made_tags(span)
            .iter()
            .any(|(made, is)| *made == key && *is == value)
}

/// The one of [`made_tags`] that Jaeger types as a boolean; it is there only when true.
pub(crate) const ERROR_TAG: &str = "error";

/// The tags that Jaeger makes of a span's kind and status.
pub(crate) fn made_tags(span: &Span) -> Vec<(&'static str, &'static str)> {
    use super::model::{SpanKind, StatusCode};
    let mut tags = Vec::new();
    if span.kind != SpanKind::Unspecified {
        tags.push(("span.kind", span.kind.as_str()));
    }
    match span.status.code {
        StatusCode::Unset => {}
        StatusCode::Ok => tags.push(("otel.status_code", "OK")),
        StatusCode::Error => tags.extend([("otel.status_code", "ERROR"), (ERROR_TAG, "true")]),
    }
    tags
}

fn number<T: std::str::FromStr>(parameter: &'static str, value: &str) -> Result<T, QueryError> {
    value.parse().map_err(|_| QueryError::Unparsable {
        parameter,
        reason: "not a whole number",
        value: value.to_owned(),
    })
}

fn micros(parameter: &'static str, value: &str) -> Result<u64, QueryError> {
    Ok(number::<u64>(parameter, value)?.saturating_mul(1_000))
}

fn duration(parameter: &'static str, value: &str) -> Result<u64, QueryError> {
    parse_duration(value)
        .map(nanos)
        .ok_or_else(|| QueryError::Unparsable {
            parameter,
            reason: "not a duration such as 1.5s or 300ms",
            value: value.to_owned(),
        })
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Go's notation: `1h30m`, `1.5s`, `300ms`, `12us`, and days as the UI's lookback has them.
fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3_600.0),
        ("d", 86_400.0),
    ];
    let mut seconds = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let amount: f64 = rest[..digits].parse().ok()?;
        let after = &rest[digits..];
        let unit = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == &after[..unit])?;
        seconds += amount * factor;
        rest = &after[unit..];
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(seconds).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(parameters: &[(&str, &str)]) -> Result<TraceQuery, QueryError> {
        let owned: Vec<_> = parameters
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        TraceQuery::parse(&owned, 10_000_000_000)
    }

    #[test]
    fn durations_read_as_go_reads_them() {
        let check = |text, expect| assert_eq!(parse_duration(text), expect, "{text:?}");
        check("1h30m", Some(Duration::from_secs(5_400)));
        check("1.5s", Some(Duration::from_millis(1_500)));
        check("300ms", Some(Duration::from_millis(300)));
        check("12us", Some(Duration::from_micros(12)));
        check("2d", Some(Duration::from_secs(172_800)));
        check("", None);
        check("12", None);
        check("custom", None);
        check("1.2.3s", None);
    }

    #[test]
    fn a_search_needs_a_service_or_ids() {
        assert_eq!(parse(&[("limit", "20")]), Err(QueryError::ServiceRequired));
        assert!(parse(&[("traceID", "abc")]).is_ok());
    }

    #[test]
    fn micros_become_nanoseconds_and_lookback_ends_at_the_end() {
        let query = parse(&[("service", "s"), ("end", "5000000"), ("lookback", "2s")]);
        let query = query.expect("well formed");
        assert_eq!(
            (query.start_min_ns, query.start_max_ns),
            (3_000_000_000, 5_000_000_000)
        );
        let query = parse(&[("service", "s"), ("start", "7"), ("lookback", "custom")]);
        assert_eq!(query.expect("well formed").start_min_ns, 7_000);
    }

    #[test]
    fn bad_values_are_named() {
        let check = |name, value, expect: &str| {
            let error = parse(&[("service", "s"), (name, value)]).expect_err("bad value");
            assert_eq!(error.to_string(), expect);
        };
        check(
            "limit",
            "many",
            "unable to parse param 'limit': not a whole number: \"many\"",
        );
        check(
            "tag",
            "x",
            "malformed 'tag' parameter, expecting key:value, received: x",
        );
        check(
            "minDuration",
            "fast",
            "unable to parse param 'minDuration': not a duration such as 1.5s or 300ms: \"fast\"",
        );
        assert!(matches!(parse(&[("tags", "{")]), Err(QueryError::Tags(_))));
        let order = parse(&[
            ("service", "s"),
            ("minDuration", "2s"),
            ("maxDuration", "1s"),
        ]);
        assert_eq!(order, Err(QueryError::DurationOrder));
    }
}
