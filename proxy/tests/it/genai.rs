//! What the span of a request to a model says of it, with bodies that pass unchanged.

use opentelemetry::trace::Status;
use opentelemetry_sdk::trace::SpanData;
use serde_json::Value;

use crate::support::{Peer, RawUpstream, TestProxy, attribute, config, request};

const SSE_HEAD: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A `POST` of `body` as a client sends it.
fn post(path: &str, body: &str) -> String {
    let line = format!("POST {path} HTTP/1.1");
    let length = format!("Content-Length: {}", body.len());
    let lines = [&line, "Host: a", "Content-Type: application/json", &length];
    request(&lines, body)
}

/// An answer of one document; `head` has more header lines.
fn answer(head: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{head}content-length: {length}\r\n\r\n{body}"
    )
}

/// A client that has posted `body`, and the upstream's end, where it has arrived unchanged.
async fn posted(path: &str, body: &str) -> (TestProxy, RawUpstream, Peer, Peer) {
    let upstream = RawUpstream::bind().await;
    let proxy = TestProxy::in_front_of(upstream.address()).await;
    let mut client = proxy.connect().await;
    client.write(&post(path, body)).await;
    let mut server = upstream.accept().await;
    assert_eq!(server.read_message().await.1, body);
    (proxy, upstream, client, server)
}

/// The span of an exchange whose answer has arrived unchanged.
async fn exchange(path: &str, body: &str, head: &str, reply: &str) -> SpanData {
    let (mut proxy, _upstream, mut client, mut server) = posted(path, body).await;
    server.write(&answer(head, reply)).await;
    assert_eq!(client.read_response().await.body, reply);
    proxy.spans.next().await
}

/// Where a value is JSON, the order of its keys does not matter.
fn check(span: &SpanData, expected: &[(&str, Option<&str>)]) {
    let json = |text: &str| serde_json::from_str(text).unwrap_or(Value::from(text));
    for (key, value) in expected {
        let found = attribute(span, key);
        assert_eq!(found.as_deref().map(json), value.map(json), "{key}");
    }
}

fn seconds(span: &SpanData, key: &str) -> f64 {
    let value = attribute(span, key).unwrap_or_else(|| panic!("{key} is set"));
    value.parse().expect("a number")
}

#[tokio::test]
async fn a_completion_leaves_its_parameters_and_its_usage_on_the_http_span() {
    let span = exchange(
        "/v1/completions",
        r#"{"model":"opt","prompt":"San Francisco is a","max_tokens":10,"n":2,"temperature":0.0,"stop":["."]}"#,
        "server: llama.cpp\r\n",
        r#"{"id":"cmpl-1","model":"opt-125m","choices":[{"index":0,"text":"a","finish_reason":"stop"},{"index":1,"text":"b","finish_reason":"length"}],"usage":{"prompt_tokens":5,"completion_tokens":13}}"#,
    )
    .await;
    assert_eq!(span.name, "POST /v1/completions");
    check(
        &span,
        &[
            ("gen_ai.operation.name", Some("text_completion")),
            ("gen_ai.provider.name", Some("llama.cpp")),
            ("gen_ai.request.model", Some("opt")),
            ("gen_ai.request.max_tokens", Some("10")),
            ("gen_ai.request.choice.count", Some("2")),
            ("gen_ai.request.temperature", Some("0")),
            ("gen_ai.request.stop_sequences", Some("[\".\"]")),
            ("gen_ai.response.id", Some("cmpl-1")),
            ("gen_ai.response.model", Some("opt-125m")),
            (
                "gen_ai.response.finish_reasons",
                Some("[\"stop\",\"length\"]"),
            ),
            ("gen_ai.usage.input_tokens", Some("5")),
            ("gen_ai.usage.output_tokens", Some("13")),
            ("gen_ai.response.time_to_first_chunk", None),
            ("lantern.gen_ai.usage.partial", None),
        ],
    );
}

