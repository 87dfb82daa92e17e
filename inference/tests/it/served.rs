//! The whole server with the real engine, on the model in models/tiny.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use lantern_inference::config::Config;
use lantern_inference::loader::DeviceChoice;
use lantern_inference::server::{Server, ServerError};
use lantern_inference::step_spans::Detail;
use lantern_telemetry::{ConfigError, Telemetry};
use opentelemetry_sdk::trace::InMemorySpanExporter;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::harness::attribute;

pub(crate) fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tiny")
}

pub(crate) fn config(directory: &Path) -> Config {
    let mut config = Config::new(directory.to_str().unwrap());
    config.port = 0;
    config.device = DeviceChoice::Cpu;
    config.served_names = vec!["small".to_owned()];
    config
}

async fn post(address: SocketAddr, body: &Value) -> String {
    post_to(address, "/v1/completions", body).await
}

pub(crate) async fn post_to(address: SocketAddr, path: &str, body: &Value) -> String {
    let request = Request::post(format!("http://{address}{path}"));
    send(request.body(body.to_string().into()).unwrap()).await
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    let request = Request::get(format!("http://{address}{path}"));
    send(request.body(Full::default()).unwrap()).await
}

pub(crate) async fn send(request: Request<Full<Bytes>>) -> String {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let response = client.request(request).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn choices(address: SocketAddr, body: &Value) -> Value {
    let text = post(address, body).await;
    let mut answer: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    answer["choices"].take()
}

/// What the beams are ranked by: they are equally long, so their log probability.
fn score(choice: &Value) -> f64 {
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 10, "no beam ended early: {choice}");
    logprobs
        .iter()
        .map(|logprob| logprob.as_f64().unwrap())
        .sum()
}

#[tokio::test]
async fn real_engine_answers_and_every_request_is_a_whole_tree() {
    let exporter = InMemorySpanExporter::default();
    let telemetry = Telemetry::with_exporter(exporter.clone(), "test");
    let server = Server::bind(config(&model()), &telemetry).await.unwrap();
    let address = server.local_addr();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));

    let greedy = json!({"model": "small", "prompt": "San Francisco is a", "temperature": 0.0});
    let first = choices(address, &greedy).await;
    assert_eq!(first[0]["finish_reason"], "length", "{first}");
    assert_eq!(
        choices(address, &greedy).await,
        first,
        "greedy is repeatable"
    );

    let seeded = json!({"model": "small", "prompt": ["Once", "One day"], "n": 2, "seed": 7});
    let sampled = choices(address, &seeded).await;
    assert_eq!(sampled.as_array().unwrap().len(), 4);
    assert_eq!(
        choices(address, &seeded).await,
        sampled,
        "so is sampling with a seed"
    );

    let beams = json!({
        "model": "small", "prompt": "San Francisco is a", "max_tokens": 10, "n": 3,
        "use_beam_search": "true", "temperature": 0.0, "logprobs": 0,
    });
    let beams = choices(address, &beams).await;
    let [first, second, third] = [0, 1, 2].map(|at| beams[at]["text"].as_str().unwrap());
    assert!(
        first != second && second != third && first != third,
        "{beams}"
    );
    let scores = [0, 1, 2].map(|at| score(&beams[at]));
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");

    let streamed = json!({"model": "small", "prompt": "a", "stream": true, "max_tokens": 5});
    assert!(post(address, &streamed).await.ends_with("data: [DONE]\n\n"));

    shutdown.cancel();
    running.await.unwrap().unwrap();
    let spans = exporter.get_finished_spans().unwrap();
    let count = |name: &str| spans.iter().filter(|span| span.name == name).count();
    assert_eq!(
        ["llm_request", "queue", "prefill", "decode"].map(count),
        [8; 4]
    );
}

