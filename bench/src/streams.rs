//! Streams on which nothing happens, thousands at once: the memory that each proxy holds for them, and
//! how many it drops.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;

use crate::Setup;
use crate::client::Client;
use crate::gateways::{GATEWAYS, Gateway, Route};
use crate::process::{Process, free_address};
use crate::report::{Metric, Report, Sample, Table};
use crate::shim::MIB;
use crate::sink::{Arrived, Sink};
use crate::upstream::{IDLE, Pace, Upstream};

const BEFORE: Metric = Metric {
    name: "RSS before",
    unit: "MiB",
    has_ratio: false,
};
const HELD: Metric = Metric {
    name: "RSS with all streams",
    unit: "MiB",
    has_ratio: false,
};
const EACH: Metric = Metric {
    name: "RSS per stream",
    unit: "KiB",
    has_ratio: true,
};
const DROPPED: Metric = Metric {
    name: "dropped",
    unit: "",
    has_ratio: false,
};

/// Streams from one loopback address, well under its ports.
const STREAMS_PER_ADDRESS: usize = 4_000;
/// Streams that are being opened at once.
const OPENING: usize = 64;
/// An answer that has not begun, or ended, by then is dropped.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Descriptors besides those of the streams.
const SPARE_DESCRIPTORS: u64 = 256;

/// The bench of idle streams. Each is held for --seconds.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Streams at once
    #[arg(long, default_value_t = 10_000)]
    streams: usize,
}

/// Runs it.
pub(crate) async fn run(setup: &Setup, args: &Args) -> Result<Report> {
    // Here and in the proxies, which inherit it: a socket to the client and one to the upstream.
    raise_descriptors(2 * args.streams as u64 + SPARE_DESCRIPTORS)?;
    let title = format!("{} idle streams for {:?}", args.streams, setup.duration);
    let mut table = Table::new(title);
    let gateways = GATEWAYS.map(|gateway| (gateway != Gateway::Direct).then_some(gateway));
    let gateways: Vec<_> = gateways.into_iter().flatten().collect();
    setup
        .in_turns(
            &mut table,
            &gateways,
            Gateway::name,
            async |gateway, dir| hold(setup, args, gateway, dir).await,
        )
        .await?;
    Ok(Report::new("streams", vec![table]))
}

fn raise_descriptors(wanted: u64) -> Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Some(most) = maximum {
        ensure!(
            most >= wanted,
            "{wanted} file descriptors are needed and {most} are allowed: see `ulimit -Hn`"
        );
    }
    let raised = Rlimit {
        current: Some(wanted),
        maximum,
    };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of file descriptors")
}

async fn hold(setup: &Setup, args: &Args, gateway: Gateway, dir: &Path) -> Result<Option<Sample>> {
    let silent = Pace {
        events: 0,
        interval: Duration::from_secs(1),
    };
    let upstream = Upstream::start(silent).await?;
    let route = Route {
        listens: free_address().await?,
        upstream: upstream.address,
        sink: free_address().await?,
    };
    let arrived: Arc<Arrived> = Arc::default();
    let _sink = Sink::start(route.sink, &arrived).await?;
    let Some(launch) = gateway.launch(setup, route, dir)? else {
        return Ok(None);
    };
    let process = Process::start(&launch, &setup.core, dir).await?;
    let before = process.usage()?.rss_bytes as f64;
    let streams = open_all(route.listens, args.streams).await;
    let opened = streams.len();
    tokio::time::sleep(setup.duration).await;
    let held = process.usage()?.rss_bytes as f64;
    upstream.silence_is_over.send_replace(true);
    let ended_well = end_all(streams).await;
    ensure!(opened > 0, "no stream was opened");
    Ok(Some(vec![
        (BEFORE, before / MIB),
        (HELD, held / MIB),
        (EACH, (held - before) / 1024.0 / opened as f64),
        (DROPPED, (args.streams - ended_well) as f64),
    ]))
}

/// A stream whose first event has come.
struct Stream {
    body: Incoming,
    /// Kept: without it the connection would close.
    _client: Client,
}

impl Stream {
    async fn open(to: SocketAddr, from: u8) -> Result<Stream> {
        let mut client = Client::connect(to, from).await?;
        let mut body = client.ask(IDLE).await?;
        next_event(&mut body).await?;
        Ok(Stream {
            body,
            _client: client,
        })
    }

    /// The last event and the end.
    async fn end(mut self) -> Result<()> {
        next_event(&mut self.body).await?;
        while let Some(frame) = self.body.frame().await {
            frame?;
        }
        Ok(())
    }
}

async fn next_event(body: &mut Incoming) -> Result<()> {
    match body.frame().await {
        Some(frame) => frame.map(drop).map_err(Into::into),
        None => bail!("it ended early"),
    }
}

/// All that could be opened.
async fn open_all(to: SocketAddr, count: usize) -> Vec<Stream> {
    let mut opening = JoinSet::new();
    let mut streams = Vec::with_capacity(count);
    for number in 0..count {
        let from = 2 + (number / STREAMS_PER_ADDRESS) as u8;
        opening.spawn(tokio::time::timeout(ANSWER_LIMIT, Stream::open(to, from)));
        if opening.len() >= OPENING {
            streams.extend(next_good(&mut opening).await);
        }
    }
    while !opening.is_empty() {
        streams.extend(next_good(&mut opening).await);
    }
    streams
}

/// How many ended as they should.
async fn end_all(streams: Vec<Stream>) -> usize {
    let mut ending = JoinSet::new();
    for stream in streams {
        ending.spawn(tokio::time::timeout(ANSWER_LIMIT, stream.end()));
    }
    let mut count = 0;
    while !ending.is_empty() {
        count += usize::from(next_good(&mut ending).await.is_some());
    }
    count
}

type InTime<T> = Result<Result<T>, tokio::time::error::Elapsed>;

async fn next_good<T: 'static>(tasks: &mut JoinSet<InTime<T>>) -> Option<T> {
    tasks.join_next().await?.ok()?.ok()?.ok()
}
