//! The server as one piece: model, engine, API and listener.

use std::net::SocketAddr;
use std::sync::Arc;

use lantern_telemetry::{ConfigError, Telemetry};
use tokio::net::TcpListener;
use tokio::task::{JoinError, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::api::{App, ServedModel};
use crate::chat_template::{ChatTemplate, ChatTemplateError};
use crate::config::Config;
use crate::engine::observer::StepObserver;
use crate::engine::{Engine, EngineError, EngineThread};
use crate::generation::Generator;
use crate::generation::exchange::Observers;
use crate::loader::{self, LoadError, LoadedModel};
use crate::metrics::Metrics;
use crate::serve::{Lifetime, serve};
use crate::spans::Spans;
use crate::step_spans::StepSpans;
use crate::tokenizer::{Tokenizer, TokenizerError};

/// Why a server does not start, or ends other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A flag has a value that this model cannot have.
    #[error("a flag does not fit the model")]
    Config(#[from] ConfigError),
    /// The model cannot be found or loaded.
    #[error("cannot load the model")]
    Load(#[from] LoadError),
    /// Its tokenizer cannot.
    #[error("cannot load the tokenizer")]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template cannot.
    #[error("cannot load the chat template")]
    ChatTemplate(#[from] ChatTemplateError),
    /// The engine does not start.
    #[error("cannot start the engine")]
    Engine(#[from] EngineError),
    /// The address is not free, or not ours.
    #[error("cannot listen on {address}")]
    Bind {
        /// What was asked for.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The engine failed while serving.
    #[error("{0}")]
    EngineFailed(String),
    /// A task of ours panicked.
    #[error("an internal task failed")]
    Internal(#[from] JoinError),
}

/// A server that listens already; [`Server::run`] answers.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    app: Arc<App>,
    engine: Engine,
    thread: EngineThread,
    abandoned: CancellationToken,
    config: Config,
}

/// What comes from the model's files.
struct Loaded {
    model: LoadedModel,
    tokenizer: Tokenizer,
    chat_template: Option<ChatTemplate>,
}

impl Server {
    /// Loads the model, starts the engine and binds the address.
    pub async fn bind(config: Config, telemetry: &Telemetry) -> Result<Self, ServerError> {
        let to_load = config.clone();
        let loaded = spawn_blocking(move || load(&to_load)).await??;
        let served = ServedModel {
            names: config.served_names.clone(),
            root: config.model.clone(),
            max_model_len: loaded.model.max_model_len,
            vocab_size: loaded.model.vocab_size,
            chat_template: loaded.chat_template,
        };
        let eos_token_ids = loaded.model.eos_token_ids.clone().into();
        let observer = config.detailed_traces.any().then(|| {
            let spans = StepSpans::new(telemetry, config.detailed_traces);
            Box::new(spans) as Box<dyn StepObserver>
        });
        let (engine, thread) =
            Engine::start_observed(loaded.model, config.engine.clone(), observer)?;
        let generator =
            Generator::new(engine.clone(), loaded.tokenizer, eos_token_ids, config.seed);
        let abandoned = CancellationToken::new();
        let meter = telemetry.meter(env!("CARGO_PKG_NAME"));
        let name = &config.served_names[0];
        let observers = Observers {
            spans: Spans::new(telemetry, config.capture_content),
            metrics: Metrics::new(name, &engine, meter.as_ref()),
            abandoned: abandoned.clone(),
        };
        let app = Arc::new(App::new(
            generator,
            served,
            observers,
            config.max_body_bytes,
        ));
        let (listener, address) = listen(&config).await?;
        tracing::info!(model = config.model, "serving on http://{address}");
        Ok(Self {
            listener,
            address,
            app,
            engine,
            thread,
            abandoned,
            config,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until told to stop, then lets requests in flight finish within the grace. When this
    /// returns, every span has ended.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), ServerError> {
        let lifetime = Lifetime {
            shutdown,
            abandoned: self.abandoned,
            drain_grace: self.config.drain_grace,
        };
        serve(self.listener, self.app.router(), lifetime).await;
        self.engine.shut_down();
        let thread = self.thread;
        let ended = spawn_blocking(move || thread.join()).await?;
        ended.map_err(|error| ServerError::EngineFailed(error.to_string()))
    }
}

fn load(config: &Config) -> Result<Loaded, ServerError> {
    let source = loader::resolve(&config.model, &config.hub).map_err(refine_load_error)?;
    let tokenizer = Tokenizer::load(&source)?;
    let chat_template = ChatTemplate::load(&source, config.chat_template.as_deref())?;
    let model = loader::load(&source, config.device, config.dtype, config.max_model_len);
    Ok(Loaded {
        model: model.map_err(refine_load_error)?,
        tokenizer,
        chat_template,
    })
}

async fn listen(config: &Config) -> Result<(TcpListener, SocketAddr), ServerError> {
    let failed = |source| {
        let address = format!("{}:{}", config.host, config.port);
        ServerError::Bind { address, source }
    };
    let listener = TcpListener::bind((config.host.as_str(), config.port))
        .await
        .map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// Errors that are a flag's name the flag.
fn refine_load_error(error: LoadError) -> ServerError {
    match error {
        LoadError::NoSuchModel(model) => {
            let allowed = "a directory, a .gguf file, or a hub id such as facebook/opt-125m";
            ConfigError::new("--model", model, allowed).into()
        }
        LoadError::MaxModelLen { asked, most } => {
            let allowed = format!("1 to {most}, the model's context");
            ConfigError::new("--max-model-len", asked.to_string(), allowed).into()
        }
        other => other.into(),
    }
}
