//! What only a whole process shows: signals, and stderr as a user sees it. The children are the ignored
//! tests at the end, run by this binary again.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use lantern_telemetry::{Settings, Telemetry, process};

use crate::end_spans;

const NO_VARS: &[(&str, &str)] = &[];

fn child(test: &str, vars: &[(&str, impl AsRef<OsStr>)]) -> Child {
    let program = std::env::current_exe().expect("this binary");
    let mut command = Command::new(program);
    command.args([
        "--exact",
        test,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.envs(vars.iter().map(|(name, value)| (name, value)));
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the child starts")
}

/// Waits until the child says that it is ready.
fn wait_until_ready(child: &mut Child) {
    let mut lines = BufReader::new(child.stdout.as_mut().expect("piped")).lines();
    let ready = lines.any(|line| line.expect("UTF-8").contains("ready"));
    assert!(ready, "the child ended early");
}

fn send(signal: &str, child: &Child) {
    let pid = child.id().to_string();
    let sent = Command::new("kill")
        .args(["-s", signal, &pid])
        .status()
        .expect("kill runs");
    assert!(sent.success());
}

fn stderr(output: &Output) -> Vec<String> {
    let text = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    text.lines().map(ToOwned::to_owned).collect()
}

#[test]
fn a_signal_cancels_the_token() {
    for signal in ["TERM", "INT"] {
        let mut child = child("children::waits_for_the_token", NO_VARS);
        wait_until_ready(&mut child);
        send(signal, &child);
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{signal}: {output:?}");
    }
}

#[test]
fn a_second_interrupt_ends_the_process_at_once() {
    let mut child = child("children::ignores_the_token", NO_VARS);
    wait_until_ready(&mut child);
    send("INT", &child);
    wait_until_ready(&mut child);
    send("INT", &child);
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(130), "{output:?}");
}

#[test]
fn lost_spans_are_one_line_on_stderr_and_the_sdk_says_nothing() {
    for protocol in crate::PROTOCOLS {
        let vars = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "100"),
            ("OTEL_LOG_LEVEL", "debug"),
        ];
        let output = child("children::loses_spans", &vars)
            .wait_with_output()
            .expect("it ends");
        let lines = stderr(&output);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("cannot export spans to http://127.0.0.1:1"),
            "{lines:?}"
        );
    }
}

#[test]
fn environment_of_the_process_is_read() {
    let vars = [
        ("OTEL_SERVICE_NAME", "shop"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", ""),
    ];
    let output = child("children::reads_its_environment", &vars).wait_with_output();
    assert!(output.expect("it ends").status.success());
}

#[test]
fn variable_that_is_not_unicode_is_refused() {
    let vars = [("OTEL_SERVICE_NAME", OsStr::from_bytes(b"shop\xff"))];
    let output = child("children::refuses_its_environment", &vars).wait_with_output();
    assert!(output.expect("it ends").status.success());
}

#[test]
fn headers_of_the_environment_are_not_sent_where_the_settings_leave_them_out() {
    let vars = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "general=secret"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "traces=secret"),
    ];
    let output = child("children::sends_without_headers", &vars).wait_with_output();
    let output = output.expect("it ends");
    assert!(output.status.success(), "{output:?}");
}

#[test]
#[ignore = "a child of the tests above"]
fn waits_for_the_token() {
    let token = process::shutdown_on_signals();
    println!("ready");
    futures::executor::block_on(token.cancelled());
}

#[test]
#[ignore = "a child of the tests above"]
fn ignores_the_token() {
    let token = process::shutdown_on_signals();
    println!("ready");
    futures::executor::block_on(token.cancelled());
    println!("ready");
    loop {
        std::thread::park();
    }
}

#[test]
#[ignore = "a child of the tests above"]
fn loses_spans() {
    let settings = Settings::from_env().expect("valid variables");
    process::init_logging(settings.log_filter());
    process::init_logging("error");
    let telemetry = Telemetry::start(&settings, "test-service").expect("telemetry starts");
    end_spans(&telemetry, 3);
    drop(telemetry);
}

#[test]
#[ignore = "a child of the tests above"]
fn reads_its_environment() {
    let settings = Settings::from_env().expect("valid variables");
    assert_eq!(settings.service_name("default"), "shop");
    assert_eq!(settings.protocol(), lantern_telemetry::Protocol::Grpc);
}

#[test]
#[ignore = "a child of the tests above"]
fn refuses_its_environment() {
    let error = Settings::from_env().map(|_| ()).expect_err("not Unicode");
    let expect = "OTEL_SERVICE_NAME='shop\u{fffd}' is not supported: use valid UTF-8";
    assert_eq!(error.to_string(), expect);
}

#[tokio::test]
#[ignore = "a child of the tests above"]
async fn sends_without_headers() {
    for protocol in crate::PROTOCOLS {
        let mut receiver = crate::receiver::Receiver::start(protocol).await;
        let telemetry = crate::start(&[
            (
                "OTEL_EXPORTER_OTLP_ENDPOINT",
                &format!("http://{}", receiver.addr),
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ]);
        end_spans(&telemetry, 1);
        telemetry
            .shutdown(Duration::from_secs(60))
            .await
            .expect("delivered");
        let headers = receiver.next().await.headers;
        assert!(
            headers.values().all(|value| value != "secret"),
            "{headers:?}"
        );
    }
}
