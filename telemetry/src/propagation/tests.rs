//! What each format reads and writes, one line a case.

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use opentelemetry::baggage::BaggageExt;
use opentelemetry::trace::TraceContextExt;

use super::Propagator;
use crate::config::PropagatorKind::{self, B3, B3Multi, Baggage, Jaeger, TraceContext};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    lines
        .iter()
        .map(|(name, value)| {
            let name: HeaderName = name.parse().expect("a header name");
            (name, HeaderValue::from_str(value).expect("a header value"))
        })
        .collect()
}

fn lines(headers: &HeaderMap) -> Vec<(&str, &str)> {
    let mut lines: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().expect("ASCII")))
        .collect();
    lines.sort_unstable();
    lines
}

/// Headers come in; `expect` is `{trace id}-{span id}-{sampled}` of the parent, or nothing.
fn check_extract(kind: PropagatorKind, given: &[(&str, &str)], expect: &str) {
    let cx = Propagator::new(&[kind]).extract(&headers(given));
    let span = cx.span();
    let parent = span.span_context();
    let found = match parent.is_valid() {
        true => format!(
            "{}-{}-{}",
            parent.trace_id(),
            parent.span_id(),
            u8::from(parent.is_sampled())
        ),
        false => String::new(),
    };
    assert_eq!(found, expect, "{kind:?} from {given:?}");
    assert!(!parent.is_valid() || parent.is_remote());
}

/// Headers come in and their context goes out into the same headers.
fn check_pass_on(kind: PropagatorKind, given: &[(&str, &str)], expect: &[(&str, &str)]) {
    let propagator = Propagator::new(&[kind]);
    let mut map = headers(given);
    let cx = propagator.extract(&map);
    propagator.inject(&cx, &mut map);
    let mut expect = expect.to_vec();
    expect.sort_unstable();
    assert_eq!(lines(&map), expect, "{kind:?} from {given:?}");
}

#[test]
fn traceparent_is_read_as_the_standard_says() {
    let sampled = format!("{TRACE}-{SPAN}-1");
    let check = |value: &str, expect: &str| {
        check_extract(TraceContext, &[("traceparent", value)], expect);
    };
    check(&format!("00-{TRACE}-{SPAN}-01"), &sampled);
    check(
        &format!("00-{TRACE}-{SPAN}-00"),
        &format!("{TRACE}-{SPAN}-0"),
    );
    check(&format!("00-{TRACE}-{SPAN}-03"), &sampled);
    check(
        &format!("cc-{TRACE}-{SPAN}-01-what-the-future-holds"),
        &sampled,
    );
    for bad in [
        String::new(),
        format!("00-{TRACE}-{SPAN}"),
        format!("00-{TRACE}-{SPAN}-01-"),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{}-{SPAN}-01", &TRACE[2..]),
        format!("00-{}-{SPAN}-01", "0".repeat(32)),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-+{}-{SPAN}-01", &TRACE[1..]),
        format!("0-{TRACE}-{SPAN}-01"),
    ] {
        check(&bad, "");
    }
    let parent = format!("00-{TRACE}-{SPAN}-01");
    check_extract(TraceContext, &[("traceparent", &*parent); 2], "");
}

#[test]
fn tracestate_on_several_lines_is_one_and_an_empty_one_is_not_sent() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    check_pass_on(
        TraceContext,
        &[
            ("traceparent", &parent),
            ("tracestate", "a=1"),
            ("tracestate", "b=2"),
        ],
        &[("traceparent", &parent), ("tracestate", "a=1,b=2")],
    );
    check_pass_on(
        TraceContext,
        &[("traceparent", &parent)],
        &[("traceparent", &parent)],
    );
    check_pass_on(
        TraceContext,
        &[("traceparent", &parent), ("tracestate", "")],
        &[("traceparent", &parent)],
    );
}

#[test]
fn baggage_is_read_from_every_line() {
    let given = headers(&[("baggage", "user=ann"), ("baggage", "region=north%20sea")]);
    let cx = Propagator::new(&[Baggage]).extract(&given);
    let get = |key: &str| cx.baggage().get(key).map(|value| value.as_str().to_owned());
    assert_eq!(get("user").as_deref(), Some("ann"));
    assert_eq!(get("region").as_deref(), Some("north sea"));
}

#[test]
fn b3_is_read_in_both_forms_whichever_is_written() {
    let short = "a3ce929d0e0e4736";
    let padded = format!("0000000000000000{short}");
    for kind in [B3, B3Multi] {
        let check = |value: &str, expect: &str| check_extract(kind, &[("b3", value)], expect);
        check(&format!("{TRACE}-{SPAN}-1"), &format!("{TRACE}-{SPAN}-1"));
        check(
            &format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"),
            &format!("{TRACE}-{SPAN}-1"),
        );
        check(&format!("{TRACE}-{SPAN}-0"), &format!("{TRACE}-{SPAN}-0"));
        check(&format!("{TRACE}-{SPAN}-d"), &format!("{TRACE}-{SPAN}-1"));
        check(&format!("{TRACE}-{SPAN}"), &format!("{TRACE}-{SPAN}-0"));
        check(&format!("{short}-{SPAN}-1"), &format!("{padded}-{SPAN}-1"));
        check("0", "");
        check("1", "");
        check(&format!("{TRACE}-{SPAN}-x"), "");
        check(&format!("{TRACE}-{SPAN}-1-zz"), "");
        check(&format!("{}-{SPAN}-1", &TRACE[1..]), "");
        check(&format!("{TRACE}-{}-1", "0".repeat(16)), "");

        let ids = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
        let check = |more: &[(&str, &str)], expect: &str| {
            check_extract(
                kind,
                &[&ids[..], more].concat(),
                &format!("{TRACE}-{SPAN}-{expect}"),
            );
        };
        check(&[("x-b3-sampled", "1")], "1");
        check(&[("x-b3-sampled", "true")], "1");
        check(&[("x-b3-sampled", "0")], "0");
        check(&[("x-b3-flags", "1")], "1");
        check(&[("x-b3-flags", "1"), ("x-b3-sampled", "0")], "1");
        check(&[], "0");
        check_extract(kind, &[("x-b3-traceid", TRACE)], "");
        let single = format!("{padded}-{SPAN}-1");
        let both = [&ids[..], &[("x-b3-sampled", "0"), ("b3", &single)]].concat();
        check_extract(kind, &both, &single);
    }
}

