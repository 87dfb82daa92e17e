//! The shim beside the Collector and Rotel: CPU per span on one core, memory at rest and under overload.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::Setup;
use crate::load::Load;
use crate::process::{Launch, Process, free_address};
use crate::report::{Metric, Report, Sample, Table};
use crate::sink::{Arrived, Sink};
use crate::spans;

const CPU: Metric = Metric {
    name: "CPU per span",
    unit: "ns",
    has_ratio: true,
};
const RATE: Metric = Metric {
    name: "spans per second",
    unit: "",
    has_ratio: false,
};
const REFUSED: Metric = Metric {
    name: "refused",
    unit: "%",
    has_ratio: false,
};
const MISSING: Metric = Metric {
    name: "accepted and not delivered",
    unit: "%",
    has_ratio: false,
};
const IDLE: Metric = Metric {
    name: "RSS idle",
    unit: "MiB",
    has_ratio: false,
};
const LOADED: Metric = Metric {
    name: "RSS under load",
    unit: "MiB",
    has_ratio: false,
};
const OVERLOADED: Metric = Metric {
    name: "most RSS",
    unit: "MiB",
    has_ratio: false,
};

/// Requests before the clock starts, so that caches, pools and connections are there.
const WARM_UP: Duration = Duration::from_secs(1);
/// When nothing more arrives for so long, nothing more will.
const QUIET_LIMIT: Duration = Duration::from_secs(5);
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
pub(crate) const MIB: f64 = 1024.0 * 1024.0;

/// The bench of the shim.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Spans of a request
    #[arg(long, default_value_t = 512)]
    spans: u64,
    /// Bytes of a span, about
    #[arg(long, default_value_t = 540)]
    span_bytes: usize,
    /// Connections of the senders
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// Requests at once on one connection
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
    /// Spans a second that come in while the sink is stopped
    #[arg(long, default_value_t = 100_000)]
    overload: u64,
    /// Spans that one target takes at most under overload, so that a queue on disk stays small
    #[arg(long, default_value_t = 2_000_000)]
    overload_spans: u64,
}

/// In by one protocol, out by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    GrpcToGrpc,
    GrpcToHttp,
    GzipToGzip,
}

impl Way {
    fn title(self) -> &'static str {
        match self {
            Way::GrpcToGrpc => "gRPC → gRPC",
            Way::GrpcToHttp => "gRPC → HTTP",
            Way::GzipToGzip => "gRPC gzip → gRPC gzip",
        }
    }

    fn is_http(self) -> bool {
        self == Way::GrpcToHttp
    }

    fn compression(self) -> &'static str {
        if self == Way::GzipToGzip {
            "gzip"
        } else {
            "none"
        }
    }
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Ours(&'static str),
    Collector,
    Rotel,
    /// Bytes from one socket to the other, on tokio: what a relay costs that does nothing.
    Copy,
}

/// Read and written at once by the byte copy: more is no faster.
const COPY_BYTES: usize = 128 * 1024;

/// Those that relay OTLP.
const RELAYS: [Target; 5] = [
    Target::Ours("disk"),
    Target::Ours("backend"),
    Target::Ours("memory"),
    Target::Collector,
    Target::Rotel,
];

impl Target {
    fn name(self) -> String {
        match self {
            Target::Ours(ack) => format!("lantern --ack {ack}"),
            Target::Collector => "collector".to_owned(),
            Target::Rotel => "rotel".to_owned(),
            Target::Copy => "byte copy".to_owned(),
        }
    }

