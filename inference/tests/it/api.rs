//! What the API answers when all goes well.

use http::{Request, StatusCode};
use lantern_inference::engine::request::{
    Event, FinishReason, StepTimes, Submission, TokenLogprobs,
};
use serde_json::{Value, json};

use crate::harness::{EOS, Harness, MODEL, Options, attribute, echo, say, tell};

/// A completion of the prompt "hi" with other fields in it.
fn completion(more: &Value) -> Value {
    let mut body = json!({"model": MODEL, "prompt": "hi"});
    for (field, value) in more.as_object().expect("an object of fields") {
        body[field] = value.clone();
    }
    body
}

fn texts(answer: &Value) -> Vec<&str> {
    let choices = answer["choices"].as_array().expect("a list of choices");
    choices
        .iter()
        .map(|choice| choice["text"].as_str().expect("a text"))
        .collect()
}

#[tokio::test]
async fn completion_has_openais_shape() {
    let harness = Harness::start(|submission| say(&submission, b" there")).await;
    let request = Request::post(harness.url("/v1/completions"))
        .header("content-type", "application/json; charset=utf-8")
        .header("x-request-id", "7");
    let answer = harness
        .send(
            request
                .body(completion(&json!({})).to_string().into())
                .unwrap(),
        )
        .await;
    assert_eq!(answer.status, StatusCode::OK);
    let mut answer = answer.json();
    assert!(answer["created"].take().is_u64());
    let expect = json!({
        "id": "cmpl-7",
        "object": "text_completion",
        "created": null,
        "model": MODEL,
        "choices": [{
            "index": 0, "text": " there", "logprobs": null, "finish_reason": "stop", "stop_reason": null,
        }],
        "usage": {"prompt_tokens": 3, "total_tokens": 10, "completion_tokens": 7},
    });
    assert_eq!(answer, expect);
}

#[tokio::test]
async fn stream_is_framed_exactly() {
    let harness = Harness::start(|submission| say(&submission, b"ab")).await;
    let body = completion(&json!({"stream": true, "stream_options": {"include_usage": true}}));
    let request = Request::post(harness.url("/v1/completions")).header("x-request-id", "7");
    let answer = harness
        .send(request.body(body.to_string().into()).unwrap())
        .await;
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let created = answer.chunks()[0]["created"].clone();
    let choice = |text: &str, reason: &str| {
        format!(
            r#"data: {{"id":"cmpl-7","object":"text_completion","created":{created},"model":"scripted","choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{reason},"stop_reason":null}}]}}"#
        )
    };
    let usage = format!(
        r#"data: {{"id":"cmpl-7","object":"text_completion","created":{created},"model":"scripted","choices":[],"usage":{{"prompt_tokens":3,"total_tokens":6,"completion_tokens":3}}}}"#
    );
    let frames = [
        choice("a", "null"),
        choice("b", "null"),
        choice("", "\"stop\""),
        usage,
        "data: [DONE]".to_owned(),
    ];
    let expect: String = frames.iter().map(|frame| format!("{frame}\n\n")).collect();
    assert_eq!(answer.text, expect);
}

#[tokio::test]
async fn continuous_usage_counts_up_in_every_chunk() {
    let harness = Harness::start(|submission| say(&submission, b"ab")).await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = completion(&json!({"stream": true, "stream_options": options}));
    let answer = harness.post("/v1/completions", &body).await;
    let counts: Vec<Value> = answer
        .chunks()
        .iter()
        .map(|chunk| chunk["usage"]["completion_tokens"].clone())
        .collect();
    assert_eq!(counts, [1, 2, 3, 3]);
}

#[tokio::test]
async fn characters_split_over_tokens_stay_whole() {
    let text = "aé😀\u{FFFD}z";
    let harness = Harness::start(move |submission| say(&submission, text.as_bytes())).await;
    let body = completion(&json!({"stream": true, "max_tokens": 64}));
    let answer = harness.post("/v1/completions", &body).await;
    let pieces: Vec<String> = answer
        .chunks()
        .iter()
        .map(|chunk| texts(chunk).concat())
        .collect();
    assert_eq!(pieces, ["a", "é", "😀", "\u{FFFD}z", ""]);
}

