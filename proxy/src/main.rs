//! `lantern-proxy`: the proxy as a program.

use std::process::ExitCode;

use clap::Parser;
use lantern_proxy::{AFTER_HELP, Args};
use lantern_telemetry::process;

/// A tracing reverse proxy for LLM servers
///
/// Stands in front of any server with an OpenAI-style API and gives every request its HTTP server
/// span. The server is not touched: it finds the proxy's span as its parent in the usual headers.
/// Bodies and event streams pass through as they come.
#[derive(Parser)]
#[command(name = "lantern-proxy", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    process::main(|cli: Cli| lantern_proxy::run(cli.args))
}