#[tokio::test]
async fn steps_of_the_real_engine_are_counted_and_timed() {
    let exporter = InMemorySpanExporter::default();
    let telemetry = Telemetry::with_exporter(exporter.clone(), "test");
    let server = Server::bind(config(&model()), &telemetry).await.unwrap();
    let address = server.local_addr();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": true});
    post(address, &body).await;
    let metrics = get(address, "/metrics").await;
    // The prompt at once, then one token after the other; what the last is needs no step.
    for line in [
        "vllm:prefix_cache_queries_total{model_name=\"small\"} 3",
        "vllm:prefix_cache_hits_total{model_name=\"small\"} 0",
        "vllm:iteration_tokens_total_count{model_name=\"small\"} 4",
        "vllm:iteration_tokens_total_sum{model_name=\"small\"} 6.0",
        "vllm:iteration_tokens_total_bucket{le=\"1.0\",model_name=\"small\"} 3",
    ] {
        assert!(metrics.lines().any(|l| l == line), "no {line}\n{metrics}");
    }
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let spans = exporter.get_finished_spans().unwrap();
    let span = spans.iter().find(|span| span.name == "llm_request");
    let span = span.expect("its span has ended");
    let [scheduler, forward, execute, inference] = [
        "scheduler",
        "model_forward",
        "model_execute",
        "model_inference",
    ]
    .map(|part| {
        let seconds = attribute(span, &format!("gen_ai.latency.time_in_{part}")).unwrap();
        seconds.parse::<f64>().unwrap()
    });
    assert!(0.0 < scheduler && 0.0 < forward && forward <= execute);
    assert!(execute <= inference, "{execute} {inference}");
}

#[tokio::test]
async fn every_step_has_a_span_that_is_linked_to_all_requests_it_served() {
    let exporter = InMemorySpanExporter::default();
    let telemetry = Telemetry::with_exporter(exporter.clone(), "test");
    let mut config = config(&model());
    config.detailed_traces = Detail {
        model: true,
        worker: true,
    };
    let server = Server::bind(config, &telemetry).await.unwrap();
    let address = server.local_addr();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let prompt: Vec<u32> = (5..45).collect();
    let body = json!({"prompt": prompt, "max_tokens": 4, "ignore_eos": true});
    post(address, &body).await;
    let pair = json!({"prompt": [prompt, [7, 8]], "max_tokens": 4, "ignore_eos": true});
    post(address, &pair).await;
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let spans = exporter.get_finished_spans().unwrap();
    let all = |name: &str| -> Vec<_> { spans.iter().filter(|span| span.name == name).collect() };
    let (requests, steps) = (all("llm_request"), all("engine.step"));
    assert_eq!(requests.len(), 3);
    let mut linked = vec![0; requests.len()];
    for step in &steps {
        let count = |name: &str| {
            let count = attribute(step, &format!("lantern.{name}")).unwrap();
            count.parse::<usize>().unwrap()
        };
        let mut tokens = 0;
        for link in step.links.iter() {
            let request = requests
                .iter()
                .position(|request| request.span_context == link.span_context);
            linked[request.expect("a link leads to a request")] += 1;
            assert_eq!(link.attributes[0].key.as_str(), "lantern.step.tokens");
            tokens += link.attributes[0]
                .value
                .to_string()
                .parse::<usize>()
                .unwrap();
        }
        assert_eq!(count("step.sequences"), step.links.len());
        assert_eq!(
            count("step.prefill_tokens") + count("step.decode_tokens"),
            tokens
        );
        assert!(count("kv_cache.blocks_used") > 0 && count("kv_cache.blocks_free") > 0);
        assert_eq!(
            attribute(step, "lantern.step.graph").as_deref(),
            Some("false")
        );
        for part in ["schedule", "model_forward", "sample"] {
            let id = step.span_context.span_id();
            let part = all(part).into_iter().find(|part| part.parent_span_id == id);
            let part = part.expect("a step has its parts");
            assert!(step.start_time <= part.start_time && part.end_time <= step.end_time);
        }
    }
    assert_eq!(linked, [4; 3], "each token is a step, each step is linked");
    let sum = |name: &str| {
        let counts = steps.iter().map(|step| attribute(step, name).unwrap());
        counts
            .map(|count| count.parse::<usize>().unwrap())
            .sum::<usize>()
    };
    // The second time the prompt's two full blocks are there.
    assert_eq!(sum("lantern.step.cached_tokens"), 32);
    assert_eq!(sum("lantern.step.prefill_tokens"), 40 + 8 + 2);
    assert_eq!(sum("lantern.step.decode_tokens"), 3 * 3);
}

