//! Attention and feed-forward, each added to the residual stream.

use candle_core::{Result, Tensor};

use crate::ops::{Attention, Epilogue, KvPages, Linear, Norm, Ops, StepInputs};

/// A forward pass under way: who computes, what, and with which keys and values.
#[derive(Clone, Copy)]
pub(crate) struct Pass<'a> {
    pub(crate) ops: &'a dyn Ops,
    pub(crate) step: &'a StepInputs,
    pub(crate) pages: &'a KvPages,
}

/// One layer of a decoder.
#[derive(Debug)]
pub(crate) struct DecoderLayer {
    pub(crate) attention_norm: Norm,
    pub(crate) attention: SelfAttention,
    pub(crate) feed_forward_norm: Norm,
    pub(crate) feed_forward: FeedForward,
}

/// The attention of one layer, with its products.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    /// H -> (N + 2K) * D: queries, keys and values in one product.
    pub(crate) qkv: Linear,
    pub(crate) attention: Attention,
    /// N * D -> H.
    pub(crate) out: Linear,
}

/// `down(activation(up(x)))`, or with a gate `down(activation(gate(x)) * up(x))`.
#[derive(Debug)]
pub(crate) struct FeedForward {
    /// Gate and up in one product where there is a gate.
    pub(crate) up: Linear,
    pub(crate) epilogue: Epilogue,
    pub(crate) down: Linear,
}

/// Where a block's norm is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// On what the block reads.
    Before,
    /// On the sum of the residual stream and what the block wrote.
    After,
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