    /// How it is started to listen on `listens` and to send to `sink`; None when it is not here.
    fn launch(
        self,
        setup: &Setup,
        way: Way,
        listens: SocketAddr,
        sink: SocketAddr,
        dir: &Path,
    ) -> Result<Option<Launch>> {
        let (program, args, env) = match self {
            Target::Ours(ack) => {
                let program = setup.programs.ours("lantern-shim")?;
                let mut args = ours(listens);
                args.extend(["--ack".to_owned(), ack.to_owned()]);
                if ack == "disk" {
                    args.extend([
                        "--queue-dir".to_owned(),
                        dir.join("queue").display().to_string(),
                    ]);
                }
                (
                    Some(program),
                    args,
                    backend(way.is_http(), way.compression(), sink),
                )
            }
            Target::Collector => {
                let config = dir.join("collector.yaml");
                std::fs::write(&config, collector(way, listens, sink))?;
                let args = vec!["--config".to_owned(), config.display().to_string()];
                (setup.programs.peer("collector"), args, Vec::new())
            }
            Target::Rotel => (
                setup.programs.peer("rotel"),
                rotel(way, listens, sink),
                Vec::new(),
            ),
            Target::Copy => (
                Some(std::env::current_exe()?),
                copy(listens, sink),
                Vec::new(),
            ),
        };
        Ok(program.map(|program| Launch {
            program,
            args,
            env,
            listens,
        }))
    }
}

/// The flags of our shim, less those of its queue.
pub(crate) fn ours(listens: SocketAddr) -> Vec<String> {
    let listens = listens.to_string();
    [
        "--grpc",
        &listens,
        "--http",
        "127.0.0.1:0",
        "--viewer",
        "none",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Where our shim sends to.
pub(crate) fn backend(
    is_http: bool,
    compression: &str,
    sink: SocketAddr,
) -> Vec<(&'static str, String)> {
    let (protocol, path) = if is_http {
        ("http/protobuf", "/v1/traces")
    } else {
        ("grpc", "")
    };
    vec![
        (
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            format!("http://{sink}{path}"),
        ),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", protocol.to_owned()),
        (
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            compression.to_owned(),
        ),
    ]
}

/// Defaults, but for what the bench is about: no processor, its queue in memory.
fn collector(way: Way, listens: SocketAddr, sink: SocketAddr) -> String {
    let (exporter, endpoint) = if way.is_http() {
        ("otlphttp", format!("http://{sink}"))
    } else {
        ("otlp", sink.to_string())
    };
    format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: '{listens}'}}}}}}}}\n\
         exporters: {{{exporter}: {{endpoint: '{endpoint}', compression: {}, tls: {{insecure: true}}}}}}\n\
         service:\n  \
           telemetry: {{metrics: {{level: none}}}}\n  \
           pipelines: {{traces: {{receivers: [otlp], exporters: [{exporter}]}}}}\n",
        way.compression()
    )
}

fn rotel(way: Way, listens: SocketAddr, sink: SocketAddr) -> Vec<String> {
    let protocol = if way.is_http() { "http" } else { "grpc" };
    let flags = [
        ("--otlp-grpc-endpoint", listens.to_string()),
        ("--otlp-http-endpoint", "127.0.0.1:0".to_owned()),
        ("--exporter", "otlp".to_owned()),
        ("--otlp-exporter-endpoint", format!("http://{sink}")),
        ("--otlp-exporter-protocol", protocol.to_owned()),
        ("--otlp-exporter-compression", way.compression().to_owned()),
    ];
    let flags = flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value]);
    std::iter::once("start".to_owned()).chain(flags).collect()
}

fn copy(listens: SocketAddr, to: SocketAddr) -> Vec<String> {
    let flags = [
        ("--listen", listens.to_string()),
        ("--to", to.to_string()),
        ("--buffer-bytes", COPY_BYTES.to_string()),
    ];
    let flags = flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value]);
    std::iter::once("copy".to_owned()).chain(flags).collect()
}

/// Runs all of it.
pub(crate) async fn run(setup: &Setup, args: &Args) -> Result<Report> {
    let mut tables = Vec::new();
    for way in [Way::GrpcToGrpc, Way::GrpcToHttp, Way::GzipToGzip] {
        let load = load(args, way)?;
        let mut table = Table::new(format!("{}, {} spans a request", way.title(), args.spans));
        let mut targets = RELAYS.to_vec();
        // It cannot change the protocol.
        targets.extend((!way.is_http()).then_some(Target::Copy));
        setup
            .in_turns(&mut table, &targets, Target::name, async |target, dir| {
                relayed(setup, target, way, &load, dir).await
            })
            .await?;
        tables.push(table);
    }
    let load = load(args, Way::GrpcToGrpc)?;
    let title = format!(
        "Overload: {} spans a second, the backend is gone",
        args.overload
    );
    let mut table = Table::new(title);
    setup
        .in_turns(&mut table, &RELAYS, Target::name, async |target, dir| {
            overloaded(setup, target, args, &load, dir).await
        })
        .await?;
    tables.push(table);
    Ok(Report::new("shim", tables))
}

