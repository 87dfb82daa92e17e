//! `lantern-shim`: the collector shim as a program of its own.

use std::process::ExitCode;

use clap::Parser;
use lantern_shim::AFTER_HELP;
use lantern_telemetry::process;

/// Takes OTLP in by gRPC and HTTP, and forwards it to a backend or shows it itself.
///
/// With OTEL_EXPORTER_OTLP_TRACES_ENDPOINT set, every span received is sent on to that backend, by
/// the protocol that OTEL_EXPORTER_OTLP_TRACES_PROTOCOL names, whatever protocol it came in by.
/// Spans wait in a bounded queue while the backend is down. Without an endpoint traces stay in
/// memory and are shown on the viewer's port, by a page and by Jaeger's query API.
#[derive(Parser)]
#[command(name = "lantern-shim", version, after_long_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    shim: lantern_shim::Cli,
}

fn main() -> ExitCode {
    process::main(|cli: Cli| lantern_shim::run(cli.shim))
}
