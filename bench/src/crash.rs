//! The promise of the queue on disk: kill -9 at random moments under load, with a backend that stops and
//! starts. Every span that was acknowledged must arrive; some arrive twice, and these are counted.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rand::RngExt as _;
use tokio::task::{JoinHandle, JoinSet};

use crate::Setup;
use crate::load::Connection;
use crate::process::{Launch, Process, free_address};
use crate::report::{Metric, Report, Table};
use crate::shim::{backend, ours};
use crate::sink::{Arrived, Sink};
use crate::spans;

const COUNTS: [&str; 7] = [
    "kills",
    "spans acknowledged",
    "spans refused",
    "of these while the disk was full",
    "acknowledged and missing",
    "duplicates",
    "arrived without acknowledgement",
];
/// Between the start of the shim and its end.
const LIFE_MILLIS: std::ops::Range<u64> = 50..1_500;
/// When nothing more arrives for so long from a shim that runs, nothing more will: retries come sooner.
const QUIET_LIMIT: Duration = Duration::from_secs(20);
/// The defaults of `--away-millis`: a shim takes a few MiB a second.
const AWAY_MILLIS: u64 = 1_500;
const AWAY_MILLIS_TO_FILL: u64 = 10_000;
const REFUSED_PAUSE: Duration = Duration::from_millis(2);

/// The bench of a shim that crashes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// How often the shim is killed
    #[arg(long, default_value_t = 100)]
    kills: u64,
    /// Puts the queue onto a disk of this size, which fills up (as root)
    #[arg(long, value_name = "MIB")]
    tmpfs_mib: Option<u64>,
    /// Spans of a request
    #[arg(long, default_value_t = 16)]
    spans: u64,
    /// Bytes of a span, about
    #[arg(long, default_value_t = 540)]
    span_bytes: usize,
    /// Requests at once
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
    /// The longest that the backend stays away; 1500, or 10000 with --tmpfs-mib, which is to fill up
    #[arg(long)]
    away_millis: Option<u64>,
}

impl Args {
    fn away_millis(&self) -> u64 {
        let default = if self.tmpfs_mib.is_some() {
            AWAY_MILLIS_TO_FILL
        } else {
            AWAY_MILLIS
        };
        self.away_millis.unwrap_or(default)
    }
}

/// What was sent, over all lives of the shim.
#[derive(Debug, Default)]
struct Ledger {
    next_id: AtomicU64,
    /// The first id of each request.
    acknowledged: Mutex<Vec<u64>>,
    refused: AtomicU64,
    /// Of these, while there was no room for a request on the disk that fills up.
    refused_when_full: AtomicU64,
}

/// Runs it.
pub(crate) async fn run(setup: &Setup, args: &Args) -> Result<Report> {
    let dir = tempfile::tempdir_in(&setup.dir)?;
    let queue = dir.path().join("queue");
    std::fs::create_dir(&queue)?;
    let disk = args
        .tmpfs_mib
        .map(|mib| Tmpfs::mount(&queue, mib).map(Arc::new))
        .transpose()?;
    let to = free_address().await?;
    let (ledger, arrived) = (Arc::<Ledger>::default(), Arc::new(Arrived::with_ids()));
    let backend = Backend::start(to, Arc::clone(&arrived), args.away_millis());
    for _ in 0..args.kills {
        let started = start(setup, &queue, to).await?;
        live_and_die(started, args, disk.as_ref(), &ledger).await?;
    }
    let _sink = backend.stay().await?;
    let _process = start(setup, &queue, to).await?;
    arrived.wait_for(u64::MAX, QUIET_LIMIT).await;
    report(args, &ledger, arrived.ids())
}

fn report(args: &Args, ledger: &Ledger, mut arrived: HashMap<u64, u32>) -> Result<Report> {
    let acknowledged = ledger.acknowledged.lock().expect("no holder panics");
    let duplicates: u64 = arrived.values().map(|times| u64::from(times - 1)).sum();
    let mut missing = 0;
    for id in acknowledged
        .iter()
        .flat_map(|first| *first..first + args.spans)
    {
        missing += u64::from(arrived.remove(&id).is_none());
    }
    let spans = acknowledged.len() as u64 * args.spans;
    ensure!(
        spans > 0,
        "no span was acknowledged, so that nothing was shown"
    );
    let refused_when_full = ledger.refused_when_full.load(Ordering::Relaxed);
    let counts = [
        args.kills,
        spans,
        ledger.refused.load(Ordering::Relaxed),
        refused_when_full,
        missing,
        duplicates,
        arrived.len() as u64,
    ];
    let mut table = Table::new("kill -9 under load, the backend comes and goes");
    let metrics = COUNTS.map(|name| Metric {
        name,
        unit: "",
        has_ratio: false,
    });
    let counts = metrics.into_iter().zip(counts.map(|count| count as f64));
    let target = match args.tmpfs_mib {
        Some(mib) => format!("lantern --ack disk, disk of {mib} MiB"),
        None => "lantern --ack disk".to_owned(),
    };
    table.add(&target, counts.collect());
    let was_never_full = args.tmpfs_mib.is_some() && refused_when_full == 0;
    Ok(Report::new("crash", vec![table])
        .failed_if(missing > 0, "acknowledged spans are missing")
        .failed_if(was_never_full, "the disk was never full"))
}

