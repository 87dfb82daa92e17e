//! The command line, with vLLM's flag names, and what it means: [`Args`] as typed, [`Config`] ready
//! to use.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use lantern_telemetry::{ConfigError, Settings};

use crate::engine::EngineConfig;
use crate::loader::{DTypeChoice, DeviceChoice, HubOptions};
use crate::ops::KV_BLOCK_TOKENS;
use crate::step_spans::Detail;

/// The model of vLLM's own examples.
const DEFAULT_MODEL: &str = "facebook/opt-125m";
const DEFAULT_PORT: u16 = 8001;
const DEFAULT_MAX_BODY_BYTES: usize = 4 * 1024 * 1024;
const DEFAULT_DRAIN_GRACE: Duration = Duration::from_secs(10);
/// Whether spans carry prompts and completions: OpenTelemetry's name for it.
const CAPTURE_CONTENT: &str = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT";

/// What `--help` shows after the flags.
pub const AFTER_HELP: &str = "\
Examples:
  lantern serve facebook/opt-125m
  lantern serve ./models/tiny --served-model-name tiny --port 8001
  lantern serve facebook/opt-125m --otlp-traces-endpoint=grpc://localhost:4317

  curl localhost:8001/v1/completions -H 'Content-Type: application/json' \\
    -d '{\"model\": \"facebook/opt-125m\", \"prompt\": \"San Francisco is a\", \"max_tokens\": 10}'

Environment:
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL (grpc, http/protobuf, http/json),
  OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, ...   where and how spans go; off when no endpoint is named
  OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=true   prompts and completions on spans
  OTEL_METRICS_EXPORTER=otlp   gen_ai.server.* metrics too, to OTEL_EXPORTER_OTLP_METRICS_ENDPOINT
  OTEL_LOG_LEVEL   error, warn, info, debug
  HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE   the hub that models come from

Exit code 64: a flag or variable has a value that cannot be used.";

/// The flags of the inference server.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Model to serve: a directory in the Hugging Face layout, a GGUF file, or a hub id
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub model_tag: Option<String>,

    /// The same as a flag [default: facebook/opt-125m]
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,

    /// Names that requests may use for the model; the first is listed [default: the model]
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    pub served_model_name: Vec<String>,

    /// Address to listen on
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.to_string())]
    pub host: String,

    /// Port to listen on; 0 takes a free one
    #[arg(long, default_value_t = DEFAULT_PORT)]
    pub port: u16,

    /// Number type of weights and activations
    #[arg(long, value_enum, default_value_t)]
    pub dtype: DTypeChoice,

    /// Where the model runs
    #[arg(long, value_enum, default_value_t)]
    pub device: DeviceChoice,

    /// Longest sequence, prompt and output together [default: the model's context]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one)]
    pub max_model_len: Option<usize>,

    /// Most sequences in one engine step
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_num_seqs)]
    pub max_num_seqs: usize,

    /// Most tokens in one engine step, prompts included
    #[arg(long, value_name = "TOKENS", default_value_t = EngineConfig::default().max_num_batched_tokens)]
    pub max_num_batched_tokens: usize,

    /// Requests that may wait for the engine, beams of a search until its end; one more is refused
    /// with 503
    #[arg(long, value_name = "N", default_value_t = EngineConfig::default().max_waiting_requests)]
    pub max_waiting_requests: usize,

    /// Share of a GPU's memory for weights and KV cache, in (0, 1]; without effect on a CPU
    #[arg(long, value_name = "SHARE", default_value_t = EngineConfig::default().gpu_memory_utilization)]
    pub gpu_memory_utilization: f64,

    /// Memory for keys and values [default: what the device can spare; on a CPU at most 4 GiB]
    #[arg(long, value_name = "BYTES")]
    pub kv_cache_memory_bytes: Option<u64>,

    /// Tokens per block of keys and values; only 16 is there
    #[arg(long, value_name = "TOKENS", default_value_t = KV_BLOCK_TOKENS)]
    pub block_size: usize,

    /// Share what was computed of prompts that begin alike; the default
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    pub enable_prefix_caching: bool,

    /// Compute every prompt from its first token
    #[arg(long, overrides_with = "enable_prefix_caching")]
    pub no_enable_prefix_caching: bool,

    /// Makes requests without a seed of their own repeatable
    #[arg(long)]
    pub seed: Option<u64>,

    /// Where spans go; wins over OTEL_EXPORTER_OTLP_TRACES_ENDPOINT
    #[arg(long, value_name = "URL")]
    pub otlp_traces_endpoint: Option<String>,

    /// A span for each engine step, linked to all requests in it, with one of its forward pass (model), of the
    /// work around that (worker), or both (all)
    #[arg(long, value_enum, value_name = "PARTS", value_delimiter = ',')]
    pub collect_detailed_traces: Vec<DetailedTraces>,

    /// Branch, tag or commit of a hub model
    #[arg(long)]
    pub revision: Option<String>,

    /// Where hub models are kept [default: as Hugging Face's own tools]
    #[arg(long, value_name = "DIR")]
    pub download_dir: Option<PathBuf>,

    /// Jinja template for chats, in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,

    /// Longest request body
    #[arg(long, value_name = "BYTES", value_parser = at_least_one, default_value_t = DEFAULT_MAX_BODY_BYTES)]
    pub max_request_body_bytes: usize,

    /// Seconds that requests in flight may go on after the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_DRAIN_GRACE.as_secs())]
    pub shutdown_grace: u64,
}

