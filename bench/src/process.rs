//! What is measured: a process pinned to one core, its CPU time and its memory.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::net::{TcpListener, TcpStream};

/// The unit of times in /proc: Linux shows them to programs in hundredths of a second, whatever its own
/// clock is.
const TICKS_PER_SECOND: u64 = 100;
/// Far beyond what any program here takes to start.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// How much of what a failed program printed is shown.
const SHOWN_LINES: usize = 5;

/// How to start a program.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(&'static str, String)>,
    /// Where it answers once it is ready.
    pub(crate) listens: SocketAddr,
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu: Duration,
    pub(crate) rss_bytes: u64,
}

impl Process {
    /// Starts it on `cores` only, with no variable of OpenTelemetry but its own, and waits until it
    /// listens. What it prints goes to a file in `dir`.
    pub(crate) async fn start(launch: &Launch, cores: &str, dir: &Path) -> Result<Process> {
        let log = dir.join("output.log");
        let output = File::create(&log)?;
        let mut command = Command::new("taskset");
        command.args(["-c", cores]).arg(&launch.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("OTEL_") {
                command.env_remove(name);
            }
        }
        command
            .args(&launch.args)
            .envs(launch.env.iter().map(|(name, value)| (name, value)))
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = command.spawn().context("cannot run taskset")?;
        let mut process = Process { child, log };
        process.wait_until_listening(launch.listens).await?;
        Ok(process)
    }

    async fn wait_until_listening(&mut self, address: SocketAddr) -> Result<()> {
        let start = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended ({status}): {}", self.last_lines());
            }
            ensure!(
                start.elapsed() < START_LIMIT,
                "nothing listens on {address} after {START_LIMIT:?}: {}",
                self.last_lines()
            );
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    fn last_lines(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let mut lines: Vec<_> = log.lines().rev().take(SHOWN_LINES).collect();
        lines.reverse();
        lines.join(" / ")
    }

    /// All its threads' CPU time, and its resident memory.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let of_process = |file: &str| {
            fs::read_to_string(format!("/proc/{}/{file}", self.child.id()))
                .with_context(|| format!("it is gone: {}", self.last_lines()))
        };
        Ok(Usage {
            cpu: cpu_of(&of_process("stat")?).context("cannot read its CPU time")?,
            rss_bytes: rss_of(&of_process("status")?).context("cannot read its memory")?,
        })
    }

    /// Ends it as nothing can be prepared for.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to do.
        let _ = self.kill();
    }
}

/// utime and stime are fields 14 and 15; the second, in parentheses, may have spaces in it.
fn cpu_of(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut times = fields.split(' ').skip(11).map(str::parse::<u64>);
    let ticks = times.next()?.ok()? + times.next()?.ok()?;
    Some(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

fn rss_of(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Moves this process, before it has threads, to `cores`.
pub(crate) fn pin_ourselves(cores: &str) -> Result<()> {
    let pid = std::process::id().to_string();
    let output = Command::new("taskset")
        .args(["-c", "-p", cores, &pid])
        .output()
        .context("cannot run taskset (util-linux)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "--load-cores='{cores}': {}",
        said.trim()
    );
    Ok(())
}

/// An address that is free now.
pub(crate) async fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    Ok(listener.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_a_name_with_spaces_and_parentheses() {
        let stat = "7 (a (b) c) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 9 0 11 12 13";
        assert_eq!(cpu_of(stat), Some(Duration::from_secs(3)));
        assert_eq!(cpu_of("7 (a) S 1 2"), None);
    }

    #[test]
    fn resident_memory_is_read_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t 99 kB\nVmRSS:\t  12 kB\n";
        assert_eq!(rss_of(status), Some(12 * 1024));
        assert_eq!(rss_of("Name:\tx\n"), None);
    }

    #[tokio::test]
    async fn a_program_that_ends_at_once_is_told_with_its_last_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let launch = Launch {
            program: "sh".into(),
            args: vec!["-c".into(), "echo no such flag; exit 3".into()],
            env: Vec::new(),
            listens: free_address().await.expect("an address"),
        };
        let status = fs::read_to_string("/proc/self/status").expect("Linux has it");
        let cores = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let cores = cores.expect("Linux tells it").trim();
        let started = Process::start(&launch, cores, dir.path()).await;
        let error = started.expect_err("it ended").to_string();
        assert!(error.contains("no such flag"), "{error}");
    }
}
