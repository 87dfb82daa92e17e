//! `lantern-shim`: the collector shim as a program of its own.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use lantern_shim::AFTER_HELP;
use lantern_telemetry::process;

/// Takes OTLP in by gRPC and HTTP, and forwards it to a backend or shows it itself.
///
/// With OTEL_EXPORTER_OTLP_ENDPOINT set, all traces, metrics, logs and profiles are sent on to that
/// backend, by the protocol that OTEL_EXPORTER_OTLP_PROTOCOL names, whatever protocol they came in by;
/// with --backend, to several. They wait in a bounded queue while a backend is down. Without one
/// traces stay in memory and are shown on the viewer's port, by a page and by Jaeger's query API.
#[derive(Parser)]
#[command(name = "lantern-shim", version, after_long_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    shim: lantern_shim::Cli,
}

fn main() -> ExitCode {
    process::main(|cli: Cli| lantern_shim::run(cli.shim))
}
