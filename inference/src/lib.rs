//! A lean LLM inference server on candle: OpenAI's API, vLLM's flags, engine spans.
//!
//! # Layout
//! - [`config`], [`program`]: the command line, and the program from arguments to exit
//! - [`server`]: model, engine, API and listener as one piece; [`serve`]: the accept loop
//! - [`api`]: the HTTP surface; [`chat_template`]: chats to prompts
//! - [`generation`]: from prompts to engine requests, from tokens to text
//! - [`spans`], [`metrics`]: what requests tell about themselves; [`step_spans`]: what steps do
//! - [`engine`]: scheduler, model runner and sampler on the thread that owns the device
//! - [`grammar`]: structured output, between the API that compiles it and the sampler that obeys it
//! - [`ops`]: the fused operations of models, one implementation for each kind of device
//! - [`models`], [`loader`], [`tokenizer`]: from files to logits and tokens

pub mod api;
pub mod chat_template;
pub mod config;
pub mod cpu_threads;
pub mod engine;
pub mod generation;
pub mod grammar;
pub mod loader;
pub mod metrics;
pub mod models;
pub mod ops;
pub mod program;
pub mod sampling_params;
pub mod serve;
pub mod server;
pub mod spans;
pub mod step_spans;
pub mod tensor_error;
pub mod tokenizer;

pub use config::{AFTER_HELP, Args, Config};
pub use program::run;
pub use server::Server;
