//! `lantern-proxy` as a program: what it says of itself, and how it ends.

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Output, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{Echo, Peer, RawUpstream, nobody, refuses_connections, request, within};

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lantern-proxy"));
    command.args(arguments).env_clear().stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    program(arguments).output().expect("the program starts")
}

#[test]
fn help_teaches_with_examples_and_names_the_variables() {
    let help = output(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let text = String::from_utf8(help.stdout).expect("text");
    for word in [
        "Examples:",
        "--upstream",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        "[default: 300]",
    ] {
        assert!(text.contains(word), "{word} is missing in\n{text}");
    }
}

#[test]
fn version_is_that_of_the_package() {
    let version = output(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    let text = String::from_utf8(version.stdout).expect("text");
    assert_eq!(
        text.trim(),
        concat!("lantern-proxy ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_bad_flag_value_ends_the_program_with_64_and_one_line() {
    for (arguments, named) in [
        (&["--upstream", "ftp://a:1"][..], "--upstream='ftp://a:1'"),
        (
            &["--upstream", "http://a:1", "--listen", "nowhere"],
            "--listen='nowhere'",
        ),
        (&[], "--upstream"),
    ] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        let text = String::from_utf8(output.stderr).expect("text");
        assert!(
            text.contains(named) && text.trim_end().lines().count() == 1,
            "{text}"
        );
    }
}

#[test]
fn an_unknown_flag_ends_the_program_with_64() {
    assert_eq!(
        output(&["--upstraem", "http://a:1"]).status.code(),
        Some(64)
    );
}

#[test]
fn a_bad_variable_ends_the_program_with_64_and_one_line() {
    let output = program(&[
        "--upstream",
        "http://127.0.0.1:1",
        "--listen",
        "127.0.0.1:0",
    ])
    .env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "foo")
    .output()
    .expect("the program starts");
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).expect("text");
    assert!(
        text.contains("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='foo'"),
        "{text}"
    );
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
}

#[test]
fn a_variable_that_is_not_unicode_ends_the_program_with_64() {
    let name = "OTEL_PYTHON_EXCLUDED_URLS";
    let output = program(&["--upstream", "http://127.0.0.1:1"])
        .env(name, OsStr::from_bytes(b"health\xff"))
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).expect("text");
    let expect = format!("{name}='health\u{fffd}' is not supported: use valid UTF-8");
    assert!(text.contains(&expect), "{text}");
}

/// A running program, and the address that it says it listens on.
async fn serving(mut command: Command) -> (tokio::process::Child, SocketAddr) {
    command.stderr(Stdio::piped());
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let ready = async {
        loop {
            let line = lines
                .next_line()
                .await
                .expect("text")
                .expect("it serves first");
            if let Some((_, rest)) = line.split_once("listen=") {
                let address = rest
                    .split(' ')
                    .next()
                    .and_then(|address| address.parse().ok());
                return address.expect("an address");
            }
        }
    };
    let address = within("the ready line", ready).await;
    // What else it says must not fill the pipe, and is shown if the test fails.
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            eprintln!("{line}");
        }
    });
    (child, address)
}

fn terminate(child: &tokio::process::Child) {
    signal(child, "-TERM");
}

fn signal(child: &tokio::process::Child, signal: &str) {
    let pid = child.id().expect("it runs").to_string();
    let status = Command::new("kill").args([signal, &pid]).status();
    assert!(status.expect("kill is there").success());
}

#[tokio::test]
async fn sigterm_ends_an_idle_program_with_0() {
    let upstream = RawUpstream::bind().await;
    let upstream = format!("http://{}", upstream.address());
    let mut command = program(&["--upstream", &upstream, "--listen", "127.0.0.1:0"]);
    command.env("OTEL_TRACES_EXPORTER", "none");
    let (mut child, _) = serving(command).await;
    terminate(&child);
    let status = within("the program's end", child.wait()).await;
    assert_eq!(status.expect("a child").code(), Some(0));
}

#[tokio::test]
async fn connections_may_be_more_than_the_soft_limit_of_descriptors() {
    let upstream = Echo::start().await;
    let url = format!("http://{}", upstream.address);
    let mut command = Command::new("sh");
    let limited = r#"ulimit -S -n 48 && exec "$0" "$@""#;
    command
        .args(["-c", limited, env!("CARGO_BIN_EXE_lantern-proxy")])
        .args(["--upstream", &url, "--listen", "127.0.0.1:0"])
        .env_clear()
        .env("OTEL_TRACES_EXPORTER", "none");
    let (_child, address) = serving(command).await;
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = Peer::connect(address).await;
        client
            .write(&request(&["GET /health HTTP/1.1", "Host: a"], ""))
            .await;
        assert_eq!(client.read_response().await.status, 200);
        clients.push(client);
    }
}

#[tokio::test]
async fn sigterm_ends_a_program_with_0_though_nobody_takes_its_spans() {
    let mut upstream = Echo::start().await;
    let url = format!("http://{}", upstream.address);
    let mut command = program(&["--upstream", &url, "--listen", "127.0.0.1:0"]);
    let collector = format!("http://{}", nobody().await);
    command
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", collector)
        .env("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "100");
    let (mut child, address) = serving(command).await;
    let mut client = Peer::connect(address).await;
    client
        .write(&request(&["GET /health HTTP/1.1", "Host: a"], ""))
        .await;
    assert_eq!(client.read_response().await.status, 200);
    upstream.received().await;
    terminate(&child);
    let status = within("the program's end", child.wait()).await;
    assert_eq!(status.expect("a child").code(), Some(0));
}

#[tokio::test]
async fn a_stream_in_flight_at_sigterm_or_the_first_sigint_is_finished_and_its_span_exported() {
    tokio::join!(
        finishes_a_stream_in_flight_at("-TERM"),
        finishes_a_stream_in_flight_at("-INT")
    );
}

async fn finishes_a_stream_in_flight_at(name: &str) {
    let mut collector = Echo::start().await;
    let upstream = RawUpstream::bind().await;
    let url = format!("http://{}", upstream.address());
    let mut command = program(&["--upstream", &url, "--listen", "127.0.0.1:0"]);
    let endpoint = format!("http://{}/v1/traces", collector.address);
    command
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
        .env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf");
    let (mut child, address) = serving(command).await;

    let mut client = Peer::connect(address).await;
    let lines = ["GET /v1/models/exported HTTP/1.1", "Host: a"];
    client.write(&request(&lines, "")).await;
    let mut server = upstream.accept().await;
    server.read_message().await;
    server
        .write("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.read_head().await;
    signal(&child, name);
    refuses_connections(address).await;
    server.write_chunk("the end").await;
    server.write_chunk("").await;
    assert_eq!(client.read_chunk().await, "the end");

    let status = within("the program's end", child.wait()).await;
    assert_eq!(status.expect("a child").code(), Some(0));
    let export = collector.received().await;
    assert_eq!(export.uri().path(), "/v1/traces");
    let exported = String::from_utf8_lossy(export.body());
    assert!(exported.contains("/v1/models/exported"), "{exported}");
}
