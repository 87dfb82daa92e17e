//! A model served over HTTP, each answer streamed: tokens per second and the time to the first token, at
//! the engine's own port and with the proxy in front, every request traced.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Setup;
use crate::client::{Client, Seen};
use crate::gateways::{Gateway, Route, exporter};
use crate::process::{Launch, Process, free_address};
use crate::report::{Metric, Report, Sample, Table};
use crate::sink::{Arrived, Sink};
use crate::upstream::PLAIN;

const RATE: Metric = Metric {
    name: "streamed tokens per second",
    unit: "",
    has_ratio: true,
};
const EVENTS: Metric = Metric {
    name: "events per token",
    unit: "",
    has_ratio: false,
};
const FIRST: Metric = Metric {
    name: "first token, p50",
    unit: "ms",
    has_ratio: false,
};
const FIRST_ALONE: Metric = Metric {
    name: "first token, p50, one client",
    unit: "ms",
    has_ratio: true,
};
const SPANS: Metric = Metric {
    name: "spans per request",
    unit: "",
    has_ratio: false,
};

const EVENT: &[u8] = b"data: {";
/// Without a new span for so long, all have come: they are exported every second.
const QUIET: Duration = Duration::from_secs(3);
/// Tokens that every model here has are above the special ones and below this.
const PROMPT_VOCABULARY: u64 = 8_000;
const SPECIAL_TOKENS: u64 = 5;

/// The bench of a model over HTTP. --seconds is not used: so many requests are sent.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The model's folder; `cargo bench -p lantern-inference --bench engine -- --keep DIR` writes one
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// What lantern-inference runs on
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Requests in a turn
    #[arg(long, default_value_t = 2048)]
    requests: u64,
    /// How many of these at a time, each on a connection of its own
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 128)]
    prompt: u64,
    /// Tokens of an answer
    #[arg(long, default_value_t = 128)]
    output: u64,
    /// Requests of one client alone, for the time to the first token
    #[arg(long, default_value_t = 50)]
    alone: u64,
}

/// Runs it.
pub(crate) async fn run(setup: &Setup, args: &Args) -> Result<Report> {
    let mut table = Table::new(format!(
        "{} requests of {} tokens in and {} out, {} at a time",
        args.requests, args.prompt, args.output, args.in_flight
    ));
    let targets = [Gateway::Direct, Gateway::Ours { traced: true }];
    setup
        .in_turns(&mut table, &targets, name, async |gateway, dir| {
            measure(setup, args, gateway, dir).await.map(Some)
        })
        .await?;
    Ok(Report::new("serve", vec![table]))
}

fn name(gateway: Gateway) -> String {
    match gateway {
        Gateway::Direct => "engine",
        _ => "engine behind the proxy, traced",
    }
    .to_owned()
}

async fn measure(setup: &Setup, args: &Args, gateway: Gateway, dir: &Path) -> Result<Sample> {
    let mut route = Route {
        listens: free_address().await?,
        upstream: free_address().await?,
        sink: free_address().await?,
    };
    let arrived: Arc<Arrived> = Arc::default();
    let _sink = Sink::start(route.sink, &arrived).await?;
    let is_traced = gateway != Gateway::Direct;
    let engine = engine(setup, args, route, is_traced)?;
    let _engine = Process::start(&engine, &setup.core, dir).await?;
    let _proxy = match gateway.launch(setup, route, dir)? {
        Some(launch) => Some(Process::start(&launch, &setup.core, dir).await?),
        None => {
            route.listens = route.upstream;
            None
        }
    };
    let load = Load {
        to: route,
        args: args.clone(),
        // No two prompts of a run begin alike: else the cache of prefixes would answer.
        next: Arc::default(),
    };
    load.run(args.in_flight as u64, args.in_flight).await?;
    let mut alone = load.run(args.alone, 1).await?;
    arrived.wait_for(u64::MAX, QUIET).await;
    let spans_before = arrived.spans();
    let begun = Instant::now();
    let mut seen = load.run(args.requests, args.in_flight).await?;
    let seconds = begun.elapsed().as_secs_f64();
    arrived.wait_for(u64::MAX, QUIET).await;
    let tokens = (seen.requests * args.output) as f64;
    let spans = (arrived.spans() - spans_before) as f64;
    Ok(vec![
        (RATE, tokens / seconds),
        (EVENTS, seen.events as f64 / tokens),
        (FIRST, millis(seen.percentile(0.5)?)),
        (FIRST_ALONE, millis(alone.percentile(0.5)?)),
        (SPANS, spans / seen.requests as f64),
    ])
}

