//! The program `lantern-inference` from arguments to exit; `lantern serve` runs it too.

use std::time::Duration;

use lantern_telemetry::{Settings, Telemetry, process};

use crate::config::Args;
use crate::cpu_threads;
use crate::server::Server;

/// Service name of the spans unless `OTEL_SERVICE_NAME` says otherwise.
pub const DEFAULT_SERVICE_NAME: &str = "lantern-inference";

/// How long the last spans may take to go out.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Serves until SIGINT or SIGTERM. It may first start the process over (see [`cpu_threads`]), so it
/// comes before anything else that a program does.
pub async fn run(args: Args) -> anyhow::Result<()> {
    cpu_threads::bound();
    let settings = args.telemetry(Settings::from_env()?)?;
    let config = args.into_config()?;
    process::init_logging(settings.log_filter());
    let telemetry = Telemetry::start(&settings, DEFAULT_SERVICE_NAME)?;
    let shutdown = process::shutdown_on_signals();
    let served = match Server::bind(config, &telemetry).await {
        Ok(server) => server.run(shutdown).await,
        Err(error) => Err(error),
    };
    telemetry.shutdown_or_warn(FLUSH_LIMIT).await;
    Ok(served?)
}
