//! Self-attention with its projections, and what families add to it: norms of queries and keys,
//! rotation by position.

use candle_core::{Module, Result, Tensor};
use candle_nn::{Linear, RmsNorm};

use super::attention::{Qkv, Step, attend};

/// How many heads, and how wide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heads {
    /// N.
    pub(crate) queries: usize,
    /// K: each serves N / K heads of queries.
    pub(crate) keys: usize,
    /// D.
    pub(crate) dim: usize,
}

impl Heads {
    /// N * D.
    pub(crate) fn query_width(&self) -> usize {
        self.queries * self.dim
    }

    /// K * D.
    pub(crate) fn key_width(&self) -> usize {
        self.keys * self.dim
    }
}

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    /// Which layer of the caches is its own.
    pub(crate) layer: usize,
    pub(crate) heads: Heads,
    /// H -> (N + 2K) * D: queries, keys and values in one product.
    pub(crate) qkv: Linear,
    /// Over D numbers of each head of queries, and of keys.
    pub(crate) head_norms: Option<(RmsNorm, RmsNorm)>,
    /// N * D -> H.
    pub(crate) out: Linear,
}

impl SelfAttention {
    /// (T, H) -> (T, H)
    pub(crate) fn forward(&self, rows: &Tensor, step: &Step<'_>) -> Result<Tensor> {
        let Heads { queries, keys, dim } = self.heads;
        let projected = self.qkv.forward(rows)?; // (T, (N + 2K) * D)
        let projected = projected.reshape((rows.dim(0)?, queries + 2 * keys, dim))?;
        let part = |start, heads| projected.narrow(1, start, heads);
        let (query_norm, key_norm) = match &self.head_norms {
            Some((queries, keys)) => (Some(queries), Some(keys)),
            None => (None, None),
        };
        let qkv = Qkv {
            queries: placed(part(0, queries)?, query_norm, step)?, // (T, N, D)
            keys: placed(part(queries, keys)?, key_norm, step)?,   // (T, K, D)
            values: part(queries + keys, keys)?,
        };
        self.out.forward(&attend(self.layer, &qkv, step)?)
    }
}

/// Heads normalised and turned to their positions, where the model does that.
fn placed(heads: Tensor, norm: Option<&RmsNorm>, step: &Step<'_>) -> Result<Tensor> {
    let heads = match norm {
        Some(norm) => norm.forward(&heads.contiguous()?)?,
        None => heads,
    };
    match &step.rotation {
        Some(rotation) => rotation.apply(&heads),
        None => Ok(heads),
    }
}

/// Several projections of the same input as one.
pub(crate) fn in_one_product(parts: &[Linear]) -> Result<Linear> {
    let weights: Vec<_> = parts.iter().map(Linear::weight).collect();
    let biases: Option<Vec<_>> = parts.iter().map(Linear::bias).collect();
    let bias = biases.map(|biases| Tensor::cat(&biases, 0)).transpose()?;
    Ok(Linear::new(Tensor::cat(&weights, 0)?, bias))
}