#[tokio::test]
async fn character_cut_off_by_the_length_is_left_out() {
    let script =
        |submission: Submission| tell(&submission, &[97, 0xF0, 0x9F], FinishReason::Length);
    let harness = Harness::start(script).await;
    let answer = harness
        .post("/v1/completions", &completion(&json!({"max_tokens": 3})))
        .await
        .json();
    assert_eq!(texts(&answer), ["a"]);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn stop_string_over_tokens_never_leaks_and_cancels_the_rest() {
    let (harness, submissions) = Harness::held(Options::default()).await;
    let body = completion(&json!({"stop": ["STOP", "nothing"], "stream": true, "max_tokens": 64}));
    let client = harness.post("/v1/completions", &body);
    let engine = tokio::task::spawn_blocking(move || {
        let submission = submissions.recv().expect("the request arrives");
        tell(
            &submission,
            &b"go ST STOP".map(u32::from),
            FinishReason::Length,
        );
        submission
    });
    let (answer, submission) = tokio::join!(client, engine);
    let chunks = answer.chunks();
    let pieces: Vec<String> = chunks.iter().map(|chunk| texts(chunk).concat()).collect();
    assert_eq!(pieces.concat(), "go ST ");
    let last = &chunks.last().expect("a last chunk")["choices"][0];
    assert_eq!(
        (&last["finish_reason"], &last["stop_reason"]),
        (&json!("stop"), &json!("STOP"))
    );
    submission
        .expect("the engine answered")
        .events
        .closed()
        .await;
}

#[tokio::test]
async fn stop_string_and_stop_token_stay_when_asked() {
    let script = |submission: Submission| match submission.request.params.stop_token_ids.as_slice()
    {
        [] => say(&submission, b"one. two"),
        &[id] => tell(&submission, &[111, id], FinishReason::StopToken(id)),
        other => panic!("unexpected {other:?}"),
    };
    let harness = Harness::start(script).await;
    let check = async |more: Value, expect: (&str, Value)| {
        let answer = harness
            .post("/v1/completions", &completion(&more))
            .await
            .json();
        assert_eq!(
            (
                texts(&answer)[0],
                answer["choices"][0]["stop_reason"].clone()
            ),
            expect
        );
    };
    check(json!({"stop": "."}), ("one", json!("."))).await;
    check(
        json!({"stop": ".", "include_stop_str_in_output": true}),
        ("one.", json!(".")),
    )
    .await;
    check(
        json!({"stop": ".", "min_tokens": 4}),
        ("one. two", Value::Null),
    )
    .await;
    check(json!({"stop_token_ids": [33]}), ("o", json!(33))).await;
    let included = json!({"stop_token_ids": [33], "include_stop_str_in_output": "true"});
    check(included, ("o!", json!(33))).await;
}

#[tokio::test]
async fn prompts_come_as_text_or_tokens_one_or_many() {
    let harness = Harness::start(|submission| echo(&submission)).await;
    let check = async |prompt: Value, expect: &[&str]| {
        let answer = harness
            .post("/v1/completions", &json!({"prompt": prompt}))
            .await
            .json();
        assert_eq!(texts(&answer), expect, "{prompt}");
    };
    check(json!("one"), &["one"]).await;
    check(json!(["one", "two"]), &["one", "two"]).await;
    check(json!([111, 107]), &["ok"]).await;
    check(json!([[97], [98, 99]]), &["a", "bc"]).await;
}

#[tokio::test]
async fn choices_of_several_prompts_are_numbered_through() {
    let script = |submission: Submission| {
        let seed = submission.request.params.seed.expect("a seed each") as u8;
        let prompt = submission.request.prompt_tokens[1] as u8;
        say(&submission, &[prompt, b'0' + seed]);
    };
    let harness = Harness::start(script).await;
    let body = json!({"prompt": ["a", "b"], "n": 2, "seed": 3});
    let answer = harness.post("/v1/completions", &body).await.json();
    assert_eq!(texts(&answer), ["a3", "a4", "b3", "b4"]);
    let indices: Vec<&Value> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|choice| &choice["index"])
        .collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    assert_eq!(
        answer["usage"]["prompt_tokens"], 4,
        "each prompt counts once"
    );
}

/// Sends tokens with log probabilities, the alternative `!` to each.
fn say_with_logprobs(submission: &Submission, text: &[u8], logprob: f32) {
    let known = |id: u32| TokenLogprobs {
        token: (id, logprob),
        rank: 1,
        top: vec![(id, logprob), (33, -3.0)],
    };
    let params = &submission.request.params;
    let at = submission.queued;
    submission
        .events
        .send(Event::Scheduled {
            at,
            cached_tokens: 0,
        })
        .unwrap();
    if params.prompt_logprobs.is_some() {
        let mut prompt: Vec<_> = submission
            .request
            .prompt_tokens
            .iter()
            .map(|&id| Some(known(id)))
            .collect();
        prompt[0] = None;
        submission
            .events
            .send(Event::PromptLogprobs(prompt))
            .unwrap();
    }
    for &byte in text {
        let logprobs = params.logprobs.map(|_| known(byte.into()));
        submission
            .events
            .send(Event::Token {
                id: byte.into(),
                logprobs,
                at,
                times: StepTimes::default(),
            })
            .unwrap();
    }
    submission
        .events
        .send(Event::Finished {
            reason: FinishReason::Length,
            at,
        })
        .unwrap();
}

