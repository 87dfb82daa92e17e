//! `lantern-shim`: the collector shim as a program of its own.

use std::process::ExitCode;

use clap::Parser;
use lantern_shim::{Args, Shim};
use lantern_telemetry::{Settings, process};

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
    args: Args,
}

const AFTER_HELP: &str = "\
Examples:
  Look at the traces of anything that speaks OTLP, on http://127.0.0.1:16686:
    lantern-shim

  Forward to Jaeger, which listens on other ports:
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=grpc://localhost:5317 lantern-shim

  Forward by OTLP/HTTP, compressed, with a token:
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://otlp.example.com/v1/traces \\
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf \\
    OTEL_EXPORTER_OTLP_COMPRESSION=gzip \\
    OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20TOKEN' lantern-shim

  Serve other machines, as in a container:
    lantern-shim --grpc 0.0.0.0:4317 --http 0.0.0.0:4318 --viewer 0.0.0.0:16686

Environment (each also as OTEL_EXPORTER_OTLP_TRACES_…, which wins):
  OTEL_EXPORTER_OTLP_ENDPOINT     the backend; without one traces are kept here
  OTEL_EXPORTER_OTLP_PROTOCOL     grpc (default) or http/protobuf
  OTEL_EXPORTER_OTLP_HEADERS      key=value,… sent with every request
  OTEL_EXPORTER_OTLP_COMPRESSION  none (default) or gzip
  OTEL_EXPORTER_OTLP_TIMEOUT      milliseconds for one attempt, 10000 by default
  OTEL_EXPORTER_OTLP_INSECURE     true: an endpoint without a scheme is reached without TLS
  OTEL_EXPORTER_OTLP_CERTIFICATE, …_CLIENT_CERTIFICATE, …_CLIENT_KEY
                                  PEM files: the authority to trust, and who we are
  OTEL_LOG_LEVEL                  error, warn, info (default), debug or trace

On the viewer's port there are also /healthz and, for Prometheus, /metrics.
Exit codes: 0 told to stop, 1 failed, 64 used or configured wrongly.";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(process::EXIT_USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    process::exit(run(cli))
}

#[tokio::main]
async fn run(cli: Cli) -> anyhow::Result<()> {
    let settings = Settings::from_env()?;
    let config = cli.args.into_config(&settings)?;
    process::init_logging(settings.log_filter());
    let shutdown = process::shutdown_on_signals();
    Shim::bind(config).await?.run(shutdown).await?;
    Ok(())
}
