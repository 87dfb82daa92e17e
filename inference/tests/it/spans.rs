//! The spans of requests that succeed, fail, are abandoned or are not sampled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use axum::Router;
use http::{Request, StatusCode};
use lantern_inference::engine::request::{Event, FinishReason, StepTimes, Submission};
use lantern_inference::serve::{Lifetime, serve};
use lantern_telemetry::{Protocol, Settings, Telemetry};
use opentelemetry::Value as Attribute;
use opentelemetry::trace::{SpanId, Status};
use opentelemetry_sdk::trace::SpanData;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{Harness, MODEL, Options, attribute, say, tell};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT_ID: &str = "00f067aa0ba902b7";

/// Posts with a trace context whose sampled flag is `flag`.
async fn post_in_trace(harness: &Harness, body: &Value, flag: &str) {
    let request = Request::post(harness.url("/v1/completions"))
        .header("traceparent", format!("00-{TRACE_ID}-{PARENT_ID}-{flag}"))
        .header("x-request-id", "42");
    harness
        .send(request.body(body.to_string().into()).unwrap())
        .await;
}

/// A span for a golden: its attributes sorted, times that depend on the machine redacted.
fn golden(span: &SpanData) -> Value {
    let attributes = span.attributes.iter().map(|attribute| {
        let name = attribute.key.to_string();
        let value = match &attribute.value {
            Attribute::F64(_) if name.starts_with("gen_ai.latency.") => json!("[seconds]"),
            Attribute::F64(number) => json!(number),
            Attribute::I64(number) => json!(number),
            Attribute::Bool(flag) => json!(flag),
            Attribute::Array(values) => json!(values.to_string()),
            other => json!(other.to_string()),
        };
        (name, value)
    });
    json!({
        "name": span.name,
        "kind": format!("{:?}", span.span_kind),
        "status": format!("{:?}", span.status),
        "parent": span.parent_span_id.to_string(),
        "attributes": attributes.collect::<Map<_, _>>(),
    })
}

fn millis(from: SystemTime, to: SystemTime) -> u128 {
    to.duration_since(from)
        .expect("spans go forward")
        .as_millis()
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    spans
        .iter()
        .find(|span| span.name == name)
        .unwrap_or_else(|| panic!("a span {name}"))
}

#[tokio::test]
async fn llm_request_has_every_attribute() {
    let harness = Harness::start(|submission| say(&submission, b"ok")).await;
    let body = json!({
        "model": MODEL, "prompt": "hi", "max_tokens": 10, "temperature": 0.7, "top_p": 0.9,
        "top_k": 5, "seed": 1, "stop": ["END"], "presence_penalty": 0.5, "frequency_penalty": -0.5,
    });
    post_in_trace(&harness, &body, "01").await;
    let spans = harness.spans(4).await;
    // Whether maps keep the order of their making depends on what else is built.
    insta::with_settings!({sort_maps => true}, {
        insta::assert_json_snapshot!(golden(named(&spans, "llm_request")));
    });
}

#[tokio::test]
async fn children_lie_where_the_engine_says() {
    let harness = Harness::start(|submission| say(&submission, b"ok")).await;
    post_in_trace(&harness, &json!({"prompt": "hi"}), "01").await;
    let spans = harness.spans(4).await;
    let request = named(&spans, "llm_request");
    assert_eq!(request.span_context.trace_id().to_string(), TRACE_ID);
    let [queue, prefill, decode] = ["queue", "prefill", "decode"].map(|name| {
        let child = named(&spans, name);
        assert_eq!(child.parent_span_id, request.span_context.span_id());
        assert_eq!(
            child.span_context.trace_id(),
            request.span_context.trace_id()
        );
        child
    });
    // The script: scheduled after 1 ms, tokens after 3, 4 and 5.
    assert_eq!(millis(queue.start_time, queue.end_time), 1);
    assert_eq!(millis(queue.start_time, prefill.end_time), 3);
    assert_eq!(millis(queue.start_time, decode.end_time), 5);
    assert_eq!(queue.end_time, prefill.start_time);
    assert_eq!(prefill.end_time, decode.start_time);
    assert!(request.start_time <= queue.start_time);
    let seconds = |name: &str| attribute(request, name).unwrap().parse::<f64>().unwrap();
    let close = |name: &str, expect: f64| {
        let seconds = seconds(name);
        assert!((seconds - expect).abs() < 1e-9, "{name} = {seconds}");
    };
    close("gen_ai.latency.time_in_queue", 0.001);
    close("gen_ai.latency.time_in_model_prefill", 0.002);
    close("gen_ai.latency.time_in_model_decode", 0.002);
    close("gen_ai.latency.time_in_model_inference", 0.004);
}

