//! Every way in which a request is refused or fails: status, OpenAI's error body, and the span.

use candle_core::{DType, Device, Tensor};
use http::{Request, StatusCode};
use lantern_inference::engine::request::{Event, StepTimes, Submission};
use lantern_inference::engine::{Engine, EngineConfig};
use lantern_inference::loader::LoadedModel;
use lantern_inference::models::CausalLm;
use lantern_inference::ops::{KvPages, KvShape, Ops, StepInputs};
use opentelemetry::trace::Status;
use serde_json::{Value, json};

use crate::harness::{
    Answer, EOS, Harness, MAX_BODY_BYTES, MAX_MODEL_LEN, MODEL, Options, VOCAB_SIZE, attribute, say,
};

/// The error's message, once status, shape and parameter are as they should be.
pub(crate) fn message(answer: &Answer, status: u16, param: Option<&str>) -> String {
    let body = answer.json();
    assert_eq!(answer.status.as_u16(), status, "{body}");
    let error = &body["error"];
    assert_eq!(error["code"], status);
    assert_eq!(error["param"], json!(param), "{body}");
    let kind = error["type"].as_str().expect("a type");
    assert!(kind.ends_with("Error"), "{kind}");
    error["message"].as_str().expect("a message").to_owned()
}

pub(crate) async fn idle() -> Harness {
    Harness::start(|submission| say(&submission, b"ok")).await
}

/// Fields, values that they cannot have, and what is said about it.
fn bad_values() -> Value {
    json!([
        [
            "temperature",
            -1,
            "temperature must be non-negative, got -1"
        ],
        [
            "temperature",
            "warm",
            "temperature must be a number, got \"warm\""
        ],
        ["top_p", 0, "top_p must be in (0, 1], got 0"],
        [
            "top_k",
            -2,
            "top_k must be 0 or -1 for all tokens, or at least 1, got -2"
        ],
        ["min_p", 1.5, "min_p must be in [0, 1], got 1.5"],
        [
            "presence_penalty",
            3,
            "presence_penalty must be in [-2, 2], got 3"
        ],
        [
            "frequency_penalty",
            -3,
            "frequency_penalty must be in [-2, 2], got -3"
        ],
        ["n", 0, "n must be at least 1, got 0"],
        ["n", 1000, "n must be at most 128, got 1000"],
        ["max_tokens", -1, "max_tokens must be at least 0, got -1"],
        [
            "max_tokens",
            0,
            "max_tokens must be at least 1 without echo, got 0"
        ],
        [
            "min_tokens",
            17,
            "min_tokens must be at most max_tokens = 16, got 17"
        ],
        ["logprobs", 21, "logprobs must be at most 20, got 21"],
        ["seed", 1.5, "seed must be an integer, got 1.5"],
        ["stop", "", "stop cannot contain an empty string"],
        [
            "stop",
            [1],
            "stop must be a string or a list of strings, got 1"
        ],
        [
            "stop_token_ids",
            [-1],
            "stop_token_ids must be token ids, got -1"
        ],
        [
            "ignore_eos",
            "maybe",
            "ignore_eos must be a boolean, got \"maybe\""
        ],
        ["suffix", "x", "suffix is not currently supported"],
        [
            "stream_options",
            {},
            "stream_options can only be given with stream = true"
        ],
        [
            "prompt",
            [257],
            "prompt must be token ids below 257, got 257"
        ],
        ["prompt", [], "the prompt has no tokens"],
        ["prompt", null, "prompt is required"],
    ])
}

#[tokio::test]
async fn bad_parameters_are_named_with_their_values() {
    let harness = idle().await;
    for case in bad_values().as_array().unwrap() {
        let field = case[0].as_str().unwrap();
        let mut body = json!({"model": MODEL, "prompt": "hi"});
        body[field] = case[1].clone();
        let answer = harness.post("/v1/completions", &body).await;
        assert_eq!(message(&answer, 400, Some(field)), case[2]);
    }
}