#[tokio::test]
async fn a_streamed_chat_has_usage_from_its_last_event_and_the_times_of_its_chunks() {
    let body =
        r#"{"model":"m","messages":[],"stream":true,"stream_options":{"include_usage":true}}"#;
    let (mut proxy, _upstream, mut client, mut server) = posted("/v1/chat/completions", body).await;
    server.write(SSE_HEAD).await;
    client.read_head().await;
    for event in [
        r#"{"id":"chatcmpl-1","model":"m","choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}"#,
        r#"{"id":"chatcmpl-1","model":"m","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}"#,
        r#"{"id":"chatcmpl-1","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        r#"{"id":"chatcmpl-1","model":"m","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":8}}}"#,
        "[DONE]",
    ] {
        let event = format!("data: {event}\n\n");
        server.write_chunk(&event).await;
        assert_eq!(client.read_chunk().await, event);
    }
    server.write_chunk("").await;
    assert_eq!(client.read_chunk().await, "");

    let span = proxy.spans.next().await;
    check(
        &span,
        &[
            ("gen_ai.operation.name", Some("chat")),
            ("gen_ai.provider.name", None),
            ("gen_ai.request.stream", Some("true")),
            ("gen_ai.response.id", Some("chatcmpl-1")),
            ("gen_ai.response.finish_reasons", Some("[\"stop\"]")),
            ("gen_ai.usage.input_tokens", Some("9")),
            ("gen_ai.usage.output_tokens", Some("1")),
            ("gen_ai.usage.cache_read.input_tokens", Some("8")),
            ("lantern.gen_ai.response.chunk_count", Some("3")),
            ("lantern.sse.event_count", Some("5")),
            ("lantern.gen_ai.usage.partial", None),
        ],
    );
    let first_byte = seconds(&span, "lantern.http.response.time_to_first_byte");
    assert!(seconds(&span, "gen_ai.response.time_to_first_chunk") >= first_byte);
    let mean = seconds(&span, "lantern.gen_ai.response.time_between_chunks.mean");
    let longest = seconds(&span, "lantern.gen_ai.response.time_between_chunks.max");
    assert!(0.0 < mean && mean <= longest, "{mean} {longest}");
}

#[tokio::test]
async fn a_cancelled_stream_has_the_usage_that_was_seen_and_says_that_it_is_partial() {
    let body = r#"{"model":"m","prompt":"a","stream":true}"#;
    let (mut proxy, _upstream, mut client, mut server) = posted("/v1/completions", body).await;
    server.write(SSE_HEAD).await;
    client.read_head().await;
    for tokens in 1..=2 {
        let event = format!(
            "data: {{\"id\":\"cmpl-1\",\"choices\":[{{\"index\":0,\"text\":\"a\"}}],\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":{tokens}}}}}\n\n"
        );
        server.write_chunk(&event).await;
        assert_eq!(client.read_chunk().await, event);
    }
    drop(client);
    check(
        &proxy.spans.next().await,
        &[
            ("error.type", Some("client_disconnected")),
            ("gen_ai.request.model", Some("m")),
            ("gen_ai.response.id", Some("cmpl-1")),
            ("gen_ai.response.finish_reasons", None),
            ("gen_ai.usage.input_tokens", Some("1")),
            ("gen_ai.usage.output_tokens", Some("2")),
            ("lantern.gen_ai.response.chunk_count", Some("2")),
            ("lantern.gen_ai.usage.partial", Some("true")),
        ],
    );
}