#[tokio::test]
async fn several_sequences_are_one_span_from_first_to_last() {
    let script = |submission: Submission| {
        let seed = submission.request.params.seed.expect("a seed each");
        let at = |millis| submission.queued + Duration::from_millis(millis);
        let send = |event| submission.events.send(event).unwrap();
        send(Event::Scheduled {
            at: at(1_000 * (seed + 1)),
            cached_tokens: 0,
        });
        send(Event::Token {
            id: 97,
            logprobs: None,
            at: at(1_000 * (seed + 2)),
            times: StepTimes::default(),
        });
        send(Event::Token {
            id: 97,
            logprobs: None,
            at: at(1_000 * (seed + 5)),
            times: StepTimes::default(),
        });
        send(Event::Finished {
            reason: FinishReason::Length,
            at: at(1_000 * (seed + 5)),
        });
    };
    let harness = Harness::start(script).await;
    post_in_trace(&harness, &json!({"prompt": "hi", "n": 3, "seed": 0}), "01").await;
    let spans = harness.spans(4).await;
    assert_eq!(spans.len(), 4);
    let (queue, decode) = (named(&spans, "queue"), named(&spans, "decode"));
    let seconds = |from, to| (millis(from, to) + 500) / 1_000;
    assert_eq!(seconds(queue.start_time, queue.end_time), 1);
    assert_eq!(seconds(queue.start_time, decode.start_time), 2);
    assert_eq!(seconds(queue.start_time, decode.end_time), 7);
    let request = named(&spans, "llm_request");
    assert_eq!(
        attribute(request, "gen_ai.usage.completion_tokens").as_deref(),
        Some("6")
    );
    assert_eq!(
        attribute(request, "gen_ai.usage.num_sequences").as_deref(),
        Some("3")
    );
}

#[tokio::test]
async fn what_happens_to_a_sequence_in_the_engine_is_an_event_of_its_span() {
    let script = |submission: Submission| {
        let at = |millis| submission.queued + Duration::from_millis(millis);
        let token = |millis| Event::Token {
            id: 97,
            logprobs: None,
            at: at(millis),
            times: StepTimes::default(),
        };
        let (scheduled, resumed) = ((at(1), 32), (at(4), 16));
        for event in [
            Event::Scheduled {
                at: scheduled.0,
                cached_tokens: scheduled.1,
            },
            token(2),
            Event::Preempted { at: at(3) },
            Event::Resumed {
                at: resumed.0,
                cached_tokens: resumed.1,
            },
            token(5),
            Event::Finished {
                reason: FinishReason::Length,
                at: at(5),
            },
        ] {
            submission.events.send(event).unwrap();
        }
    };
    let harness = Harness::start(script).await;
    post_in_trace(&harness, &json!({"prompt": "hi"}), "01").await;
    let span = harness.request_spans(1).await.remove(0);
    let first = span.events[0].timestamp;
    let events = span.events.iter().map(|event| {
        let tokens = event.attributes.first().map(|tokens| {
            assert_eq!(tokens.key.as_str(), "lantern.prefix_hit_tokens");
            tokens.value.to_string()
        });
        (event.name.as_ref(), millis(first, event.timestamp), tokens)
    });
    let tokens = |count: &str| Some(count.to_owned());
    assert_eq!(
        events.collect::<Vec<_>>(),
        [
            ("scheduled", 0, tokens("32")),
            ("first_token", 1, None),
            ("preempted", 2, None),
            ("resumed", 3, tokens("16")),
        ]
    );
    let cached = attribute(&span, "gen_ai.usage.cache_read.input_tokens");
    assert_eq!(cached.as_deref(), Some("32"));
}

/// One token, after steps of so many seconds.
fn token_after(submission: &Submission, seconds: u64) -> Event {
    Event::Token {
        id: 97,
        logprobs: None,
        at: submission.queued,
        times: StepTimes {
            scheduler: Duration::from_secs(seconds),
            model_forward: Duration::from_secs(10 * seconds),
            model_execute: Duration::from_secs(20 * seconds),
        },
    }
}

#[tokio::test]
async fn time_in_the_engines_steps_is_that_of_the_longest_sequence_stopped_or_not() {
    let script = |submission: Submission| {
        let seed = submission.request.params.seed.expect("a seed each");
        for step in 1..=2 {
            let token = token_after(&submission, step + seed);
            // The second one is not read: the first is the stop string.
            let _ = submission.events.send(token);
        }
    };
    let harness = Harness::start(script).await;
    let body = json!({"prompt": "hi", "n": 2, "seed": 3, "stop": "a"});
    post_in_trace(&harness, &body, "01").await;
    let span = harness.request_spans(1).await.remove(0);
    let seconds = |part: &str| attribute(&span, &format!("gen_ai.latency.time_in_{part}")).unwrap();
    assert_eq!(seconds("scheduler"), "5");
    assert_eq!(seconds("model_forward"), "50");
    assert_eq!(seconds("model_execute"), "100");
    let cached = attribute(&span, "gen_ai.usage.cache_read.input_tokens");
    assert_eq!(cached.as_deref(), Some("0"));
}

