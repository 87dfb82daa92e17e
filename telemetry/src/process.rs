//! What every Lantern program does the same way: its `main`, logging, signals and exit codes.

use std::process::{ExitCode, Termination};
use std::sync::mpsc;

use anyhow::Context as _;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::ConfigError;

/// The exit code of a program that was used or configured wrongly (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;
/// The exit code of a program that ended at a second interrupt: 128 and the number of SIGINT.
const EXIT_INTERRUPTED: i32 = 130;

/// Targets that are capped whatever the level: the SDK repeats every failed export, which the exporter
/// of this crate already tells in its own measured way, and the transports log every frame.
const CAPPED_TARGETS: &[(&str, LevelFilter)] = &[
    ("opentelemetry", LevelFilter::OFF),
    ("opentelemetry_sdk", LevelFilter::OFF),
    ("opentelemetry-sdk", LevelFilter::OFF),
    ("opentelemetry-http", LevelFilter::OFF),
    ("rskafka", LevelFilter::OFF),
    ("h2", LevelFilter::WARN),
    ("hyper", LevelFilter::WARN),
    ("hyper_util", LevelFilter::WARN),
    ("rustls", LevelFilter::WARN),
    ("tonic", LevelFilter::WARN),
    ("tower", LevelFilter::WARN),
];

/// Logs to stderr, one line for each event. `filter` has the form of `RUST_LOG`. A second call, or a
/// logger that is installed already, changes nothing.
pub fn init_logging(filter: &str) {
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(capped(filter))
        .with_writer(std::io::stderr)
        .with_ansi(ansi)
        .try_init();
}

/// `filter` with the capped targets, unless it names them itself or is lower already.
fn capped(filter: &str) -> EnvFilter {
    let given = EnvFilter::builder().parse_lossy(filter);
    let level = given.max_level_hint().unwrap_or(LevelFilter::TRACE);
    CAPPED_TARGETS
        .iter()
        .filter(|(target, cap)| *cap < level && !filter.contains(target))
        .fold(given, |filter, (target, cap)| {
            let directive = format!("{target}={cap}");
            filter.add_directive(
                directive
                    .parse()
                    .expect("a target and a level are a directive"),
            )
        })
}

/// A token that is cancelled at SIGINT or SIGTERM. A second SIGINT ends the process at once.
///
/// Signals are handled on a thread of their own: a program whose runtime is busy or stuck can still be
/// told to stop. They are caught from when this returns.
pub fn shutdown_on_signals() -> CancellationToken {
    let token = CancellationToken::new();
    let cancelled = token.clone();
    let (ready, is_ready) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        let runtime = runtime.expect("the system has a file descriptor for signals");
        runtime.block_on(async {
            let interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
            let terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
            let _ = ready.send(());
            watch(interrupt, terminate, &cancelled).await;
        });
    });
    // An error means that the thread failed, and its panic has said why.
    let _ = is_ready.recv();
    token
}

async fn watch(mut interrupt: Signal, mut terminate: Signal, token: &CancellationToken) {
    tokio::select! {
        _ = interrupt.recv() => tracing::info!("interrupted, shutting down; again to stop at once"),
        _ = terminate.recv() => tracing::info!("told to stop, shutting down"),
    }
    token.cancel();
    interrupt.recv().await;
    std::process::exit(EXIT_INTERRUPTED);
}

/// A program's `main`: makes room for connections, parses the command line, runs `run` on a runtime of its own, and ends as
/// [`exit`] says. A command line that cannot be used is one line on stderr and [`EXIT_USAGE`].
pub fn main<C, T, F>(run: impl FnOnce(C) -> F) -> ExitCode
where
    C: Parser,
    T: Termination,
    F: Future<Output = anyhow::Result<T>>,
{
    raise_descriptor_limit();
    match C::try_parse() {
        Ok(cli) => exit(
            tokio::runtime::Runtime::new()
                .context("cannot start the runtime")
                .and_then(|runtime| runtime.block_on(run(cli))),
        ),
        Err(error) if error.use_stderr() => {
            eprintln!("{}", usage_line(&error.render().to_string()));
            ExitCode::from(EXIT_USAGE)
        }
        Err(help_or_version) => {
            // Printing fails only on a closed pipe, and then nobody reads.
            let _ = help_or_version.print();
            ExitCode::SUCCESS
        }
    }
}

/// A connection is a file descriptor, or two where it is passed on. The usual soft limit of 1024 is there
/// for programs that call `select`; ours do not, so the hard limit applies to them.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Where the system refuses, the program runs with what it has.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// clap's message without the usage that follows it, on one line.
fn usage_line(rendered: &str) -> String {
    let message = rendered
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty());
    message.collect::<Vec<_>>().join(" ")
}

/// The end of a `main`: a [`ConfigError`] anywhere in the error's chain is one line on stderr and exit
/// code 64, another error is one line with its causes and exit code 1.
pub fn exit<T: Termination>(result: anyhow::Result<T>) -> ExitCode {
    let error = match result {
        Ok(value) => return value.report(),
        Err(error) => error,
    };
    let (line, code) = report(&error);
    eprintln!("error: {line}");
    ExitCode::from(code)
}

fn report(error: &anyhow::Error) -> (String, u8) {
    match error
        .chain()
        .find_map(|cause| cause.downcast_ref::<ConfigError>())
    {
        Some(error) => (error.to_string(), EXIT_USAGE),
        None => (format!("{error:#}").replace(['\n', '\r'], " "), 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_error_is_one_line_and_64_wherever_it_is_in_the_chain() {
        let error = ConfigError::new("OTEL_X", "foo", "bar");
        let report_of = |error: anyhow::Error| report(&error);
        let expect = (
            "OTEL_X='foo' is not supported: use bar".to_owned(),
            EXIT_USAGE,
        );
        assert_eq!(report_of(error.clone().into()), expect);
        let wrapped = Err::<(), _>(error).context("starting").context("running");
        assert_eq!(report_of(wrapped.expect_err("an error")), expect);
    }

    #[test]
    fn another_error_is_one_line_with_its_causes_and_1() {
        let error = Err::<(), _>(std::io::Error::other("in\nuse")).context("cannot bind");
        assert_eq!(
            report(&error.expect_err("an error")),
            ("cannot bind: in use".to_owned(), 1)
        );
    }

    #[test]
    fn a_command_line_that_cannot_be_used_is_told_on_one_line() {
        let rendered = "error: invalid value 'x' for '--device <DEVICE>'\n  [possible values: auto, cpu]\n\n\
                        Usage: a\n\nFor more information, try '--help'.\n";
        assert_eq!(
            usage_line(rendered),
            "error: invalid value 'x' for '--device <DEVICE>' [possible values: auto, cpu]"
        );
    }

    #[test]
    fn the_sdk_is_silent_and_transports_are_quiet_unless_they_are_named() {
        let check = |filter: &str, expect: &[&str], not: &[&str]| {
            let shown = capped(filter).to_string();
            let has = |directive: &&str| shown.split(',').any(|part| part == *directive);
            assert!(
                expect.iter().all(has) && !not.iter().any(has),
                "{filter} gives {shown}"
            );
        };
        check("info", &["info", "opentelemetry_sdk=off", "h2=warn"], &[]);
        check(
            "debug,h2=trace",
            &["debug", "h2=trace", "opentelemetry_sdk=off"],
            &["h2=warn"],
        );
        check("error", &["error", "opentelemetry_sdk=off"], &["h2=warn"]);
    }
}