#[test]
fn b3_passes_on_the_decision_and_drops_what_belonged_to_the_span_before() {
    let (accept, debug) = (format!("{TRACE}-{SPAN}-1"), format!("{TRACE}-{SPAN}-d"));
    let parented = format!("{accept}-05e3ac9a4f6e3b90");
    let ids = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
    let multi = |more: &[(&'static str, &'static str)]| [&ids[..], more].concat();

    check_pass_on(B3, &[("b3", &parented)], &[("b3", &accept)]);
    check_pass_on(B3, &[("b3", &debug)], &[("b3", &debug)]);
    check_pass_on(B3, &multi(&[("x-b3-flags", "1")]), &[("b3", &debug)]);
    check_pass_on(B3Multi, &[("b3", &debug)], &multi(&[("x-b3-flags", "1")]));
    check_pass_on(
        B3Multi,
        &multi(&[
            ("x-b3-sampled", "1"),
            ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
        ]),
        &multi(&[("x-b3-sampled", "1")]),
    );
    check_pass_on(B3Multi, &[("b3", "0")], &[("b3", "0")]);
}

#[test]
fn jaeger_header_is_read_with_short_ids_and_encoded_colons() {
    let check = |value: &str, expect: &str| {
        check_extract(Jaeger, &[("uber-trace-id", value)], expect);
    };
    check(&format!("{TRACE}:{SPAN}:0:1"), &format!("{TRACE}-{SPAN}-1"));
    check(&format!("{TRACE}:{SPAN}:0:0"), &format!("{TRACE}-{SPAN}-0"));
    check(
        &format!("{TRACE}:{SPAN}:0:03"),
        &format!("{TRACE}-{SPAN}-1"),
    );
    check(
        &format!("{TRACE}:{SPAN}:{SPAN}:1"),
        &format!("{TRACE}-{SPAN}-1"),
    );
    check(
        &format!("{TRACE}%3A{SPAN}%3a0%3A1"),
        &format!("{TRACE}-{SPAN}-1"),
    );
    let (short_trace, short_span) = (format!("{:032x}", 0xabc), format!("{:016x}", 0xf));
    check("abc:f:0:1", &format!("{short_trace}-{short_span}-1"));
    check(&format!("{TRACE}:{SPAN}:0"), "");
    check(&format!("{TRACE}:{SPAN}:0:1:2"), "");
    check(&format!("{TRACE}:{SPAN}:0:x"), "");
    check(&format!("0:{SPAN}:0:1"), "");
    check(&format!("{TRACE}:0:0:1"), "");
    check(&format!("{TRACE}0:{SPAN}:0:1"), "");
}

#[test]
fn jaeger_header_is_written_in_full() {
    let expect = format!("{:032x}:{:016x}:0:3", 0xabc, 0xf);
    check_pass_on(
        Jaeger,
        &[("uber-trace-id", "abc:f:1:3")],
        &[("uber-trace-id", &expect)],
    );
}

#[test]
fn no_propagators_read_and_write_nothing() {
    let propagator = Propagator::new(&[]);
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let mut map = headers(&[("traceparent", &parent)]);
    let cx = propagator.extract(&map);
    assert!(!cx.span().span_context().is_valid());
    propagator.inject(&cx, &mut map);
    assert_eq!(lines(&map), [("traceparent", &*parent)]);
    assert!(propagator.fields().is_empty());
}

#[test]
fn fields_are_those_of_all_formats() {
    let fields = |kinds: &[PropagatorKind]| Propagator::new(kinds).fields().join(" ");
    assert_eq!(
        fields(&[TraceContext, Baggage]),
        "baggage traceparent tracestate"
    );
    let b3 = "b3 x-b3-flags x-b3-parentspanid x-b3-sampled x-b3-spanid x-b3-traceid";
    for kinds in [&[B3][..], &[B3Multi], &[B3, B3Multi]] {
        assert_eq!(
            fields(kinds),
            b3,
            "a reader of one form must not find the other"
        );
    }
    assert_eq!(fields(&[Jaeger]), "uber-trace-id");
}

#[test]
fn formats_that_share_headers_are_all_written() {
    let (older, single) = ("0".repeat(15) + "1", format!("{TRACE}-{SPAN}-1"));
    for kinds in [[B3, B3Multi], [B3Multi, B3]] {
        let propagator = Propagator::new(&kinds);
        let cx = propagator.extract(&headers(&[("b3", &single)]));
        let mut map = headers(&[("x-b3-parentspanid", &older), ("x-b3-flags", "1")]);
        propagator.inject(&cx, &mut map);
        let expect = [
            ("b3", &*single),
            ("x-b3-sampled", "1"),
            ("x-b3-spanid", SPAN),
            ("x-b3-traceid", TRACE),
        ];
        assert_eq!(lines(&map), expect, "{kinds:?}");
    }
}
