//! Attention of a ragged batch: each sequence against its own cache.
//!
//! The linear layers run over all rows at once; only here do the sequences part. One set of products per
//! sequence, since candle has no op over caches of different lengths.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::{KvCache, RaggedBatch, Span};

/// Causal masks of a batch, one per span: made once a step, used by every layer.
pub(crate) struct Masks(Vec<Option<Tensor>>);

impl Masks {
    pub(crate) fn new(batch: &RaggedBatch, device: &Device) -> Result<Self> {
        batch
            .spans
            .iter()
            .map(|span| mask(span, device))
            .collect::<Result<_>>()
            .map(Self)
    }
}

/// (len, context + len) of 0 where a row may look and -inf where it may not; a single row sees all.
fn mask(span: &Span, device: &Device) -> Result<Option<Tensor>> {
    if span.len == 1 {
        return Ok(None);
    }
    let keys = span.context + span.len;
    let mut mask = vec![0f32; span.len * keys];
    for (row, values) in mask.chunks_exact_mut(keys).enumerate() {
        values[span.context + row + 1..].fill(f32::NEG_INFINITY);
    }
    Tensor::from_vec(mask, (span.len, keys), device).map(Some)
}

/// What all layers of a forward pass share.
pub(crate) struct Step<'a> {
    pub(crate) batch: &'a RaggedBatch,
    pub(crate) masks: Masks,
    /// One per span.
    pub(crate) caches: &'a [KvCache],
}

/// Queries, keys and values of a batch, (T, heads, head_dim) each; queries are scaled already.
pub(crate) struct Qkv {
    pub(crate) queries: Tensor,
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

/// Stores the new keys and values of a layer and attends to all of them: (T, heads * head_dim).
pub(crate) fn attend(layer: usize, qkv: &Qkv, step: &Step<'_>) -> Result<Tensor> {
    let spans = &step.batch.spans;
    let mut rows = Vec::with_capacity(spans.len());
    for ((span, cache), mask) in spans.iter().zip(step.caches).zip(&step.masks.0) {
        // (len, heads, head_dim) -> (heads, len, head_dim)
        let own = |all: &Tensor| {
            all.narrow(0, span.start, span.len)?
                .transpose(0, 1)?
                .contiguous()
        };
        let (keys, values) = cache.write(layer, &own(&qkv.keys)?, &own(&qkv.values)?)?;
        rows.push(attend_one(
            &own(&qkv.queries)?,
            &keys,
            &values,
            mask.as_ref(),
        )?);
    }
    match rows.as_slice() {
        [only] => Ok(only.clone()),
        _ => Tensor::cat(&rows, 0),
    }
}

/// Queries (heads, t, head_dim) over keys and values (heads, n, head_dim): (t, heads * head_dim).
fn attend_one(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let scores = queries.matmul(&keys.t()?)?; // (heads, t, n)
    // The softmax runs in f32 whatever the model's type is, as transformers' does.
    let scores = scores.to_dtype(DType::F32)?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let weights = softmax_last_dim(&scores)?.to_dtype(queries.dtype())?;
    let mixed = weights.matmul(values)?; // (heads, t, head_dim)
    mixed.transpose(0, 1)?.flatten_from(D::Minus2)
}
