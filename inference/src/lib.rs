//! A lean LLM inference server on candle: OpenAI's API, vLLM's flags, engine spans.

pub mod cpu_threads;
pub mod engine;
pub mod loader;
pub mod models;
pub mod sampling_params;
pub mod tensor_error;
pub mod tokenizer;
