//! What a shim leaves in its queue's directory, looked at and sent by hand: `queue` and
//! `dead-letters`.
//!
//! Nothing here changes a queue. A replay is a copy, so that it can be made again; who is content with
//! it removes the directory.

mod letters;
mod queue;
mod replay;
mod show;

use clap::Subcommand;
use lantern_telemetry::{Settings, process};

use letters::LettersCommand;
use queue::QueueCommand;

/// Looks into a queue's directory, or sends what is in it.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum Tool {
    /// What waits for the backend: segments and counts, as OTLP/JSON, or sent once more
    #[command(subcommand)]
    Queue(QueueCommand),
    /// What the backend refused for good: listed, as OTLP/JSON, or sent once more
    #[command(subcommand)]
    DeadLetters(LettersCommand),
}

/// Runs `tool`; its output goes to stdout, what it says about it to stderr.
pub(crate) async fn run(tool: Tool) -> anyhow::Result<()> {
    let settings = Settings::from_env()?;
    process::init_logging(settings.log_filter());
    let done = match tool {
        Tool::Queue(command) => queue::run(command, settings).await,
        Tool::DeadLetters(command) => letters::run(command, settings).await,
    };
    match done {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        done => done,
    }
}

/// Whoever reads the output has seen enough: `| head` is no failure.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    })
}