fn engine(setup: &Setup, args: &Args, route: Route, is_traced: bool) -> Result<Launch> {
    let model = std::path::absolute(&args.model)?;
    let port = route.upstream.port().to_string();
    let mut flags = vec!["--model", model.to_str().context("--model is not UTF-8")?];
    flags.extend(["--port", &port, "--device", &args.device]);
    let sink = format!("http://{}", route.sink);
    if is_traced {
        flags.extend(["--otlp-traces-endpoint", &sink]);
    }
    Ok(Launch {
        program: setup.programs.ours("lantern-inference")?,
        args: flags.into_iter().map(str::to_owned).collect(),
        env: if is_traced {
            exporter(route.sink)
        } else {
            Vec::new()
        },
        listens: route.upstream,
    })
}

/// Requests to be sent.
#[derive(Debug, Clone)]
struct Load {
    to: Route,
    args: Args,
    /// The next prompt's number.
    next: Arc<Mutex<u64>>,
}

impl Load {
    /// So many, `in_flight` at a time. The delays are those of the first tokens.
    async fn run(&self, requests: u64, in_flight: usize) -> Result<Seen> {
        let until = *self.next.lock().expect("no holder panics") + requests;
        let mut clients = JoinSet::new();
        for _ in 0..in_flight {
            let load = self.clone();
            clients.spawn(async move { load.client(until).await });
        }
        let mut seen = Seen::default();
        while let Some(ended) = clients.join_next().await {
            seen.add(ended??);
        }
        Ok(seen)
    }

    async fn client(&self, until: u64) -> Result<Seen> {
        let mut client = Client::connect(self.to.listens, 1).await?;
        let mut seen = Seen::default();
        while let Some(number) = self.take(until) {
            let begun = Instant::now();
            let mut body = client.post(PLAIN, self.document(number)).await?;
            let mut answer = Vec::new();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    if answer.is_empty() {
                        seen.delays.push(begun.elapsed());
                    }
                    answer.extend_from_slice(&data);
                }
            }
            seen.events += events(&answer, self.args.output)?;
            seen.requests += 1;
        }
        Ok(seen)
    }

    /// The next prompt's number, as long as it is below `until`.
    fn take(&self, until: u64) -> Option<u64> {
        let mut next = self.next.lock().expect("no holder panics");
        let number = (*next < until).then_some(*next)?;
        *next += 1;
        Some(number)
    }

    fn document(&self, number: u64) -> Bytes {
        let token = |at: u64| (number * 31 + at * 7 + number * at) % PROMPT_VOCABULARY;
        let prompt: Vec<u64> = (0..self.args.prompt)
            .map(|at| SPECIAL_TOKENS + token(at))
            .collect();
        let document = json!({
            "prompt": prompt, "max_tokens": self.args.output, "ignore_eos": true, "temperature": 0,
            "stream": true, "stream_options": {"include_usage": true},
        });
        Bytes::from(document.to_string())
    }
}

/// How many there are in an answer besides the last, which says that all `tokens` came.
fn events(answer: &[u8], tokens: u64) -> Result<u64> {
    let starts = answer.windows(EVENT.len()).enumerate();
    let starts: Vec<usize> = starts
        .filter_map(|(at, window)| (window == EVENT).then_some(at))
        .collect();
    let last = starts.last().context("an answer without events")?;
    let last = &answer[last + EVENT.len() - 1..];
    let usage = serde_json::Deserializer::from_slice(last)
        .into_iter::<Value>()
        .next()
        .context("no usage")??;
    let came = usage["usage"]["completion_tokens"].as_u64();
    ensure!(
        came == Some(tokens),
        "{came:?} tokens instead of {tokens} came"
    );
    Ok(starts.len() as u64 - 1)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n\
                          data: {\"choices\":[],\"usage\":{\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";

    #[test]
    fn events_are_counted_where_all_tokens_came() {
        assert_eq!(events(ANSWER.as_bytes(), 2).expect("a whole answer"), 2);
    }

    #[test]
    fn an_answer_cut_short_is_an_error() {
        let error = events(ANSWER.as_bytes(), 3).expect_err("one is missing");
        assert!(error.to_string().contains("instead of 3"), "{error}");
        assert!(events(b"data: [DONE]", 1).is_err());
    }
}
