//! Real clients: the OpenTelemetry Python SDK exporting to the shim, the `openai` package and the
//! dummy client in Python talking to the proxy. Installed from PyPI by `tests/python/setup.sh`.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

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
fn spans_of_the_python_sdk_arrive_by_both_protocols() {
    let Some(interpreter) = provided_by("python/setup.sh") else {
        return;
    };
    let backend = Backend::embedded();
    for protocol in ["grpc", "http/protobuf"] {
        let endpoint = match protocol {
            "grpc" => format!("http://{}", backend.grpc),
            _ => backend.endpoint(protocol),
        };
        let args = ["--protocol", protocol, "--endpoint", &endpoint];
        let ended = python(&interpreter, "otel_client.py", &args, &[]);
        let printed: Value = serde_json::from_str(ended.output.trim()).expect("JSON");
        let trace_ids = printed["trace_ids"].as_array().expect("trace ids");
        assert!(!trace_ids.is_empty());
        for trace_id in trace_ids {
            backend.trace(trace_id.as_str().expect("an id is text"), 1);
        }
    }
}

#[test]
fn the_openai_package_is_served_through_the_proxy() {
    let Some(interpreter) = provided_by("python/setup.sh") else {
        return;
    };
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
