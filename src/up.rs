//! `lantern up`: shim, inference server and proxy in one process, and one traced request through
//! them whose trace ends as a waterfall in the terminal.
//!
//! Started backend first and stopped in the other direction, so that every span finds the next
//! stage alive: proxy, then inference server, then their exporters, then the shim.

mod stack;

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use lantern_shim::{ShimHandle, Trace};
use lantern_telemetry::{Settings, process};

use crate::client::{self, Completion};
use crate::waterfall;
use stack::{Stack, StackConfig};

/// How long one request may take to become a whole trace in the store or at the backend.
const TRACE_LIMIT: Duration = Duration::from_secs(30);
/// How often the store and the backend's answers are looked at meanwhile.
const POLL: Duration = Duration::from_millis(5);
/// What requests call the model that the repository ships.
const BUNDLED_MODEL_NAME: &str = "lantern-tiny";
/// The spans of one completion through the whole path.
const SPANS: [&str; 7] = [
    "client-span",
    "POST /v1/completions",
    "POST",
    "llm_request",
    "queue",
    "prefill",
    "decode",
];

/// Arguments of `lantern up`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Environment:
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT   send the spans through the shim to this backend, and keep none
  OTEL_EXPORTER_OTLP_TRACES_PROTOCOL   grpc (default), http/protobuf or http/json, on both sides of the shim
  and the other standard OTEL_* variables")]
pub(crate) struct Args {
    /// Exit after the first request: 0 only if its whole trace arrived
    #[arg(long)]
    once: bool,
    /// Model directory or Hugging Face id [default: the bundled models/tiny]
    #[arg(long)]
    model: Option<String>,
    /// Text that the first request continues
    #[arg(long, default_value = "San Francisco is a")]
    prompt: String,
    /// Address of the proxy: clients send their requests here
    #[arg(long, default_value = "127.0.0.1:8000", value_name = "ADDR")]
    listen: SocketAddr,
    /// Address of the inference server
    #[arg(long, default_value = "127.0.0.1:8001", value_name = "ADDR")]
    inference: SocketAddr,
    /// Address of the shim's OTLP/gRPC receiver
    #[arg(long, default_value = "127.0.0.1:4317", value_name = "ADDR")]
    grpc: SocketAddr,
    /// Address of the shim's OTLP/HTTP receiver
    #[arg(long, default_value = "127.0.0.1:4318", value_name = "ADDR")]
    http: SocketAddr,
    /// Address of the viewer and of Jaeger's query API
    #[arg(long, default_value = "127.0.0.1:16686", value_name = "ADDR")]
    viewer: SocketAddr,
}

/// Runs the stack until a signal, or with `--once` until the first trace is whole.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    lantern_inference::cpu_threads::bound();
    let settings = Settings::from_env()?;
    process::init_logging(settings.log_filter());
    let shutdown = process::shutdown_on_signals();
    let (model, model_name) = match args.model {
        Some(model) => (model.clone(), model),
        None => (bundled_model()?, BUNDLED_MODEL_NAME.to_owned()),
    };
    let config = StackConfig {
        model,
        model_name,
        listen: args.listen,
        inference: args.inference,
        grpc: args.grpc,
        http: args.http,
        viewer: args.viewer,
    };
    let stack = tokio::select! {
        stack = Stack::start(config, &settings) => stack?,
        () = shutdown.cancelled() => return Ok(()),
    };
    println!("{stack}");
    let shown = tokio::select! {
        shown = show_one_request(&stack, &settings, args.prompt) => shown,
        () = shutdown.cancelled() => Err(anyhow!("told to stop before the trace was whole")),
    };
    if !args.once && !shutdown.is_cancelled() {
        // Whoever serves wants to go on serving: a backend may come up later.
        if let Err(error) = &shown {
            tracing::warn!("{error:#}");
        }
        println!("\nserving on http://{}; Ctrl-C stops", stack.proxy_addr());
        stack.serve(&shutdown).await;
    }
    let stopped = stack.shut_down().await;
    if args.once {
        shown.and(stopped)
    } else {
        stopped
    }
}

/// The model that the repository ships: beside the working directory's files or the source's.
fn bundled_model() -> anyhow::Result<String> {
    let candidates = [
        PathBuf::from("models/tiny"),
        PathBuf::from("/usr/share/lantern/models/tiny"),
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/models/tiny")),
    ];
    let found = candidates
        .iter()
        .find(|path| path.join("config.json").is_file());
    let Some(found) = found else {
        bail!("no bundled model in {candidates:?}: name one with --model");
    };
    Ok(found.display().to_string())
}

/// Sends one completion through the proxy and shows its trace.
async fn show_one_request(
    stack: &Stack,
    settings: &Settings,
    prompt: String,
) -> anyhow::Result<()> {
    let completion = Completion {
        model: stack.model_name().to_owned(),
        prompt,
        max_tokens: 32,
        n: 1,
        use_beam_search: None,
        temperature: 0.0,
    };
    let url = format!("http://{}/v1/completions", stack.proxy_addr()).parse()?;
    let reply = client::complete(stack.client(), url, &completion).await?;
    if !reply.status.is_success() {
        bail!("the proxy answered {}: {}", reply.status, reply.body);
    }
    for text in reply.texts() {
        println!("> {}{}\n", completion.prompt, text.trim_end());
    }
    if !reply.sampled {
        bail!("the request was not sampled, so there is no trace of it: see OTEL_TRACES_SAMPLER");
    }
    let trace_id = reply.trace_id.to_string();
    let arrived = show_trace(stack, settings.traces_endpoint(), &trace_id);
    tokio::time::timeout(TRACE_LIMIT, arrived)
        .await
        .with_context(|| format!("trace {trace_id} was not whole after {TRACE_LIMIT:?}"))?
}

/// Draws the trace, or tells that `backend` has it.
async fn show_trace(stack: &Stack, backend: Option<&str>, trace_id: &str) -> anyhow::Result<()> {
    stack.flush().await?;
    if let Some(endpoint) = backend {
        let spans = accepted_by_backend(stack.shim()).await?;
        println!("trace {trace_id}: {endpoint} accepted {spans} spans");
    } else {
        let trace = whole_trace(stack.shim(), trace_id).await;
        let drawing = waterfall::draw(&trace, terminal_columns(), coloured());
        println!(
            "{drawing}\nview http://{}/trace/{trace_id}",
            stack.viewer_addr()
        );
    }
    Ok(())
}

/// Waits until the store holds every span of the request.
async fn whole_trace(shim: &ShimHandle, trace_id: &str) -> Trace {
    loop {
        if let Some(trace) = shim.trace(trace_id)
            && SPANS
                .iter()
                .all(|name| trace.spans.iter().any(|span| span.name == *name))
        {
            return trace;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Waits until the backend has accepted every span that the shim has taken.
async fn accepted_by_backend(shim: &ShimHandle) -> anyhow::Result<u64> {
    loop {
        let counts = shim.counts();
        if counts.rejected_spans > 0 {
            bail!("the backend refused {} spans", counts.rejected_spans);
        }
        if counts.received_spans >= SPANS.len() as u64
            && counts.delivered_spans >= counts.received_spans
        {
            return Ok(counts.delivered_spans);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn terminal_columns() -> usize {
    const WITHOUT_A_TERMINAL: usize = 110;
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.map_or(WITHOUT_A_TERMINAL, |size| usize::from(size.ws_col))
}

fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}
