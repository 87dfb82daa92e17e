//! The metrics under vLLM's and the GenAI conventions' names, scraped and sent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use bytes::Bytes;
use http::Request;
use lantern_inference::engine::request::{Event, Submission};
use lantern_inference::serve::{Lifetime, serve};
use lantern_inference::server::Server;
use lantern_telemetry::{Settings, Telemetry};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{Harness, MODEL, say};
use crate::served::{config, get, model, send};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// How the labels of each series begin.
const LABELS: &str = "gen_ai_operation_name=\"text_completion\",gen_ai_provider_name=\"lantern\",\
                      gen_ai_request_model=\"scripted\",gen_ai_response_model=\"scripted\"";

async fn post(harness: &Harness, body: &serde_json::Value) {
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

/// A server of OTLP over HTTP: where it listens, and the metrics that it gets.
async fn receiver() -> (String, Arc<Mutex<Vec<ExportMetricsServiceRequest>>>) {
    let received: Arc<Mutex<Vec<_>>> = Arc::default();
    let kept = Arc::clone(&received);
    let metrics = axum::routing::post(async move |body: Bytes| {
        let request = ExportMetricsServiceRequest::decode(body).unwrap();
        kept.lock().unwrap().push(request);
    });
    let router = Router::new()
        .route("/v1/metrics", metrics)
        .fallback(|| async {});
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let lifetime = Lifetime {
        shutdown: CancellationToken::new(),
        abandoned: CancellationToken::new(),
        drain_grace: Duration::ZERO,
    };
    tokio::spawn(serve(listener, router, lifetime));
    (endpoint, received)
}

/// A request to the real engine, with telemetry that goes to a receiver: what is scraped then, and what is sent.
async fn scraped_and_sent() -> (String, Vec<Metric>) {
    let (endpoint, received) = receiver().await;
    let settings = Settings::from_vars(|name| match name {
        "OTEL_METRICS_EXPORTER" => Some("otlp".to_owned()),
        "OTEL_EXPORTER_OTLP_PROTOCOL" => Some("http/protobuf".to_owned()),
        "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(endpoint.clone()),
        _ => None,
    });
    let telemetry = Telemetry::start(&settings.unwrap().with_metrics(), "test").unwrap();
    let server = Server::bind(config(&model()), &telemetry).await.unwrap();
    let address = server.local_addr();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": true});
    let request = Request::post(format!("http://{address}/v1/completions"))
        .header("traceparent", format!("00-{TRACE_ID}-00f067aa0ba902b7-01"));
    send(request.body(body.to_string().into()).unwrap()).await;
    let scraped = get(address, "/metrics").await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let limit = Duration::from_secs(60);
    telemetry.shutdown(limit).await.unwrap();
    let request = received.lock().unwrap().pop().expect("the last export");
    let resources = request.resource_metrics.into_iter();
    let scopes = resources.flat_map(|resource| resource.scope_metrics);
    (scraped, scopes.flat_map(|scope| scope.metrics).collect())
}

/// The attributes of a point, sorted, as Prometheus writes labels.
fn labels(attributes: &[KeyValue]) -> String {
    let text = attributes.iter().map(|attribute| {
        let value = attribute.value.as_ref().and_then(|it| it.value.as_ref());
        let Some(any_value::Value::StringValue(value)) = value else {
            panic!("no text: {attribute:?}");
        };
        format!("{}={value}", attribute.key)
    });
    let mut labels: Vec<_> = text.collect();
    labels.sort_unstable();
    labels.join(",")
}

#[tokio::test]
async fn all_that_is_scraped_goes_out_by_otlp_too() {
    let (scraped, sent) = scraped_and_sent().await;
    let of_text = scraped.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let suffix = if kind == "counter" { "_total" } else { "" };
        Some(format!("{name}{suffix}"))
    });
    let of_text: BTreeSet<String> = of_text.collect();
    assert!(of_text.len() > 20, "{scraped}");
    // The conventions' names have dots, and no unit; vLLM's are the same everywhere.
    let of_otlp = sent.iter().map(|metric| match metric.name.as_str() {
        name if name.starts_with("gen_ai.") => format!("{}_seconds", name.replace('.', "_")),
        name => name.to_owned(),
    });
    assert_eq!(of_otlp.collect::<BTreeSet<String>>(), of_text);
}

#[tokio::test]
async fn vllms_metrics_have_the_same_series_and_values_by_otlp() {
    let (_, sent) = scraped_and_sent().await;
    let data = |name: &str| {
        let metric = sent.iter().find(|metric| metric.name == name);
        let metric = metric.unwrap_or_else(|| panic!("no {name} in {sent:?}"));
        metric.data.clone().expect("a metric has data")
    };
    for (name, count) in [
        ("vllm:prompt_tokens_total", 3),
        ("vllm:generation_tokens_total", 4),
        ("vllm:prefix_cache_queries_total", 3),
        ("vllm:num_preemptions_total", 0),
    ] {
        let Data::Sum(sum) = data(name) else {
            panic!("{name} is no sum");
        };
        assert!(sum.is_monotonic, "{name}");
        let points = sum.data_points.iter();
        let points = points.map(|point| (labels(&point.attributes), point.value));
        let expected = ("model_name=small".to_owned(), Some(Value::AsInt(count)));
        assert_eq!(points.collect::<Vec<_>>(), [expected], "{name}");
    }
    let Data::Sum(success) = data("vllm:request_success_total") else {
        panic!("no sum");
    };
    let series = labels(&success.data_points[0].attributes);
    assert_eq!(series, "finished_reason=length,model_name=small");
    let Data::Gauge(running) = data("vllm:num_requests_running") else {
        panic!("no gauge");
    };
    assert_eq!(running.data_points[0].value, Some(Value::AsInt(0)));

    for (name, count) in [
        ("vllm:inter_token_latency_seconds", 3),
        ("vllm:e2e_request_latency_seconds", 1),
        ("vllm:request_prompt_tokens", 1),
    ] {
        let Data::Histogram(histogram) = data(name) else {
            panic!("{name} is no histogram");
        };
        let point = &histogram.data_points[0];
        assert_eq!(labels(&point.attributes), "model_name=small", "{name}");
        assert_eq!(point.count, count, "{name}");
        let exemplar = point.exemplars.first().expect("one of a bucket");
        let trace_id = u128::from_be_bytes(exemplar.trace_id.as_slice().try_into().unwrap());
        assert_eq!(format!("{trace_id:032x}"), TRACE_ID, "{name}");
    }
}
