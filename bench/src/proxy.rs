//! The proxy beside a byte copy, a bare pingora, Envoy and Caddy: CPU per request and per event, and what each adds to
//! how long these take.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::Setup;
use crate::client;
use crate::gateways::{GATEWAYS, Gateway, Route};
use crate::process::{Process, Usage, free_address};
use crate::report::{Metric, Report, Sample, Table};
use crate::shim::MIB;
use crate::sink::{Arrived, Sink};
use crate::upstream::{EVENTS, PLAIN, Pace, Upstream};

const CPU_REQUEST: Metric = Metric {
    name: "CPU per request",
    unit: "µs",
    has_ratio: true,
};
const CPU_EVENT: Metric = Metric {
    name: "CPU per event",
    unit: "µs",
    has_ratio: true,
};
const P50_ALONE: Metric = Metric {
    name: "p50, one client",
    unit: "µs",
    has_ratio: true,
};
const P99_ALONE: Metric = Metric {
    name: "p99, one client",
    unit: "µs",
    has_ratio: false,
};
const RATE: Metric = Metric {
    name: "requests per second",
    unit: "",
    has_ratio: false,
};
const SPANS: Metric = Metric {
    name: "spans per request",
    unit: "",
    has_ratio: false,
};
const DELAY_P50: Metric = Metric {
    name: "an event's delay, p50",
    unit: "µs",
    has_ratio: false,
};
const DELAY_P99: Metric = Metric {
    name: "an event's delay, p99",
    unit: "µs",
    has_ratio: false,
};
const IDLE: Metric = Metric {
    name: "RSS idle",
    unit: "MiB",
    has_ratio: false,
};
const LOADED: Metric = Metric {
    name: "RSS after load",
    unit: "MiB",
    has_ratio: false,
};

/// Requests before the clock starts.
const WARM_UP: Duration = Duration::from_secs(1);
/// Within it all spans of a measurement are exported: gateways do so every second.
const EXPORT_TIME: Duration = Duration::from_millis(2_500);

/// The bench of the proxy.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Clients at once, where CPU is measured
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Streams at once
    #[arg(long, default_value_t = 32)]
    streams: usize,
    /// Events of a stream
    #[arg(long, default_value_t = 64)]
    events: u32,
    /// Between two events of a stream
    #[arg(long, default_value_t = 2)]
    interval_millis: u64,
}

/// Runs all of it.
pub(crate) async fn run(setup: &Setup, args: &Args) -> Result<Report> {
    let mut plain = Table::new("A reply of 200 bytes");
    setup
        .in_turns(
            &mut plain,
            &GATEWAYS,
            Gateway::name,
            async |gateway, dir| {
                let Some(stand) = Stand::set_up(setup, args, gateway, dir).await? else {
                    return Ok(None);
                };
                stand.plain(setup, args).await.map(Some)
            },
        )
        .await?;
    let title = format!(
        "A stream of {} events, {} ms apart",
        args.events, args.interval_millis
    );
    let mut events = Table::new(title);
    setup
        .in_turns(
            &mut events,
            &GATEWAYS,
            Gateway::name,
            async |gateway, dir| {
                let Some(stand) = Stand::set_up(setup, args, gateway, dir).await? else {
                    return Ok(None);
                };
                stand.events(setup, args).await.map(Some)
            },
        )
        .await?;
    Ok(Report::new("proxy", vec![plain, events]))
}

/// A gateway with all that is around it.
struct Stand {
    route: Route,
    upstream: Upstream,
    arrived: Arc<Arrived>,
    _sink: Sink,
    process: Option<Process>,
    idle: Option<Usage>,
}

