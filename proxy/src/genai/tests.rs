//! Bodies as the servers write them in, attributes out.

use super::*;
use crate::sse::EventParser;

#[derive(Clone, Copy)]
enum Body {
    Json(&'static str),
    Stream(&'static str),
    /// A stream that somebody broke off.
    Broken(&'static str),
}

/// The attributes of an exchange whose bodies come in pieces of `size` bytes, without the times.
fn observe(request: &str, answer: Body, size: usize) -> Vec<String> {
    let mut exchange = Exchange::new("chat", Instant::now(), None);
    for piece in request.as_bytes().chunks(size) {
        exchange.request_body(piece);
    }
    let mut failed = false;
    match answer {
        Body::Json(body) => {
            for piece in body.as_bytes().chunks(size) {
                exchange.response_document(piece);
            }
        }
        Body::Stream(body) | Body::Broken(body) => {
            failed = matches!(answer, Body::Broken(_));
            let mut parser = EventParser::default();
            for piece in body.as_bytes().chunks(size) {
                parser.push(piece, &mut exchange.response_events());
            }
        }
    }
    let mut attributes = Vec::new();
    exchange.attributes(failed, &mut attributes);
    let mut lines: Vec<_> = attributes
        .into_iter()
        .filter(|kv| !kv.key.as_str().contains("time_"))
        .map(|kv| format!("{}={}", short(kv.key.as_str()), kv.value))
        .collect();
    lines.sort();
    lines
}

/// The tables leave out the prefixes that every line would have.
fn short(key: &str) -> &str {
    key.trim_start_matches("lantern.")
        .trim_start_matches("gen_ai.")
}

fn check(title: &str, request: &str, answer: Body, expected: &[&str]) {
    let longest = match answer {
        Body::Json(body) | Body::Stream(body) | Body::Broken(body) => body.len(),
    };
    for size in 1..=longest.max(request.len()).max(1) {
        let seen = observe(request, answer, size);
        assert_eq!(seen, expected, "{title}, in pieces of {size}");
    }
}

const NO_ANSWER: Body = Body::Json("");

const REQUESTS: &[(&str, &str, &[&str])] = &[
    (
        "completion",
        r#"{"model":"facebook/opt-125m","prompt":"San Francisco is a","max_tokens":10,"n":3,
                "use_beam_search":"true","temperature":0.0}"#,
        &[
            "request.choice.count=3",
            "request.max_tokens=10",
            "request.model=facebook/opt-125m",
            "request.temperature=0",
        ],
    ),
    (
        "chat with everything",
        r#"{"messages":[{"role":"user","content":"say \"model\": no","model":"no"}],"stream":true,
                "stream_options":{"include_usage":true},"top_p":0.9,"top_k":40,"seed":-7,"stop":["a","\n"],
                "frequency_penalty":0.5,"presence_penalty":-1,"max_completion_tokens":64,"model":"m"}"#,
        &[
            "request.frequency_penalty=0.5",
            "request.max_tokens=64",
            "request.model=m",
            "request.presence_penalty=-1",
            "request.seed=-7",
            "request.stop_sequences=[\"a\",\"\n\"]",
            "request.stream=true",
            "request.top_k=40",
            "request.top_p=0.9",
        ],
    ),
    (
        "responses",
        r#"{"model":"m","input":[{"type":"message","model":"no"}],"max_output_tokens":5,"stop":null}"#,
        &["request.max_tokens=5", "request.model=m"],
    ),
    (
        "messages",
        r#"{"model":"m","max_tokens":5,"stop_sequences":["a"],"messages":[{"role":"user","content":"hi"}]}"#,
        &[
            "request.max_tokens=5",
            "request.model=m",
            "request.stop_sequences=[\"a\"]",
        ],
    ),
    (
        "llama.cpp, one stop sequence",
        r#"{"prompt":[1,2,3],"n_predict":-1,"stop":"END","stream":false}"#,
        &[
            "request.max_tokens=-1",
            "request.stop_sequences=[\"END\"]",
            "request.stream=false",
        ],
    ),
    (
        "wrong types",
        r#"{"model":1,"temperature":"hot","n":2.5,"seed":"x","stream":"yes","stop":[1,{}],"top_p":null}"#,
        &[],
    ),
    (
        "a duplicate member",
        r#"{"model":"first","n":1,"model":"second","n":2}"#,
        &["request.choice.count=2", "request.model=second"],
    ),
    ("broken", r#"{"model":"m","n":}"#, &["request.model=m"]),
    ("no JSON", "model=m&n=2", &[]),
];

#[test]
fn a_request_says_what_it_asks_for() {
    for (title, request, expected) in REQUESTS {
        check(title, request, NO_ANSWER, expected);
    }
}

const JSON_ANSWERS: &[(&str, &str, &[&str])] = &[
    (
        "OpenAI chat",
        r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"gpt-4o-2024-08-06",
                "choices":[{"index":0,"message":{"role":"assistant","content":"{\"id\":\"no\"}","refusal":null},
                "logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":19,"completion_tokens":10,
                "total_tokens":29,"prompt_tokens_details":{"cached_tokens":8,"audio_tokens":0},
                "completion_tokens_details":{"reasoning_tokens":0}},"system_fingerprint":null}"#,
        &[
            "response.finish_reasons=[\"stop\"]",
            "response.id=chatcmpl-1",
            "response.model=gpt-4o-2024-08-06",
            "usage.cache_read.input_tokens=8",
            "usage.input_tokens=19",
            "usage.output_tokens=10",
        ],
    ),
    (
        "vLLM completion of several choices out of order",
        r#"{"id":"cmpl-1","model":"m","choices":[{"index":1,"text":"b","finish_reason":"length",
                "stop_reason":null},{"index":0,"text":"a","finish_reason":"stop"}],"usage":{"prompt_tokens":5,
                "total_tokens":9,"completion_tokens":4,"prompt_tokens_details":null},"kv_transfer_params":null}"#,
        &[
            "response.finish_reasons=[\"stop\",\"length\"]",
            "response.id=cmpl-1",
            "response.model=m",
            "usage.input_tokens=5",
            "usage.output_tokens=4",
        ],
    ),
    (
        "llama.cpp, finish reason before index, timings beside usage",
        r#"{"choices":[{"finish_reason":"stop","index":0,"message":{"role":"assistant","content":"hi"}}],
                "created":1,"model":"gpt-3.5-turbo","usage":{"completion_tokens":2,"prompt_tokens":9,
                "total_tokens":11},"id":"chatcmpl-2","timings":{"cache_n":6,"prompt_n":3,"prompt_ms":1.5,
                "predicted_n":2}}"#,
        &[
            "response.finish_reasons=[\"stop\"]",
            "response.id=chatcmpl-2",
            "response.model=gpt-3.5-turbo",
            "usage.cache_read.input_tokens=6",
            "usage.input_tokens=9",
            "usage.output_tokens=2",
        ],
    ),
    (
        "TGI: no id, no index of the only choice",
        r#"{"id":"","model":"m","system_fingerprint":"3.3.0-sha","choices":[{"message":{"content":"a"},
                "finish_reason":"eos_token"}],"usage":{"prompt_tokens":1,"completion_tokens":2,"total_tokens":3}}"#,
        &[
            "response.finish_reasons=[\"eos_token\"]",
            "response.model=m",
            "usage.input_tokens=1",
            "usage.output_tokens=2",
        ],
    ),
    (
        "embeddings",
        r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.1,-2e-3]}],
                "model":"e5","usage":{"prompt_tokens":4,"total_tokens":4}}"#,
        &["response.model=e5", "usage.input_tokens=4"],
    ),
    (
        "responses",
        r#"{"id":"resp_1","object":"response","status":"incomplete","error":null,
                "incomplete_details":{"reason":"max_output_tokens"},"model":"m","output":[{"id":"msg_1",
                "status":"incomplete","content":[{"type":"output_text","text":"a"}]}],"usage":{"input_tokens":3,
                "input_tokens_details":{"cached_tokens":1},"output_tokens":5,"total_tokens":8}}"#,
        &[
            "response.finish_reasons=[\"max_output_tokens\"]",
            "response.id=resp_1",
            "response.model=m",
            "usage.cache_read.input_tokens=1",
            "usage.input_tokens=3",
            "usage.output_tokens=5",
        ],
    ),
    (
        "messages",
        r#"{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"text","text":"a"}],"model":"m",
                "stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":3,"output_tokens":5}}"#,
        &[
            "response.finish_reasons=[\"end_turn\"]",
            "response.id=msg_1",
            "response.model=m",
            "usage.input_tokens=3",
            "usage.output_tokens=5",
        ],
    ),
    (
        "an error",
        r#"{"error":{"message":"no such model","type":"NotFoundError","code":404,"id":"no"}}"#,
        &[],
    ),
    ("a proxy's page", "<html>{\"id\":\"no\"}</html>", &[]),
    (
        "broken",
        r#"{"id":"a","choices":[{"finish_reason":"stop"}"#,
        &["response.finish_reasons=[\"stop\"]", "response.id=a"],
    ),
];

