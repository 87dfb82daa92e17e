//! `lantern instrument -- CMD…`: spans for a server that knows of none, its signals and exit code.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use rustix::process::Signal;

use crate::support::backend::Backend;
use crate::support::process::Process;
use crate::support::{free_addr, http, wait_for};

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
    process.wait_until_output("proxying");
    let answered = http()
        .get(format!("http://{listen}/"))
        .header("traceparent", format!("00-{TRACE_ID}-00f067aa0ba902b7-01"))
        .call()
        .expect("it serves");
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
#[cfg_attr(no_python, ignore = "no Python on this machine to serve HTTP with")]
#[cfg(target_os = "linux")]
fn a_server_is_found_wherever_it_listens_and_early_clients_wait_for_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gate = folder.path().join("open");
    let (listen, port) = (free_addr(), free_addr().port());
    // No argument of `sh` is a port, and the address is none that anybody would guess.
    let script = format!(
        "while [ ! -e {} ]; do sleep 0.05; done; python3 -m http.server --bind 127.0.0.2 {port}; :",
        gate.display()
    );
    let mut process = instrument(
        &["--listen", &listen.to_string()],
        &["sh", "-c", &script],
        &[("OTEL_TRACES_EXPORTER", "none")],
    );
    let mut client = wait_for("the proxy's port", || TcpStream::connect(listen).ok());
    let request = format!("GET / HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\n\r\n");
    client
        .write_all(request.as_bytes())
        .expect("the port is open");
    std::fs::write(&gate, "").expect("the folder is there");
    process.wait_until_output(&format!("http://127.0.0.2:{port}"));
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("text");
    let status = answer.lines().next();
    assert!(
        status.is_some_and(|line| line.ends_with("200 OK")),
        "{answer}"
    );
    process.terminate();
}

#[test]
fn a_signal_reaches_a_command_that_does_not_listen() {
    let listen = free_addr().to_string();
    let mut process = instrument(
        &["--listen", &listen],
        &[
            "sh",
            "-c",
            "trap 'exit 7' TERM; echo started; while :; do sleep 0.05; done",
        ],
        &[("OTEL_TRACES_EXPORTER", "none")],
    );
    process.wait_until_output("started");
    let ended = process.terminate();
    assert_eq!(ended.code, Some(7), "{}", ended.output);
}

#[test]
#[cfg_attr(no_python, ignore = "no Python on this machine to serve HTTP with")]
fn a_server_that_wants_the_proxys_port_is_told_what_to_do() {
    let listen = free_addr();
    let port = listen.port().to_string();
    let command = ["python3", "-m", "http.server", "--bind", "127.0.0.1", &port];
    let ended = instrument(
        &["--listen", &listen.to_string()],
        &command,
        &[("OTEL_TRACES_EXPORTER", "none")],
    )
    .wait();
    assert_eq!(ended.code, Some(1), "{}", ended.output);
    let explained = format!("if it wanted port {port}, which the proxy has");
    assert!(ended.output.contains(&explained), "{}", ended.output);
}

#[test]
fn check_starts_nothing() {
    let ended = instrument(&["--check"], &["/no/such/server", "--port=9000"], &[]).wait();
    assert_eq!(ended.code, Some(0), "{}", ended.output);
    let upstream = r#"upstream = ["http://127.0.0.1:9000"]"#;
    assert!(ended.output.contains(upstream), "{}", ended.output);
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
    process.wait_until_output("proxying");
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

#[test]
#[cfg_attr(no_python, ignore = "no Python on this machine to serve HTTP with")]
fn a_server_that_listens_before_it_has_loaded_its_model_is_waited_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let [gate, loaded] = ["open", "loaded"].map(|name| folder.path().join(name));
    std::fs::write(&gate, "").expect("the folder is there");
    let (listen, server) = (free_addr(), free_addr());
    let mut process = instrument(
        &["--listen", &listen.to_string()],
        &[
            "python3",
            "tests/python/gated_server.py",
            &server.port().to_string(),
            &gate.to_string_lossy(),
            &loaded.to_string_lossy(),
        ],
        &[("OTEL_TRACES_EXPORTER", "none")],
    );
    wait_for("two answers that it is loading", || {
        let answers = process.output().matches("answers 503").count();
        (answers > 1).then_some(())
    });
    assert!(!process.output().contains("proxying"));
    std::fs::write(&loaded, "").expect("the folder is there");
    process.wait_until_output("proxying");
    let answered = http().get(format!("http://{listen}/")).call();
    assert_eq!(answered.expect("an answer").status(), 200);
    process.terminate();
}
