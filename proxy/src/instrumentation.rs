//! What the environment says about HTTP spans: known methods, excluded URLs, captured headers.
//!
//! The names are those of the OpenTelemetry instrumentations, `OTEL_PYTHON_*` included, so that
//! a deployment that traced its server with `opentelemetry-instrument` keeps its settings.

use std::borrow::Cow;

use lantern_telemetry::config::{ConfigError, from_env};
use opentelemetry::KeyValue;
use opentelemetry_semantic_conventions::attribute::{
    HTTP_REQUEST_HEADER, HTTP_REQUEST_METHOD, HTTP_REQUEST_METHOD_ORIGINAL, HTTP_RESPONSE_HEADER,
};
use regex::RegexSet;

use crate::headers::{CapturedHeaders, HeaderNames};

const KNOWN_METHODS: &str = "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS";
const EXCLUDED_URLS_FASTAPI: &str = "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS";
const EXCLUDED_URLS: &str = "OTEL_PYTHON_EXCLUDED_URLS";
const CAPTURE_REQUEST: &str = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST";
const CAPTURE_RESPONSE: &str = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE";
const CAPTURE_CLIENT_REQUEST: &str = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST";
const CAPTURE_CLIENT_RESPONSE: &str = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE";
const CAPTURE_CONTENT: &str = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT";
const SANITIZE_FIELDS: &str = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS";

/// RFC 9110, PATCH (RFC 5789) and QUERY; the usual ones first, since the list is scanned.
const DEFAULT_METHODS: &[&str] = &[
    "POST", "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "QUERY", "CONNECT", "TRACE",
];

/// The method of a request whose method is unknown, or could not be read.
pub(crate) const OTHER_METHOD: &str = "_OTHER";

/// The place of an unknown method in a span's name.
pub(crate) const OTHER_METHOD_NAME: &str = "HTTP";

/// How much of a request's body, and of its answer's, is kept for the messages in it. More does not
/// fit well into a span.
const CONTENT_BYTES: usize = 64 * 1024;

/// How HTTP spans are written. The default captures no header and excludes no URL.
#[derive(Clone, Debug)]
pub struct Instrumentation {
    known_methods: Vec<Cow<'static, str>>,
    excluded_urls: Option<RegexSet>,
    /// What is captured of heads on the client's side, and on the upstream's.
    pub(crate) server_request: CapturedHeaders,
    pub(crate) server_response: CapturedHeaders,
    pub(crate) client_request: CapturedHeaders,
    pub(crate) client_response: CapturedHeaders,
    captures_content: bool,
}

impl Default for Instrumentation {
    fn default() -> Self {
        Self::from_vars(|_| None).expect("no variable, nothing to be wrong")
    }
}

impl Instrumentation {
    /// From the process's environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        from_env(|get| Self::from_vars(get))
    }

    /// From variables that `get` looks up. An empty variable counts as unset.
    pub fn from_vars(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let get = |name| get(name).filter(|value| !value.trim().is_empty());
        let sanitize = header_names(SANITIZE_FIELDS, &get)?;
        let captured = |prefix, variable| {
            let names = header_names(variable, &get)?;
            Ok(CapturedHeaders::new(prefix, names, sanitize.clone()))
        };
        Ok(Self {
            known_methods: known_methods(get(KNOWN_METHODS)),
            excluded_urls: excluded_urls(&get)?,
            server_request: captured(HTTP_REQUEST_HEADER, CAPTURE_REQUEST)?,
            server_response: captured(HTTP_RESPONSE_HEADER, CAPTURE_RESPONSE)?,
            client_request: captured(HTTP_REQUEST_HEADER, CAPTURE_CLIENT_REQUEST)?,
            client_response: captured(HTTP_RESPONSE_HEADER, CAPTURE_CLIENT_RESPONSE)?,
            captures_content: captures_content(get(CAPTURE_CONTENT))?,
        })
    }

    /// The value of `http.request.method`, or `None` for a method nobody knows.
    pub(crate) fn known_method(&self, method: &str) -> Option<Cow<'static, str>> {
        self.known_methods
            .iter()
            .find(|known| *known == method)
            .cloned()
    }

    /// How much of each body is kept for its messages; `None` when they are not recorded.
    pub(crate) fn content_bytes(&self) -> Option<usize> {
        self.captures_content.then_some(CONTENT_BYTES)
    }

    pub(crate) fn has_excluded_urls(&self) -> bool {
        self.excluded_urls.is_some()
    }

    /// Whether requests to `url` (scheme, host and path) leave no span.
    pub(crate) fn is_excluded(&self, url: &str) -> bool {
        self.excluded_urls
            .as_ref()
            .is_some_and(|excluded| excluded.is_match(url))
    }
}

/// Appends the method's attributes. `None` for an unknown method, which has no place where there are few
/// distinct values: in a span's name, or a series.
pub(crate) fn method_attributes(
    instrumentation: &Instrumentation,
    method: &str,
    attributes: &mut Vec<KeyValue>,
) -> Option<Cow<'static, str>> {
    let known = instrumentation.known_method(method);
    if let Some(known) = &known {
        attributes.push(KeyValue::new(HTTP_REQUEST_METHOD, known.clone()));
    } else {
        attributes.push(KeyValue::new(HTTP_REQUEST_METHOD, OTHER_METHOD));
        if method != OTHER_METHOD {
            let original = KeyValue::new(HTTP_REQUEST_METHOD_ORIGINAL, method.to_owned());
            attributes.push(original);
        }
    }
    known
}

