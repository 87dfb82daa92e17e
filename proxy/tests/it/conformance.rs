//! Raw requests in, expected spans out: the HTTP semantic conventions as a table.

use http::HeaderMap;
use lantern_proxy::Instrumentation;
use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;

use crate::support::{Echo, TestProxy, attribute, config, request};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

#[derive(Clone, Copy)]
struct Case {
    title: &'static str,
    /// The request's lines. `Host` and, for a body, `Content-Length` are among them.
    lines: &'static [&'static str],
    body: &'static str,
    name: &'static str,
    status: u16,
    error_type: Option<&'static str>,
    has: &'static [(&'static str, &'static str)],
    lacks: &'static [&'static str],
    /// Whether the span continues [`TRACE_ID`] below [`PARENT_ID`]; a new root otherwise.
    continues: bool,
    /// Headers that the upstream gets; `None` for one that it must not get.
    sent: &'static [(&'static str, Option<&'static str>)],
}

const BASE: Case = Case {
    title: "",
    lines: &[],
    body: "",
    name: "GET",
    status: 200,
    error_type: None,
    has: &[],
    lacks: &[],
    continues: false,
    sent: &[],
};

const CASES: &[Case] = &[
    Case {
        title: "a known route is in the name",
        lines: &[
            "GET /v1/models HTTP/1.1",
            "Host: localhost:8000",
            "User-Agent: probe/1.0",
        ],
        name: "GET /v1/models",
        has: &[
            ("http.request.method", "GET"),
            ("http.route", "/v1/models"),
            ("url.path", "/v1/models"),
            ("url.scheme", "http"),
            ("server.address", "localhost"),
            ("server.port", "8000"),
            ("client.address", "127.0.0.1"),
            ("network.peer.address", "127.0.0.1"),
            ("network.protocol.version", "1.1"),
            ("user_agent.original", "probe/1.0"),
            ("http.response.status_code", "200"),
            ("http.response.body.size", "8"),
        ],
        lacks: &[
            "url.query",
            "error.type",
            "http.request.body.size",
            "http.request.method_original",
        ],
        ..BASE
    },
    Case {
        title: "a body's size is that of its payload",
        lines: &[
            "POST /v1/completions HTTP/1.1",
            "Host: a",
            "Content-Length: 13",
        ],
        body: r#"{"model":"m"}"#,
        name: "POST /v1/completions",
        has: &[("http.request.body.size", "13")],
        ..BASE
    },
    Case {
        title: "a chunked body's size is that of its payload, too",
        lines: &[
            "POST /v1/chat/completions HTTP/1.1",
            "Host: a",
            "Transfer-Encoding: chunked",
        ],
        body: "5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
        name: "POST /v1/chat/completions",
        has: &[("http.request.body.size", "6")],
        ..BASE
    },
    Case {
        title: "a route with a parameter",
        lines: &["GET /v1/models/facebook/opt-125m HTTP/1.1", "Host: a"],
        name: "GET /v1/models/{model}",
        has: &[
            ("http.route", "/v1/models/{model}"),
            ("url.path", "/v1/models/facebook/opt-125m"),
        ],
        ..BASE
    },
    Case {
        title: "an unknown path is never in the name",
        lines: &["GET /users/42 HTTP/1.1", "Host: a"],
        name: "GET",
        has: &[("url.path", "/users/42")],
        lacks: &["http.route"],
        ..BASE
    },
    Case {
        title: "an unknown method is _OTHER, with the original beside it",
        lines: &["BREW /pot HTTP/1.1", "Host: a"],
        name: "HTTP",
        has: &[
            ("http.request.method", "_OTHER"),
            ("http.request.method_original", "BREW"),
        ],
        ..BASE
    },
    Case {
        title: "an unknown method on a known route keeps the route",
        lines: &["BREW /health HTTP/1.1", "Host: a"],
        name: "HTTP /health",
        has: &[("http.route", "/health")],
        ..BASE
    },
    Case {
        title: "methods are told apart by case",
        lines: &["get /health HTTP/1.1", "Host: a"],
        name: "HTTP /health",
        has: &[
            ("http.request.method", "_OTHER"),
            ("http.request.method_original", "get"),
        ],
        ..BASE
    },
    Case {
        title: "QUERY is a known method",
        lines: &["QUERY /v1/models HTTP/1.1", "Host: a"],
        name: "QUERY /v1/models",
        has: &[("http.request.method", "QUERY")],
        lacks: &["http.request.method_original"],
        ..BASE
    },
    Case {
        title: "OPTIONS of the server has no route",
        lines: &["OPTIONS * HTTP/1.1", "Host: a"],
        name: "OPTIONS",
        lacks: &["http.route"],
        ..BASE
    },
    Case {
        title: "DELETE is known",
        lines: &["DELETE /v1/responses/resp_1 HTTP/1.1", "Host: a"],
        name: "DELETE /v1/responses/{response_id}",
        ..BASE
    },
    Case {
        title: "a query is kept, and its secrets are not",
        lines: &[
            "GET /v1/models?limit=2&api_key=sk-1&sig=abc HTTP/1.1",
            "Host: a",
        ],
        name: "GET /v1/models",
        has: &[
            ("url.query", "limit=2&api_key=REDACTED&sig=REDACTED"),
            ("url.path", "/v1/models"),
        ],
        ..BASE
    },
    Case {
        title: "every known credential is redacted",
        lines: &[
            "GET /?X-Amz-Signature=1&X-Amz-Credential=2&X-Amz-Security-Token=3&AWSAccessKeyId=4&Signature=5&X-Goog-Signature=6 HTTP/1.1",
            "Host: a",
        ],
        name: "GET /",
        has: &[(
            "url.query",
            "X-Amz-Signature=REDACTED&X-Amz-Credential=REDACTED&X-Amz-Security-Token=REDACTED&AWSAccessKeyId=REDACTED&Signature=REDACTED&X-Goog-Signature=REDACTED",
        )],
        ..BASE
    },
    Case {
        title: "a 4xx leaves the status unset",
        lines: &["GET /health HTTP/1.1", "Host: a", "X-Answer: 404"],
        name: "GET /health",
        status: 404,
        lacks: &["error.type"],
        ..BASE
    },
    Case {
        title: "a 429 leaves the status unset",
        lines: &["GET /health HTTP/1.1", "Host: a", "X-Answer: 429"],
        name: "GET /health",
        status: 429,
        lacks: &["error.type"],
        ..BASE
    },
    Case {
        title: "a 500 is an error",
        lines: &["GET /health HTTP/1.1", "Host: a", "X-Answer: 500"],
        name: "GET /health",
        status: 500,
        error_type: Some("500"),
        ..BASE
    },
    Case {
        title: "a 503 is an error",
        lines: &["GET /health HTTP/1.1", "Host: a", "X-Answer: 503"],
        name: "GET /health",
        status: 503,
        error_type: Some("503"),
        ..BASE
    },
    Case {
        title: "a host without a port has no server.port",
        lines: &["GET /health HTTP/1.1", "Host: llm.example"],
        name: "GET /health",
        has: &[("server.address", "llm.example")],
        lacks: &["server.port", "user_agent.original"],
        ..BASE
    },
    Case {
        title: "an IPv6 host has no brackets",
        lines: &["GET /health HTTP/1.1", "Host: [::1]:8000"],
        name: "GET /health",
        has: &[("server.address", "::1"), ("server.port", "8000")],
        ..BASE
    },
    Case {
        title: "the authority of an absolute target is the server",
        lines: &[
            "GET http://llm.example:81/health HTTP/1.1",
            "Host: llm.example:81",
        ],
        name: "GET /health",
        has: &[
            ("server.address", "llm.example"),
            ("server.port", "81"),
            ("url.path", "/health"),
        ],
        ..BASE
    },
    Case {
        title: "forwarding headers are believed from nobody, and extended",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "X-Forwarded-For: 6.6.6.6",
            "X-Forwarded-Proto: https",
            "X-Forwarded-Host: evil.example",
            "Forwarded: for=7.7.7.7;host=evil.example",
        ],
        name: "GET /health",
        has: &[
            ("client.address", "127.0.0.1"),
            ("server.address", "a"),
            ("url.scheme", "http"),
        ],
        sent: &[
            ("x-forwarded-for", Some("6.6.6.6, 127.0.0.1")),
            ("x-forwarded-proto", Some("http")),
            ("host", Some("a")),
        ],
        ..BASE
    },
    Case {
        title: "hop-by-hop headers end here",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "Connection: keep-alive, X-Hop",
            "X-Hop: 1",
            "Keep-Alive: timeout=5",
            "TE: trailers",
            "X-End: 2",
        ],
        name: "GET /health",
        sent: &[
            ("connection", None),
            ("x-hop", None),
            ("keep-alive", None),
            ("te", None),
            ("x-end", Some("2")),
        ],
        ..BASE
    },
    Case {
        title: "a valid traceparent is continued",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        continues: true,
        ..BASE
    },
    Case {
        title: "tracestate goes with its trace",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "tracestate: rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        ],
        name: "GET /health",
        continues: true,
        sent: &[(
            "tracestate",
            Some("rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"),
        )],
        ..BASE
    },
    Case {
        title: "a malformed traceparent is replaced, and its tracestate dropped",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-not-a-trace-01",
            "tracestate: rojo=1",
        ],
        name: "GET /health",
        sent: &[("tracestate", None)],
        ..BASE
    },
    Case {
        title: "an uppercase trace id is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "version ff is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "an all-zero trace id is malformed",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "a future version is read as far as it is known",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ],
        name: "GET /health",
        continues: true,
        ..BASE
    },
    Case {
        title: "two traceparents are none",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "traceparent: 00-5bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ],
        name: "GET /health",
        ..BASE
    },
    Case {
        title: "baggage passes as it is",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "baggage: user=a%20b;p=1,x=y",
        ],
        name: "GET /health",
        sent: &[("baggage", Some("user=a%20b;p=1,x=y"))],
        ..BASE
    },
    Case {
        title: "headers that are named are captured, sanitized where asked",
        lines: &[
            "GET /health HTTP/1.1",
            "Host: a",
            "X-Tenant: blue",
            "X-Tenant: green",
            "Authorization: Bearer sk-1",
            "Cookie: private",
        ],
        name: "GET /health",
        has: &[
            ("http.request.header.x-tenant", r#"["blue","green"]"#),
            ("http.request.header.authorization", r#"["[REDACTED]"]"#),
            ("http.response.header.x-served-by", r#"["echo"]"#),
        ],
        lacks: &["http.request.header.cookie"],
        ..BASE
    },
    Case {
        title: "an answer without a body has size 0",
        lines: &["GET /health HTTP/1.1", "Host: a", "X-Answer: 204"],
        name: "GET /health",
        status: 204,
        has: &[("http.response.body.size", "0")],
        ..BASE
    },
];

#[tokio::test]
async fn spans_follow_the_http_semantic_conventions() {
    let mut echo = Echo::start().await;
    let mut config = config(echo.address);
    config.instrumentation = Instrumentation::from_vars(|name| {
        let value = match name {
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST" => "X-Tenant,authorization",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE" => "x-served-.*",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS" => "auth.*",
            _ => return None,
        };
        Some(value.to_owned())
    })
    .expect("valid variables");
    let mut proxy = TestProxy::with(config).await;

    for case in CASES {
        let mut client = proxy.connect().await;
        client.write(&request(case.lines, case.body)).await;
        let response = client.read_response_head().await;
        assert_eq!(response.status, case.status, "{}", case.title);
        let received = echo.received().await;
        let span = proxy.spans.next().await;
        let peer_port = client.local_addr().port().to_string();
        assert_eq!(
            attribute(&span, "network.peer.port"),
            Some(peer_port),
            "{}",
            case.title
        );
        check_span(case, &span);
        check_context(case, &span, received.headers());
        for (name, expected) in case.sent {
            let value = received
                .headers()
                .get(*name)
                .map(|value| value.to_str().expect("text"));
            assert_eq!(value, *expected, "{}: {name}", case.title);
        }
    }
    assert!(proxy.spans.is_empty(), "one span for each request");
}

fn check_span(case: &Case, span: &SpanData) {
    let title = case.title;
    assert_eq!(span.name, case.name, "{title}");
    assert_eq!(span.span_kind, SpanKind::Server, "{title}");
    assert_eq!(
        span.instrumentation_scope.name(),
        "lantern-proxy",
        "{title}"
    );
    let code = attribute(span, "http.response.status_code");
    assert_eq!(code, Some(case.status.to_string()), "{title}");
    assert_eq!(
        attribute(span, "error.type").as_deref(),
        case.error_type,
        "{title}"
    );
    let status = if case.error_type.is_some() {
        Status::error("")
    } else {
        Status::Unset
    };
    assert_eq!(span.status, status, "{title}");
    for (key, value) in case.has {
        assert_eq!(
            attribute(span, key).as_deref(),
            Some(*value),
            "{title}: {key}"
        );
    }
    for key in case.lacks {
        assert_eq!(attribute(span, key), None, "{title}: {key}");
    }
    let first_byte = attribute(span, "lantern.http.response.time_to_first_byte");
    let seconds: f64 = first_byte.expect(title).parse().expect("a number");
    assert!(seconds > 0.0, "{title}: {seconds}");
}

/// The span's place in its trace, and that the upstream was told the span and nothing else.
fn check_context(case: &Case, span: &SpanData, received: &HeaderMap) {
    let title = case.title;
    let context = &span.span_context;
    if case.continues {
        assert_eq!(context.trace_id().to_string(), TRACE_ID, "{title}");
        assert_eq!(span.parent_span_id.to_string(), PARENT_ID, "{title}");
    } else {
        assert_ne!(context.trace_id().to_string(), TRACE_ID, "{title}");
        assert_eq!(span.parent_span_id, SpanId::INVALID, "{title}");
    }
    let sent: Vec<_> = received.get_all("traceparent").iter().collect();
    let expected = format!("00-{}-{}-01", context.trace_id(), context.span_id());
    assert_eq!(sent, [&expected], "{title}");
}

#[tokio::test]
async fn an_excluded_url_leaves_no_span_and_its_trace_headers_as_they_are() {
    let mut echo = Echo::start().await;
    let mut config = config(echo.address);
    config.instrumentation = Instrumentation::from_vars(|name| {
        (name == "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS").then(|| "health,^http://a/v1/m".to_owned())
    })
    .expect("valid variables");
    let mut proxy = TestProxy::with(config).await;

    for path in ["/health", "/v1/models"] {
        let line = format!("GET {path} HTTP/1.1");
        proxy
            .send(&request(&[&line, "Host: a", "traceparent: kept"], ""))
            .await;
        assert_eq!(echo.received().await.headers()["traceparent"], "kept");
    }
    proxy
        .send(&request(&["GET /version HTTP/1.1", "Host: a"], ""))
        .await;
    assert_eq!(
        proxy.spans.next().await.name,
        "GET /version",
        "the excluded ones came before"
    );
}
