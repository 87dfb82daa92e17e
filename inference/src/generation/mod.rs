//! Between the API and the engine: what one prompt asks for becomes engine requests, and their
//! tokens become text.
//!
//! # Layout
//! - [`batch`]: the prompts of one HTTP request, merged into one stream of [`Output`]s
//! - `round_robin`: whose turn it is among those
//! - `sampling`: `n` sequences side by side, and the best `n` of `best_of`
//! - `beam`: beam search, driven one token at a time
//! - `sequence`: one sequence's text, from `detokenizer` and `stop`
//! - [`exchange`], [`record`], [`timeline`]: what spans and metrics say about it
//!
//! Dropping a [`Batch`] cancels everything it has in the engine.

pub mod batch;
mod beam;
mod detokenizer;
pub mod exchange;
pub mod record;
mod round_robin;
mod sampling;
mod sequence;
mod stop;
pub mod timeline;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::engine::request::TokenLogprobs;
use crate::engine::{Engine, SubmitError};
use crate::sampling_params::SamplingParams;
use crate::tokenizer::Tokenizer;

pub use batch::Batch;

/// The engine and what is needed to read its tokens. Cheap to clone.
#[derive(Clone)]
pub struct Generator {
    pub(crate) engine: Engine,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) eos_token_ids: Arc<[u32]>,
    /// Where sequences without a seed get theirs, when the server was given one.
    seeds: Option<Arc<Mutex<StdRng>>>,
}

impl Generator {
    /// Sequences go to `engine`; `tokenizer` reads what comes back. With a `seed` the server repeats
    /// itself: the same requests in the same order get the same tokens.
    pub fn new(
        engine: Engine,
        tokenizer: Tokenizer,
        eos_token_ids: Arc<[u32]>,
        seed: Option<u64>,
    ) -> Self {
        let seeds = seed.map(|seed| Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
        Self {
            engine,
            tokenizer,
            eos_token_ids,
            seeds,
        }
    }

    /// The next seed of the server's own, if it has any.
    fn next_seed(&self) -> Option<u64> {
        let mut seeds = self
            .seeds
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Some(seeds.next_u64())
    }
}

/// How to generate for one prompt: validated, ready to use.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationParams {
    /// What each sequence asks of the engine.
    pub sampling: SamplingParams,
    /// Answer with the prompt alone: the engine, which always generates, generates one token that
    /// is no part of the result.
    pub prompt_only: bool,
    /// Sequences to answer with.
    pub n: usize,
    /// Sequences to sample; the `n` most likely are kept. At least `n`.
    pub best_of: usize,
    /// Beam search of width `n` in place of sampling.
    pub beam: Option<BeamParams>,
    /// Text that ends a sequence; none empty.
    pub stop: Arc<[String]>,
    /// Keep the stop string or stop token in the text.
    pub include_stop_str_in_output: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
}

impl GenerationParams {
    /// Most tokens that each sequence of the result may have.
    pub fn max_tokens(&self) -> usize {
        if self.prompt_only {
            0
        } else {
            self.sampling.max_tokens
        }
    }

    /// Sequences that one prompt has in the engine at once.
    pub fn sequences(&self) -> usize {
        if self.beam.is_some() {
            self.n
        } else {
            self.best_of
        }
    }
}

/// What beam search has beside its width.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamParams {
    /// A beam's score is its log probability divided by its length to this power.
    pub length_penalty: f64,
    /// End as soon as `n` beams are complete, though a live one might still score higher.
    pub early_stopping: bool,
}

/// One prompt, ready for the engine.
pub struct Prompt {
    /// Its tokens; at least one.
    pub tokens: Vec<u32>,
    /// How to go on from them.
    pub params: Arc<GenerationParams>,
}

/// A token on its way to the client.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputToken {
    /// Its id.
    pub id: u32,
    /// Present when asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Why a sequence has ended, as the API tells it.
#[derive(Debug, Clone, PartialEq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// One of the request's stop strings, by index.
    StopString(usize),
    /// One of the request's stop tokens.
    StopToken(u32),
    /// `max_tokens` or the model's context was reached.
    Length,
}

impl Finish {
    /// The API's `finish_reason`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Stop | Self::StopString(_) | Self::StopToken(_) => "stop",
            Self::Length => "length",
        }
    }
}

/// What a prompt's generation yields.
#[derive(Debug, Clone, PartialEq)]
pub enum Output {
    /// Once, before anything else, where prompt log probabilities were asked for.
    PromptLogprobs(Vec<Option<TokenLogprobs>>),
    /// The next piece of one sequence.
    Delta(Delta),
}

/// The next piece of one sequence. The last one has a `finish`.
#[derive(Debug, Clone, PartialEq)]
pub struct Delta {
    /// Which of the `n` sequences.
    pub index: usize,
    /// Whole characters only, no part of a stop string.
    pub text: String,
    /// The tokens sampled since the last delta.
    pub tokens: Vec<OutputToken>,
    /// Present on the last one.
    pub finish: Option<Finish>,
}

/// A result that is known only at its end.
type Collected = Result<VecDeque<Output>, GenerationError>;

/// Why a prompt could not be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationError {
    /// More requests are waiting than the engine lets in.
    #[error("the server is overloaded: {limit} requests are already waiting")]
    QueueFull {
        /// The engine's bound.
        limit: usize,
    },
    /// No room for even one token after the prompt.
    #[error("the prompt has {prompt_tokens} tokens and the context of this model {max_model_len}")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// The model's context.
        max_model_len: usize,
    },
    /// The engine has stopped, or is about to.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
    /// The engine gave this request up.
    #[error("the engine failed: {0}")]
    Failed(String),
    /// A token could not be turned into text.
    #[error("the output cannot be decoded: {0}")]
    Tokenizer(String),
}

impl GenerationError {
    /// `error.type` of what finds the queue full.
    pub(crate) const QUEUE_FULL: &'static str = "queue_full";

    /// `error.type` of the span: few values, none with data in it.
    pub fn error_type(&self) -> &'static str {
        match self {
            Self::QueueFull { .. } => Self::QUEUE_FULL,
            Self::PromptTooLong { .. } => "context_length_exceeded",
            Self::Stopped(_) => "engine_stopped",
            Self::Failed(_) => "engine_failed",
            Self::Tokenizer(_) => "tokenizer_failed",
        }
    }

    /// The engine let go of the events without saying why.
    fn events_ended() -> Self {
        Self::Failed("it ended the request without a result".to_owned())
    }
}

impl From<SubmitError> for GenerationError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::QueueFull { limit } => Self::QueueFull { limit },
            SubmitError::PromptTooLong {
                prompt_tokens,
                max_model_len,
            } => Self::PromptTooLong {
                prompt_tokens,
                max_model_len,
            },
            SubmitError::Stopped(reason) => Self::Stopped(reason),
        }
    }
}
