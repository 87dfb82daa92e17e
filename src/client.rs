//! One traced completion request: the span, the attribute and the body of vLLM's dummy client.
//!
//! `lantern client` sends it to a server named on the command line; `lantern up` sends it to its
//! own proxy. Either way the client's span is the root of the trace.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use lantern_telemetry::{Settings, Telemetry, process};
use opentelemetry::trace::{SpanKind, Status, TraceContextExt as _, TraceId, Tracer as _};
use opentelemetry::{Context, KeyValue};
use serde::Serialize;
use serde_json::Value;

/// The service that a client's spans belong to unless OTEL_SERVICE_NAME says otherwise.
pub(crate) const SERVICE_NAME: &str = "client-service";
/// The longest reply that the client reads.
const MAX_REPLY_BYTES: usize = 16 << 20;
/// How long the last spans may take to leave.
const FLUSH_LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `lantern client`: the defaults are vLLM's dummy client.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Environment: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT (http://localhost:4317), OTEL_SERVICE_NAME
(client-service) and the other standard OTEL_* variables.")]
pub(crate) struct Args {
    /// Where completions are served
    #[arg(
        long,
        default_value = "http://localhost:8000/v1/completions",
        value_name = "URL"
    )]
    url: Uri,
    #[command(flatten)]
    completion: CompletionArgs,
    /// Give up after this many seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    timeout_seconds: u64,
}

/// The completion that is asked for.
#[derive(Debug, Clone, clap::Args)]
struct CompletionArgs {
    /// Model to ask for
    #[arg(long, default_value = "facebook/opt-125m")]
    model: String,
    /// Text to continue
    #[arg(long, default_value = "San Francisco is a")]
    prompt: String,
    /// Most tokens to generate
    #[arg(long, default_value_t = 10)]
    max_tokens: u32,
    /// Number of completions
    #[arg(long, default_value_t = 3)]
    n: u32,
    /// Beam search of width n, as the dummy client asks for
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    use_beam_search: bool,
    /// Sampling temperature; 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
}

/// The request body, field for field what the dummy client sends.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Completion {
    pub(crate) model: String,
    pub(crate) prompt: String,
    pub(crate) max_tokens: u32,
    pub(crate) n: u32,
    /// `"true"`: a string, which servers coerce.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) use_beam_search: Option<&'static str>,
    pub(crate) temperature: f32,
}

impl From<CompletionArgs> for Completion {
    fn from(args: CompletionArgs) -> Self {
        Self {
            model: args.model,
            prompt: args.prompt,
            max_tokens: args.max_tokens,
            n: args.n,
            use_beam_search: args.use_beam_search.then_some("true"),
            temperature: args.temperature,
        }
    }
}

/// What came back, and the trace that it belongs to.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) trace_id: TraceId,
    /// Whether the client's span is recorded, and with it the trace.
    pub(crate) sampled: bool,
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

impl Reply {
    /// The texts of the choices, best first.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        let choices = self.body["choices"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        choices.iter().filter_map(|choice| choice["text"].as_str())
    }
}

/// `lantern client`: sends the request, prints the reply and the trace id.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let settings = Settings::from_env()?;
    process::init_logging(settings.log_filter());
    let telemetry = Telemetry::start(&settings, SERVICE_NAME)?;
    let limit = Duration::from_secs(args.timeout_seconds);
    let sent = tokio::time::timeout(
        limit,
        complete(&telemetry, args.url, &args.completion.into()),
    )
    .await;
    // The span of a failed request matters most: it leaves before the error is reported.
    let flushed = telemetry.shutdown(FLUSH_LIMIT).await;
    let reply = sent.with_context(|| format!("no reply within {limit:?}"))??;
    println!("{:#}", reply.body);
    println!("trace {}", reply.trace_id);
    if !reply.status.is_success() {
        bail!("the server answered {}", reply.status);
    }
    Ok(flushed?)
}

/// POSTs `completion` inside a `client-span`, with the span's context in the request's headers.
pub(crate) async fn complete(
    telemetry: &Telemetry,
    url: Uri,
    completion: &Completion,
) -> anyhow::Result<Reply> {
    let tracer = telemetry.tracer("lantern-client");
    let span = tracer
        .span_builder("client-span")
        .with_kind(SpanKind::Client)
        .with_attributes([KeyValue::new("prompt", completion.prompt.clone())])
        .start(&tracer);
    let context = Context::new().with_span(span);
    let sent = post(telemetry, &context, url, completion).await;
    let span = context.span();
    match &sent {
        Ok(reply) if reply.status.is_success() => {}
        Ok(reply) => span.set_status(Status::error(reply.status.to_string())),
        Err(error) => span.set_status(Status::error(format!("{error:#}"))),
    }
    span.end();
    sent
}

async fn post(
    telemetry: &Telemetry,
    context: &Context,
    url: Uri,
    completion: &Completion,
) -> anyhow::Result<Reply> {
    let body = serde_json::to_vec(completion).context("cannot write the request as JSON")?;
    let mut request = Request::post(&url)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(body)))?;
    telemetry
        .propagator()
        .inject(context, request.headers_mut());
    let client = Client::builder(TokioExecutor::new()).build_http();
    let response = client
        .request(request)
        .await
        .with_context(|| format!("cannot reach {url}"))?;
    let status = response.status();
    let bytes = Limited::new(response.into_body(), MAX_REPLY_BYTES)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("{url}: the reply broke off: {error}"))?
        .to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    let span = context.span();
    Ok(Reply {
        trace_id: span.span_context().trace_id(),
        sampled: span.span_context().is_sampled(),
        status,
        body,
    })
}
