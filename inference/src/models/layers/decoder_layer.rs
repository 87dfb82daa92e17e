//! Attention and feed-forward, each added to the residual stream.

use candle_core::{Result, Tensor};

use crate::ops::{DecoderLayer, Epilogue, KvPages, Ops, StepInputs};

/// A forward pass under way: who computes, what, and with which keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) ops: &'a dyn Ops,
    pub(crate) step: &'a StepInputs,
    pub(crate) pages: &'a KvPages,
}

/// Where a block's norm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// On what the block reads.
    Before,
    /// On the sum of the residual stream and what the block wrote.
    After,
}

/// All layers, one after another: (T, H) -> (T, H)
pub(crate) fn run_layers(
    layers: &[DecoderLayer],
    hidden: Tensor,
    norms: NormPlace,
    pass: Pass<'_>,
) -> Result<Tensor> {
    if norms == NormPlace::Before
        && let Some(at_once) = pass.ops.run_layers(&hidden, layers, pass.pages)?
    {
        return Ok(at_once);
    }
    let forward = |hidden: Tensor, layer: &DecoderLayer| layer.forward(&hidden, norms, pass);
    layers.iter().try_fold(hidden, forward)
}

impl DecoderLayer {
    /// (T, H) -> (T, H)
    pub(crate) fn forward(
        &self,
        hidden: &Tensor,
        norms: NormPlace,
        pass: Pass<'_>,
    ) -> Result<Tensor> {
        let ops = pass.ops;
        let before = |norm| (norms == NormPlace::Before).then_some(norm);
        let after = |sum: Tensor, norm| match norms {
            NormPlace::Before => Ok(sum),
            NormPlace::After => ops.norm(&sum, norm, None),
        };
        let attention = &self.attention;
        let norm = before(&self.attention_norm);
        let qkv = ops.project(hidden, norm, &attention.qkv, Epilogue::None)?; // (T, (N + 2K) * D)
        let pages = pass.pages.layer(attention.attention.layer);
        let mixed = ops.attend(&qkv, &attention.attention, pass.step, pages)?; // (T, N * D)
        let hidden = ops.project_add(&mixed, &attention.out, hidden)?;
        let hidden = after(hidden, &self.attention_norm)?;
        let feed_forward = &self.feed_forward;
        let norm = before(&self.feed_forward_norm);
        let inner = ops.project(&hidden, norm, &feed_forward.up, feed_forward.epilogue)?;
        let hidden = ops.project_add(&inner, &feed_forward.down, &hidden)?;
        after(hidden, &self.feed_forward_norm)
    }
}
