//! `lantern-inference`: a lean LLM inference server with OpenAI's API, vLLM's flags and engine spans.

use std::process::ExitCode;

use clap::Parser;
use lantern_inference::Args;
use lantern_inference::config::AFTER_HELP;
use lantern_telemetry::process;

/// Serves a language model over OpenAI's API, with vLLM's flags and spans for every request
#[derive(Parser)]
#[command(name = "lantern-inference", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn main() -> ExitCode {
    lantern_inference::cpu_threads::bound();
    match Cli::try_parse() {
        Ok(cli) => process::exit(lantern_inference::run(cli.args)),
        Err(error) => {
            // What `--help` prints is an error to clap, too; printing fails only on a closed pipe.
            let _ = error.print();
            if error.use_stderr() {
                process::EXIT_USAGE.into()
            } else {
                ExitCode::SUCCESS
            }
        }
    }
}
