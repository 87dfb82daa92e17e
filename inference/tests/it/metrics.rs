//! The metrics of the GenAI conventions, scraped and sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::Request;
use http_body_util::BodyExt as _;
use lantern_inference::engine::request::{Event, Submission};
use lantern_inference::serve::{Lifetime, serve};
use lantern_telemetry::{Settings, Telemetry};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{Harness, MODEL, Options, say};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// How the labels of each series begin.
const LABELS: &str = "gen_ai_operation_name=\"text_completion\",gen_ai_provider_name=\"lantern\",\
                      gen_ai_request_model=\"scripted\",gen_ai_response_model=\"scripted\"";

async fn post(harness: &Harness, body: &Value) {
    let request = Request::post(harness.url("/v1/completions"))
        .header("traceparent", format!("00-{TRACE_ID}-00f067aa0ba902b7-01"));
    let request = request.body(body.to_string().into()).unwrap();
    harness.send(request).await;
}

/// The value of a series without its name's labels: the text after them.
fn value<'a>(metrics: &'a str, series: &str) -> &'a str {
    let lines = metrics.lines();
    let mut values = lines.filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    values
        .next()
        .unwrap_or_else(|| panic!("no {series} in\n{metrics}"))
}

#[tokio::test]
async fn a_request_is_in_the_conventions_histograms_with_its_trace() {
    let harness = Harness::start(|submission| say(&submission, b"ok")).await;
    post(&harness, &json!({"model": MODEL, "prompt": "hi"})).await;
    let metrics = harness.get("/metrics").await.text;
    let labels = format!("model_name=\"scripted\",{LABELS}");
    for name in [
        "request_duration",
        "time_to_first_token",
        "time_per_output_token",
    ] {
        let name = format!("gen_ai_server_{name}_seconds");
        let count = format!("{name}_count{{{labels}}}");
        assert_eq!(value(&metrics, &count), "1");
        let mut buckets = metrics.lines().filter(|line| line.starts_with(&name));
        let exemplar = format!("# {{trace_id=\"{TRACE_ID}\",span_id=\"");
        assert!(buckets.any(|line| line.contains(&exemplar)), "{metrics}");
    }
    // The script: tokens after 3, 4 and 5 ms.
    let each = format!("gen_ai_server_time_per_output_token_seconds_sum{{{labels}}}");
    let each: f64 = value(&metrics, &each).parse().unwrap();
    assert!((each - 0.001).abs() < 1e-9, "{each}");
}

#[tokio::test]
async fn a_request_that_fails_has_a_duration_with_its_error_and_no_other_time() {
    let script = |submission: Submission| {
        let message = "the device failed: on purpose".to_owned();
        submission.events.send(Event::Failed { message }).unwrap();
    };
    let harness = Harness::start(script).await;
    post(&harness, &json!({"model": MODEL, "prompt": "hi"})).await;
    post(&harness, &json!({"model": "no such model", "prompt": "hi"})).await;
    let metrics = harness.get("/metrics").await.text;
    let of = |name: &str| {
        let begin = format!("gen_ai_server_{name}_seconds_count{{");
        let lines = metrics.lines().filter(move |line| line.starts_with(&begin));
        lines.collect::<Vec<_>>()
    };
    let duration = of("request_duration");
    let expected = format!("{LABELS},error_type=\"engine_failed\"}} 1");
    assert!(
        matches!(duration.as_slice(), [line] if line.ends_with(&expected)),
        "{metrics}"
    );
    assert!(of("time_to_first_token").is_empty(), "{metrics}");
    assert!(of("time_per_output_token").is_empty(), "{metrics}");
}

#[tokio::test]
async fn sequences_side_by_side_do_not_make_tokens_look_quicker() {
    let harness = Harness::start(|submission| say(&submission, b"ok")).await;
    post(&harness, &json!({"prompt": "hi", "n": 4})).await;
    let metrics = harness.get("/metrics").await.text;
    let each = "vllm:request_time_per_output_token_seconds_sum{model_name=\"scripted\"}";
    let each: f64 = value(&metrics, each).parse().unwrap();
    // A token of each sequence a millisecond; more where they were not submitted at once.
    assert!(each > 0.000_999, "{each}");
}

#[tokio::test]
async fn the_conventions_metrics_go_out_by_otlp_where_that_is_asked_for() {
    let received: Arc<Mutex<Vec<u8>>> = Arc::default();
    let kept = Arc::clone(&received);
    let router = Router::new().fallback(async move |request: Request<Body>| {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        kept.lock().unwrap().extend_from_slice(&body);
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let lifetime = Lifetime {
        shutdown: CancellationToken::new(),
        abandoned: CancellationToken::new(),
        drain_grace: Duration::ZERO,
    };
    tokio::spawn(serve(listener, router, lifetime));
    let settings = Settings::from_vars(|name| match name {
        "OTEL_TRACES_EXPORTER" => Some("none".to_owned()),
        "OTEL_METRICS_EXPORTER" => Some("otlp".to_owned()),
        "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL" => Some("http/protobuf".to_owned()),
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT" => Some(endpoint.clone()),
        _ => None,
    });
    let settings = settings.unwrap().with_metrics();
    let options = Options {
        telemetry: Some(Telemetry::start(&settings, "test").unwrap()),
        ..Options::default()
    };
    let harness = Harness::with(options, |submission| say(&submission, b"ok")).await;
    post(&harness, &json!({"prompt": "hi"})).await;
    harness.shutdown.cancel();
    harness.server.await.unwrap();
    let limit = Duration::from_secs(60);
    harness.telemetry.shutdown(limit).await.unwrap();
    let received = received.lock().unwrap();
    let sent = String::from_utf8_lossy(&received);
    for name in [
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
        "gen_ai.request.model",
    ] {
        assert!(sent.contains(name), "no {name} in {sent}");
    }
}
