//! The program `lantern-shim` from arguments to exit; `lantern shim` runs it too.

use lantern_telemetry::config::from_env;
use lantern_telemetry::{Settings, process};

use crate::tool::{self, Tool};
use crate::{Args, Shim};

/// The command line of `lantern-shim` and of `lantern shim`.
#[derive(Debug, Clone, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Cli {
    #[command(flatten)]
    args: Args,
    #[command(subcommand)]
    tool: Option<Tool>,
}

/// What `--help` shows after the flags.
pub const AFTER_HELP: &str = "\
Examples:
  Look at the traces of anything that speaks OTLP, on http://127.0.0.1:16686:
    lantern shim

  Forward to Jaeger, which listens on other ports:
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=grpc://localhost:5317 lantern shim

  Forward by OTLP/HTTP, compressed, with a token:
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://otlp.example.com/v1/traces \\
    OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf \\
    OTEL_EXPORTER_OTLP_COMPRESSION=gzip \\
    OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20TOKEN' lantern shim

  Keep what waits for the backend on disk, through crashes and outages:
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=grpc://localhost:5317 \\
    lantern shim --queue-dir /var/lib/lantern-shim --queue-max-bytes 4294967296

  Forward to two backends, each at its own pace, with its own settings:
    LANTERN_BACKEND_CLOUD_HEADERS='authorization=Bearer%20TOKEN' \\
    LANTERN_BACKEND_CLOUD_PROTOCOL=http/protobuf LANTERN_BACKEND_JAEGER_SIGNALS=traces \\
    lantern shim --queue-dir /var/lib/lantern-shim \\
      --backend cloud=https://otlp.example.com --backend jaeger=grpc://localhost:5317

  Share traces out among the pods behind a headless service, the spans of each to one of them:
    LANTERN_BACKEND_TAIL_BALANCE=trace-id lantern shim --backend tail=grpc://sampler.otel:4317

  Keep a copy in files of OTLP/JSON lines, the last eleven of each signal:
    lantern shim --backend jaeger=grpc://localhost:5317 --backend copy=file:///var/lib/otlp

  Write to a topic of Kafka, a record for each trace of a request (built with the feature kafka):
    lantern shim --queue-dir /var/lib/lantern-shim \\
      --backend kafka=kafka://broker-1:9092,broker-2:9092/jaeger-spans

  Queue nothing: a sender is answered once the backend has accepted:
    OTEL_EXPORTER_OTLP_ENDPOINT=grpc://localhost:5317 lantern shim --ack backend

  Send on only traces with an error, or slower than half a second, and one in ten of the others:
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=grpc://localhost:5317 \\
    lantern shim --tail-keep errors,slow=500ms,ratio=0.1 --tail-keep batch-jobs:errors

  Look into that directory; send what waits in it, or what was refused, to another backend:
    lantern shim queue inspect /var/lib/lantern-shim
    lantern shim queue replay /var/lib/lantern-shim --to http://localhost:4317
    lantern shim dead-letters list /var/lib/lantern-shim

  Serve other machines, as in a container:
    lantern shim --grpc 0.0.0.0:4317 --http 0.0.0.0:4318 --viewer 0.0.0.0:16686

  The same, encrypted and for those who have a token; and for pages of one origin:
    lantern shim --grpc 0.0.0.0:4317 --http 0.0.0.0:4318 --tls-cert cert.pem --tls-key key.pem \\
      --bearer-token-file tokens --cors-origin https://app.example.com

Environment (each also as OTEL_EXPORTER_OTLP_TRACES_…, which wins):
  OTEL_EXPORTER_OTLP_ENDPOINT     the backend; without one traces are kept here
  OTEL_EXPORTER_OTLP_PROTOCOL     grpc (default), http/protobuf or http/json
  OTEL_EXPORTER_OTLP_HEADERS      key=value,… sent with every request
  OTEL_EXPORTER_OTLP_COMPRESSION  none or gzip; unless set, as requests came
  OTEL_EXPORTER_OTLP_TIMEOUT      milliseconds for one attempt, 10000 by default
  OTEL_EXPORTER_OTLP_INSECURE     true: an endpoint without a scheme is reached without TLS
  OTEL_EXPORTER_OTLP_CERTIFICATE, …_CLIENT_CERTIFICATE, …_CLIENT_KEY
                                  PEM files: the authority to trust, and who we are
  HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY
                                  the proxy on the way to it; gRPC goes by HTTPS_PROXY, in a tunnel
  LANTERN_BACKEND_NAME_…          the same of --backend NAME=URL, and
    …_SIGNALS                     traces,metrics,…
    …_BALANCE=trace-id            to all addresses of URL's host, each trace to one of them
    …_RESOLVE_SECONDS             how often they are asked for, 5 by default
    …_FILE_MAX_BYTES, …_FILE_MAX_COUNT
                                  of files: when one is full, and how many full ones stay
    …_METRICS_TOPIC, …_LOGS_TOPIC, …_PROFILES_TOPIC
                                  of Kafka: URL names the topic of traces, other signals have these
                                  or are not sent
    …_MAX_RECORD_BYTES            of Kafka: how much is sent at once, 1000000 by default; longer records
                                  are cut where they can be. kafka+tls:// is Kafka over TLS
  OTEL_LOG_LEVEL                  error, warn, info (default), debug or trace

On the viewer's port there are also /healthz, /readyz, which fails while the queue is nearly full as
gRPC's health check does on --grpc, and, for Prometheus, /metrics with the Collector's names.
Exit codes: 0 told to stop, 1 failed, 64 used or configured wrongly.";

/// Takes OTLP in until SIGINT or SIGTERM; or does what a tool is asked for.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.tool {
        Some(tool) => tool::run(tool).await,
        None => serve(cli.args).await,
    }
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let settings = Settings::from_env()?;
    let config = from_env(|get| args.into_config(&settings, get))?;
    process::init_logging(settings.log_filter());
    let shutdown = process::shutdown_on_signals();
    Shim::bind(config).await?.run(shutdown).await?;
    Ok(())
}
