//! The layers that models are made of, each written once and over ragged batches.
//!
//! Letters in shapes, here and in the models: T rows of a batch, H hidden size, E embedding size,
//! V vocabulary, N heads of queries, K heads of keys and values, D head size.
//!
//! # Layout
//! - `decoder_layer`: attention and feed-forward around the residual stream
//! - `self_attention`: projections and rotation; `attention`: queries against the caches
//! - `feed_forward`: the two or three products after attention
//! - `rotary`: positions as rotations, scaled for long contexts
//! - `scope`: where in the weights a layer's tensors are

mod attention;
mod decoder_layer;
mod feed_forward;
mod rotary;
mod scope;
mod self_attention;

use candle_core::{Result, Tensor};

pub(crate) use attention::Step;
pub(crate) use decoder_layer::{DecoderLayer, NormPlace};
pub(crate) use feed_forward::FeedForward;
pub(crate) use rotary::{Rope, RopeScaling, Rotary};
pub(crate) use scope::{Loaded, Scope};
pub(crate) use self_attention::{Heads, SelfAttention, in_one_product};

/// The rows `ids` of a table: (R, W) -> (T, W).
pub(crate) fn look_up(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    let ids = Tensor::from_slice(ids, ids.len(), table.device())?;
    table.index_select(&ids, 0)
}