#[tokio::test]
async fn preemptions_are_in_the_steps_and_in_the_requests_that_they_befell() {
    let exporter = InMemorySpanExporter::default();
    let telemetry = Telemetry::with_exporter(exporter.clone(), "test");
    let mut config = config(&model());
    config.detailed_traces.worker = true;
    config.max_model_len = Some(128);
    // Room for 160 tokens; three sequences at once want 300.
    config.engine.kv_cache_bytes = Some(160 * 4 * 2 * 192 * 4);
    config.engine.max_num_seqs = 3;
    let server = Server::bind(config, &telemetry).await.unwrap();
    let address = server.local_addr();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(server.run(shutdown.clone()));
    let body =
        json!({"prompt": [[5], [6], [7], [8], [9], [10]], "max_tokens": 100, "ignore_eos": true});
    assert_eq!(choices(address, &body).await.as_array().unwrap().len(), 6);
    let metrics = get(address, "/metrics").await;
    let count = "vllm:num_preemptions_total{model_name=\"small\"} ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(count));
    let preemptions: usize = count.unwrap().parse().unwrap();
    assert!(preemptions > 0, "{metrics}");
    shutdown.cancel();
    running.await.unwrap().unwrap();

    let spans = exporter.get_finished_spans().unwrap();
    let of_steps = |name: &str| -> Vec<usize> {
        let steps = spans.iter().filter(|span| span.name == "engine.step");
        let counts = steps.map(|step| attribute(step, name).unwrap().parse().unwrap());
        counts.collect()
    };
    assert_eq!(
        of_steps("lantern.step.preempted").iter().sum::<usize>(),
        preemptions
    );
    assert!(
        of_steps("lantern.step.waiting").contains(&3),
        "half of them wait at first"
    );
    let mut seen = 0;
    for request in spans.iter().filter(|span| span.name == "llm_request") {
        let events = request.events.iter().map(|event| event.name.as_ref());
        let events: Vec<_> = events.filter(|name| *name != "first_token").collect();
        assert_eq!(events[0], "scheduled");
        for pair in events[1..].chunks(2) {
            assert_eq!(pair, ["preempted", "resumed"]);
            seen += 1;
        }
    }
    assert_eq!(seen, preemptions);
}

#[tokio::test]
async fn values_that_the_model_cannot_have_name_their_flag() {
    let refused = async |config: Config| match Server::bind(config, &Telemetry::disabled()).await {
        Err(ServerError::Config(error)) => error.to_string(),
        other => panic!("it should have been refused: {:?}", other.err()),
    };
    let mut long = config(&model());
    long.max_model_len = Some(1_000_000);
    let message = refused(long).await;
    assert!(
        message.starts_with("--max-model-len='1000000' is not supported: use 1 to"),
        "{message}"
    );
    let mut narrow = config(&model());
    narrow.engine.max_num_seqs = 0;
    let error = Server::bind(narrow, &Telemetry::disabled()).await;
    let error = anyhow::Error::from(error.err().expect("refused"));
    let named = error.chain().find_map(|cause| cause.downcast_ref());
    let named: &ConfigError = named.expect("what decides the exit code is there");
    assert_eq!(named.variable, "--max-num-seqs");
    let message = refused(config(Path::new("./no such model"))).await;
    assert!(
        message.starts_with("--model='./no such model' is not supported"),
        "{message}"
    );
}
