//! Who slowed whom: the engine's steps are linked to every request that they served, so that a long
//! prompt is found in the trace of a stream that it stalled.

use std::io::{BufRead as _, BufReader};

use serde_json::{Value, json};

use crate::support::backend::Backend;
use crate::support::path::{MODEL, start_inference};
use crate::support::{http, wait_for};

const STREAM: &str = "0af7651916cd43dd8448eb211c80319c";
const LONG_PROMPT: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PROMPT_TOKENS: usize = 400;

#[test]
fn a_long_prompt_shares_a_step_with_the_stream_that_it_stalls_in_the_embedded_store() {
    let backend = Backend::embedded();
    a_long_prompt_shares_a_step_with_the_stream_that_it_stalls(&backend);
    let linking = backend
        .query(&format!("/ui/traces/{STREAM}/linking"))
        .expect("the store says which spans link to a trace");
    let linking = linking.as_array().expect("a list");
    assert!(!linking.is_empty());
    assert!(linking.iter().all(|step| links_to(step, STREAM)));
}

#[test]
#[cfg_attr(no_go, ignore = "no Go on this machine to build Jaeger with")]
fn a_long_prompt_shares_a_step_with_the_stream_that_it_stalls_in_jaeger() {
    a_long_prompt_shares_a_step_with_the_stream_that_it_stalls(&Backend::jaeger());
}

fn a_long_prompt_shares_a_step_with_the_stream_that_it_stalls(backend: &Backend) {
    let endpoint = backend.endpoint("grpc");
    let env = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
    ];
    let (mut inference, addr) = start_inference(&["--collect-detailed-traces", "all"], &env);
    inference.wait_until("the model to be served", || {
        let health = http().get(format!("http://{addr}/health")).call();
        health.is_ok_and(|response| response.status() == 200)
    });
    let post = |trace_id: &str, body: Value| {
        let request = http()
            .post(format!("http://{addr}/v1/completions"))
            .header("traceparent", format!("00-{trace_id}-b7ad6b7169203331-01"));
        let response = request.send_json(body).expect("the server answers");
        assert_eq!(response.status(), 200);
        response
    };

    // Several sequences, so that the stream goes on for long after its first token.
    let mut stream = post(
        STREAM,
        json!({
            "model": MODEL, "prompt": "Once", "stream": true, "n": 8,
            "max_tokens": 400, "ignore_eos": true,
        }),
    );
    let mut lines = BufReader::new(stream.body_mut().as_reader()).lines();
    let first = lines.next().expect("an event").expect("a whole stream");
    assert!(first.starts_with("data: {"), "{first}");
    let prompt = vec![5; PROMPT_TOKENS];
    post(
        LONG_PROMPT,
        json!({"model": MODEL, "prompt": prompt, "max_tokens": 1}),
    );
    drop(lines);
    drop(stream);

    let steps = "/api/traces?service=lantern-inference&operation=engine.step&limit=1000";
    let shared = wait_for("a step of both requests", || {
        let steps = backend.query(steps)?;
        let shared = |step: &&Value| links_to(step, STREAM) && links_to(step, LONG_PROMPT);
        steps.as_array()?.iter().find(shared).cloned()
    });
    let tag = |key: &str| {
        let tags = shared["spans"].as_array().expect("spans").iter();
        let step = tags
            .filter(|span| span["operationName"] == "engine.step")
            .flat_map(|span| span["tags"].as_array().expect("tags"));
        let mut values = step.filter(|tag| tag["key"] == key);
        values.next().and_then(|tag| tag["value"].as_u64())
    };
    // The stream's last sequences may begin in it too.
    let prefilled = tag("lantern.step.prefill_tokens");
    let whole_prompt = |tokens| tokens >= PROMPT_TOKENS as u64;
    assert!(prefilled.is_some_and(whole_prompt), "{shared:#}");
    let decoded = tag("lantern.step.decode_tokens");
    assert!(decoded.is_some_and(|tokens| tokens > 0), "{shared:#}");
}

/// Whether a span of this trace links into the other.
fn links_to(trace: &Value, trace_id: &str) -> bool {
    let spans = trace["spans"].as_array().into_iter().flatten();
    let mut references = spans.flat_map(|span| span["references"].as_array().into_iter().flatten());
    references
        .any(|reference| reference["refType"] == "FOLLOWS_FROM" && reference["traceID"] == trace_id)
}
