//! What Prometheus finds: names, labels and buckets of the conventions, and the traces of its
//! exemplars.

use std::net::SocketAddr;

use lantern_proxy::Instrumentation;
use lantern_telemetry::{Settings, Telemetry};
use serde_json::Value;
use tokio::net::TcpSocket;

use crate::support::{
    Echo, Peer, RawUpstream, Response, Spans, TestProxy, config, nobody, request,
};

const COMPLETION: &[&str] = &[
    "POST /v1/completions HTTP/1.1",
    "Host: a",
    "Content-Length: 28",
];

async fn measured(upstream: SocketAddr) -> TestProxy {
    let mut config = config(upstream);
    config.metrics = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    TestProxy::with(config).await
}

/// A proxy behind which one completion had this answer, and is over.
async fn answered(answer: &str) -> TestProxy {
    let upstream = RawUpstream::bind().await;
    let mut proxy = measured(upstream.address()).await;
    let mut client = proxy.connect().await;
    let body = r#"{"model":"m1","stream":true}"#;
    client.write(&request(COMPLETION, body)).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    server.write(answer).await;
    client.read_message().await;
    proxy.spans.next().await;
    proxy
}

async fn get(proxy: &TestProxy, target: &str) -> Response {
    let mut scraper = Peer::connect(proxy.metrics.expect("metrics are served")).await;
    let line = format!("GET {target} HTTP/1.1");
    scraper.write(&request(&[&line, "Host: a"], "")).await;
    scraper.read_response().await
}

/// Asserts that the series are there, each with its value.
async fn check(proxy: &TestProxy, series: &[&str]) {
    let response = get(proxy, "/metrics").await;
    let content_type = response.header("content-type").expect("a type");
    assert!(content_type.starts_with("application/openmetrics-text"));
    for line in series {
        let found = response.body.lines().any(|known| known == *line);
        assert!(found, "no {line} in\n{}", response.body);
    }
}

