//! What spans cost: the server as it ships with every request traced, beside one without tracing, in turns, over
//! HTTP: of a model so small that they weigh as much as they ever can, and of one that people run.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use axum::Router;
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use crate::model::{Model, TINY};

const TURNS: usize = 9;
/// In a turn.
const TINY_REQUESTS: usize = 100;
const REQUESTS: usize = 32;
const IN_FLIGHT: usize = 16;
const OUTPUT_TOKENS: usize = 64;
const START_LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn measure(model: &Model) -> anyhow::Result<()> {
    measure_one("the bundled model", Path::new(TINY), TINY_REQUESTS).await?;
    measure_one("the model", model.folder(), REQUESTS).await
}

async fn measure_one(name: &str, model: &Path, requests: usize) -> anyhow::Result<()> {
    let exported = Arc::new(AtomicUsize::new(0));
    let sink = sink(Arc::clone(&exported)).await?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let off = Server::start(&client, model, None).await?;
    let on = Server::start(&client, model, Some(sink)).await?;
    let mut wall = Vec::new();
    // The least of all turns: what else runs on the machine only adds.
    let (mut cpu_without, mut cpu_with) = (f64::INFINITY, f64::INFINITY);
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // The first turn warms up.
    for turn in 0..=TURNS {
        let first = off.turn(&client, requests).await?;
        let second = on.turn(&client, requests).await?;
        if turn > 0 {
            wall.push(first.wall_seconds / second.wall_seconds);
            cpu_without = cpu_without.min(first.cpu_seconds);
            cpu_with = cpu_with.min(second.cpu_seconds);
            let tokens = (requests * OUTPUT_TOKENS) as f64;
            without.push(tokens / first.wall_seconds);
            with.push(tokens / second.wall_seconds);
        }
    }
    ensure!(exported.load(Ordering::Relaxed) > 0, "no span was exported");
    println!(
        "| {name}, {IN_FLIGHT} requests at a time, spans off | {:.0} tokens/s |",
        median(without)
    );
    println!(
        "| the same, every request traced | {:.0} tokens/s |",
        median(with)
    );
    println!(
        "| tokens/s with spans, of those without | {:.2} % |",
        100.0 * median(wall)
    );
    println!(
        "| tokens per second of the server's CPU time, the same | {:.2} % |",
        100.0 * cpu_without / cpu_with
    );
    Ok(())
}

/// Takes whatever is exported.
async fn sink(exported: Arc<AtomicUsize>) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let take = move |body: Bytes| async move {
        exported.fetch_add(body.len(), Ordering::Relaxed);
        StatusCode::OK
    };
    tokio::spawn(async { axum::serve(listener, Router::new().fallback(take)).await });
    Ok(address)
}

type Http = Client<HttpConnector, Full<Bytes>>;

/// What a turn took.
struct Turn {
    wall_seconds: f64,
    /// Of the server alone.
    cpu_seconds: f64,
}

/// A server in a process of its own, ended when this is dropped.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    async fn start(client: &Http, model: &Path, sink: Option<SocketAddr>) -> anyhow::Result<Self> {
        // Free a moment ago: the server takes it at once.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_lantern-inference"));
        command
            .arg("--model")
            .arg(model)
            .args(["--port", &address.port().to_string()])
            .env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
            .env_remove("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
            .env_remove("OTEL_TRACES_SAMPLER")
            .env("OTEL_LOG_LEVEL", "warn")
            .stdout(Stdio::null());
        if let Some(sink) = sink {
            command.arg(format!("--otlp-traces-endpoint=http://{sink}/v1/traces"));
        }
        let process = command.spawn()?;
        let server = Self { process, address };
        let begun = Instant::now();
        while !server.is_ready(client).await {
            ensure!(begun.elapsed() < START_LIMIT, "the server does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(server)
    }

    async fn is_ready(&self, client: &Http) -> bool {
        let request = Request::get(format!("http://{}/health", self.address));
        let request = request.body(Full::default()).expect("the URL is one");
        let answer = client.request(request).await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    async fn turn(&self, client: &Http, requests: usize) -> anyhow::Result<Turn> {
        let before = self.cpu_seconds()?;
        let begun = Instant::now();
        let requests = (0..requests).map(|index| self.request(client, index));
        let answers: Vec<_> = stream::iter(requests)
            .buffer_unordered(IN_FLIGHT)
            .collect()
            .await;
        answers.into_iter().collect::<anyhow::Result<()>>()?;
        Ok(Turn {
            wall_seconds: begun.elapsed().as_secs_f64(),
            cpu_seconds: self.cpu_seconds()? - before,
        })
    }

    async fn request(&self, client: &Http, index: usize) -> anyhow::Result<()> {
        let body = json!({
            "prompt": [5 + index % 1000, 6, 7], "max_tokens": OUTPUT_TOKENS, "ignore_eos": true, "temperature": 0,
        });
        let request = Request::post(format!("http://{}/v1/completions", self.address));
        let request = request.body(Full::from(body.to_string()))?;
        let answer = client.request(request).await?;
        let status = answer.status();
        let text = answer.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "{status}: {text:?}");
        Ok(())
    }

    /// Of the process so far, user and system.
    fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let path = Path::new("/proc").join(self.process.id().to_string());
        let mut nanoseconds = 0;
        for thread in std::fs::read_dir(path.join("task"))? {
            let times = std::fs::read_to_string(thread?.path().join("schedstat"))?;
            let running = times.split_whitespace().next();
            nanoseconds += running.context("no time in schedstat")?.parse::<u64>()?;
        }
        Ok(nanoseconds as f64 / 1e9)
    }
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}
