//! `lantern instrument -- CMD…`: any HTTP server behind the tracing proxy, in one command.
//!
//! The server is a child process and knows nothing of it. The proxy has its port before the server starts and serves
//! once the server listens (`listening` finds out where) and has loaded its model (`loading`), so a client that comes
//! early waits and is not refused.
//! Signals are passed on; one that asks the server to stop waits until the requests in flight are answered, unless it
//! is repeated. The exit code is the child's (128 + n when signal n ended it, as shells say), whatever became of the
//! spans.

mod listening;
mod loading;

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use lantern_proxy::{Config, Proxy, Sockets, Upstream};
use lantern_telemetry::{Settings, Telemetry, process};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal as UnixSignal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use listening::{Expected, accepting};
use loading::loaded;

/// How long the last spans may take to leave.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `lantern instrument`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  lantern instrument -- lantern serve facebook/opt-125m
  lantern instrument -- vllm serve facebook/opt-125m --port 8001
  lantern instrument -- gunicorn -b 127.0.0.1:9000 app:app
  lantern instrument --listen 127.0.0.1:9000 -- sh -c 'exec uvicorn app:app'

Clients use the proxy's port (8000), and wait there until the server listens and does not answer GET /health with 503,
as some do while they load their model. A server that wants the same port by
itself, as vLLM and uvicorn do, needs another (--port 8001), or the proxy does (--listen).

Where the server listens is found by looking at the sockets of its processes, on Linux; of several it is the one that
its --port or -b names, or else one whose number its arguments or PORT have, or else the lowest. Elsewhere, and for one
that runs where nobody can look, as in a container, --port or -b tells; --upstream tells in any case.

OTEL_SERVICE_NAME names the server's HTTP spans; the other standard OTEL_* variables choose the exporter, for the proxy
and for a child that reads them.")]
pub(crate) struct Args {
    #[command(flatten)]
    proxy: lantern_proxy::Args,
    /// The server to start, with its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs the command behind the proxy until it ends, and gives its exit code; or, with `--check`, prints the settings.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = Settings::from_env()?.with_metrics();
    let Args { mut proxy, command } = args;
    let expected = Expected::of(&command);
    let is_to_be_found = proxy.default_upstream(&Upstream::from(expected.address()).to_string())?;
    if let Some(description) = proxy.checked()? {
        print!("{description}");
        return Ok(ExitCode::SUCCESS);
    }
    process::init_logging(settings.log_filter());
    let mut config = proxy.into_config()?;
    let settings = if config.keep.is_any() {
        settings.recording_unsampled()
    } else {
        settings
    };
    let telemetry = Telemetry::start(&settings, "lantern-proxy")?;
    let sockets = Sockets::bind(&config).await?;
    let mut server = Server::start(&command)?;
    let group = server.group;
    let upstreams = config.upstreams.clone();
    let upstreams = async move {
        let upstreams = if is_to_be_found {
            vec![expected.listening(group).await.into()]
        } else {
            accepting(&upstreams).await;
            upstreams
        };
        loaded(&upstreams).await;
        upstreams
    };
    let status = match server.until(upstreams).await? {
        Until::Reached(upstreams) => {
            config.upstreams = upstreams;
            serve(config, sockets, &telemetry, &mut server).await?
        }
        Until::Ended(status) => {
            if !status.success() {
                explain(config.listen);
            }
            status
        }
    };
    telemetry.shutdown_or_warn(FLUSH_LIMIT).await;
    Ok(exit_code(status))
}

/// What may be wrong with a command that ended before it listened.
fn explain(listen: SocketAddr) {
    let port = listen.port();
    tracing::warn!(
        "the command ended before it listened; if it wanted port {port}, which the proxy has, give one of the two \
         another: the command by an argument of its own, the proxy by --listen"
    );
}

/// Proxies to the server until it ends.
async fn serve(
    config: Config,
    mut sockets: Sockets,
    telemetry: &Telemetry,
    server: &mut Server,
) -> anyhow::Result<ExitStatus> {
    let upstreams: Vec<_> = config.upstreams.iter().map(ToString::to_string).collect();
    let proxy = Proxy::bind_or_take(config, telemetry, &mut sockets).await?;
    tracing::info!(listen = %proxy.local_addr(), upstreams = upstreams.join(" "), "proxying");
    let (shutdown, drained) = (CancellationToken::new(), CancellationToken::new());
    let running = proxy.run(shutdown.clone());
    let guard = drained.clone().drop_guard();
    let serving = tokio::spawn(async move {
        let _drained = guard;
        running.await
    });
    let status = server.supervise(&shutdown, &drained).await?;
    shutdown.cancel();
    // The command's own end is what counts; what went wrong around it is a warning.
    match serving.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the proxy failed"),
        Err(error) => tracing::warn!(%error, "the proxy panicked"),
    }
    Ok(status)
}

/// The command, running.
struct Server {
    child: Child,
    /// Its process group.
    group: Pid,
    signals: Signals,
}

/// What came first.
enum Until<T> {
    Reached(T),
    Ended(ExitStatus),
}

impl Server {
    /// Starts the command in a process group of its own: a Ctrl-C at the terminal reaches it once, from here, and not
    /// a second time from the terminal.
    fn start(command: &[String]) -> anyhow::Result<Self> {
        let (program, arguments) = command.split_first().expect("clap requires a command");
        let signals = Signals::catch()?;
        let child = Command::new(program)
            .args(arguments)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let group = child
            .id()
            .and_then(|id| Pid::from_raw(id.cast_signed()))
            .context("the command ended before it started")?;
        Ok(Self {
            child,
            group,
            signals,
        })
    }

    /// It may have ended in between: then waiting for it tells.
    fn pass(&self, signal: Signal) {
        let _ = kill_process_group(self.group, signal);
    }

    /// Passes signals on until `reached`, unless the child ends before, or is told to.
    async fn until<T>(&mut self, reached: impl Future<Output = T>) -> anyhow::Result<Until<T>> {
        let (mut reached, mut is_told) = (std::pin::pin!(reached), false);
        loop {
            tokio::select! {
                status = self.child.wait() => return Ok(Until::Ended(status?)),
                signal = self.signals.next() => {
                    is_told |= asks_to_stop(signal);
                    self.pass(signal);
                }
                reached = &mut reached, if !is_told => return Ok(Until::Reached(reached)),
            }
        }
    }

    /// Passes signals on until the child ends. The first one that asks it to stop is held back until the proxy has
    /// `drained`.
    async fn supervise(
        &mut self,
        shutdown: &CancellationToken,
        drained: &CancellationToken,
    ) -> anyhow::Result<ExitStatus> {
        let (mut held, mut watching) = (None, true);
        loop {
            tokio::select! {
                status = self.child.wait() => return Ok(status?),
                signal = self.signals.next() => {
                    if asks_to_stop(signal) && !shutdown.is_cancelled() {
                        shutdown.cancel();
                        held = Some(signal);
                    } else {
                        self.pass(signal);
                    }
                }
                // Without a signal held back the proxy has failed: no use without it.
                () = drained.cancelled(), if watching => {
                    watching = false;
                    self.pass(held.take().unwrap_or(Signal::TERM));
                }
            }
        }
    }
}

fn asks_to_stop(signal: Signal) -> bool {
    matches!(signal, Signal::INT | Signal::TERM)
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

    #[test]
    fn a_child_ended_by_a_signal_exits_as_a_shell_says() {
        assert_eq!(exit_code(ExitStatus::from_raw(15)), ExitCode::from(143));
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), ExitCode::from(7));
    }
}
