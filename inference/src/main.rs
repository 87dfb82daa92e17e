//! `lantern-inference`: a lean LLM inference server with OpenAI's API, vLLM's flags and engine spans.

use std::process::ExitCode;

use clap::Parser;
use lantern_inference::{AFTER_HELP, Args};
use lantern_telemetry::process;

/// Serves a language model over OpenAI's API, with vLLM's flags and spans for every request
#[derive(Parser)]
#[command(name = "lantern-inference", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    process::main(|cli: Cli| lantern_inference::run(cli.args))
}
