//! Real clients: the OpenTelemetry Python SDK exporting to the shim, the `openai` package and the
//! dummy client in Python talking to the proxy. Installed from PyPI by `tests/python/setup.sh`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::one_trace::TREE;
use crate::support::backend::Backend;
use crate::support::path::{MODEL, ServingPath};
use crate::support::process::{Ended, Process};
use crate::support::provided_by;

fn python(interpreter: &Path, script: &str, args: &[&str], env: &[(&str, &str)]) -> Ended {
    let mut command = Command::new(interpreter);
    command.arg(format!("tests/python/{script}")).args(args);
    let ended = Process::start(command, env).wait();
    assert_eq!(ended.code, Some(0), "{script}: {}", ended.output);
    ended
}

#[test]
#[cfg_attr(no_python, ignore = "no Python with venv on this machine")]
fn spans_of_the_python_sdk_arrive_by_both_protocols() {
    let interpreter = provided_by("python/setup.sh");
    let backend = Backend::embedded();
    for protocol in ["grpc", "http/protobuf"] {
        let endpoint = match protocol {
            "grpc" => format!("http://{}", backend.grpc),
            _ => backend.endpoint(protocol),
        };
        let args = ["--protocol", protocol, "--endpoint", &endpoint];
        let ended = python(&interpreter, "otel_client.py", &args, &[]);
        let printed = printed_json(&ended);
        let trace_ids = printed["trace_ids"].as_array().expect("trace ids");
        assert!(!trace_ids.is_empty());
        for trace_id in trace_ids {
            backend.trace(trace_id.as_str().expect("an id is text"), 1);
        }
    }
}

#[test]
#[cfg_attr(no_python, ignore = "no Python with venv on this machine")]
fn the_openai_package_is_served_through_the_proxy() {
    let interpreter = provided_by("python/setup.sh");
    let backend = Backend::embedded();
    let path = ServingPath::start(&backend, "grpc", "grpc");
    let base_url = format!("http://{}/v1", path.proxy_addr);
    python(
        &interpreter,
        "openai_client.py",
        &["--base-url", &base_url, "--model", MODEL],
        &[],
    );
}

#[test]
#[cfg_attr(no_python, ignore = "no Python with venv on this machine")]
fn the_dummy_client_in_python_is_the_root_of_the_same_tree() {
    let interpreter = provided_by("python/setup.sh");
    let backend = Backend::embedded();
    let path = ServingPath::start(&backend, "grpc", "grpc");
    let env = [
        ("OTEL_SERVICE_NAME", "client-service"),
        ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "true"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            &format!("http://{}", backend.grpc),
        ),
    ];
    let args = ["--url", &path.completions_url(), "--model", MODEL];
    let printed = printed_json(&python(&interpreter, "dummy_client.py", &args, &env));
    assert_eq!(printed["status"], 200, "{printed}");
    let trace_id = printed["trace_id"].as_str().expect("an id is text");
    assert_eq!(backend.trace(trace_id, TREE.lines().count()).tree(), TREE);
}

/// The line of JSON among what a script printed; its libraries may warn beside it.
fn printed_json(ended: &Ended) -> Value {
    let line = ended.output.lines().find(|line| line.starts_with('{'));
    serde_json::from_str(line.expect("a line of JSON")).expect("JSON")
}
