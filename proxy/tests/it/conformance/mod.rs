//! Raw requests and answers in, expected spans out: the HTTP semantic conventions as a table.

mod answers;
mod context;
mod http2;
mod refused;
mod requests;

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body_util::Full;
use lantern_proxy::Instrumentation;
use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::trace::SpanData;
use tokio::net::TcpStream;

use crate::support::{
    Client, Echo, Peer, RawUpstream, Response, TestProxy, attribute, config, request,
};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

#[derive(Clone, Copy)]
struct Case {
    title: &'static str,
    /// The request's lines. `Host` and, for a body, `Content-Length` are among them.
    lines: &'static [&'static str],
    body: &'static str,
    upstream: Upstream,
    name: &'static str,
    /// What the client gets.
    status: u16,
    error_type: Option<&'static str>,
    has: &'static [(&'static str, &'static str)],
    lacks: &'static [&'static str],
    /// The same for the CLIENT span.
    attempt_has: &'static [(&'static str, &'static str)],
    attempt_lacks: &'static [&'static str],
    /// Whether the span continues [`TRACE_ID`] below [`PARENT_ID`]; a new root otherwise.
    continues: bool,
    /// Headers that the upstream gets; `None` for one that it must not get.
    sent: &'static [(&'static str, Option<&'static str>)],
}

#[derive(Clone, Copy)]
enum Upstream {
    /// Writes this to each request and closes its connection.
    Answers(&'static str),
    /// Is asked, and the request ends before an answer.
    Asked,
    NotAsked,
}

const BASE: Case = Case {
    title: "",
    lines: &[],
    body: "",
    upstream: Upstream::Answers(
        "HTTP/1.1 200 OK\r\ncontent-length: 8\r\nx-served-by: echo\r\n\r\nanswered",
    ),
    name: "GET",
    status: 200,
    error_type: None,
    has: &[],
    lacks: &[],
    attempt_has: &[],
    attempt_lacks: &[],
    continues: false,
    sent: &[],
};

/// Headers are captured as the cases expect it.
fn instrumentation() -> Instrumentation {
    Instrumentation::from_vars(|name| {
        let value = match name {
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST" => "X-Tenant,authorization",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE" => "x-served-.*",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_REQUEST" => "x-tenant,authorization",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_CLIENT_RESPONSE" => "x-served-by",
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS" => "auth.*",
            _ => return None,
        };
        Some(value.to_owned())
    })
    .expect("valid variables")
}

#[tokio::test]
async fn spans_follow_the_http_semantic_conventions() {
    let upstream = RawUpstream::bind().await;
    let mut config = config(upstream.address());
    config.instrumentation = instrumentation();
    let mut proxy = TestProxy::with(config).await;

    let tables = [
        requests::CASES,
        context::CASES,
        answers::CASES,
        refused::CASES,
    ];
    let mut failed = Vec::new();
    for case in tables.into_iter().flatten() {
        let mut client = proxy.connect().await;
        client.write(&request(case.lines, case.body)).await;
        let received = receive(case, &upstream).await;
        let exchange = Exchange {
            response: final_head(&mut client).await,
            span: proxy.spans.next().await,
            attempts: proxy.spans.attempts(),
            client_port: client.local_addr().port(),
            upstream: upstream.address(),
            received,
        };
        // All of the table's failures are told, not only the first.
        let checked = std::panic::catch_unwind(|| check(case, &exchange));
        failed.extend(checked.err().map(|_| case.title));
    }
    assert_eq!(failed, Vec::<&str>::new());
    assert!(proxy.spans.is_empty(), "one span for each request");
}

/// What came of one request.
struct Exchange {
    response: Response,
    span: SpanData,
    attempts: Vec<SpanData>,
    client_port: u16,
    upstream: SocketAddr,
    /// The headers that the upstream got, if it was asked.
    received: Option<HeaderMap>,
}

fn check(case: &Case, exchange: &Exchange) {
    let (title, span) = (case.title, &exchange.span);
    assert_eq!(exchange.response.status, case.status, "{title}");
    let port = attribute(span, "network.peer.port");
    assert_eq!(port, Some(exchange.client_port.to_string()), "{title}");
    check_request(case, span);
    check_answer_headers(case, span, &exchange.response);
    match (&exchange.received, &exchange.attempts[..]) {
        (Some(received), [attempt]) => {
            check_attempt(case, span, attempt, exchange.upstream);
            check_received(case, attempt, received);
        }
        (None, []) => {}
        (_, attempts) => panic!("{title}: {} attempts", attempts.len()),
    }
}

/// What the upstream gets of the request.
async fn receive(case: &Case, upstream: &RawUpstream) -> Option<HeaderMap> {
    if matches!(case.upstream, Upstream::NotAsked) {
        return None;
    }
    let mut server = upstream.accept().await;
    let head = match case.upstream {
        Upstream::Answers(answer) => {
            let (head, _) = server.read_message().await;
            server.write(answer).await;
            head
        }
        _ => server.read_head().await,
    };
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| {
        let name = HeaderName::try_from(name).expect("a name");
        (name, HeaderValue::from_str(value).expect("a value"))
    });
    let mut map = HeaderMap::new();
    headers.for_each(|(name, value)| {
        map.append(name, value);
    });
    Some(map)
}

