//! `lantern-proxy` as a program: what it says of itself, and how it ends.

use std::process::{Command, Output, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::{RawUpstream, within};

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
        (
            &["--upstream", "https://a:1"][..],
            "--upstream='https://a:1'",
        ),
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

#[tokio::test]
async fn sigterm_ends_the_program_cleanly() {
    let upstream = RawUpstream::bind().await;
    let upstream = format!("http://{}", upstream.address());
    let mut command = program(&["--upstream", &upstream, "--listen", "127.0.0.1:0"]);
    command
        .env("OTEL_TRACES_EXPORTER", "none")
        .stderr(Stdio::piped());
    let mut child = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let ready = async {
        while let Some(line) = lines.next_line().await.expect("text") {
            if line.contains("proxying") {
                return;
            }
        }
        panic!("the program ended before it served");
    };
    within("the ready line", ready).await;
    let pid = child.id().expect("it runs").to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .expect("kill")
            .success()
    );
    let status = within("the program's end", child.wait())
        .await
        .expect("a child");
    assert_eq!(status.code(), Some(0));
}
