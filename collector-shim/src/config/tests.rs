//! What flags and variables come to.

use super::*;
use clap::Parser;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn config(flags: &[&str], endpoint: Option<&str>) -> Result<Config, ConfigError> {
    let settings = Settings::from_vars(|name| {
        endpoint
            .filter(|_| name == "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            .map(str::to_owned)
    })?;
    let cli = Cli::try_parse_from(["shim"].iter().chain(flags)).expect("flags parse");
    cli.args.into_config(&settings, &|_| None)
}

#[test]
fn without_an_endpoint_traces_are_kept() {
    let config = config(&["--viewer", "none", "--store-max-bytes", "5"], None);
    let config = config.expect("valid");
    assert!(matches!(
        config.destination,
        Destination::Store { max_bytes: 5 }
    ));
    assert_eq!(config.viewer, None);
}

#[test]
fn with_an_endpoint_spans_are_forwarded_to_it() {
    let config = config(&[], Some("http://jaeger:4317")).expect("valid");
    let Destination::Backends { backends, .. } = config.destination else {
        panic!("forwards");
    };
    let endpoints: Vec<_> = backends.iter().map(|one| one.way.endpoint()).collect();
    assert_eq!(endpoints, ["http://jaeger:4317"]);
}

#[test]
fn a_queue_directory_makes_disk_the_acknowledgement() {
    let check = |flags: &[&str], expect: Waiting| {
        let config = config(flags, Some("http://jaeger:4317")).expect("valid");
        let Destination::Backends { waiting, .. } = config.destination else {
            panic!("forwards");
        };
        assert_eq!(waiting, expect, "{flags:?}");
    };
    let on_disk = |ack| {
        let path = PathBuf::from("q");
        Waiting::OnDisk(QueueDir { path, ack })
    };
    check(&[], Waiting::InMemory);
    check(&["--ack", "memory"], Waiting::InMemory);
    check(&["--ack", "backend"], Waiting::AtSender);
    check(&["--queue-dir", "q"], on_disk(LogAck::Disk));
    check(
        &["--queue-dir", "q", "--ack", "memory"],
        on_disk(LogAck::Memory),
    );
}

#[test]
fn an_acknowledgement_that_cannot_be_given_is_refused() {
    let check = |flags: &[&str], endpoint, expect: &str| {
        let error = config(flags, endpoint).expect_err(expect).to_string();
        assert!(error.starts_with(expect), "{error}");
    };
    let backend = Some("http://jaeger:4317");
    check(&["--ack", "disk"], backend, "--ack='disk'");
    let both = ["--queue-dir", "q", "--ack", "backend"];
    check(&both, backend, "--ack='backend'");
    check(&["--ack", "backend"], None, "--ack='backend'");
    check(&["--queue-dir", "q"], None, "--queue-dir='q'");
}

#[test]
fn signals_can_be_switched_off() {
    let all = config(&[], None).expect("valid").signals;
    assert_eq!(all, Signals::ALL);
    let some = config(&["--signals", "traces,logs"], None).expect("valid");
    let taken: Vec<_> = Signal::ALL
        .into_iter()
        .filter(|signal| some.signals.has(*signal))
        .collect();
    assert_eq!(taken, [Signal::Traces, Signal::Logs]);
}

#[test]
fn a_shim_that_would_send_to_itself_is_refused() {
    let check = |flags: &[&str], endpoint, refused: bool| {
        assert_eq!(
            config(flags, Some(endpoint)).is_err(),
            refused,
            "{flags:?} {endpoint}"
        );
    };
    check(&[], "http://localhost:4317", true);
    check(&[], "http://127.0.0.1:4318/v1/traces", true);
    check(&["--grpc", "0.0.0.0:4317"], "http://localhost:4317", true);
    check(&["--grpc", "[::1]:9"], "http://[::1]:9", true);
    check(&[], "http://0.0.0.0:4317", true);
    check(&[], "http://[::]:4318", true);
    check(&[], "http://[::ffff:127.0.0.1]:4317", true);
    check(&["--grpc", "0.0.0.0:4317"], "http://0.0.0.0:4317", true);
    check(&["--grpc", "192.0.2.1:4317"], "http://0.0.0.0:4317", false);
    check(
        &["--grpc", "127.0.0.1:5317"],
        "http://localhost:4317",
        false,
    );
    check(&[], "http://jaeger:4317", false);
    let named = ["--backend", "eu=http://localhost:4317"];
    check(&named, "http://jaeger:4317", true);
}

#[test]
fn a_shim_that_would_send_to_itself_names_the_variable_that_says_so() {
    for variable in [
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ] {
        let settings = Settings::from_vars(|name| {
            (name == variable).then(|| "http://localhost:4317".to_owned())
        });
        let cli = Cli::try_parse_from(["shim"]).expect("no flags");
        let config = cli.args.into_config(&settings.expect("valid"), &|_| None);
        let error = config.expect_err("ourselves").to_string();
        assert!(error.starts_with(&format!("{variable}='")), "{error}");
    }
}

#[test]
fn bounds_that_cannot_work_are_refused_by_name() {
    let error = config(&["--queue-max-bytes", "0"], None).expect_err("too small");
    assert_eq!(
        error.to_string(),
        "--queue-max-bytes='0' is not supported: use 1 or more"
    );
    assert!(config(&["--max-request-bytes", "0"], None).is_err());
    let flags = ["--queue-dir", "q", "--queue-max-bytes", "67108864"];
    assert!(config(&flags, Some("http://jaeger:4317")).is_err());
    let drain = ["--drain-timeout-seconds", "18446744073709551615"];
    let error = config(&drain, None).expect_err("longer than time");
    assert!(error.to_string().starts_with(drain[0]), "{error}");
    assert!(config(&["--store-max-bytes", "0"], None).is_err());
}