/// The head of the answer, those of 1xx before it left out.
async fn final_head(client: &mut Peer) -> Response {
    loop {
        let response = client.read_response_head().await;
        if response.status >= 200 {
            return response;
        }
    }
}

fn check_request(case: &Case, span: &SpanData) {
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
    let is_error = case.error_type.is_some() && !(400..500).contains(&case.status);
    let status = if is_error {
        Status::error("")
    } else {
        Status::Unset
    };
    assert_eq!(span.status, status, "{title}");
    check_attributes(title, span, case.has, case.lacks);
    let first_byte = attribute(span, "lantern.http.response.time_to_first_byte");
    let seconds: Option<f64> = first_byte.map(|seconds| seconds.parse().expect("a number"));
    assert!(
        seconds.is_none_or(|seconds| seconds > 0.0),
        "{title}: {seconds:?}"
    );
    let context = &span.span_context;
    if case.continues {
        assert_eq!(context.trace_id().to_string(), TRACE_ID, "{title}");
        assert_eq!(span.parent_span_id.to_string(), PARENT_ID, "{title}");
    } else {
        assert_ne!(context.trace_id().to_string(), TRACE_ID, "{title}");
        assert_eq!(span.parent_span_id, SpanId::INVALID, "{title}");
    }
}

fn check_attributes(title: &str, span: &SpanData, has: &[(&str, &str)], lacks: &[&str]) {
    for (key, value) in has {
        let found = attribute(span, key);
        assert_eq!(found.as_deref(), Some(*value), "{title}: {key}");
    }
    for key in lacks {
        assert_eq!(attribute(span, key), None, "{title}: {key}");
    }
}

/// Every answer names the request and its trace.
fn check_answer_headers(case: &Case, span: &SpanData, response: &Response) {
    let (title, context) = (case.title, &span.span_context);
    let trace_id = context.trace_id().to_string();
    let named = case.lines.iter().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("x-request-id").then_some(value)
    });
    let id = response.header("x-request-id");
    assert_eq!(id, Some(named.unwrap_or(&trace_id)), "{title}");
    let expected = format!("00-{trace_id}-{}-01", context.span_id());
    let traceresponse = response.header("traceresponse");
    assert_eq!(traceresponse, Some(expected.as_str()), "{title}");
}

fn check_attempt(case: &Case, span: &SpanData, attempt: &SpanData, upstream: SocketAddr) {
    let title = case.title;
    let method = case.name.split(' ').next().unwrap_or_default();
    assert_eq!(attempt.name, method, "{title}");
    assert_eq!(attempt.span_kind, SpanKind::Client, "{title}");
    assert_eq!(
        attempt.parent_span_id,
        span.span_context.span_id(),
        "{title}"
    );
    assert_eq!(
        attempt.span_context.trace_id(),
        span.span_context.trace_id(),
        "{title}"
    );
    assert!(attempt.start_time >= span.start_time, "{title}");
    assert!(attempt.end_time <= span.end_time, "{title}");
    for key in ["http.request.method", "http.request.method_original"] {
        assert_eq!(attribute(attempt, key), attribute(span, key), "{title}");
    }
    let (ip, port) = (upstream.ip(), upstream.port());
    let path = attribute(span, "url.path").unwrap_or_default();
    let query = attribute(span, "url.query").map(|query| format!("?{query}"));
    let url = format!("http://{ip}:{port}{path}{}", query.unwrap_or_default());
    for (key, value) in [
        ("url.full", url),
        ("server.address", ip.to_string()),
        ("server.port", port.to_string()),
        ("network.peer.address", ip.to_string()),
        ("network.peer.port", port.to_string()),
    ] {
        assert_eq!(attribute(attempt, key), Some(value), "{title}: {key}");
    }
    assert_eq!(attribute(attempt, "http.request.resend_count"), None);
    let refused =
        (case.status >= 400 && case.error_type.is_none()).then(|| case.status.to_string());
    let error_type = case.error_type.map(str::to_owned).or(refused);
    assert_eq!(attribute(attempt, "error.type"), error_type, "{title}");
    let failed = matches!(attempt.status, Status::Error { .. });
    assert_eq!(failed, error_type.is_some(), "{title}");
    check_attributes(title, attempt, case.attempt_has, case.attempt_lacks);
}

