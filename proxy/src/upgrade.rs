//! A new program in place of a running one, without a connection lost.
//!
//! At SIGUSR2 the running program starts the one that its command line names now, with the same arguments,
//! and hands it the sockets that it listens on, as systemd does, and one more, for a word that it is ready. Both
//! then take connections from one queue, until the old program has heard that word and drains. A new one
//! that ends or is silent for too long leaves the old one as it was. SO_REUSEPORT lost: what is in the queue of
//! the socket that is closed is reset.

use std::os::fd::OwnedFd;
use std::sync::Weak;
use std::time::Duration;

use anyhow::Context as _;
use command_fds::{CommandFdExt as _, FdMapping};
use tokio::net::UnixDatagram;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long a new program may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// The first descriptor that is handed over, by systemd's rule.
const FIRST_DESCRIPTOR: i32 = 3;

/// What a new program is given, and takes away.
pub(crate) struct Handover {
    /// What the proxy listens on; gone once it does not.
    pub(crate) listeners: Weak<Vec<OwnedFd>>,
    /// Ends the scraping of this program's metrics: the port shows the new one's.
    pub(crate) scraping: CancellationToken,
}

/// Starts a new program at each SIGUSR2, until one has taken over: that is a `shutdown` of this one.
pub(crate) fn on_signal(handover: Handover, shutdown: CancellationToken) -> anyhow::Result<()> {
    let upgrades = signal(SignalKind::user_defined2()).context("cannot catch SIGUSR2")?;
    tokio::spawn(async move {
        let work = replaced(upgrades, &handover);
        if shutdown.run_until_cancelled(work).await.is_some() {
            tracing::info!("the new program has taken over, shutting down");
            handover.scraping.cancel();
            shutdown.cancel();
        }
    });
    Ok(())
}

async fn replaced(mut upgrades: Signal, handover: &Handover) {
    loop {
        upgrades.recv().await;
        match replace(handover).await {
            Ok(()) => return,
            Err(error) => {
                tracing::error!("the new program did not take over, this one goes on: {error:#}");
            }
        }
    }
}

/// Waits until a new program is ready. It ends with this future.
async fn replace(handover: &Handover) -> anyhow::Result<()> {
    let (ours, theirs) = UnixDatagram::pair()?;
    let mut successor = Successor {
        child: start(handover, theirs)?,
        is_ready: false,
    };
    tracing::info!(pid = successor.child.id(), "started a new program");
    let mut word = [0];
    tokio::select! {
        ended = successor.child.wait() => anyhow::bail!("it ended, {}", ended?),
        ready = timeout(READY_LIMIT, ours.recv(&mut word)) => {
            ready.with_context(|| format!("it was not ready within {READY_LIMIT:?}"))??;
        }
    }
    successor.is_ready = true;
    Ok(())
}

/// A new program. Dropping it before it is ready ends it.
struct Successor {
    child: Child,
    is_ready: bool,
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.is_ready {
            // An error means that it has ended by itself.
            let _ = self.child.start_kill();
        }
    }
}

fn start(handover: &Handover, ready: UnixDatagram) -> anyhow::Result<Child> {
    let listeners = handover.listeners.upgrade();
    let listeners = listeners.context("nothing is listened on any more")?;
    let mut handed = Vec::with_capacity(listeners.len() + 1);
    for listener in &*listeners {
        handed.push(listener.try_clone()?);
    }
    handed.push(ready.into_std()?.into());
    let count = handed.len();
    let mappings = (FIRST_DESCRIPTOR..).zip(handed);
    let mappings = mappings.map(|(child_fd, parent_fd)| FdMapping {
        parent_fd,
        child_fd,
    });
    let mut arguments = std::env::args_os();
    let program = arguments.next().context("a program has a name")?;
    let mut command = std::process::Command::new(&program);
    command
        .args(arguments)
        .env("LISTEN_FDS", count.to_string())
        .env_remove("LISTEN_PID")
        .env_remove("LISTEN_FDNAMES")
        .fd_mappings(mappings.collect())?;
    let started = Command::from(command).spawn();
    started.with_context(|| format!("{} cannot be started", program.display()))
}