/// Parts of vLLM's `--collect-detailed-traces`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DetailedTraces {
    /// Forward passes.
    Model,
    /// Work of the device's thread.
    Worker,
    /// Both.
    All,
}

impl DetailedTraces {
    /// What several of them ask for together.
    fn together(parts: &[Self]) -> Detail {
        let asked = |part| parts.contains(&part) || parts.contains(&Self::All);
        Detail {
            model: asked(Self::Model),
            worker: asked(Self::Worker),
        }
    }
}

/// What the server is made from.
#[derive(Debug, Clone)]
pub struct Config {
    /// Directory, GGUF file or hub id.
    pub model: String,
    /// At least one.
    pub served_names: Vec<String>,
    /// Address or name to bind.
    pub host: String,
    /// 0 takes a free one.
    pub port: u16,
    /// Where the model runs.
    pub device: DeviceChoice,
    /// Number type of weights and activations.
    pub dtype: DTypeChoice,
    /// `None` is the model's context.
    pub max_model_len: Option<usize>,
    /// The engine's bounds.
    pub engine: EngineConfig,
    /// Of the server's own random stream, from which requests without a seed get theirs.
    pub seed: Option<u64>,
    /// Where hub models come from.
    pub hub: HubOptions,
    /// In place of the model's own.
    pub chat_template: Option<PathBuf>,
    /// Longest request body.
    pub max_body_bytes: usize,
    /// Whether spans carry prompts and completions.
    pub capture_content: bool,
    /// The step spans that were asked for.
    pub detailed_traces: Detail,
    /// How long requests in flight may go on at shutdown.
    pub drain_grace: Duration,
}

impl Config {
    /// The defaults for `model`, with what the process's environment says about the hub.
    pub fn new(model: impl Into<String>) -> Self {
        let model = model.into();
        Self {
            served_names: vec![model.clone()],
            model,
            host: Ipv4Addr::LOCALHOST.to_string(),
            port: DEFAULT_PORT,
            device: DeviceChoice::default(),
            dtype: DTypeChoice::default(),
            max_model_len: None,
            engine: EngineConfig::default(),
            seed: None,
            hub: HubOptions::from_env(),
            chat_template: None,
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
            capture_content: false,
            detailed_traces: Detail::default(),
            drain_grace: DEFAULT_DRAIN_GRACE,
        }
    }
}

impl Args {
    /// What the flags and the process's environment mean together.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let capture_content = capture_content(|name| std::env::var(name).ok())?;
        let engine = EngineConfig {
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_waiting_requests: self.max_waiting_requests,
            gpu_memory_utilization: self.gpu_memory_utilization,
            kv_cache_bytes: self.kv_cache_memory_bytes,
            enable_prefix_caching: !self.no_enable_prefix_caching,
        };
        if self.block_size != KV_BLOCK_TOKENS {
            let (value, allowed) = (self.block_size.to_string(), KV_BLOCK_TOKENS.to_string());
            return Err(ConfigError::new("--block-size", value, allowed));
        }
        let engine = engine.checked()?;
        let model = self
            .model
            .or(self.model_tag)
            .unwrap_or_else(|| DEFAULT_MODEL.to_owned());
        let mut config = Config::new(model);
        if !self.served_model_name.is_empty() {
            config.served_names = self.served_model_name;
        }
        if let Some(revision) = self.revision {
            config.hub.revision = revision;
        }
        if let Some(directory) = self.download_dir {
            config.hub.cache_dir = directory;
        }
        Ok(Config {
            host: self.host,
            port: self.port,
            device: self.device,
            dtype: self.dtype,
            max_model_len: self.max_model_len,
            engine,
            seed: self.seed,
            chat_template: self.chat_template,
            max_body_bytes: self.max_request_body_bytes,
            capture_content,
            detailed_traces: DetailedTraces::together(&self.collect_detailed_traces),
            drain_grace: Duration::from_secs(self.shutdown_grace),
            ..config
        })
    }

    /// The telemetry settings: spans go out only where an endpoint is named, as in vLLM; metrics where
    /// `OTEL_METRICS_EXPORTER` asks for it.
    pub fn telemetry(&self, environment: Settings) -> Result<Settings, ConfigError> {
        let settings = match &self.otlp_traces_endpoint {
            Some(url) => environment.with_traces_endpoint("--otlp-traces-endpoint", url)?,
            None => environment,
        };
        let settings = settings.only_if_endpoint_set().with_metrics();
        if self.collect_detailed_traces.is_empty() {
            return Ok(settings);
        }
        // A step's span has a link for each request in it.
        Ok(settings.with_links_per_span(self.max_num_seqs))
    }
}