/// The upstream was told the attempt's span and nothing else.
fn check_received(case: &Case, attempt: &SpanData, received: &HeaderMap) {
    let (title, context) = (case.title, &attempt.span_context);
    let sent: Vec<_> = received.get_all("traceparent").iter().collect();
    let expected = format!("00-{}-{}-01", context.trace_id(), context.span_id());
    assert_eq!(sent, [&expected], "{title}");
    for (name, expected) in case.sent {
        let value = received.get(*name);
        let value = value.map(|value| value.to_str().expect("text"));
        assert_eq!(value, *expected, "{title}: {name}");
    }
}

/// So what follows a body that nobody read is never taken for a request, which would leave a span.
#[tokio::test]
async fn an_answer_before_the_requests_body_is_the_last_of_its_connection() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::with(config(upstream.address())).await;
    let mut client = proxy.connect().await;
    let lines = ["POST /tokenize HTTP/1.1", "Host: a", "Content-Length: 10"];
    client.write(&request(&lines, "half ")).await;
    let mut server = upstream.accept().await;
    server.read_head().await;
    server
        .write("HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n")
        .await;
    let answer = client.read_response_head().await;
    assert_eq!(answer.header("connection"), Some("close"));

    client.write("of it").await;
    assert_eq!(proxy.spans.next().await.name, "POST /tokenize");
    assert_eq!(client.read_to_end().await, "");
}

#[tokio::test]
async fn a_trusted_proxy_is_believed_and_its_scheme_goes_on() {
    let mut echo = Echo::start().await;
    let mut config = config(echo.address);
    config
        .trusted_proxies
        .add("--trusted-proxies", "127.0.0.0/8")
        .expect("networks");
    let mut proxy = TestProxy::with(config).await;
    let lines = [
        "GET /health HTTP/1.1",
        "Host: inner",
        "X-Forwarded-For: 6.6.6.6, 192.0.2.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: llm.example:8443",
    ];
    proxy.send(&request(&lines, "")).await;
    let received = echo.received().await;
    assert_eq!(received.headers()["x-forwarded-proto"], "https");
    let has = [
        ("client.address", "192.0.2.1"),
        ("network.peer.address", "127.0.0.1"),
        ("url.scheme", "https"),
        ("server.address", "llm.example"),
        ("server.port", "8443"),
    ];
    check_attributes("trusted", &proxy.spans.next().await, &has, &[]);
}

#[tokio::test]
async fn http2_on_either_side_is_on_its_span_and_its_answer_has_the_same_headers() {
    let echo = Echo::start().await;
    for (scheme, version) in [("http", "1.1"), ("h2c", "2")] {
        let mut config = config(echo.address);
        let url = format!("{scheme}://{}", echo.address);
        config.upstreams = vec![lantern_proxy::Upstream::parse(&url).expect("a URL")];
        let mut proxy = TestProxy::with(config).await;
        let stream = TcpStream::connect(proxy.address).await.expect("it listens");
        let client = Client::http2(stream).await;
        let request = Request::get("http://llm.example:81/v1/models?limit=2")
            .header("x-request-id", "req_1")
            .body(Full::default())
            .expect("a request");
        let response = client.send(request).await;
        assert_eq!(response.headers()["x-request-id"], "req_1");
        let span = proxy.spans.next().await;
        let trace_id = span.span_context.trace_id().to_string();
        let traceresponse = response.headers()["traceresponse"].to_str().expect("text");
        assert!(traceresponse.contains(&trace_id), "{traceresponse}");
        let has = [
            ("network.protocol.version", "2"),
            ("server.address", "llm.example"),
            ("server.port", "81"),
            ("url.path", "/v1/models"),
            ("url.query", "limit=2"),
            ("http.response.status_code", "200"),
        ];
        check_attributes(scheme, &span, &has, &["error.type"]);
        let [attempt] = &proxy.spans.attempts()[..] else {
            panic!("one attempt");
        };
        let has = [("network.protocol.version", version)];
        check_attributes(scheme, attempt, &has, &["error.type"]);
    }
}

#[test]
fn the_table_is_as_long_as_it_is_thorough() {
    let cases = [
        requests::CASES,
        context::CASES,
        answers::CASES,
        refused::CASES,
    ];
    let titles: std::collections::HashSet<_> =
        cases.into_iter().flatten().map(|case| case.title).collect();
    assert!(titles.len() >= 60, "{} cases", titles.len());
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
