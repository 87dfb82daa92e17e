//! One request is one tree: client → proxy → its attempt → engine span → queue, prefill, decode, by either
//! protocol into the shim and by either out of it, in the embedded store and in the real Jaeger.

use crate::support::backend::{Backend, Trace};
use crate::support::path::{MODEL, ServingPath};

pub(crate) const TREE: &str = "\
client-service client-span
  lantern-proxy POST /v1/completions
    lantern-proxy POST
      lantern-inference llm_request
        lantern-inference queue
        lantern-inference prefill
        lantern-inference decode
";

const PROTOCOLS: [(&str, &str); 4] = [
    ("grpc", "grpc"),
    ("http/protobuf", "http/protobuf"),
    ("grpc", "http/protobuf"),
    ("http/protobuf", "grpc"),
];

#[test]
fn one_request_is_one_tree_in_the_embedded_store() {
    one_request_is_one_tree(&Backend::embedded());
}

#[test]
#[cfg_attr(no_go, ignore = "no Go on this machine to build Jaeger with")]
fn one_request_is_one_tree_in_jaeger() {
    one_request_is_one_tree(&Backend::jaeger());
}

fn one_request_is_one_tree(backend: &Backend) {
    for (protocol_in, protocol_out) in PROTOCOLS {
        let path = ServingPath::start(backend, protocol_in, protocol_out);
        let trace_id = path.client_request(&[]);
        let trace = backend.trace(&trace_id, TREE.lines().count());
        assert_eq!(trace.tree(), TREE, "{protocol_in} in, {protocol_out} out");
        check_tags(&trace);
    }
    let services = backend
        .query("/api/services")
        .expect("the backend lists its services");
    for service in ["client-service", "lantern-proxy", "lantern-inference"] {
        let listed = services
            .as_array()
            .expect("a list")
            .iter()
            .any(|name| name == service);
        assert!(listed, "{service} is missing in {services}");
    }
}

fn check_tags(trace: &Trace) {
    let check = |operation: &str, key: &str, expect: serde_json::Value| {
        assert_eq!(trace.tag(operation, key), expect, "{operation} {key}");
    };
    check("client-span", "span.kind", "client".into());
    check("client-span", "prompt", "San Francisco is a".into());
    check("POST /v1/completions", "span.kind", "server".into());
    check("POST /v1/completions", "http.request.method", "POST".into());
    check(
        "POST /v1/completions",
        "http.route",
        "/v1/completions".into(),
    );
    check("POST /v1/completions", "url.path", "/v1/completions".into());
    check(
        "POST /v1/completions",
        "http.response.status_code",
        200.into(),
    );
    check("POST", "span.kind", "client".into());
    check("POST", "http.response.status_code", 200.into());
    check("llm_request", "span.kind", "server".into());
    check("llm_request", "gen_ai.response.model", MODEL.into());
    check("llm_request", "gen_ai.request.max_tokens", 10.into());
    check("llm_request", "gen_ai.request.n", 3.into());
    let prompt_tokens = trace.tag("llm_request", "gen_ai.usage.prompt_tokens");
    assert!(
        prompt_tokens.as_i64().is_some_and(|tokens| tokens > 1),
        "{prompt_tokens}"
    );
    for latency in [
        "time_to_first_token",
        "e2e",
        "time_in_queue",
        "time_in_model_prefill",
    ] {
        let seconds = trace.tag("llm_request", &format!("gen_ai.latency.{latency}"));
        assert!(
            seconds.as_f64().is_some_and(|seconds| seconds >= 0.0),
            "{latency}: {seconds}"
        );
    }
}
