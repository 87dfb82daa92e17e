//! The HTTP surface: OpenAI's API with vLLM's extensions, on axum.
//!
//! # Layout
//! - [`App`]: what the handlers share
//! - `call`: a generation request from its arrival to its batch; `body`, `fields`, `params`,
//!   `prompt` and `structured` read what it asks for
//! - `tools`, `tool_calls`: what a chat's model may call, and its calls in what it writes
//! - `completions`, `chat`: the two endpoints; `logprobs`, `response` and `sse` shape what they
//!   answer
//! - `info`: models, health, version and metrics; `tokenize`: both directions
//! - [`error`]: every way to fail, and its one mapping to HTTP and spans

mod body;
mod call;
mod chat;
mod completions;
pub mod error;
mod fields;
mod info;
mod logprobs;
mod params;
mod prompt;
mod response;
mod sse;
mod structured;
mod tokenize;
mod tool_calls;
mod tools;

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::Request;
use axum::routing::{get, post};

use crate::chat_template::ChatTemplate;
use crate::generation::Generator;
use crate::generation::exchange::Observers;
use crate::grammar::GrammarCompiler;

use error::ApiError;

/// The model as the API shows it.
pub struct ServedModel {
    /// The names that requests may use; the first is the one in lists. At least one.
    pub names: Vec<String>,
    /// Where it came from.
    pub root: String,
    /// Prompt and output together.
    pub max_model_len: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Turns chats into prompts.
    pub chat_template: Option<ChatTemplate>,
}

/// What the handlers share.
pub struct App {
    generator: Generator,
    model: ServedModel,
    grammars: GrammarCompiler,
    observers: Observers,
    max_body_bytes: usize,
    created: u64,
}

impl App {
    /// The API of one model.
    pub fn new(
        generator: Generator,
        model: ServedModel,
        observers: Observers,
        max_body_bytes: usize,
    ) -> Self {
        let grammars = GrammarCompiler::new(
            generator.tokenizer.clone(),
            model.vocab_size,
            &generator.eos_token_ids,
        );
        Self {
            generator,
            grammars,
            model,
            observers,
            max_body_bytes,
            created: unix_seconds(),
        }
    }

    /// The routes.
    pub fn router(self: Arc<Self>) -> Router {
        Router::new()
            .route("/v1/completions", post(completions::completions))
            .route("/v1/chat/completions", post(chat::chat_completions))
            .route("/v1/models", get(info::models))
            .route("/health", get(info::health))
            .route("/version", get(info::version))
            .route("/metrics", get(info::metrics))
            .route("/tokenize", post(tokenize::tokenize))
            .route("/detokenize", post(tokenize::detokenize))
            .fallback(route_not_found)
            .method_not_allowed_fallback(method_not_allowed)
            .with_state(self)
    }

    /// Refuses names that are not served. A request without one means the model there is.
    fn check_model(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if !self.model.names.iter().any(|served| served == name) => {
                Err(ApiError::ModelNotFound(name.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

async fn route_not_found(request: Request) -> ApiError {
    ApiError::RouteNotFound(request.uri().path().to_owned())
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::MethodNotAllowed(request.method().clone())
}

/// Now, as the API's `created` fields want it.
fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
