//! A bad value ends every program before it binds: one line with the variable, its value and what
//! is allowed; exit code 64.

use std::net::TcpListener;

use crate::support::free_addr;
use crate::support::process::Process;

fn check(args: &[&str], env: &[(&str, &str)], expect_in_line: &[&str]) {
    let ended = Process::lantern(args, env).wait();
    assert_eq!(ended.code, Some(64), "{args:?} {env:?}: {}", ended.output);
    assert_eq!(
        ended.output.lines().count(),
        1,
        "{args:?} {env:?}: {}",
        ended.output
    );
    for expected in expect_in_line {
        assert!(
            ended.output.contains(expected),
            "no {expected:?} in {}",
            ended.output
        );
    }
}

const PROGRAMS: [&[&str]; 6] = [
    &["up", "--once"],
    &["serve", "models/tiny"],
    &["proxy", "--upstream", "http://127.0.0.1:1"],
    &["shim"],
    &["client"],
    &["instrument", "--", "true"],
];

#[test]
fn a_bad_protocol_is_named_with_what_is_allowed() {
    const VARIABLE: &str = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL";
    for program in PROGRAMS {
        let env = [(VARIABLE, "carrier-pigeon")];
        check(
            program,
            &env,
            &[VARIABLE, "carrier-pigeon", "grpc", "http/protobuf"],
        );
    }
}

#[test]
fn a_bad_sampler_or_propagator_is_named() {
    let check_env = |name, value| check(&["client"], &[(name, value)], &[name, value]);
    check_env("OTEL_TRACES_SAMPLER", "sometimes");
    check_env("OTEL_PROPAGATORS", "telepathy");
    check_env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://localhost");
    check_env("OTEL_BSP_MAX_QUEUE_SIZE", "many");
}

#[test]
fn a_bad_flag_is_named_on_one_line() {
    check(
        &["serve", "models/tiny", "--device", "abacus"],
        &[],
        &["--device", "abacus", "cpu"],
    );
    check(
        &["proxy", "--upstream", "gopher://x"],
        &[],
        &["--upstream", "gopher://x", "http://"],
    );
    check(
        &["instrument", "--upstream", "gopher://x", "--", "server"],
        &[],
        &["--upstream", "gopher://x"],
    );
}

#[test]
fn a_bad_value_ends_the_program_before_it_touches_a_port() {
    let addr = free_addr();
    let _taken = TcpListener::bind(addr).expect("the address is free");
    // Were the port looked at first, the complaint would be about the port.
    check(
        &[
            "proxy",
            "--listen",
            &addr.to_string(),
            "--upstream",
            "http://127.0.0.1:1",
        ],
        &[("OTEL_EXPORTER_OTLP_PROTOCOL", "smoke-signal")],
        &["smoke-signal"],
    );
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let env = [
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", ""),
        ("OTEL_TRACES_EXPORTER", "none"),
    ];
    let unreachable = format!("http://{}/v1/completions", free_addr());
    let ended = Process::lantern(&["client", "--url", &unreachable], &env).wait();
    assert_eq!(ended.code, Some(1), "{}", ended.output);
}