#[test]
fn a_json_answer_says_what_the_model_did() {
    for (title, answer, expected) in JSON_ANSWERS {
        check(title, "", Body::Json(answer), expected);
    }
}

const STREAMS: &[(&str, Body, &[&str])] = &[
    (
        "chat with usage in an event of its own",
        Body::Stream(
            "data: {\"id\":\"chatcmpl-1\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n\
                 data: {\"id\":\"chatcmpl-1\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hi\"},\"finish_reason\":null}],\"usage\":null}\n\n\
                 data: {\"id\":\"chatcmpl-1\",\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n\
                 data: {\"id\":\"chatcmpl-1\",\"model\":\"m\",\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\"prompt_tokens_details\":{\"cached_tokens\":8}}}\n\n\
                 data: [DONE]\n\n",
        ),
        &[
            "response.chunk_count=3",
            "response.finish_reasons=[\"stop\"]",
            "response.id=chatcmpl-1",
            "response.model=m",
            "usage.cache_read.input_tokens=8",
            "usage.input_tokens=9",
            "usage.output_tokens=2",
        ],
    ),
    (
        "choices of several events, the last one first",
        Body::Stream(
            ": ping\r\n\r\ndata: {\"choices\":[{\"index\":2,\"finish_reason\":\"length\"}]}\r\n\r\n\
                 data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\r\n\r\n",
        ),
        &[
            "response.chunk_count=2",
            "response.finish_reasons=[\"stop\",\"length\"]",
        ],
    ),
    (
        "llama.cpp without usage",
        Body::Stream(
            "data: {\"choices\":[{\"finish_reason\":\"length\",\"index\":0,\"delta\":{}}],\"id\":\"c\",\"timings\":{\"cache_n\":4,\"prompt_n\":3,\"predicted_n\":7}}\n\ndata: [DONE]\n\n",
        ),
        &[
            "response.chunk_count=1",
            "response.finish_reasons=[\"length\"]",
            "response.id=c",
            "usage.cache_read.input_tokens=4",
            "usage.input_tokens=7",
            "usage.output_tokens=7",
        ],
    ),
    (
        "running usage, cancelled",
        Body::Broken(
            "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"text\":\"a\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":1}}\n\n\
                 data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"text\":\"b\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":2}}\n\n\
                 data: {\"id\":\"c\",\"choi",
        ),
        &[
            "response.chunk_count=2",
            "response.id=c",
            "usage.input_tokens=5",
            "usage.output_tokens=2",
            "usage.partial=true",
        ],
    ),
    (
        "broken off within the last event's line ends",
        Body::Broken("data: {\"id\":\"c\",\"choices\":[{\"index\":0}]}\n"),
        &["response.id=c", "usage.partial=true"],
    ),
    (
        "the client leaves on the last event",
        Body::Broken(
            "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
        ),
        &[
            "response.chunk_count=1",
            "response.finish_reasons=[\"stop\"]",
        ],
    ),
    (
        "responses",
        Body::Stream(
            "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_1\",\"model\":\"m\",\"status\":\"in_progress\",\"usage\":null}}\n\n\
                 event: response.output_item.added\ndata: {\"type\":\"response.output_item.added\",\"item\":{\"id\":\"msg_1\",\"status\":\"in_progress\"}}\n\n\
                 event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"item_id\":\"msg_1\",\"delta\":\"Hi\"}\n\n\
                 event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"id\":\"resp_1\",\"status\":\"completed\",\"output\":[{\"id\":\"msg_1\"}],\"usage\":{\"input_tokens\":3,\"output_tokens\":1,\"input_tokens_details\":{\"cached_tokens\":0}}}}\n\n",
        ),
        &[
            "response.chunk_count=1",
            "response.finish_reasons=[\"completed\"]",
            "response.id=resp_1",
            "response.model=m",
            "usage.cache_read.input_tokens=0",
            "usage.input_tokens=3",
            "usage.output_tokens=1",
        ],
    ),
    (
        "messages, broken off behind their end",
        Body::Broken(
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_1\",\"model\":\"m\",\"usage\":{\"input_tokens\":3,\"output_tokens\":1}}}\n\n\
                 event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"a\"}}\n\n\
                 event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"max_tokens\"},\"usage\":{\"output_tokens\":5}}\n\n\
                 event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        ),
        &[
            "response.chunk_count=1",
            "response.finish_reasons=[\"max_tokens\"]",
            "response.id=msg_1",
            "response.model=m",
            "usage.input_tokens=3",
            "usage.output_tokens=5",
        ],
    ),
    (
        "a failed response that is broken off behind its end",
        Body::Broken(
            "data: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\"}}\n\n",
        ),
        &["response.finish_reasons=[\"failed\"]"],
    ),
    (
        "an error, an event of no JSON, and then a chunk",
        Body::Stream(
            "data: {\"error\":{\"message\":\"a\"}}\n\ndata: oops\n\ndata: {\"choices\":[{}]}\n\n",
        ),
        &["response.chunk_count=1"],
    ),
];