#[tokio::test]
async fn each_prompt_of_a_request_has_its_span() {
    let harness = Harness::start(|submission| say(&submission, b"ok")).await;
    post_in_trace(&harness, &json!({"prompt": ["a", "b"]}), "01").await;
    for span in harness.request_spans(2).await {
        assert_eq!(span.parent_span_id, SpanId::from_hex(PARENT_ID).unwrap());
        assert_eq!(
            attribute(&span, "gen_ai.request.id").as_deref(),
            Some("cmpl-42")
        );
        assert_eq!(
            attribute(&span, "gen_ai.usage.prompt_tokens").as_deref(),
            Some("2")
        );
        assert_eq!(span.status, Status::Unset);
    }
}

#[tokio::test]
async fn prompt_and_completion_are_captured_only_when_asked_for() {
    for capture_content in [false, true] {
        let options = Options {
            capture_content,
            ..Options::default()
        };
        let harness = Harness::with(options, |submission| say(&submission, b"ok")).await;
        post_in_trace(&harness, &json!({"prompt": "secret"}), "01").await;
        let span = harness.request_spans(1).await.remove(0);
        let all = format!("{:?}", span.attributes);
        assert_eq!(all.contains("secret"), capture_content, "{all}");
        let captured = attribute(&span, "gen_ai.output.messages");
        let expect = json!([{
            "role": "assistant", "parts": [{"type": "text", "content": "ok"}], "finish_reason": "stop",
        }]);
        let captured = captured.map(|text| serde_json::from_str::<Value>(&text).unwrap());
        assert_eq!(captured, capture_content.then_some(expect));
    }
}

#[tokio::test]
async fn captured_text_is_bounded() {
    let options = Options {
        capture_content: true,
        ..Options::default()
    };
    let many: Vec<u32> = std::iter::repeat_n([0xC3, 0xA9], 10_000)
        .flatten()
        .collect();
    let script = move |submission: Submission| tell(&submission, &many, FinishReason::Length);
    let harness = Harness::with(options, script).await;
    post_in_trace(&harness, &json!({"prompt": "hi"}), "01").await;
    let span = harness.request_spans(1).await.remove(0);
    let text = attribute(&span, "gen_ai.output.messages").unwrap();
    let messages: Value = serde_json::from_str(&text).expect("cut text is still JSON");
    let content = messages[0]["parts"][0]["content"].as_str().unwrap();
    assert_eq!(content.len(), 16 * 1024);
}

#[tokio::test]
async fn stop_ends_the_decode_span_at_the_last_token_read() {
    let harness = Harness::start(|submission| say(&submission, b"a.bcd")).await;
    post_in_trace(&harness, &json!({"prompt": "hi", "stop": "."}), "01").await;
    let spans = harness.spans(4).await;
    let decode = named(&spans, "decode");
    assert_eq!(millis(decode.start_time, decode.end_time), 1);
    let request = named(&spans, "llm_request");
    assert_eq!(
        attribute(request, "gen_ai.usage.output_tokens").as_deref(),
        Some("2")
    );
}

/// Counts what is exported to it.
async fn counting_collector() -> (String, Arc<AtomicUsize>) {
    let exports = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&exports);
    let router = Router::new().fallback(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        std::future::ready(StatusCode::OK)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let lifetime = Lifetime {
        shutdown: CancellationToken::new(),
        abandoned: CancellationToken::new(),
        drain_grace: Duration::ZERO,
    };
    tokio::spawn(serve(listener, router, lifetime));
    (endpoint, exports)
}

#[tokio::test]
async fn trace_that_its_caller_does_not_sample_has_no_spans_here() {
    for (flag, expect) in [("01", 1), ("00", 0)] {
        let (endpoint, exports) = counting_collector().await;
        let settings = Settings::from_vars(|_| None).unwrap();
        let settings = settings.with_protocol(Protocol::HttpProtobuf);
        let settings = settings
            .with_traces_endpoint("--traces", &endpoint)
            .unwrap();
        let telemetry = Telemetry::start(&settings, "test").unwrap();
        let options = Options {
            telemetry: Some(telemetry),
            ..Options::default()
        };
        let harness = Harness::with(options, |submission| say(&submission, b"ok")).await;
        post_in_trace(&harness, &json!({"prompt": "hi"}), flag).await;
        harness
            .telemetry
            .shutdown(Duration::from_secs(60))
            .await
            .unwrap();
        assert_eq!(exports.load(Ordering::Relaxed), expect);
    }
}