async fn start(setup: &Setup, queue: &Path, to: SocketAddr) -> Result<(Process, SocketAddr)> {
    let listens = free_address().await?;
    let mut args = ours(listens);
    args.extend(["--queue-dir".to_owned(), queue.display().to_string()]);
    let launch = Launch {
        program: setup.programs.ours("lantern-shim")?,
        args,
        env: backend(false, "none", to),
        listens,
    };
    let log_dir = queue.parent().context("a queue is in a directory")?;
    let process = Process::start(&launch, &setup.core, log_dir).await?;
    Ok((process, listens))
}

/// One life of the shim, and its end.
async fn live_and_die(
    (mut process, listens): (Process, SocketAddr),
    args: &Args,
    disk: Option<&Arc<Tmpfs>>,
    ledger: &Arc<Ledger>,
) -> Result<()> {
    let connection = Connection::open(listens, false).await?;
    let mut senders = JoinSet::new();
    for _ in 0..args.in_flight {
        let (disk, ledger) = (disk.cloned(), Arc::clone(ledger));
        senders.spawn(send(connection.clone(), args.clone(), disk, ledger));
    }
    let life = rand::rng().random_range(LIFE_MILLIS);
    tokio::time::sleep(Duration::from_millis(life)).await;
    process.kill()?;
    while senders.join_next().await.is_some() {}
    Ok(())
}

/// Sends until the connection breaks.
async fn send(
    mut connection: Connection,
    args: Args,
    disk: Option<Arc<Tmpfs>>,
    ledger: Arc<Ledger>,
) {
    loop {
        let first = 1 + ledger.next_id.fetch_add(args.spans, Ordering::Relaxed);
        let request = spans::request(first, args.spans, args.span_bytes);
        match connection.export(spans::framed(&request, false)).await {
            Ok(true) => {
                let mut acknowledged = ledger.acknowledged.lock().expect("no holder panics");
                acknowledged.push(first);
            }
            Ok(false) => {
                ledger.refused.fetch_add(args.spans, Ordering::Relaxed);
                if disk
                    .as_ref()
                    .is_some_and(|disk| disk.free_bytes() < request.len() as u64)
                {
                    ledger
                        .refused_when_full
                        .fetch_add(args.spans, Ordering::Relaxed);
                }
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            Err(_) => return,
        }
    }
}

/// A backend that comes and goes until it is told to stay.
struct Backend {
    stays: Arc<AtomicBool>,
    task: JoinHandle<Result<Sink>>,
}

impl Backend {
    fn start(address: SocketAddr, arrived: Arc<Arrived>, away_millis: u64) -> Backend {
        let stays: Arc<AtomicBool> = Arc::default();
        let is_told = Arc::clone(&stays);
        let task = tokio::spawn(async move {
            loop {
                let sink = Sink::start(address, &arrived).await?;
                if is_told.load(Ordering::Relaxed) {
                    return Ok(sink);
                }
                pause(away_millis).await;
                drop(sink);
                pause(away_millis).await;
            }
        });
        Backend { stays, task }
    }

    async fn stay(self) -> Result<Sink> {
        self.stays.store(true, Ordering::Relaxed);
        self.task.await?
    }
}

async fn pause(most_millis: u64) {
    let millis = rand::rng().random_range(0..=most_millis);
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// A small disk. Dropping it takes it away.
struct Tmpfs {
    at: PathBuf,
}

impl Tmpfs {
    fn mount(at: &Path, mib: u64) -> Result<Tmpfs> {
        let status = Command::new("mount")
            .args([
                "-t",
                "tmpfs",
                "-o",
                &format!("size={mib}m"),
                "lantern-bench",
            ])
            .arg(at)
            .status()
            .context("cannot run mount")?;
        ensure!(
            status.success(),
            "--tmpfs-mib='{mib}': only root can mount a disk"
        );
        Ok(Tmpfs { at: at.to_owned() })
    }

    fn free_bytes(&self) -> u64 {
        let told = rustix::fs::statvfs(&self.at).expect("it is mounted");
        told.f_bavail * told.f_frsize
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the shim that had its queue there may not be gone yet.
        let unmounted = Command::new("umount").arg("-l").arg(&self.at).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} is still mounted", self.at.display());
        }
    }
}
