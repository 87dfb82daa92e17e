//! Servers of others behind the proxy, in one command and without a line of them changed: each of their requests is
//! one tree in the real Jaeger.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::backend::Backend;
use crate::support::process::Process;
use crate::support::{free_addr, http, provided_by};

const TRACE_ID: &str = "55555555555555556666666666666666";
/// The model that everything is asked of.
const MODEL: &str = "theirs";

/// A server behind `lantern instrument`, its spans in Jaeger.
struct Instrumented {
    address: SocketAddr,
    backend: Backend,
    /// Until it is dropped.
    process: Option<Process>,
}

impl Drop for Instrumented {
    /// By a signal that is passed on: killed, it would leave its server behind.
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.terminate();
        }
    }
}

impl Instrumented {
    /// Starts `program` with the arguments that make it a server on a port.
    fn start(program: &Path, arguments: impl Fn(&str) -> Vec<String>) -> Self {
        let backend = Backend::jaeger();
        let (address, server) = (free_addr(), free_addr());
        let listen = address.to_string();
        let mut command = ["instrument", "--listen", &listen]
            .map(str::to_owned)
            .to_vec();
        command.extend(["--".to_owned(), program.to_string_lossy().into_owned()]);
        command.extend(arguments(&server.port().to_string()));
        let command: Vec<_> = command.iter().map(String::as_str).collect();
        let mut process = Process::lantern(
            &command,
            &[
                (
                    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                    &backend.endpoint("grpc"),
                ),
                ("OTEL_SERVICE_NAME", "server"),
                ("OTEL_BSP_SCHEDULE_DELAY", "100"),
            ],
        );
        process.wait_until_output("proxying");
        Self {
            address,
            backend,
            process: Some(process),
        }
    }

    /// A completion that `lantern client` asks for is a tree with its span as the root.
    fn completes(&self) {
        let url = format!("http://{}/v1/completions", self.address);
        let endpoint = self.backend.endpoint("grpc");
        let arguments = ["client", "--url", &url, "--model", MODEL, "--n", "1"];
        let arguments = [&arguments[..], &["--use-beam-search", "false"]].concat();
        let environment = [("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint.as_str())];
        let ended = Process::lantern(&arguments, &environment).wait();
        assert_eq!(ended.code, Some(0), "{}", ended.output);
        let mut lines = ended.output.lines();
        let trace_id = lines.find_map(|line| line.strip_prefix("trace "));
        let trace = self
            .backend
            .trace(trace_id.expect("the client prints it"), 3);
        assert_eq!(
            trace.tree(),
            "client-service client-span\n  server POST /v1/completions\n    server POST\n"
        );
        let tag = |key| trace.tag("POST /v1/completions", key);
        assert_eq!(tag("gen_ai.request.model"), MODEL);
        assert_eq!(tag("http.response.status_code"), 200);
        assert!(tag("gen_ai.usage.output_tokens").as_i64() > Some(0));
    }

    /// A streamed chat is one span with the stream's times in it, and none for a chunk; its tags.
    fn streams(&self) -> impl Fn(&str) -> Value {
        let body = json!({
            "model": MODEL,
            "messages": [{"role": "user", "content": "San Francisco is a"}],
            "max_tokens": 5,
            "stream": true,
        });
        let parent = format!("00-{TRACE_ID}-00f067aa0ba902b7-01");
        let mut answer = http()
            .post(format!("http://{}/v1/chat/completions", self.address))
            .header("traceparent", parent)
            .send_json(&body)
            .expect("it answers");
        let events = answer.body_mut().read_to_string().expect("text");
        assert!(events.trim_end().ends_with("[DONE]"), "{events}");
        let trace = self.backend.trace(TRACE_ID, 2);
        let (request, attempt) = ("POST /v1/chat/completions", "POST");
        assert_eq!(
            trace.tree(),
            format!("server {request}\n  server {attempt}\n")
        );
        move |key| trace.tag(request, key)
    }
}

/// Arguments, and the port as the last of them.
fn words(arguments: &str, port: &str) -> Vec<String> {
    let words = arguments.split(' ').chain([port]);
    words.map(str::to_owned).collect()
}

#[test]
#[cfg_attr(
    any(no_go, no_python),
    ignore = "no Go for Jaeger or no Python with venv on this machine"
)]
fn a_stock_fastapi_app_is_traced_as_one_tree_a_request() {
    let python = provided_by("python/setup.sh");
    let arguments = |port: &str| {
        let flags = "-m uvicorn --app-dir tests/python fastapi_app:app --port";
        words(flags, port)
    };
    let server = Instrumented::start(&python, arguments);
    server.completes();
    let tag = server.streams();
    assert_eq!(tag("gen_ai.usage.input_tokens"), 4);
    assert_eq!(tag("gen_ai.usage.output_tokens"), 5);
    assert_eq!(tag("lantern.gen_ai.response.chunk_count"), 5);
    assert_eq!(tag("lantern.sse.event_count"), 7);
    assert!(tag("gen_ai.response.time_to_first_chunk").as_f64() > Some(0.0));
}

/// Whoever runs it names a model: `just llama MODEL.gguf`.
#[test]
#[ignore = "needs a GGUF in LANTERN_TEST_GGUF, and minutes to build llama.cpp's server"]
fn llama_cpps_server_is_traced_as_one_tree_a_request() {
    let model = std::env::var("LANTERN_TEST_GGUF").expect("LANTERN_TEST_GGUF names a file");
    let program = provided_by("llama/build.sh");
    let arguments = |port: &str| {
        let mut words = words("--alias theirs --ctx-size 512 --port", port);
        words.extend(["--model".to_owned(), model.clone()]);
        words
    };
    let server = Instrumented::start(&program, arguments);
    server.completes();
    let tag = server.streams();
    assert!(tag("lantern.gen_ai.response.chunk_count").as_i64() > Some(0));
    assert!(tag("gen_ai.response.time_to_first_chunk").as_f64() > Some(0.0));
}
