//! Attention and feed-forward, each added to the residual stream.

use candle_core::{Module, Result, Tensor};

use super::{FeedForward, SelfAttention, Step};

/// One layer of a decoder; `N` is its kind of norm.
#[derive(Debug)]
pub(crate) struct DecoderLayer<N> {
    pub(crate) attention_norm: N,
    pub(crate) attention: SelfAttention,
    pub(crate) feed_forward_norm: N,
    pub(crate) feed_forward: FeedForward,
}

/// Where a block's norm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// On what the block reads.
    Before,
    /// On the sum of the residual stream and what the block wrote.
    After,
}

impl<N: Module> DecoderLayer<N> {
    /// (T, H) -> (T, H)
    pub(crate) fn forward(
        &self,
        hidden: &Tensor,
        norms: NormPlace,
        step: &Step<'_>,
    ) -> Result<Tensor> {
        let attention = |rows: &Tensor| self.attention.forward(rows, step);
        let hidden = residual(hidden, &self.attention_norm, norms, attention)?;
        let feed_forward = |rows: &Tensor| self.feed_forward.forward(rows);
        residual(&hidden, &self.feed_forward_norm, norms, feed_forward)
    }
}

/// `rows` + `block`: (T, H) -> (T, H).
fn residual(
    rows: &Tensor,
    norm: &impl Module,
    place: NormPlace,
    block: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    match place {
        NormPlace::Before => rows + block(&norm.forward(rows)?)?,
        NormPlace::After => norm.forward(&(rows + block(rows)?)?),
    }
}