#[tokio::test]
async fn a_stream_of_a_model_is_measured_by_the_conventions() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = measured(upstream.address()).await;
    let mut client = proxy.connect().await;
    client
        .write(&request(COMPLETION, r#"{"model":"m1","stream":true}"#))
        .await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    check(
        &proxy,
        &[r#"http_server_active_requests{http_request_method="POST",url_scheme="http"} 1"#],
    )
    .await;
    server
        .write("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    for event in [
        r#"data: {"model":"m2","choices":[{"index":0,"text":"a"}]}"#,
        r#"data: {"model":"m2","choices":[{"index":0,"text":"b"}]}"#,
        r#"data: {"model":"m2","choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}"#,
        "data: [DONE]",
    ] {
        server.write_chunk(&format!("{event}\n\n")).await;
    }
    server.write_chunk("").await;
    client.read_message().await;
    let span = proxy.spans.next().await;

    let model = r#"gen_ai_operation_name="text_completion",gen_ai_request_model="m1",gen_ai_response_model="m2""#;
    let http = r#"http_request_method="POST",url_scheme="http",http_route="/v1/completions",network_protocol_version="1.1",http_response_status_code="200""#;
    check(
        &proxy,
        &[
            r#"http_server_active_requests{http_request_method="POST",url_scheme="http"} 0"#,
            &format!("http_server_request_duration_seconds_count{{{http}}} 1"),
            &format!("http_server_request_body_size_bytes_sum{{{http}}} 28.0"),
            &format!(r#"gen_ai_client_token_usage_sum{{{model},gen_ai_token_type="input"}} 5.0"#),
            &format!(r#"gen_ai_client_token_usage_sum{{{model},gen_ai_token_type="output"}} 2.0"#),
            &format!("gen_ai_client_operation_duration_seconds_count{{{model}}} 1"),
            &format!("gen_ai_server_request_duration_seconds_count{{{model}}} 1"),
            &format!("gen_ai_server_time_to_first_token_seconds_count{{{model}}} 1"),
            &format!("gen_ai_server_time_per_output_token_seconds_count{{{model}}} 1"),
        ],
    )
    .await;
    let context = &span.span_context;
    let exemplar = format!(
        r#"# {{trace_id="{}",span_id="{}"}} "#,
        context.trace_id(),
        context.span_id()
    );
    let text = get(&proxy, "/metrics").await.body;
    let exemplified = text.lines().filter(|line| line.contains(&exemplar));
    assert_eq!(exemplified.count(), 9, "one for each observation\n{text}");
}

#[tokio::test]
async fn a_failure_is_measured_with_its_error() {
    // Bound and not listening: no other test's server can come to be there.
    let nobody = TcpSocket::new_v4().expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    nobody.bind(any).expect("a free port");
    let mut proxy = measured(nobody.local_addr().expect("a bound socket")).await;
    proxy
        .send(&request(COMPLETION, r#"{"model":"m1","stream":true}"#))
        .await;
    proxy.spans.next().await;
    check(
        &proxy,
        &[
            r#"http_server_request_duration_seconds_count{http_request_method="POST",url_scheme="http",http_route="/v1/completions",network_protocol_version="1.1",http_response_status_code="502",error_type="upstream_connection_refused"} 1"#,
            // A name that no server has confirmed is none of a model.
            r#"gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="text_completion",error_type="upstream_connection_refused"} 1"#,
        ],
    )
    .await;
}

#[tokio::test]
async fn a_refusal_is_an_error_of_the_model_and_none_of_the_server() {
    let proxy = answered("HTTP/1.1 429 Slow Down\r\ncontent-length: 0\r\n\r\n").await;
    check(
        &proxy,
        &[
            r#"http_server_request_duration_seconds_count{http_request_method="POST",url_scheme="http",http_route="/v1/completions",network_protocol_version="1.1",http_response_status_code="429"} 1"#,
            r#"gen_ai_client_operation_duration_seconds_count{gen_ai_operation_name="text_completion",error_type="429"} 1"#,
        ],
    )
    .await;
}

#[tokio::test]
async fn an_error_within_a_stream_is_measured_with_its_name() {
    let event = "data: {\"error\":{\"type\":\"server_error\",\"code\":null}}\n\n";
    let length = event.len();
    let proxy = answered(&format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n{event}"
    ))
    .await;
    check(
        &proxy,
        &[
            r#"http_server_request_duration_seconds_count{http_request_method="POST",url_scheme="http",http_route="/v1/completions",network_protocol_version="1.1",http_response_status_code="200",error_type="server_error"} 1"#,
            r#"gen_ai_server_request_duration_seconds_count{gen_ai_operation_name="text_completion",error_type="server_error"} 1"#,
        ],
    )
    .await;
}

#[tokio::test]
async fn only_metrics_are_on_the_metrics_port() {
    let proxy = measured(nobody().await).await;
    assert_eq!(get(&proxy, "/v1/models").await.status, 404);
    assert_eq!(get(&proxy, "/metrics").await.status, 200);
    let unmeasured = TestProxy::in_front_of(nobody().await).await;
    assert!(unmeasured.metrics.is_none());
}

#[tokio::test]
async fn an_excluded_url_is_not_measured() {
    let mut config = config(nobody().await);
    config.metrics = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    config.instrumentation = Instrumentation::from_vars(|name| {
        (name == "OTEL_PYTHON_EXCLUDED_URLS").then(|| "/health".to_owned())
    })
    .expect("a regular expression");
    let mut proxy = TestProxy::with(config).await;
    for line in ["GET /health HTTP/1.1", "GET /v1/models HTTP/1.1"] {
        let response = proxy.send(&request(&[line, "Host: a"], "")).await;
        assert_eq!(response.status, 502);
    }
    assert_eq!(proxy.spans.next().await.name, "GET /v1/models");
    let measured = get(&proxy, "/metrics").await.body;
    assert!(measured.contains("http_route=\"/v1/models\""), "{measured}");
    assert!(!measured.contains("/health"), "{measured}");
}

/// What comes next to a receiver of OTLP.
async fn export(receiver: &RawUpstream) -> Value {
    let mut sender = receiver.accept().await;
    let (_, body) = sender.read_message().await;
    sender
        .write("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
        .await;
    serde_json::from_str(&body).expect("JSON")
}

/// The items of all lists that these names lead to, one within the other.
fn items<'a>(exports: &'a [Value], path: &[&str]) -> Vec<&'a Value> {
    let mut found: Vec<_> = exports.iter().collect();
    for name in path {
        let lists = found.into_iter().filter_map(|item| item[*name].as_array());
        found = lists.flatten().collect();
    }
    found
}

#[tokio::test]
async fn metrics_go_out_over_otlp_with_the_span_of_a_request_as_exemplar() {
    let receiver = RawUpstream::bind().await;
    let endpoint = format!("http://{}", receiver.address());
    let settings = Settings::from_vars(|name| match name {
        "OTEL_METRICS_EXPORTER" => Some("otlp".to_owned()),
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some("http/json".to_owned()),
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
        _ => None,
    })
    .expect("valid variables");
    let telemetry = Telemetry::start(&settings.with_metrics(), "proxy-under-test");
    let telemetry = telemetry.expect("telemetry starts");
    let echo = Echo::start().await;
    let proxy = TestProxy::traced_by(config(echo.address), telemetry, Spans::new().1).await;
    let get = request(&["GET /health HTTP/1.1", "Host: a"], "");
    assert_eq!(proxy.send(&get).await.status, 200);

    let mut exports = Vec::new();
    let mut exported = std::pin::pin!(proxy.exported());
    loop {
        tokio::select! {
            () = &mut exported => break,
            next = export(&receiver) => exports.push(next),
        }
    }
    let spans = items(&exports, &["resourceSpans", "scopeSpans", "spans"]);
    let is_server = |span: &&&Value| span["kind"] == 2;
    let span = spans.iter().find(is_server).expect("a span");
    let metrics = items(&exports, &["resourceMetrics", "scopeMetrics", "metrics"]);
    let is_duration = |metric: &&&Value| metric["name"] == "http.server.request.duration";
    let duration = metrics.iter().find(is_duration).expect("a duration");
    assert_eq!(duration["unit"], "s");
    let point = &duration["histogram"]["dataPoints"][0];
    let route = items(std::slice::from_ref(point), &["attributes"]);
    let is_route = |attribute: &&&Value| attribute["key"] == "http.route";
    let route = route.iter().find(is_route).expect("a route");
    assert_eq!(route["value"]["stringValue"], "/health");
    let exemplar = &point["exemplars"][0];
    for id in ["traceId", "spanId"] {
        assert!(span[id].is_string(), "{span}");
        assert_eq!(exemplar[id], span[id], "{exemplar}");
    }
}