#[tokio::test]
async fn echo_with_logprobs_begins_with_the_prompts() {
    let harness = Harness::start(|submission| say_with_logprobs(&submission, b"xy", -0.5)).await;
    let body = completion(&json!({"echo": true, "logprobs": 2, "max_tokens": 2}));
    let answer = harness.post("/v1/completions", &body).await.json();
    let expect = json!({
        "text_offset": [0, 0, 1, 2, 3],
        "token_logprobs": [null, -0.5, -0.5, -0.5, -0.5],
        "tokens": ["</s>", "h", "i", "x", "y"],
        "top_logprobs": [
            null, {"h": -0.5, "!": -3.0}, {"i": -0.5, "!": -3.0},
            {"x": -0.5, "!": -3.0}, {"y": -0.5, "!": -3.0},
        ],
    });
    assert_eq!(texts(&answer), ["hixy"]);
    assert_eq!(answer["choices"][0]["logprobs"], expect);

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let chunks = harness.post("/v1/completions", &streamed).await.chunks();
    assert_eq!(texts(&chunks[0]), ["hix"]);
    assert_eq!(
        chunks[0]["choices"][0]["logprobs"]["tokens"],
        json!(["</s>", "h", "i", "x"])
    );
    assert_eq!(
        chunks[1]["choices"][0]["logprobs"]["text_offset"],
        json!([3])
    );
}

#[tokio::test]
async fn no_tokens_and_echo_give_the_prompt_alone() {
    let harness = Harness::start(|submission| say_with_logprobs(&submission, b"x", -0.5)).await;
    let body = completion(&json!({"echo": true, "logprobs": 1, "max_tokens": 0}));
    let answer = harness.post("/v1/completions", &body).await.json();
    assert_eq!(texts(&answer), ["hi"]);
    assert_eq!(
        answer["choices"][0]["logprobs"]["tokens"],
        json!(["</s>", "h", "i"])
    );
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let span = harness.request_spans(1).await.remove(0);
    let said = |name: &str| attribute(&span, name).unwrap();
    assert_eq!(said("gen_ai.usage.completion_tokens"), "0");
    assert_eq!(said("gen_ai.request.max_tokens"), "0");
    assert_eq!(said("gen_ai.response.finish_reasons"), "[\"length\"]");
    let metrics = harness.get("/metrics").await.text;
    let count = "vllm:generation_tokens_total{model_name=\"scripted\"} 0";
    assert!(metrics.lines().any(|line| line == count), "{metrics}");
}

#[tokio::test]
async fn best_of_keeps_the_most_likely() {
    let script = |submission: Submission| {
        let seed = submission.request.params.seed.expect("a seed each") as u8;
        // The second of three is the likeliest, then the third.
        let logprob = [-2.0, -0.5, -1.0][usize::from(seed)];
        say_with_logprobs(&submission, &[b'0' + seed], logprob);
    };
    let options = Options {
        capture_content: true,
        ..Options::default()
    };
    let harness = Harness::with(options, script).await;
    for stream in [false, true] {
        let body = completion(&json!({"n": 2, "best_of": 3, "seed": 0, "stream": stream}));
        let answer = harness.post("/v1/completions", &body).await;
        let texts_seen = if stream {
            answer
                .chunks()
                .iter()
                .map(|chunk| texts(chunk).concat())
                .collect()
        } else {
            texts(&answer.json())
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(texts_seen, ["1", "2"]);
    }
    for span in harness.request_spans(2).await {
        let said = |name: &str| attribute(&span, name).unwrap();
        let reasons = said("gen_ai.response.finish_reasons");
        assert_eq!(reasons, "[\"length\",\"length\"]");
        assert_eq!(said("gen_ai.usage.completion_tokens"), "2");
        assert_eq!(said("gen_ai.usage.num_sequences"), "3");
        let captured = said("gen_ai.output.messages");
        let captured: Value = serde_json::from_str(&captured).unwrap();
        let content = |at: usize| captured[at]["parts"][0]["content"].as_str().unwrap();
        assert_eq!((content(0), content(1)), ("1", "2"));
    }
}

#[tokio::test]
async fn chat_has_openais_shape_streamed_and_not() {
    let template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}\
                    {% if add_generation_prompt %}a:{% endif %}";
    let options = Options {
        chat_template: Some(template),
        ..Options::default()
    };
    let script = |submission: Submission| {
        let prompt: Vec<u32> = b"u:hi;a:".map(u32::from).to_vec();
        assert_eq!(
            submission.request.prompt_tokens, prompt,
            "no second </s> in front"
        );
        assert_eq!(
            submission.request.params.max_tokens,
            128 - 7,
            "what the context leaves"
        );
        say(&submission, b"ok");
    };
    let harness = Harness::with(options, script).await;
    let parts = json!([{"type": "text", "text": "hi"}]);
    let mut body = json!({"model": "alias", "messages": [{"role": "user", "content": parts}]});
    let mut answer = harness.post("/v1/chat/completions", &body).await.json();
    assert!(
        answer["id"]
            .take()
            .as_str()
            .unwrap()
            .starts_with("chatcmpl-")
    );
    assert!(answer["created"].take().is_u64());
    let expect = json!({
        "id": null, "object": "chat.completion", "created": null, "model": "alias",
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": "ok"}, "logprobs": null,
            "finish_reason": "stop", "stop_reason": null,
        }],
        "usage": {"prompt_tokens": 7, "total_tokens": 10, "completion_tokens": 3},
    });
    assert_eq!(answer, expect);

    body["stream"] = json!(true);
    let chunks = harness.post("/v1/chat/completions", &body).await.chunks();
    let deltas: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"])
        .collect();
    let expect = [
        json!({"role": "assistant", "content": ""}),
        json!({"content": "o"}),
        json!({"content": "k"}),
        json!({"content": ""}),
    ];
    assert_eq!(deltas, expect.iter().collect::<Vec<_>>());
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
}

