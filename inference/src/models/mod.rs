//! The models: what happens to the rows of a step, said once in the operations of [`crate::ops`].
//!
//! # Layout
//! - [`families`]: the table of what can be run; config.json picks an entry
//! - `opt`, `llama` (and Qwen), `gemma3`, `gpt2`: one model each; `opt_config`, `llama_config`,
//!   `gemma3_config` and `rope_config` read their fields of config.json, [`config`] has what is common to them
//! - `layers`: what the models are made of

pub mod config;
pub mod families;
mod gemma3;
mod gemma3_config;
mod gpt2;
mod layers;
mod llama;
mod llama_config;
mod opt;
mod opt_config;
mod rope_config;

use candle_core::{Device, Result, Tensor};

use crate::ops::{KvPages, KvShape, Ops, StepInputs};

/// A decoder that continues token sequences.
pub trait CausalLm: Send {
    /// Where its tensors are.
    fn device(&self) -> &Device;

    /// The sizes of its keys and values.
    fn kv_shape(&self) -> KvShape;

    /// Runs a step, whose keys and values go to `pages`. Returns hidden states, (T, H).
    fn forward(&self, ops: &dyn Ops, step: &StepInputs, pages: &KvPages) -> Result<Tensor>;

    /// Logits of some hidden states: (R, H) -> (R, V).
    fn logits(&self, ops: &dyn Ops, hidden: &Tensor) -> Result<Tensor>;
}