fn load(args: &Args, way: Way) -> Result<Load> {
    let request = spans::request(1, args.spans, args.span_bytes);
    let is_gzip = way == Way::GzipToGzip;
    let message = if is_gzip { gzip(&request)? } else { request };
    Ok(Load {
        frame: spans::framed(&message, is_gzip),
        is_gzip,
        spans_per_request: args.spans,
        connections: args.connections,
        in_flight: args.in_flight,
    })
}

pub(crate) fn gzip(plain: &[u8]) -> Result<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(plain)?;
    Ok(encoder.finish()?.into())
}

/// As fast as it goes, with a backend that takes all.
async fn relayed(
    setup: &Setup,
    target: Target,
    way: Way,
    load: &Load,
    dir: &Path,
) -> Result<Option<Sample>> {
    let (listens, to) = (free_address().await?, free_address().await?);
    let Some(launch) = target.launch(setup, way, listens, to, dir)? else {
        return Ok(None);
    };
    let arrived: Arc<Arrived> = Arc::default();
    let _sink = Sink::start(to, &arrived).await?;
    let process = Process::start(&launch, &setup.core, dir).await?;
    tokio::time::sleep(WARM_UP).await;
    let idle = process.usage()?;
    let warm = load.run(listens, WARM_UP, None).await?;
    arrived.wait_for(warm.accepted(), QUIET_LIMIT).await;

    let (before, delivered_before) = (process.usage()?, arrived.spans());
    let sent = load.run(listens, setup.duration, None).await?;
    let accepted = sent.accepted() as f64;
    let loaded = process.usage()?;
    arrived
        .wait_for(delivered_before + sent.accepted(), QUIET_LIMIT)
        .await;
    let after = process.usage()?;
    let delivered = (arrived.spans() - delivered_before) as f64;
    let all = accepted + sent.refused() as f64;
    Ok(Some(vec![
        (CPU, (after.cpu - before.cpu).as_nanos() as f64 / accepted),
        (RATE, accepted / setup.duration.as_secs_f64()),
        (REFUSED, 100.0 * sent.refused() as f64 / all),
        (MISSING, 100.0 * (1.0 - delivered / accepted).max(0.0)),
        (IDLE, idle.rss_bytes as f64 / MIB),
        (LOADED, loaded.rss_bytes as f64 / MIB),
    ]))
}

/// At a pace, with nobody to send to.
async fn overloaded(
    setup: &Setup,
    target: Target,
    args: &Args,
    load: &Load,
    dir: &Path,
) -> Result<Option<Sample>> {
    let (listens, nobody) = (free_address().await?, free_address().await?);
    let Some(launch) = target.launch(setup, Way::GrpcToGrpc, listens, nobody, dir)? else {
        return Ok(None);
    };
    let process = Process::start(&launch, &setup.core, dir).await?;
    let longest = Duration::from_secs_f64(args.overload_spans as f64 / args.overload as f64);
    let duration = setup.duration.min(longest);
    let mut sending = std::pin::pin!(load.run(listens, duration, Some(args.overload)));
    let mut looks = tokio::time::interval(SAMPLE_INTERVAL);
    let mut most = 0;
    let sent = loop {
        tokio::select! {
            sent = &mut sending => break sent?,
            _ = looks.tick() => most = most.max(process.usage()?.rss_bytes),
        }
    };
    let all = (sent.accepted() + sent.refused()) as f64;
    Ok(Some(vec![
        (OVERLOADED, most as f64 / MIB),
        (RATE, all / duration.as_secs_f64()),
        (REFUSED, 100.0 * sent.refused() as f64 / all),
    ]))
}
