//! A client that hangs up half-way: every span says so, and the engine stops working for it.

use std::io::{BufRead as _, BufReader};

use crate::support::backend::Backend;
use crate::support::path::{MODEL, ServingPath};
use crate::support::{http, wait_for};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";

#[test]
fn a_stream_cancelled_half_way_is_visible_on_every_span() {
    let backend = Backend::embedded();
    let path = ServingPath::start(&backend, "grpc", "grpc");
    let mut response = http()
        .post(path.completions_url())
        .header("traceparent", format!("00-{TRACE_ID}-b7ad6b7169203331-01"))
        .send_json(serde_json::json!({
            "model": MODEL, "prompt": "Once", "stream": true,
            "max_tokens": 400, "ignore_eos": true,
        }))
        .expect("the server answers");
    assert_eq!(response.status(), 200);
    let mut lines = BufReader::new(response.body_mut().as_reader()).lines();
    let first = lines
        .next()
        .expect("a first event")
        .expect("the stream is whole so far");
    assert!(first.starts_with("data: {"), "{first}");
    drop(lines);
    drop(response);

    // The server's span and its queue, prefill and decode; the proxy's two.
    let trace = backend.trace(TRACE_ID, 6);
    for operation in ["POST /v1/completions", "POST", "llm_request"] {
        assert_eq!(trace.tag(operation, "error"), true, "{operation}");
        assert!(
            trace.tag(operation, "error.type").is_string(),
            "{operation}"
        );
    }
    let generated = trace.tag("llm_request", "gen_ai.usage.completion_tokens");
    assert!(
        generated.as_i64().is_some_and(|tokens| tokens < 400),
        "{generated}"
    );
    wait_for("the engine to run nothing", || {
        let url = format!("http://{}/metrics", path.proxy_addr);
        let metrics = http()
            .get(url)
            .call()
            .ok()?
            .body_mut()
            .read_to_string()
            .ok()?;
        let idle =
            |line: &str| line.starts_with("vllm:num_requests_running") && line.ends_with(" 0");
        metrics.lines().any(idle).then_some(())
    });
}
