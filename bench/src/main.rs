//! Lantern's proxy and shim side by side with their peers: in turns, each on one core, with the load, the
//! backend and the clients on the others.
//!
//! # Layout
//!
//! - `shim`, `crash`, `proxy`, `streams`, `serve`: the benches, each a subcommand.
//! - `process`: what is measured; `peers`: where it is; `report`: what comes out.
//! - `spans`, `load`, `sink`: OTLP to send, who sends it, who takes it.
//! - `upstream`, `client`, `gateways`: HTTP to pass on, who asks for it, and the proxies between them.

mod client;
mod crash;
mod gateways;
mod load;
mod peers;
mod process;
mod proxy;
mod report;
mod serve;
mod shim;
mod sink;
mod spans;
mod streams;
mod upstream;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use peers::Programs;
use process::pin_ourselves;
use report::{Report, Sample, Table};

/// Measures Lantern's programs beside their peers and prints a table of medians.
///
/// What is measured runs on one core, the bench itself on others, and the targets take turns. Build
/// first what is measured: `cargo build --profile dist -p lantern-shim -p lantern-proxy -p lantern-bench`.
#[derive(Parser)]
#[command(name = "lantern-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct Common {
    /// How long each measurement takes
    #[arg(long, global = true, default_value_t = 10)]
    seconds: u64,
    /// Turns of each target
    #[arg(long, global = true, default_value_t = 5)]
    rounds: usize,
    /// Measures only targets whose name has this in it; may be given several times
    #[arg(long, global = true)]
    only: Vec<String>,
    /// The core that what is measured runs on
    #[arg(long, global = true, default_value = "0")]
    core: String,
    /// The cores for all the rest, as taskset writes them
    #[arg(long, global = true, default_value = "1")]
    load_cores: String,
    /// Where lantern-shim and lantern-proxy are; without it beside this program
    #[arg(long, global = true, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Where queues and configurations are put meanwhile
    #[arg(long, global = true, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// Where the report is written
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        default_value = "target/bench"
    )]
    out: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    #[command(flatten)]
    Bench(Bench),
    /// The byte copy that the proxies are measured against
    #[command(hide = true)]
    Copy(gateways::CopyArgs),
    /// The bare pingora that ours is measured against
    #[command(hide = true)]
    Pingora(gateways::OwnArgs),
}

#[derive(Subcommand)]
enum Bench {
    /// OTLP relayed: CPU per span and memory, beside the Collector and Rotel
    Shim(shim::Args),
    /// The shim killed under load: acknowledged spans that are missing
    Crash(crash::Args),
    /// HTTP passed on: CPU per request and per event, beside a byte copy, a bare pingora, Envoy and Caddy
    Proxy(proxy::Args),
    /// Idle streams held by the proxies: memory, and how many are dropped
    Streams(streams::Args),
    /// A model served: tokens per second and first tokens over HTTP, with and without the proxy
    Serve(serve::Args),
}

/// What all benches have in common, ready to use.
#[derive(Debug)]
struct Setup {
    programs: Programs,
    core: String,
    duration: Duration,
    rounds: usize,
    only: Vec<String>,
    dir: PathBuf,
}

impl Setup {
    /// Measures `targets` in turns, A B C A B C. Each turn has a directory of its own. A target that is
    /// not here, or does not work, is noted and left out.
    async fn in_turns<T: Copy>(
        &self,
        table: &mut Table,
        targets: &[T],
        name: impl Fn(T) -> String,
        measure: impl AsyncFn(T, &Path) -> Result<Option<Sample>>,
    ) -> Result<()> {
        let is_asked_for =
            |name: &str| self.only.is_empty() || self.only.iter().any(|only| name.contains(only));
        for round in 1..=self.rounds {
            for target in targets {
                let name = name(*target);
                if !is_asked_for(&name) {
                    continue;
                }
                eprintln!("{}: {name}, {round} of {}", table.title(), self.rounds);
                let dir = tempfile::tempdir_in(&self.dir)?;
                match measure(*target, dir.path()).await {
                    Ok(Some(sample)) => table.add(&name, sample),
                    Ok(None) => table.note(format!("{name} is not here and was left out.")),
                    Err(error) => table.note(format!("{name} failed: {error:#}.")),
                }
            }
        }
        Ok(())
    }
}

fn main() -> Result<()> {
    let Cli { command, common } = Cli::parse();
    let bench = match command {
        Command::Bench(bench) => bench,
        Command::Copy(args) => return one_thread()?.block_on(gateways::copy(&args)),
        Command::Pingora(args) => return gateways::pingora(&args),
    };
    ensure!(
        common.core != common.load_cores,
        "--core and --load-cores are the same"
    );
    pin_ourselves(&common.load_cores)?;
    let setup = Setup {
        programs: Programs::find(common.bin_dir)?,
        core: common.core,
        duration: Duration::from_secs(common.seconds),
        rounds: common.rounds,
        only: common.only,
        dir: std::path::absolute(common.dir)?,
    };
    let runtime = match &bench {
        // Hundreds of thousands of events a second are more than one thread reads.
        Bench::Serve(_) => tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?,
        _ => one_thread()?,
    };
    let report: Report = runtime.block_on(async {
        match &bench {
            Bench::Shim(args) => shim::run(&setup, args).await,
            Bench::Crash(args) => crash::run(&setup, args).await,
            Bench::Proxy(args) => proxy::run(&setup, args).await,
            Bench::Streams(args) => streams::run(&setup, args).await,
            Bench::Serve(args) => serve::run(&setup, args).await,
        }
    })?;
    report.publish(&common.out, setup.programs.plotter().as_ref())
}

fn one_thread() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}
