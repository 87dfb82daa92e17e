//! `lantern-shim` as a user starts it.

use std::process::{Command, Output};

fn shim(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lantern-shim"))
        .args(arguments)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .expect("it starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn bad_values_end_it_with_64_and_one_line_that_names_them() {
    let endpoint = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let check = |arguments: &[&str], environment: &[(&str, &str)], expect: &str| {
        let output = shim(arguments, environment);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains(expect), "{stderr}");
    };
    let protocol = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
    check(
        &[],
        &[(protocol, "carrier-pigeon")],
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL='carrier-pigeon'",
    );
    let ourselves = [(endpoint, "http://localhost:4317")];
    check(&[], &ourselves, "this is where the shim itself listens");
    check(&["--queue-max-bytes", "0"], &[], "--queue-max-bytes='0'");
    let unnamed = ["--backend", "http://jaeger:4317"];
    check(&unnamed, &[], "--backend='http://jaeger:4317'");
    let named = ["--backend", "eu=http://jaeger:4317"];
    let odd = [("LANTERN_BACKEND_EU_PROTOCOL", "smtp")];
    check(&named, &odd, "LANTERN_BACKEND_EU_PROTOCOL='smtp'");
    check(&["--ack", "backend"], &[], "--ack='backend'");
    check(&["--tls-cert", "no/such"], &[], "--tls-key");
    let backend = [(endpoint, "http://192.0.2.1:4317")];
    check(&["--tail-keep", "fast"], &backend, "--tail-keep='fast'");
    check(&["--tail-keep", "errors"], &[], "--tail-keep='errors'");
    let files = ["--tls-cert", "no/such", "--tls-key", "no/such"];
    check(&files, &[], "--tls-cert='no/such'");
    let tokens = ["--bearer-token-file", "/dev/null"];
    check(&tokens, &[], "--bearer-token-file='/dev/null'");
    check(&["--cors-origin", "here/"], &[], "--cors-origin='here/'");
    check(&["--max-header-bytes", "1"], &[], "--max-header-bytes");
    let output = shim(&["--viewer", "nowhere"], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(
        text(&output.stderr).contains("--viewer"),
        "{}",
        text(&output.stderr)
    );
    let output = shim(&["--grpc", "localhost:4317"], &[]);
    let allowed = "use an IP address and a port, such as 127.0.0.1:4317";
    assert!(
        text(&output.stderr).contains(allowed),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn help_teaches_and_version_tells() {
    let output = shim(&["--help"], &[]);
    assert!(output.status.success());
    for word in [
        "Examples:",
        "OTEL_EXPORTER_OTLP_COMPRESSION",
        "--drain-timeout-seconds",
        "16686",
    ] {
        assert!(text(&output.stdout).contains(word), "{word}");
    }
    let output = shim(&["--version"], &[]);
    assert_eq!(
        text(&output.stdout),
        concat!("lantern-shim ", env!("CARGO_PKG_VERSION"), "\n")
    );
}
