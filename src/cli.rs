//! What can be typed: `lantern [up|serve|proxy|shim|instrument|client]`.

use clap::{Parser, Subcommand};

use crate::{client, instrument, up};

/// One trace for each request to an LLM server.
///
/// Without a command, `lantern` is `lantern up`.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

impl Cli {
    /// The command; `up` when none was typed.
    pub(crate) fn command(self) -> Command {
        self.command.unwrap_or_else(|| {
            let up = Self::parse_from(["lantern", "up"]);
            up.command
                .expect("`up` is a command and needs no arguments")
        })
    }
}

const EXAMPLES: &str = "\
Examples:
  lantern                                   the whole stack, one traced request, its waterfall
  lantern serve facebook/opt-125m --otlp-traces-endpoint=grpc://localhost:4317
  lantern instrument -- uvicorn app:app --port 8001
  lantern client --model lantern-tiny       one traced request to localhost:8000

Exporters, samplers and propagators follow the standard OTEL_* environment variables.";

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run shim, inference server and proxy in one process and show one request's trace
    Up(Box<up::Args>),
    /// Serve a model: OpenAI's API, vLLM's flags, engine spans
    #[command(after_help = lantern_inference::AFTER_HELP)]
    Serve(Box<lantern_inference::Args>),
    /// Put the tracing proxy in front of a server
    #[command(after_help = lantern_proxy::AFTER_HELP)]
    Proxy(lantern_proxy::Args),
    /// Take OTLP in and forward it to a backend, or keep the traces and show them
    #[command(after_help = lantern_shim::AFTER_HELP)]
    Shim(Box<lantern_shim::Cli>),
    /// Start an HTTP server behind the tracing proxy: lantern instrument -- CMD…
    Instrument(Box<instrument::Args>),
    /// Send one traced completion request, as vLLM's dummy client does
    Client(client::Args),
}
