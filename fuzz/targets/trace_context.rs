//! Trace context in request headers, in every format: what is read is passed on unchanged, and
//! traceparent is read as the standard says. A line of input is a header.
#![no_main]

use std::sync::LazyLock;

use http::{HeaderMap, HeaderName, HeaderValue};
use lantern_telemetry::{Propagator, Settings, Telemetry};
use libfuzzer_sys::fuzz_target;
use opentelemetry::trace::{SpanContext, TraceContextExt as _};

static PROPAGATORS: LazyLock<Vec<Propagator>> = LazyLock::new(|| {
    [
        "tracecontext",
        "b3",
        "b3multi",
        "jaeger",
        "tracecontext,baggage,b3,b3multi,jaeger",
    ]
    .map(propagator)
    .to_vec()
});

fn propagator(kinds: &str) -> Propagator {
    let settings = Settings::from_vars(|name| match name {
        "OTEL_PROPAGATORS" => Some(kinds.to_owned()),
        "OTEL_SDK_DISABLED" => Some("true".to_owned()),
        _ => None,
    });
    let settings = settings.expect("the variables are valid");
    Telemetry::start(&settings, "fuzz")
        .expect("nothing is exported")
        .propagator()
}

fuzz_target!(|data: &[u8]| {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let colon = line
            .iter()
            .position(|byte| *byte == b':')
            .unwrap_or(line.len());
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            headers.append(name, value);
        }
    }
    for propagator in PROPAGATORS.iter() {
        let (found, again) = passed_on(propagator, &headers);
        assert_eq!(parts(&found), parts(&again), "{headers:?}");
    }
    // The only format that has a state; of several formats the last that is there makes the context.
    let (found, again) = passed_on(&PROPAGATORS[0], &headers);
    assert_eq!(found.trace_state(), again.trace_state(), "{headers:?}");
    let expected = traceparent(&headers);
    assert_eq!(
        found.is_valid().then(|| parts(&found)),
        expected,
        "{headers:?}"
    );
});

/// What is read from `headers`, and what the next one reads to whom that is sent.
fn passed_on(propagator: &Propagator, headers: &HeaderMap) -> (SpanContext, SpanContext) {
    let context = propagator.extract(headers);
    let mut sent = HeaderMap::new();
    propagator.inject(&context, &mut sent);
    let again = propagator.extract(&sent);
    let (found, again) = (context.span(), again.span());
    (found.span_context().clone(), again.span_context().clone())
}

fn parts(context: &SpanContext) -> (String, String, bool) {
    let (trace, span) = (context.trace_id(), context.span_id());
    (trace.to_string(), span.to_string(), context.is_sampled())
}

/// <https://www.w3.org/TR/trace-context/#traceparent-header>
fn traceparent(headers: &HeaderMap) -> Option<(String, String, bool)> {
    let mut values = headers.get_all("traceparent").iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let value = value.to_str().ok()?;
    let (version, rest) = value.split_once('-')?;
    let (trace, rest) = rest.split_once('-')?;
    let (span, rest) = rest.split_once('-')?;
    let (flags, more) = rest
        .split_once('-')
        .map_or((rest, None), |(flags, more)| (flags, Some(more)));
    let is_hex = |text: &str, length| {
        text.len() == length
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |text: &str, length| is_hex(text, length) && text.bytes().any(|byte| byte != b'0');
    let is_version = is_hex(version, 2) && version != "ff" && (version != "00" || more.is_none());
    if !is_version || !is_id(trace, 32) || !is_id(span, 16) || !is_hex(flags, 2) {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some((trace.to_owned(), span.to_owned(), flags & 1 == 1))
}