#[test]
fn a_stream_says_what_the_model_did() {
    for (title, answer, expected) in STREAMS {
        check(title, "", *answer, expected);
    }
}

/// The data of a stream's events, and what of them is `error.type`.
const ERRORS: &[(&str, &[&str], Option<&str>)] = &[
    (
        "OpenAI",
        &[r#"{"error":{"message":"a b","type":"server_error","param":null,"code":"overloaded"}}"#],
        Some("overloaded"),
    ),
    (
        "vLLM, behind a chunk",
        &[
            r#"{"choices":[{"index":0,"text":"code"}]}"#,
            r#"{"error":{"message":"a","type":"InternalServerError","param":null,"code":500}}"#,
            "[DONE]",
        ],
        Some("InternalServerError"),
    ),
    (
        "a status for a name",
        &[r#"{"error":{"message":"a","code":503}}"#],
        Some("503"),
    ),
    (
        "TGI",
        &[r#"{"error":"it went wrong","error_type":"generation"}"#],
        Some("generation"),
    ),
    (
        "a failed response",
        &[
            r#"{"type":"response.failed","response":{"status":"failed","error":{"code":"rate_limit_exceeded","message":"a"}}}"#,
        ],
        Some("rate_limit_exceeded"),
    ),
    (
        "a failed response that does not say why",
        &[r#"{"type":"response.failed","response":{"status":"failed","error":null}}"#],
        Some("_OTHER"),
    ),
    (
        "an event that is an error",
        &[r#"{"type":"error","code":"invalid_prompt","message":"a","param":null}"#],
        Some("invalid_prompt"),
    ),
    (
        "the first of two",
        &[r#"{"error":{"type":"a"}}"#, r#"{"error":{"type":"b"}}"#],
        Some("a"),
    ),
    (
        "no name but a sentence, and no status",
        &[r#"{"error":{"message":"a","type":"what a day","code":12345}}"#],
        Some("_OTHER"),
    ),
    (
        "no error",
        &[
            r#"{"type":"response.created","response":{"status":"in_progress","error":null}}"#,
            r#"{"type":"response.output_text.delta","delta":"error"}"#,
            r#"{"type":"response.completed","response":{"status":"completed","error":null}}"#,
            r#"{"choices":[{"error":{"type":"of a choice"}}],"error":null}"#,
        ],
        None,
    ),
];

#[test]
fn an_error_within_a_stream_is_known_by_its_name() {
    for (title, events, expected) in ERRORS {
        let stream: String = events
            .iter()
            .map(|data| format!("data: {data}\n\n"))
            .collect();
        for size in 1..=stream.len() {
            let mut exchange = Exchange::new("chat", Instant::now(), None);
            let mut parser = EventParser::default();
            for piece in stream.as_bytes().chunks(size) {
                parser.push(piece, &mut exchange.response_events());
            }
            let seen = exchange.error_type();
            assert_eq!(seen.as_deref(), *expected, "{title}, in pieces of {size}");
        }
    }
}

#[test]
fn a_name_of_an_error_has_a_bound() {
    for (length, expected) in [(64, "x".repeat(64)), (65, "_OTHER".to_owned())] {
        let mut exchange = Exchange::new("chat", Instant::now(), None);
        let code = "x".repeat(length);
        exchange.response_document(format!(r#"{{"error":{{"code":"{code}"}}}}"#).as_bytes());
        assert_eq!(exchange.error_type().as_deref(), Some(&*expected));
    }
}

#[test]
fn a_request_that_is_sent_again_is_read_again() {
    let mut exchange = Exchange::new("chat", Instant::now(), None);
    exchange.request_body(br#"{"stop":["a"],"model":"m","prompt":"cut h"#);
    exchange.restart_request();
    exchange.request_body(br#"{"stop":["a"],"model":"m"}"#);
    let mut attributes = Vec::new();
    exchange.attributes(true, &mut attributes);
    let values: Vec<_> = attributes.iter().map(|kv| kv.value.to_string()).collect();
    assert_eq!(values, ["m", "[\"a\"]", "true"]);
}

#[test]
fn only_posts_to_these_apis_are_requests_to_a_model() {
    for (method, route, expected) in [
        (
            Method::POST,
            Some("/v1/completions"),
            Some("text_completion"),
        ),
        (Method::POST, Some("/v1/chat/completions"), Some("chat")),
        (Method::POST, Some("/v1/responses"), Some("chat")),
        (Method::POST, Some("/v1/embeddings"), Some("embeddings")),
        (Method::POST, Some("/v1/messages"), Some("chat")),
        (Method::POST, Some("/v1/messages/count_tokens"), None),
        (Method::POST, Some("/v1/threads/{id}/messages"), None),
        (Method::GET, Some("/v1/responses"), None),
        (
            Method::POST,
            Some("/v1/responses/{response_id}/cancel"),
            None,
        ),
        (Method::POST, Some("/tokenize"), None),
        (Method::POST, None, None),
    ] {
        assert_eq!(operation(&method, route), expected, "{method} {route:?}");
    }
}