#[tokio::test]
async fn chat_logprobs_name_tokens_bytes_and_alternatives() {
    let options = Options {
        chat_template: Some("x"),
        ..Options::default()
    };
    let script = |submission: Submission| say_with_logprobs(&submission, b"o", -0.5);
    let harness = Harness::with(options, script).await;
    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"messages": messages, "logprobs": true, "top_logprobs": 2, "max_completion_tokens": 1});
    let answer = harness.post("/v1/chat/completions", &body).await.json();
    let expect = json!({"content": [{
        "token": "o", "logprob": -0.5, "bytes": [111],
        "top_logprobs": [
            {"token": "o", "logprob": -0.5, "bytes": [111]},
            {"token": "!", "logprob": -3.0, "bytes": [33]},
        ],
    }]});
    assert_eq!(answer["choices"][0]["logprobs"], expect);
}

#[tokio::test]
async fn tokenize_and_detokenize_are_each_others_reverse() {
    let options = Options {
        chat_template: Some("{{ messages[0].content }}"),
        ..Options::default()
    };
    let harness = Harness::with(options, |_| panic!("nothing to generate")).await;
    let tokens = harness
        .post("/tokenize", &json!({"prompt": "hi"}))
        .await
        .json();
    let expect =
        json!({"count": 3, "max_model_len": 128, "tokens": [EOS, 104, 105], "token_strs": null});
    assert_eq!(tokens, expect);
    let bare = json!({"prompt": "hi", "add_special_tokens": false});
    assert_eq!(
        harness.post("/tokenize", &bare).await.json()["tokens"],
        json!([104, 105])
    );
    let chat = json!({"messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(
        harness.post("/tokenize", &chat).await.json()["tokens"],
        json!([104, 105])
    );
    let text = harness
        .post("/detokenize", &json!({"tokens": [104, 105]}))
        .await
        .json();
    assert_eq!(text, json!({"prompt": "hi"}));
}

#[tokio::test]
async fn server_describes_itself() {
    let harness = Harness::start(|submission| say(&submission, b"ok")).await;
    let models = harness.get("/v1/models").await.json();
    assert_eq!(models["data"][0]["id"], MODEL);
    assert_eq!(models["data"][1]["id"], "alias");
    assert_eq!(models["data"][0]["max_model_len"], 128);
    assert_eq!(harness.get("/health").await.status, StatusCode::OK);
    assert_eq!(
        harness.get("/version").await.json()["version"],
        env!("CARGO_PKG_VERSION")
    );
}

#[tokio::test]
async fn metrics_count_requests_under_vllms_names() {
    let harness = Harness::start(|submission| say(&submission, b"ok")).await;
    harness
        .post("/v1/completions", &completion(&json!({})))
        .await;
    let metrics = harness.get("/metrics").await;
    for line in [
        "# TYPE vllm:num_requests_running gauge",
        "vllm:prompt_tokens_total{model_name=\"scripted\"} 3",
        "vllm:generation_tokens_total{model_name=\"scripted\"} 3",
        "vllm:request_success_total{model_name=\"scripted\",finished_reason=\"stop\"} 1",
        "vllm:time_to_first_token_seconds_count{model_name=\"scripted\"} 1",
        "vllm:inter_token_latency_seconds_count{model_name=\"scripted\"} 2",
        "vllm:request_queue_time_seconds_count{model_name=\"scripted\"} 1",
        "vllm:request_params_max_tokens_sum{model_name=\"scripted\"} 16.0",
    ] {
        assert!(
            metrics.text.lines().any(|l| l == line),
            "no {line} in\n{}",
            metrics.text
        );
    }
}