#[tokio::test]
async fn an_upstream_that_cuts_its_answer_short_leaves_a_partial_usage() {
    let (mut proxy, _upstream, mut client, mut server) = posted("/v1/completions", "{}").await;
    let whole = answer("", r#"{"id":"cmpl-1","choices":[]}"#);
    server.write(&whole[..whole.len() - 5]).await;
    drop(server);
    client.read_to_end().await;
    check(
        &proxy.spans.next().await,
        &[
            ("error.type", Some("upstream_closed")),
            ("gen_ai.response.id", Some("cmpl-1")),
            ("lantern.gen_ai.usage.partial", Some("true")),
        ],
    );
}

#[tokio::test]
async fn embeddings_of_many_inputs_have_a_model_and_input_tokens() {
    let body = format!(
        r#"{{"input":["{}"],"model":"e5","dimensions":64,"encoding_format":"float"}}"#,
        "word ".repeat(50_000)
    );
    let floats = "0.0123,-0.5,".repeat(20_000);
    let reply = format!(
        r#"{{"data":[{{"index":0,"embedding":[{floats}1]}}],"model":"e5-large","usage":{{"prompt_tokens":50000,"total_tokens":50000}}}}"#
    );
    let span = exchange("/v1/embeddings", &body, "", &reply).await;
    check(
        &span,
        &[
            ("gen_ai.operation.name", Some("embeddings")),
            ("gen_ai.request.model", Some("e5")),
            ("gen_ai.embeddings.dimension.count", Some("64")),
            ("gen_ai.request.encoding_formats", Some("[\"float\"]")),
            ("gen_ai.response.model", Some("e5-large")),
            ("gen_ai.usage.input_tokens", Some("50000")),
            ("gen_ai.usage.output_tokens", None),
        ],
    );
}

#[tokio::test]
async fn a_stream_of_the_responses_api_is_read_by_its_events() {
    let body = r#"{"model":"m","input":"Hi","stream":true,"max_output_tokens":5}"#;
    let (mut proxy, _upstream, mut client, mut server) = posted("/v1/responses", body).await;
    server.write(SSE_HEAD).await;
    client.read_head().await;
    for (kind, rest) in [
        (
            "response.created",
            r#""response":{"id":"resp_1","model":"m-1","status":"in_progress"}"#,
        ),
        (
            "response.output_text.delta",
            r#""item_id":"msg_1","delta":"a""#,
        ),
        (
            "response.output_text.delta",
            r#""item_id":"msg_1","delta":"b""#,
        ),
        (
            "response.incomplete",
            r#""response":{"id":"resp_1","status":"incomplete","incomplete_details":{"reason":"max_output_tokens"},"usage":{"input_tokens":2,"output_tokens":5}}"#,
        ),
    ] {
        let event = format!("event: {kind}\ndata: {{\"type\":\"{kind}\",{rest}}}\n\n");
        server.write_chunk(&event).await;
        assert_eq!(client.read_chunk().await, event);
    }
    server.write_chunk("").await;
    check(
        &proxy.spans.next().await,
        &[
            ("gen_ai.operation.name", Some("chat")),
            ("gen_ai.request.max_tokens", Some("5")),
            ("gen_ai.response.id", Some("resp_1")),
            ("gen_ai.response.model", Some("m-1")),
            (
                "gen_ai.response.finish_reasons",
                Some("[\"max_output_tokens\"]"),
            ),
            ("gen_ai.usage.input_tokens", Some("2")),
            ("gen_ai.usage.output_tokens", Some("5")),
            ("lantern.gen_ai.response.chunk_count", Some("2")),
        ],
    );
}

const ERROR_EVENT: &str =
    "data: {\"error\":{\"message\":\"a\",\"type\":\"InternalServerError\",\"code\":500}}\n\n";

#[tokio::test]
async fn an_error_within_a_stream_makes_the_span_one_though_its_status_is_200() {
    let body = r#"{"model":"m","stream":true}"#;
    // Clients of OpenAI's library leave at once, others read to the end.
    for leaves in [false, true] {
        let (mut proxy, _upstream, mut client, mut server) = posted("/v1/completions", body).await;
        server.write(SSE_HEAD).await;
        client.read_head().await;
        server.write_chunk(ERROR_EVENT).await;
        assert_eq!(client.read_chunk().await, ERROR_EVENT);
        if leaves {
            drop(client);
        } else {
            server.write_chunk("").await;
        }
        let span = proxy.spans.next().await;
        check(
            &span,
            &[
                ("http.response.status_code", Some("200")),
                ("error.type", Some("InternalServerError")),
                ("lantern.gen_ai.usage.partial", None),
            ],
        );
        assert_eq!(span.status, Status::error(""), "{leaves}");
    }
}

#[tokio::test]
async fn the_error_in_a_refusal_leaves_the_span_without_one() {
    let (mut proxy, _upstream, mut client, mut server) = posted("/v1/completions", "{}").await;
    let refusal = answer("", r#"{"error":{"type":"BadRequestError","code":400}}"#);
    let refusal = refusal.replace("200 OK", "400 Bad Request");
    server.write(&refusal).await;
    assert_eq!(client.read_response().await.status, 400);
    let span = proxy.spans.next().await;
    check(&span, &[("error.type", None)]);
    assert_eq!(span.status, Status::Unset);
}

#[tokio::test]
async fn bodies_that_are_no_json_pass_as_they_are() {
    for (body, reply) in [
        (r#"{"model":"m","n":}"#, r#"{"id":"a","#),
        ("{\"model\":\"m\"\n]", "<html></html>"),
        ("\\", "\"\\"),
    ] {
        let span = exchange("/v1/completions", body, "", reply).await;
        assert_eq!(attribute(&span, "error.type"), None, "{body}");
    }
}

#[tokio::test]
async fn a_body_with_an_encoding_is_left_alone() {
    let reply = r#"{"id":"not what an encoded body looks like"}"#;
    let span = exchange("/v1/completions", "{}", "content-encoding: gzip\r\n", reply).await;
    check(
        &span,
        &[
            ("gen_ai.operation.name", Some("text_completion")),
            ("gen_ai.response.id", None),
        ],
    );
}

#[tokio::test]
async fn a_request_that_is_sent_again_on_a_new_connection_is_read_from_its_start() {
    let upstream = RawUpstream::bind().await;
    let mut proxy = TestProxy::in_front_of(upstream.address()).await;
    let mut client = proxy.connect().await;
    let ask = post("/v1/completions", r#"{"stop":["a","b"],"model":"m"}"#);
    client.write(&ask).await;
    let mut pooled = upstream.accept().await;
    pooled.read_message().await;
    pooled.write(&answer("", "{}")).await;
    client.read_response().await;
    proxy.spans.next().await;

    // The pooled connection closes before all of the next body has come.
    let (early, late) = ask.split_at(ask.len() - 8);
    client.write(early).await;
    pooled.read_head().await;
    drop(pooled);
    let mut server = upstream.accept().await;
    client.write(late).await;
    assert!(ask.ends_with(&server.read_message().await.1));
    server.write(&answer("", "{}")).await;
    assert_eq!(client.read_response().await.status, 200);
    check(
        &proxy.spans.next().await,
        &[
            ("gen_ai.request.model", Some("m")),
            ("gen_ai.request.stop_sequences", Some("[\"a\",\"b\"]")),
        ],
    );
}

const TEXT_EVENT: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const DONE_EVENT: &str = "data: [DONE]\n\n";

#[tokio::test]
async fn messages_are_on_the_span_when_somebody_asks_for_them() {
    let upstream = RawUpstream::bind().await;
    let mut config = config(upstream.address());
    config.instrumentation = lantern_proxy::Instrumentation::from_vars(|name| {
        (name == "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT").then(|| "true".to_owned())
    })
    .expect("valid variables");
    let mut proxy = TestProxy::with(config).await;
    let mut client = proxy.connect().await;
    let body = r#"{"messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    client.write(&post("/v1/chat/completions", body)).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    server.write(SSE_HEAD).await;
    for event in [TEXT_EVENT, DONE_EVENT, ""] {
        server.write_chunk(event).await;
    }
    client.read_message().await;
    check(
        &proxy.spans.next().await,
        &[
            (
                "gen_ai.input.messages",
                Some(r#"[{"parts":[{"content":"hi","type":"text"}],"role":"user"}]"#),
            ),
            (
                "gen_ai.output.messages",
                Some(
                    r#"[{"finish_reason":null,"parts":[{"content":"a","type":"text"}],"role":"assistant"}]"#,
                ),
            ),
            ("lantern.gen_ai.content.truncated", None),
        ],
    );
}
