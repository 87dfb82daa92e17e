//! `lantern instrument -- CMD…`: spans for a server that knows of none, its signals and exit code.

use rustix::process::Signal;

use crate::support::backend::Backend;
use crate::support::process::Process;
use crate::support::{free_addr, http};

const TRACE_ID: &str = "11111111111111112222222222222222";

fn instrument(flags: &[&str], command: &[&str], env: &[(&str, &str)]) -> Process {
    let args = [&["instrument"], flags, &["--"], command].concat();
    Process::lantern(&args, env)
}

#[test]
#[cfg_attr(no_python, ignore = "no Python on this machine to serve HTTP with")]
fn any_http_server_gets_its_server_spans_and_its_signals() {
    let backend = Backend::embedded();
    let (listen, server) = (free_addr(), free_addr());
    let mut process = instrument(
        &[
            "--listen",
            &listen.to_string(),
            "--upstream",
            &format!("http://{server}"),
        ],
        &[
            "python3",
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            &server.port().to_string(),
        ],
        &[
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                &backend.endpoint("grpc"),
            ),
            ("OTEL_SERVICE_NAME", "files"),
        ],
    );
    let get = |traceparent: &str| {
        let request = http().get(format!("http://{listen}/"));
        request.header("traceparent", traceparent).call()
    };
    let unsampled = "00-33333333333333334444444444444444-00f067aa0ba902b7-00";
    process.wait_until("the server behind the proxy", || {
        get(unsampled).is_ok_and(|response| response.status() == 200)
    });
    let answered = get(&format!("00-{TRACE_ID}-00f067aa0ba902b7-01")).expect("it serves");
    assert_eq!(answered.status(), 200);

    // The server ends by the signal, so `instrument` ends as a shell would say it.
    let ended = process.terminate();
    assert_eq!(
        ended.code,
        Some(128 + Signal::TERM.as_raw()),
        "{}",
        ended.output
    );
    let trace = backend.trace(TRACE_ID, 2);
    assert_eq!(trace.tree(), "files GET /\n  files GET\n");
    assert_eq!(trace.tag("GET /", "url.path"), "/");
}

#[test]
fn the_exit_code_is_the_commands() {
    let listen = free_addr().to_string();
    let ended = instrument(
        &["--listen", &listen],
        &["sh", "-c", "exit 7"],
        &[("OTEL_TRACES_EXPORTER", "none")],
    )
    .wait();
    assert_eq!(ended.code, Some(7), "{}", ended.output);
}

#[test]
fn a_command_that_cannot_start_is_named() {
    let listen = free_addr().to_string();
    let ended = instrument(
        &["--listen", &listen],
        &["/no/such/server"],
        &[("OTEL_TRACES_EXPORTER", "none")],
    )
    .wait();
    assert_eq!(ended.code, Some(1), "{}", ended.output);
    assert!(ended.output.contains("/no/such/server"), "{}", ended.output);
}

#[test]
#[cfg_attr(no_python, ignore = "no Python on this machine to serve HTTP with")]
fn a_request_in_flight_is_answered_before_the_command_is_told_to_stop() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gate = folder.path().join("open");
    let (listen, server) = (free_addr(), free_addr());
    // Nobody listens there: the exit code must be the command's all the same.
    let collector = format!("grpc://{}", free_addr());
    let mut process = instrument(
        &[
            "--listen",
            &listen.to_string(),
            "--upstream",
            &format!("http://{server}"),
        ],
        &[
            "python3",
            "tests/python/gated_server.py",
            &server.port().to_string(),
            &gate.to_string_lossy(),
        ],
        &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &collector)],
    );
    process.wait_until_output("listening");
    let client = std::thread::spawn(move || http().get(format!("http://{listen}/")).call());
    process.wait_until_output("a request waits at the gate");
    process.signal(Signal::TERM);
    std::fs::write(&gate, "").expect("the folder is there");
    let answered = client
        .join()
        .expect("the client does not panic")
        .expect("an answer");
    assert_eq!(answered.status(), 200);
    assert_eq!(process.wait().code, Some(128 + Signal::TERM.as_raw()));
}
