//! The program `lantern-proxy` from arguments to exit; `lantern proxy` runs it too.

use std::time::Duration;

use lantern_telemetry::{Settings, Telemetry, process};

use crate::sockets::Sockets;
use crate::{Args, Proxy, upgrade};

/// The service that the proxy's spans belong to unless `OTEL_SERVICE_NAME` says otherwise.
pub const DEFAULT_SERVICE_NAME: &str = "lantern-proxy";

/// How long the last spans may take to be exported.
const FLUSH_LIMIT: Duration = Duration::from_secs(10);

/// What `--help` shows after the flags.
pub const AFTER_HELP: &str = "\
Examples:
  # Trace a server on port 8001; spans go to a collector on localhost:4317
  lantern proxy --upstream http://127.0.0.1:8001

  # Two servers, reachable from other machines, spans over HTTP
  OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf \\
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://collector:4318/v1/traces \\
  lantern proxy --listen 0.0.0.0:8000 --upstream http://gpu0:8001 --upstream http://gpu1:8001

  # The same from a file, checked first: upstream = [\"http://gpu0:8001\", \"http://gpu1:8001,weight=2\"]
  lantern proxy --config proxy.toml --check && lantern proxy --config proxy.toml

  # TLS on both sides, with certificates that clients and upstreams are asked for
  lantern proxy --tls-certificate proxy.pem --tls-key proxy.key --tls-client-ca clients.pem \\
    --upstream https://gpu0:8001 --upstream-ca servers.pem \\
    --upstream-certificate proxy.pem --upstream-key proxy.key

Every flag is also a variable, LANTERN_PROXY_ and its name: LANTERN_PROXY_READ_TIMEOUT_SECONDS=60.
A flag goes before its variable, a variable before the file.

Signals: SIGTERM and the first SIGINT let requests in flight finish. SIGUSR2 starts the program at the same
path with the same arguments, hands it the sockets and, once it is ready, ends this one like SIGTERM; if it
never is, this one goes on. Sockets of systemd (LISTEN_FDS) are taken by the addresses they listen on.

Environment (the standard OpenTelemetry variables, among them):
  OTEL_SERVICE_NAME                     name of this service [default: lantern-proxy]
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT    where spans go [default: http://localhost:4317]
  OTEL_EXPORTER_OTLP_TRACES_PROTOCOL    grpc, http/protobuf or http/json [default: grpc]
  OTEL_TRACES_SAMPLER, ..._ARG          what is sampled [default: parentbased_always_on]
  OTEL_PROPAGATORS                      tracecontext, baggage, b3, b3multi, jaeger
  OTEL_SDK_DISABLED=true                no spans; trace headers pass as they are
  OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST, ..._RESPONSE, ..._SANITIZE_FIELDS
                                        headers to record, and those whose values to hide
  OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true
                                        prompts and completions on the span, which are private
  OTEL_METRICS_EXPORTER=otlp            metrics too, to OTEL_EXPORTER_OTLP_METRICS_ENDPOINT
  OTEL_PYTHON_FASTAPI_EXCLUDED_URLS, OTEL_PYTHON_EXCLUDED_URLS
                                        regular expressions; a URL that matches leaves no span";

/// Proxies until SIGINT or SIGTERM, or until another program has taken over; or, with `--check`, prints the settings.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut settings = Settings::from_env()?.with_metrics();
    if let Some(description) = args.checked()? {
        print!("{description}");
        return Ok(());
    }
    let config = args.into_config()?;
    if config.keep.is_any() {
        settings = settings.recording_unsampled();
    }
    process::init_logging(settings.log_filter());
    let shutdown = process::shutdown_on_signals();
    let telemetry = Telemetry::start(&settings, DEFAULT_SERVICE_NAME)?;
    let upstreams: Vec<_> = config.upstreams.iter().map(ToString::to_string).collect();
    let mut sockets = Sockets::inherited()?;
    let mut proxy = Proxy::bind_or_take(config, &telemetry, &mut sockets).await?;
    let handover = proxy.handover()?;
    upgrade::on_signal(handover, shutdown.clone())?;
    tracing::info!(
        listen = %proxy.local_addr(),
        metrics = proxy.metrics_addr().map(tracing::field::display),
        upstreams = upstreams.join(" "),
        "proxying"
    );
    sockets.ready();
    let served = proxy.run(shutdown).await;
    telemetry.shutdown_or_warn(FLUSH_LIMIT).await;
    Ok(served?)
}