impl Stand {
    /// None when the gateway is not here.
    async fn set_up(
        setup: &Setup,
        args: &Args,
        gateway: Gateway,
        dir: &Path,
    ) -> Result<Option<Stand>> {
        let pace = Pace {
            events: args.events,
            interval: Duration::from_millis(args.interval_millis),
        };
        let upstream = Upstream::start(pace).await?;
        let mut route = Route {
            listens: free_address().await?,
            upstream: upstream.address,
            sink: free_address().await?,
        };
        let arrived: Arc<Arrived> = Arc::default();
        let sink = Sink::start(route.sink, &arrived).await?;
        let process = match gateway.launch(setup, route, dir)? {
            Some(launch) => Some(Process::start(&launch, &setup.core, dir).await?),
            None if gateway == Gateway::Direct => {
                route.listens = route.upstream;
                None
            }
            None => return Ok(None),
        };
        tokio::time::sleep(WARM_UP).await;
        let idle = process.as_ref().map(Process::usage).transpose()?;
        Ok(Some(Stand {
            route,
            upstream,
            arrived,
            _sink: sink,
            process,
            idle,
        }))
    }

    async fn plain(&self, setup: &Setup, args: &Args) -> Result<Sample> {
        let load = self.measured(setup, PLAIN, args.clients).await?;
        let mut alone = self.ask(PLAIN, 1, setup.duration).await?;
        let requests = load.seen.requests as f64;
        let mut sample = Vec::new();
        sample.extend(load.cpu.map(|cpu| (CPU_REQUEST, micros(cpu) / requests)));
        sample.push((P50_ALONE, micros(alone.percentile(0.5)?)));
        sample.push((P99_ALONE, micros(alone.percentile(0.99)?)));
        sample.push((RATE, requests / setup.duration.as_secs_f64()));
        sample.extend(load.besides);
        Ok(sample)
    }

    async fn events(&self, setup: &Setup, args: &Args) -> Result<Sample> {
        let mut load = self.measured(setup, EVENTS, args.streams).await?;
        let events = load.seen.events as f64;
        let mut sample = Vec::new();
        sample.extend(load.cpu.map(|cpu| (CPU_EVENT, micros(cpu) / events)));
        sample.push((DELAY_P50, micros(load.seen.percentile(0.5)?)));
        sample.push((DELAY_P99, micros(load.seen.percentile(0.99)?)));
        sample.extend(load.besides);
        Ok(sample)
    }

    /// Requests of `path` for as long as a measurement takes, and the gateway's CPU time for them, its
    /// export of spans included.
    async fn measured(
        &self,
        setup: &Setup,
        path: &'static str,
        clients: usize,
    ) -> Result<Measured> {
        self.ask(path, clients, WARM_UP).await?;
        tokio::time::sleep(EXPORT_TIME).await;
        let (before, spans_before) = (self.usage()?, self.arrived.spans());
        let seen = self.ask(path, clients, setup.duration).await?;
        tokio::time::sleep(EXPORT_TIME).await;
        let after = self.usage()?;
        let mut besides = Vec::new();
        if let (Some(idle), Some(after)) = (self.idle, after) {
            let spans = self.arrived.spans() - spans_before;
            besides.push((SPANS, spans as f64 / seen.requests as f64));
            besides.push((IDLE, idle.rss_bytes as f64 / MIB));
            besides.push((LOADED, after.rss_bytes as f64 / MIB));
        }
        let cpu = before
            .zip(after)
            .map(|(before, after)| after.cpu - before.cpu);
        Ok(Measured { seen, cpu, besides })
    }

    fn usage(&self) -> Result<Option<Usage>> {
        self.process.as_ref().map(Process::usage).transpose()
    }

    async fn ask(
        &self,
        path: &'static str,
        clients: usize,
        duration: Duration,
    ) -> Result<client::Seen> {
        client::run(
            self.route.listens,
            path,
            clients,
            duration,
            self.upstream.clock,
        )
        .await
    }
}

/// What the clients saw, and what it cost.
struct Measured {
    seen: client::Seen,
    /// None where nothing is between the clients and the upstream.
    cpu: Option<Duration>,
    besides: Sample,
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
