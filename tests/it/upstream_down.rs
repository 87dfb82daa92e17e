//! A server that is down is an error that the client can read and the operator can see.

use serde_json::Value;

use crate::support::backend::Backend;
use crate::support::path::start_proxy;
use crate::support::{free_addr, http};

const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[test]
fn an_upstream_that_is_down_is_a_502_with_an_openai_error_and_an_error_span() {
    let backend = Backend::embedded();
    let env = [
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            backend.endpoint("grpc"),
        ),
        ("OTEL_BSP_SCHEDULE_DELAY", "50".into()),
    ];
    let env: Vec<(&str, &str)> = env
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let (mut proxy, proxy_addr) = start_proxy(free_addr(), &env);
    proxy.wait_until("the proxy to listen", || {
        std::net::TcpStream::connect(proxy_addr).is_ok()
    });

    let mut response = http()
        .post(format!("http://{proxy_addr}/v1/completions"))
        .header("traceparent", format!("00-{TRACE_ID}-00f067aa0ba902b7-01"))
        .send_json(serde_json::json!({"model": "any", "prompt": "hello"}))
        .expect("the proxy answers");
    assert_eq!(response.status(), 502);
    let body: Value = response
        .body_mut()
        .read_json()
        .expect("an OpenAI error is JSON");
    assert!(body["error"]["message"].is_string(), "{body}");

    let trace = backend.trace(TRACE_ID, 2);
    const SPAN: &str = "POST /v1/completions";
    assert_eq!(trace.tag(SPAN, "http.response.status_code"), 502);
    assert_eq!(trace.tag(SPAN, "error"), true);
    for span in [SPAN, "POST"] {
        assert_eq!(trace.tag(span, "error.type"), "upstream_connection_refused");
    }
}