fn known_methods(list: Option<String>) -> Vec<Cow<'static, str>> {
    match list {
        // The variable replaces the list, it does not add to it.
        Some(list) => entries(&list)
            .map(|method| method.to_owned().into())
            .collect(),
        None => DEFAULT_METHODS
            .iter()
            .map(|&method| method.into())
            .collect(),
    }
}

/// The variable was a switch once; now it says where messages go.
fn captures_content(value: Option<String>) -> Result<bool, ConfigError> {
    let Some(value) = value else { return Ok(false) };
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "span_only" | "span_and_event" => Ok(true),
        "false" | "no_content" => Ok(false),
        _ => Err(ConfigError::new(
            CAPTURE_CONTENT,
            &value,
            "true, span_only, span_and_event (of which only the span has them), false or no_content",
        )),
    }
}

fn excluded_urls(
    get: &impl Fn(&'static str) -> Option<String>,
) -> Result<Option<RegexSet>, ConfigError> {
    let (variable, list) = match (get(EXCLUDED_URLS_FASTAPI), get(EXCLUDED_URLS)) {
        (Some(list), _) => (EXCLUDED_URLS_FASTAPI, list),
        (None, Some(list)) => (EXCLUDED_URLS, list),
        (None, None) => return Ok(None),
    };
    RegexSet::new(entries(&list)).map(Some).map_err(|_| {
        ConfigError::new(
            variable,
            &list,
            "a comma-separated list of regular expressions",
        )
    })
}

fn header_names(
    variable: &'static str,
    get: &impl Fn(&'static str) -> Option<String>,
) -> Result<HeaderNames, ConfigError> {
    let list = get(variable).unwrap_or_default();
    HeaderNames::parse(&list).map_err(|_| {
        let allowed = "a comma-separated list of header names or regular expressions";
        ConfigError::new(variable, &list, allowed)
    })
}

fn entries(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variable: &str, value: &str) -> Result<Instrumentation, ConfigError> {
        Instrumentation::from_vars(|name| (name == variable).then(|| value.to_owned()))
    }

    #[test]
    fn methods_are_known_with_their_case_and_query_is_one_of_them() {
        let instrumentation = Instrumentation::default();
        assert_eq!(
            instrumentation.known_method("QUERY"),
            Some(Cow::from("QUERY"))
        );
        assert_eq!(instrumentation.known_method("get"), None);
        assert_eq!(instrumentation.known_method("FOO"), None);
    }

    #[test]
    fn the_methods_variable_replaces_the_list() {
        let instrumentation = with(KNOWN_METHODS, "FOO, BAR").expect("valid");
        assert!(instrumentation.known_method("FOO").is_some());
        assert!(instrumentation.known_method("GET").is_none());
    }

    #[test]
    fn excluded_urls_are_searched_in_the_url() {
        let instrumentation = with(EXCLUDED_URLS, "health, ^http://a/v1/m").expect("valid");
        assert!(instrumentation.is_excluded("http://a/health"));
        assert!(instrumentation.is_excluded("http://a/v1/models"));
        assert!(!instrumentation.is_excluded("http://b/v1/models"));
    }

    #[test]
    fn the_fastapi_variable_wins_over_the_general_one() {
        let both = |name: &str| match name {
            EXCLUDED_URLS => Some("health".to_owned()),
            EXCLUDED_URLS_FASTAPI => Some("metrics".to_owned()),
            _ => None,
        };
        let instrumentation = Instrumentation::from_vars(both).expect("valid");
        assert!(!instrumentation.is_excluded("http://a/health"));
        assert!(instrumentation.is_excluded("http://a/metrics"));
    }

    #[test]
    fn a_broken_expression_is_an_error_that_names_the_variable() {
        for variable in [
            EXCLUDED_URLS,
            EXCLUDED_URLS_FASTAPI,
            CAPTURE_REQUEST,
            CAPTURE_CLIENT_RESPONSE,
            SANITIZE_FIELDS,
        ] {
            let error = with(variable, "(")
                .expect_err("not an expression")
                .to_string();
            assert!(error.contains(variable) && error.contains("'('"), "{error}");
        }
    }

    #[test]
    fn messages_are_recorded_only_when_somebody_says_so() {
        assert_eq!(Instrumentation::default().content_bytes(), None);
        for (value, captured) in [("true", true), ("SPAN_ONLY", true), ("no_content", false)] {
            let instrumentation = with(CAPTURE_CONTENT, value).expect("valid");
            assert_eq!(
                instrumentation.content_bytes().is_some(),
                captured,
                "{value}"
            );
        }
        let error = with(CAPTURE_CONTENT, "event_only").expect_err("there are no events");
        assert!(error.to_string().contains(CAPTURE_CONTENT), "{error}");
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        assert!(!with(EXCLUDED_URLS, " ").expect("valid").has_excluded_urls());
    }
}
