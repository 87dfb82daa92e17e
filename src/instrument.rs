//! `lantern instrument -- CMD…`: any HTTP server behind the tracing proxy, in one command.
//!
//! The server is a child process and knows nothing of it. Signals are passed on; one that asks it to
//! stop waits until the requests in flight are answered, unless it is repeated. The exit code is the
//! child's (128 + n when signal n ended it, as shells say), whatever became of the spans.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use lantern_proxy::Proxy;
use lantern_telemetry::{ConfigError, Settings, Telemetry, process};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The port of a server that names none: the one that `lantern serve` listens on.
const DEFAULT_PORT: u16 = 8001;
/// How long the last spans may take to leave.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `lantern instrument`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lantern instrument -- lantern serve facebook/opt-125m
  lantern instrument -- vllm serve facebook/opt-125m --port 8001
  lantern instrument --listen 0.0.0.0:8000 -- uvicorn app:app --port 9000

Clients use the proxy's port (8000). OTEL_SERVICE_NAME names the server's HTTP spans; the other
standard OTEL_* variables choose the exporter, for the proxy and for a child that reads them.")]
pub(crate) struct Args {
    #[command(flatten)]
    proxy: lantern_proxy::Args,
    /// The server to start, with its arguments; its `--port N` tells where it listens (8001)
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs the command behind the proxy until it ends, and gives its exit code.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = Settings::from_env()?.with_metrics();
    process::init_logging(settings.log_filter());
    let Args { mut proxy, command } = args;
    proxy.default_upstream(|| upstream_of(&command))?;
    let config = proxy.into_config()?;
    let settings = if config.keep.is_any() {
        settings.recording_unsampled()
    } else {
        settings
    };
    let telemetry = Telemetry::start(&settings, "lantern-proxy")?;
    let proxy = Proxy::bind(config, &telemetry).await?;
    let mut signals = Signals::catch()?;
    let mut child = spawn(&command)?;
    let (shutdown, drained) = (CancellationToken::new(), CancellationToken::new());
    let running = proxy.run(shutdown.clone());
    let guard = drained.clone().drop_guard();
    let serving = tokio::spawn(async move {
        let _drained = guard;
        running.await
    });
    let status = supervise(&mut child, &mut signals, &shutdown, &drained).await?;
    shutdown.cancel();
    // The command's own end is what counts; what went wrong around it is a warning.
    match serving.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the proxy failed"),
        Err(error) => tracing::warn!(%error, "the proxy panicked"),
    }
    telemetry.shutdown_or_warn(FLUSH_LIMIT).await;
    Ok(exit_code(status))
}

/// Where the command's server listens, from its own `--port`.
fn upstream_of(command: &[String]) -> Result<String, ConfigError> {
    let port = match port_argument(command) {
        None => DEFAULT_PORT,
        Some(typed) => typed
            .parse::<u16>()
            .map_err(|_| ConfigError::new("--port", typed, "a port number, 1 to 65535"))?,
    };
    Ok(format!("http://127.0.0.1:{port}"))
}

/// The value of the last `--port N`, `--port=N` or `-p N`; other programs mean other things by a
/// `-p` without a number.
fn port_argument(command: &[String]) -> Option<&str> {
    let mut port = None;
    for (index, argument) in command.iter().enumerate() {
        let next = command.get(index + 1).map(String::as_str);
        port = match argument.as_str() {
            "--port" => next.or(port),
            "-p" => next.filter(|value| value.parse::<u16>().is_ok()).or(port),
            joined => joined.strip_prefix("--port=").or(port),
        };
    }
    port
}

/// Starts the command in a process group of its own: a Ctrl-C at the terminal reaches it once,
/// from here, and not a second time from the terminal.
fn spawn(command: &[String]) -> anyhow::Result<Child> {
    let (program, arguments) = command.split_first().expect("clap requires a command");
    Command::new(program)
        .args(arguments)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {program}"))
}

/// Passes signals on until the child ends. The first one that asks it to stop is held back until
/// the proxy has `drained`.
async fn supervise(
    child: &mut Child,
    signals: &mut Signals,
    shutdown: &CancellationToken,
    drained: &CancellationToken,
) -> anyhow::Result<ExitStatus> {
    let group = child
        .id()
        .and_then(|id| Pid::from_raw(id.cast_signed()))
        .context("the command ended before it started")?;
    // It may have ended in between: then `wait` tells in the next round.
    let pass = |signal| {
        let _ = kill_process_group(group, signal);
    };
    let (mut held, mut watching) = (None, true);
    loop {
        tokio::select! {
            status = child.wait() => return Ok(status?),
            signal = signals.next() => match signal {
                Signal::INT | Signal::TERM if !shutdown.is_cancelled() => {
                    shutdown.cancel();
                    held = Some(signal);
                }
                signal => pass(signal),
            },
            // Without a signal held back the proxy has failed: no use without it.
            () = drained.cancelled(), if watching => {
                watching = false;
                pass(held.take().unwrap_or(Signal::TERM));
            }
        }
    }
}

/// The signals that are passed on, caught before the child is there.
struct Signals {
    hangup: UnixSignal,
    interrupt: UnixSignal,
    quit: UnixSignal,
    terminate: UnixSignal,
    user1: UnixSignal,
    user2: UnixSignal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::HUP,
            _ = self.interrupt.recv() => Signal::INT,
            _ = self.quit.recv() => Signal::QUIT,
            _ = self.terminate.recv() => Signal::TERM,
            _ = self.user1.recv() => Signal::USR1,
            _ = self.user2.recv() => Signal::USR2,
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|number| 128 + number))
        .unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_of(command: &str) -> Option<String> {
        let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        port_argument(&words).map(str::to_owned)
    }

    #[test]
    fn the_servers_own_port_argument_names_the_upstream() {
        let check = |command: &str, expect: Option<&str>| {
            assert_eq!(port_of(command).as_deref(), expect, "{command}");
        };
        check("vllm serve facebook/opt-125m", None);
        check("vllm serve facebook/opt-125m --port 9000", Some("9000"));
        check("uvicorn app:app --port=9001", Some("9001"));
        check("server -p 9002", Some("9002"));
        check("gunicorn -p /run/server.pid app:app", None);
        check("server --port=1 --port 2", Some("2"));
        check("server --port", None);
    }

    #[test]
    fn a_port_that_is_no_number_is_refused_by_name() {
        let command = ["server".into(), "--port=http".into()];
        let line = upstream_of(&command).unwrap_err().to_string();
        assert!(line.contains("--port") && line.contains("http"), "{line}");
    }

    #[test]
    fn a_child_ended_by_a_signal_exits_as_a_shell_says() {
        assert_eq!(exit_code(ExitStatus::from_raw(15)), ExitCode::from(143));
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), ExitCode::from(7));
    }
}