/// Whether spans carry prompts and completions; they are private unless this says otherwise.
pub fn capture_content(get: impl Fn(&str) -> Option<String>) -> Result<bool, ConfigError> {
    let value = get(CAPTURE_CONTENT).unwrap_or_default();
    match value.trim().to_ascii_lowercase().as_str() {
        "" | "false" => Ok(false),
        "true" => Ok(true),
        _ => Err(ConfigError::new(CAPTURE_CONTENT, value, "true or false")),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("use at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("use a whole number of at least 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.args)
    }

    #[test]
    fn model_is_a_flag_or_positional_or_the_default() {
        let model = |line| parse(line).unwrap().into_config().unwrap().model;
        assert_eq!(model("serve ./tiny --port 0"), "./tiny");
        assert_eq!(model("serve --model=./tiny"), "./tiny");
        assert_eq!(model("serve"), "facebook/opt-125m");
        assert!(parse("serve a --model b").is_err());
    }

    #[test]
    fn served_names_may_be_several() {
        let config = parse("serve ./tiny --served-model-name a b")
            .unwrap()
            .into_config()
            .unwrap();
        assert_eq!(config.served_names, ["a", "b"]);
        let config = parse("serve ./tiny").unwrap().into_config().unwrap();
        assert_eq!(config.served_names, ["./tiny"]);
    }

    #[test]
    fn impossible_values_are_refused_by_name() {
        let refused = |line: &str| parse(line).unwrap().into_config().unwrap_err().to_string();
        assert_eq!(
            refused("serve --gpu-memory-utilization 1.5"),
            "--gpu-memory-utilization='1.5' is not supported: use a number above 0 and up to 1"
        );
        assert_eq!(
            refused("serve --max-num-batched-tokens 8 --max-num-seqs 16"),
            "--max-num-batched-tokens='8' is not supported: use at least --max-num-seqs, 16"
        );
        assert_eq!(
            refused("serve --max-num-seqs 0"),
            "--max-num-seqs='0' is not supported: use at least 1"
        );
        assert_eq!(
            refused(&format!("serve --max-waiting-requests {}", usize::MAX)),
            format!(
                "--max-waiting-requests='{}' is not supported: use 1 to 1048576",
                usize::MAX
            )
        );
        assert_eq!(
            refused("serve --block-size 32"),
            "--block-size='32' is not supported: use 16"
        );
        assert!(parse("serve --max-num-seqs -1").is_err());
        assert!(parse("serve --collect-detailed-traces everything").is_err());
    }

    #[test]
    fn detailed_traces_may_be_a_list() {
        let args = parse("serve --collect-detailed-traces=model,worker").unwrap();
        let detail = |model, worker| Detail { model, worker };
        let config = args.into_config().unwrap();
        assert_eq!(config.detailed_traces, detail(true, true));
        let of = |line: &str| parse(line).unwrap().into_config().unwrap().detailed_traces;
        assert_eq!(of("serve"), detail(false, false));
        assert_eq!(
            of("serve --collect-detailed-traces=model"),
            detail(true, false)
        );
        assert_eq!(
            of("serve --collect-detailed-traces=all"),
            detail(true, true)
        );
    }

    #[test]
    fn prefix_caching_is_on_unless_the_last_flag_says_otherwise() {
        let caching = |line: &str| {
            let config = parse(line).unwrap().into_config().unwrap();
            config.engine.enable_prefix_caching
        };
        assert!(caching("serve"));
        assert!(!caching("serve --no-enable-prefix-caching"));
        assert!(caching(
            "serve --no-enable-prefix-caching --enable-prefix-caching"
        ));
        assert!(!caching(
            "serve --enable-prefix-caching --no-enable-prefix-caching"
        ));
    }

    #[test]
    fn content_is_captured_only_when_asked_for() {
        let captured = |value: &str| capture_content(|_| Some(value.to_owned()));
        assert_eq!(capture_content(|_| None), Ok(false));
        assert_eq!(captured("TRUE"), Ok(true));
        assert!(captured("maybe").is_err());
    }
}
