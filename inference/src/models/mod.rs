//! The models: written on candle's ops, run over ragged batches.
//!
//! # Layout
//! - [`families`]: the table of what can be run; config.json picks an entry
//! - `opt`, `llama` (and Qwen), `gpt2`: one model each; `opt_config`, `llama_config` and
//!   `rope_config` read their fields of config.json, [`config`] has what is common to them
//! - `layers`: what the models are made of
//! - `kv_cache`: keys and values of one sequence

pub mod config;
pub mod families;
mod gpt2;
mod kv_cache;
mod layers;
mod llama;
mod llama_config;
mod opt;
mod opt_config;
mod rope_config;

use candle_core::{DType, Device, Result, Tensor};

pub use kv_cache::KvCache;

/// One step's tokens, those of all sequences one after another: T rows in all.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct RaggedBatch {
    /// Token ids, (T).
    pub tokens: Vec<u32>,
    /// Place of each token in its own sequence, (T).
    pub positions: Vec<u32>,
    /// Which rows are whose, in order and without gaps.
    pub spans: Vec<Span>,
}

/// The rows of one sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Number of rows; at least 1.
    pub len: usize,
    /// Tokens of the sequence already in its cache.
    pub context: usize,
}

impl RaggedBatch {
    /// Appends the next tokens of a sequence that has `context` tokens in its cache.
    pub fn push(&mut self, tokens: &[u32], context: usize) {
        let span = Span {
            start: self.tokens.len(),
            len: tokens.len(),
            context,
        };
        self.tokens.extend_from_slice(tokens);
        self.positions
            .extend((context..context + tokens.len()).map(|position| position as u32));
        self.spans.push(span);
    }
}

/// The sizes that a model's KV cache has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Heads of keys and values.
    pub heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// Their type.
    pub dtype: DType,
}

impl KvShape {
    /// Keys and values of one token, all layers.
    pub fn bytes_per_token(&self) -> u64 {
        (2 * self.layers * self.heads * self.head_dim * self.dtype.size_in_bytes()) as u64
    }
}

/// A decoder that continues token sequences.
pub trait CausalLm: Send {
    /// Where its tensors are.
    fn device(&self) -> &Device;

    /// The sizes of its cache.
    fn kv_shape(&self) -> KvShape;

    /// Runs a batch; `caches` holds one per span, in order, and takes the new keys and values.
    /// Returns hidden states, (T, E).
    fn forward(&self, batch: &RaggedBatch, caches: &mut [KvCache]) -> Result<Tensor>;

    /// Logits of some hidden states: (R, E) → (R, V).
    fn logits(&self, hidden: &Tensor) -> Result<Tensor>;
}
