//! Requests sent to a backend by the shim's own exporter: the bytes as they are, what the backend does
//! not take yet is tried again, what it never takes is counted.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use lantern_telemetry::{Protocol, Settings};
use tokio::task::JoinSet;

use crate::config::Backend;
use crate::counts::{BackendCounters, Counter, Counters, PerSignal};
use crate::exporter::{Exporter, Outlet};
use crate::queue::{MemoryQueue, Payload, Queue};
use crate::signal::Signal;

/// Requests that are in memory at once; one alone may be larger.
const CHUNK_BYTES: usize = 16 * 1024 * 1024;

/// Where a replay goes. Headers, compression, timeout and TLS files are those of the
/// OTEL_EXPORTER_OTLP_* environment.
#[derive(Debug, Clone, Args)]
pub(crate) struct To {
    /// The backend; for OTLP/HTTP with its path, such as http://host:4318/v1/traces
    #[arg(long = "to", value_name = "URL")]
    url: String,

    /// The protocol, unless OTEL_EXPORTER_OTLP_PROTOCOL says it
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<By>,

    /// How long the backend may refuse before the replay ends
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    give_up_seconds: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    Grpc,
    #[value(name = "http/protobuf")]
    HttpProtobuf,
    #[value(name = "http/json")]
    HttpJson,
}

/// A replay under way.
pub(super) struct Replay {
    outlet: Arc<Outlet>,
    give_up: Duration,
    counters: Arc<Counters>,
    waiting: Vec<Payload>,
    waiting_bytes: usize,
}

impl Replay {
    pub(super) fn new(to: &To, settings: Settings) -> anyhow::Result<Replay> {
        let settings = settings.with_traces_endpoint("--to", &to.url)?;
        let settings = match to.protocol {
            None => settings,
            Some(By::Grpc) => settings.with_protocol(Protocol::Grpc),
            Some(By::HttpProtobuf) => settings.with_protocol(Protocol::HttpProtobuf),
            Some(By::HttpJson) => settings.with_protocol(Protocol::HttpJson),
        };
        Ok(Replay {
            outlet: Arc::new(Outlet::new(&Backend::only(settings.exporter().clone()))),
            give_up: Duration::from_secs(to.give_up_seconds),
            counters: Arc::new(Counters::new(1)),
            waiting: Vec::new(),
            waiting_bytes: 0,
        })
    }

    /// Sends `payload`, now or together with those after it; true when nothing waits.
    pub(super) async fn send(&mut self, payload: Payload) -> anyhow::Result<bool> {
        let is_full = self.waiting_bytes + payload.bytes.len() > CHUNK_BYTES;
        if is_full {
            self.flush().await?;
        }
        self.waiting_bytes += payload.bytes.len();
        self.waiting.push(payload);
        Ok(is_full)
    }

    /// Sends what waits, and returns when the backend has answered for all of it.
    async fn flush(&mut self) -> anyhow::Result<()> {
        let first_seq = self.waiting.first().map(|payload| payload.seq);
        let queue = Arc::new(Queue::Memory(MemoryQueue::new(self.waiting_bytes, 1)));
        queue.offer(std::mem::take(&mut self.waiting)).await?;
        self.waiting_bytes = 0;
        queue.close();
        let counters = Arc::clone(&self.counters);
        let mut senders = JoinSet::new();
        let outlets = vec![Arc::clone(&self.outlet)];
        Exporter::new(outlets, 0, queue, counters).start(&mut senders);
        let answered = async { while senders.join_next().await.is_some() {} };
        if tokio::time::timeout(self.give_up, answered).await.is_err() {
            let sent = self.told(|backend| &backend.delivered);
            let limit = self.give_up;
            let next = first_seq.unwrap_or_default();
            bail!(
                "{} took {sent} and then did not answer for {limit:?}; record {next} is the \
                 first that it may not have",
                self.outlet.endpoint
            );
        }
        Ok(())
    }

    /// Sends the rest and tells what became of all.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        self.flush().await?;
        let delivered = self.told(|backend| &backend.delivered);
        let endpoint = &self.outlet.endpoint;
        let backend = &self.counters.backends[0];
        let rejected = |signal| backend.rejected.of(signal).get() + backend.unsent.of(signal).get();
        if Signal::ALL.into_iter().any(|signal| rejected(signal) > 0) {
            let rejected = told(rejected);
            bail!("{endpoint} accepted {delivered} and rejected {rejected} for good");
        }
        println!("{endpoint} accepted {delivered}");
        Ok(())
    }

    fn told(&self, of: impl Fn(&BackendCounters) -> &PerSignal<Counter>) -> String {
        let counters = of(&self.counters.backends[0]);
        told(|signal| counters.of(signal).get())
    }
}

/// So many spans, and so many of whatever else there are.
pub(super) fn told(of: impl Fn(Signal) -> u64) -> String {
    let of = &of;
    let there = Signal::ALL
        .into_iter()
        .filter(|signal| *signal == Signal::Traces || of(*signal) > 0);
    let told: Vec<_> = there
        .map(|signal| format!("{} {}", of(signal), signal.items().replace('_', " ")))
        .collect();
    told.join(", ")
}