#[tokio::test]
async fn repetition_penalty_that_overflows_logits_is_refused() {
    let harness = idle().await;
    for penalty in [0.0, 1e-40, 0.009, 100.5, 1e38] {
        let body = json!({"prompt": "hi", "repetition_penalty": penalty});
        let answer = harness.post("/v1/completions", &body).await;
        assert_eq!(
            message(&answer, 400, Some("repetition_penalty")),
            format!("repetition_penalty must be in [0.01, 100], got {penalty}")
        );
    }
    let least = json!({"prompt": "hi", "repetition_penalty": 0.01});
    assert_eq!(
        harness.post("/v1/completions", &least).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn fields_that_would_change_the_result_are_not_ignored() {
    let harness = idle().await;
    let fields = json!({
        "bad_words": ["a"], "allowed_token_ids": [97], "truncate_prompt_tokens": 1,
        "prompt_logprobs": 0,
    });
    for (field, value) in fields.as_object().unwrap() {
        let mut body = json!({"prompt": "hi"});
        body[field] = value.clone();
        let answer = harness.post("/v1/completions", &body).await;
        assert_eq!(
            message(&answer, 400, Some(field)),
            format!("{field} is not currently supported")
        );
    }
}

#[tokio::test]
async fn more_sequences_than_can_ever_wait_are_400() {
    let options = Options {
        max_waiting_requests: 4,
        ..Options::default()
    };
    let harness = Harness::with(options, |submission| say(&submission, b"ok")).await;
    let check = async |body: Value, param: &str, counts: &str| {
        let answer = harness.post("/v1/completions", &body).await;
        assert_eq!(
            message(&answer, 400, Some(param)),
            format!("{counts}, at most 4 can wait in this server")
        );
    };
    check(
        json!({"prompt": ["a", "b", "c"], "n": 2}),
        "prompt",
        "3 prompts with 2 sequences each are 6 sequences",
    )
    .await;
    check(
        json!({"prompt": "a", "best_of": 5}),
        "best_of",
        "1 prompts with 5 sequences each are 5 sequences",
    )
    .await;
    check(
        json!({"prompt": "a", "n": 8, "use_beam_search": true}),
        "n",
        "1 prompts with 8 sequences each are 8 sequences",
    )
    .await;
    let body = json!({"prompt": ["a", "b"], "n": 2});
    let answer = harness.post("/v1/completions", &body).await;
    assert_eq!(
        answer.status,
        StatusCode::OK,
        "just as many as there may be"
    );
}

#[tokio::test]
async fn several_greedy_sequences_are_refused_without_beam_search() {
    let harness = idle().await;
    let body = json!({"prompt": "hi", "n": 2, "temperature": 0});
    let answer = harness.post("/v1/completions", &body).await;
    assert_eq!(
        message(&answer, 400, Some("n")),
        "n must be 1 when using greedy sampling, got 2"
    );
    let body = json!({"prompt": "hi", "n": 2, "best_of": 1});
    message(
        &harness.post("/v1/completions", &body).await,
        400,
        Some("best_of"),
    );
}

#[tokio::test]
async fn unknown_fields_and_nulls_are_left_alone() {
    let harness = idle().await;
    let body =
        json!({"prompt": "hi", "user": "me", "future_field": {"a": 1}, "n": null, "stop": null});
    assert_eq!(
        harness.post("/v1/completions", &body).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn unknown_model_is_404_and_a_span() {
    let harness = idle().await;
    let answer = harness
        .post("/v1/completions", &json!({"model": "gpt", "prompt": "hi"}))
        .await;
    assert_eq!(
        message(&answer, 404, Some("model")),
        "The model `gpt` does not exist."
    );
    let span = harness.request_spans(1).await.remove(0);
    assert_eq!(
        attribute(&span, "error.type").as_deref(),
        Some("model_not_found")
    );
    assert_eq!(
        attribute(&span, "gen_ai.request.model").as_deref(),
        Some("gpt")
    );
    assert_eq!(
        span.status,
        Status::error("The model `gpt` does not exist.")
    );
}

#[tokio::test]
async fn prompt_over_the_context_is_400() {
    let harness = idle().await;
    let long = json!({"prompt": "x".repeat(128)});
    let text = message(
        &harness.post("/v1/completions", &long).await,
        400,
        Some("prompt"),
    );
    assert!(
        text.contains("maximum context length is 128 tokens"),
        "{text}"
    );
    assert!(text.contains("has 129 tokens"), "{text}");
    let greedy = json!({"prompt": "hi", "max_tokens": 126});
    let text = message(
        &harness.post("/v1/completions", &greedy).await,
        400,
        Some("max_tokens"),
    );
    assert!(text.starts_with("max_tokens = 126 is too large"), "{text}");
    // The default gives way instead.
    let near = json!({"prompt": "x".repeat(120)});
    assert_eq!(
        harness.post("/v1/completions", &near).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn chat_without_a_template_is_400() {
    let harness = idle().await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}]});
    let answer = harness.post("/v1/chat/completions", &body).await;
    let text = message(&answer, 400, Some("messages"));
    assert!(
        text.starts_with("this model has no chat template"),
        "{text}"
    );
}

#[tokio::test]
async fn bodies_that_cannot_be_read_are_refused_in_kind() {
    let harness = idle().await;
    let send = async |kind: &str, body: String| {
        let request = Request::post(harness.url("/v1/completions")).header("content-type", kind);
        harness.send(request.body(body.into()).unwrap()).await
    };
    let text = message(
        &send("application/json", "{\"prompt\": ".into()).await,
        400,
        None,
    );
    assert!(text.starts_with("the body is not valid JSON"), "{text}");
    message(
        &send("application/json", "[]".into()).await,
        400,
        Some("body"),
    );
    let text = message(&send("text/plain", "{}".into()).await, 415, None);
    assert_eq!(
        text,
        "content type 'text/plain' is not supported: send application/json"
    );
    let long = json!({"prompt": "x".repeat(MAX_BODY_BYTES)}).to_string();
    let text = message(&send("application/json", long).await, 413, None);
    assert_eq!(
        text,
        format!("the body is longer than {MAX_BODY_BYTES} bytes")
    );
    let spans = harness.request_spans(4).await;
    let types: Vec<_> = spans
        .iter()
        .map(|span| attribute(span, "error.type").unwrap())
        .collect();
    let expect = [
        "malformed_json",
        "invalid_parameter",
        "unsupported_content_type",
        "body_too_large",
    ];
    assert_eq!(types, expect);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused_without_a_span() {
    let harness = idle().await;
    let text = message(&harness.get("/v1/nothing").await, 404, None);
    assert_eq!(text, "no such path: /v1/nothing");
    let answer = harness.get("/v1/completions").await;
    assert_eq!(message(&answer, 405, None), "GET is not allowed here");
    assert_eq!(answer.headers["allow"], "POST");
    assert!(
        harness.exporter.get_finished_spans().unwrap().is_empty(),
        "HTTP is not traced here"
    );
}

#[tokio::test]
async fn full_queue_is_503_with_retry_after_and_cancels_what_got_in() {
    let options = Options {
        max_waiting_requests: 2,
        ..Options::default()
    };
    let (harness, submissions) = Harness::held(options).await;
    let first = json!({"prompt": "first"});
    let waits = harness.post("/v1/completions", &first);
    let answer = async {
        let first = tokio::task::spawn_blocking(move || (submissions.recv(), submissions));
        let (first, submissions) = first.await.expect("it does not panic");
        let first = first.expect("the first request got in");
        let two = json!({"prompt": ["a", "b"]});
        let answer = harness.post("/v1/completions", &two).await;
        say(&first, b"ok");
        (answer, submissions)
    };
    let (waited, (answer, submissions)) = tokio::join!(waits, answer);
    assert_eq!(waited.status, StatusCode::OK);
    let text = message(&answer, 503, None);
    assert_eq!(
        text,
        "the server is overloaded: 2 requests are already waiting"
    );
    assert!(
        answer.headers["retry-after"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .is_ok()
    );
    submissions
        .recv()
        .expect("the first prompt got in")
        .events
        .closed()
        .await;
    let mut spans = harness.request_spans(3).await;
    spans.retain(|span| attribute(span, "error.type").as_deref() == Some("queue_full"));
    assert_eq!(spans.len(), 2);
    let metrics = harness.get("/metrics").await.text;
    let counted = |line: &str| {
        line.starts_with("gen_ai_server_request_duration_seconds_count{")
            && line.ends_with("error_type=\"queue_full\"} 2")
    };
    assert!(metrics.lines().any(counted), "{metrics}");
}

#[tokio::test]
async fn stopped_engine_is_503() {
    let (harness, submissions) = Harness::held(Options::default()).await;
    drop(submissions);
    let answer = harness
        .post("/v1/completions", &json!({"prompt": "hi"}))
        .await;
    assert!(message(&answer, 503, None).starts_with("the engine has stopped"));
}

/// One token, then a device error.
fn fail(submission: &Submission) {
    let at = submission.queued;
    submission
        .events
        .send(Event::Token {
            id: 97,
            logprobs: None,
            at,
            times: StepTimes::default(),
        })
        .unwrap();
    submission
        .events
        .send(Event::Failed {
            message: "device lost".to_owned(),
        })
        .unwrap();
}

#[tokio::test]
async fn failed_engine_is_500_or_the_streams_last_chunk() {
    let harness = Harness::start(|submission| fail(&submission)).await;
    let answer = harness
        .post("/v1/completions", &json!({"prompt": "hi"}))
        .await;
    assert_eq!(
        message(&answer, 500, None),
        "the engine failed: device lost"
    );
    let answer = harness
        .post("/v1/completions", &json!({"prompt": "hi", "stream": true}))
        .await;
    let chunks = answer.chunks();
    assert_eq!(chunks[0]["choices"][0]["text"], "a");
    assert_eq!(
        chunks[1]["error"]["message"],
        "the engine failed: device lost"
    );
    let spans = harness.request_spans(2).await;
    for span in spans {
        assert_eq!(
            attribute(&span, "error.type").as_deref(),
            Some("engine_failed")
        );
        assert_eq!(
            attribute(&span, "gen_ai.usage.completion_tokens").as_deref(),
            Some("1")
        );
    }
}

/// A model whose device fails at once.
struct Broken;

impl CausalLm for Broken {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn kv_shape(&self) -> KvShape {
        KvShape {
            layers: 0,
            heads: 1,
            head_dim: 1,
            dtype: DType::F32,
        }
    }

    fn forward(&self, _: &dyn Ops, _: &StepInputs, _: &KvPages) -> candle_core::Result<Tensor> {
        candle_core::bail!("device lost")
    }

    fn logits(&self, _: &dyn Ops, hidden: &Tensor) -> candle_core::Result<Tensor> {
        Ok(hidden.clone())
    }
}

#[tokio::test]
async fn dead_engine_fails_its_requests_refuses_new_ones_and_is_unhealthy() {
    let model = LoadedModel::new(Box::new(Broken), VOCAB_SIZE, MAX_MODEL_LEN, vec![EOS]);
    let (engine, thread) = Engine::start(model, EngineConfig::default()).unwrap();
    let harness = Harness::on(engine, Options::default()).await;
    assert_eq!(harness.get("/health").await.status, StatusCode::OK);
    let failed = harness
        .post("/v1/completions", &json!({"prompt": "hi"}))
        .await;
    assert!(message(&failed, 500, None).contains("device lost"));
    assert!(thread.join().is_err(), "the engine has ended");
    assert_eq!(
        harness.get("/health").await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let refused = harness
        .post("/v1/completions", &json!({"prompt": "hi"}))
        .await;
    assert!(message(&refused, 503, None).starts_with("the engine has stopped"));
}
