//! `lantern`: the whole stack in one process, and the small commands around it.
//!
//! # Layout
//! - [`cli`]: what can be typed, and the help that teaches it.
//! - [`up`]: shim, inference server and proxy in one process, and one traced request through them.
//! - [`client`]: the traced completion request that `up` and `lantern client` send.
//! - [`instrument`]: any HTTP server as a child process behind the proxy.
//! - [`waterfall`]: a trace as text.
//!
//! `lantern serve`, `proxy` and `shim` are `lantern-inference`, `lantern-proxy` and `lantern-shim`
//! under one roof and have no code of their own.

mod cli;
mod client;
mod instrument;
mod up;
mod waterfall;

use std::process::ExitCode;

use cli::{Cli, Command};
use lantern_telemetry::process;

fn main() -> ExitCode {
    process::main(run)
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command() {
        Command::Up(args) => up::run(*args).await?,
        Command::Serve(args) => lantern_inference::run(*args).await?,
        Command::Proxy(args) => lantern_proxy::run(args).await?,
        Command::Shim(args) => lantern_shim::run(*args).await?,
        Command::Client(args) => client::run(args).await?,
        Command::Instrument(args) => return instrument::run(*args).await,
    }
    Ok(ExitCode::SUCCESS)
}
