//! Attention of a ragged batch: each sequence against its own cache.
//!
//! The linear layers run over all rows at once; only here do the sequences part. One set of products per
//! sequence, since candle has no op over caches of different lengths.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::rotary::Rotation;
use crate::models::{KvCache, RaggedBatch, Span};

/// Causal masks of a batch, one per span: made once a step, used by every layer.
struct Masks(Vec<Option<Tensor>>);

impl Masks {
    fn new(batch: &RaggedBatch, device: &Device) -> Result<Self> {
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
    batch: &'a RaggedBatch,
    masks: Masks,
    /// One per span.
    caches: &'a [KvCache],
    /// Of the batch's positions, in models that have it.
    pub(crate) rotation: Option<Rotation>,
}

impl<'a> Step<'a> {
    /// Makes room for the batch's keys and values.
    pub(crate) fn begin(
        batch: &'a RaggedBatch,
        caches: &'a mut [KvCache],
        rotation: Option<Rotation>,
        device: &Device,
    ) -> Result<Self> {
        for (cache, span) in caches.iter_mut().zip(&batch.spans) {
            cache.extend(span.len, device)?;
        }
        Ok(Self {
            batch,
            masks: Masks::new(batch, device)?,
            caches,
            rotation,
        })
    }
}

/// What a batch asks of a layer's caches and adds to them.
pub(crate) struct Qkv {
    /// (T, N, D)
    pub(crate) queries: Tensor,
    /// (T, K, D)
    pub(crate) keys: Tensor,
    /// (T, K, D)
    pub(crate) values: Tensor,
}

/// Stores the new keys and values of a layer and attends to all of them: (T, N * D).
pub(crate) fn attend(layer: usize, qkv: &Qkv, step: &Step<'_>) -> Result<Tensor> {
    let spans = &step.batch.spans;
    let mut rows = Vec::with_capacity(spans.len());
    for ((span, cache), mask) in spans.iter().zip(step.caches).zip(&step.masks.0) {
        let own = |all: &Tensor| all.narrow(0, span.start, span.len);
        // (len, K, D) -> (K, len, D)
        let by_head = |all: &Tensor| own(all)?.transpose(0, 1)?.contiguous();
        let (keys, values) = cache.write(layer, &by_head(&qkv.keys)?, &by_head(&qkv.values)?)?;
        let queries = own(&qkv.queries)?;
        rows.push(attend_one(&queries, &keys, &values, mask.as_ref())?);
    }
    match rows.as_slice() {
        [only] => Ok(only.clone()),
        _ => Tensor::cat(&rows, 0),
    }
}

/// Queries (t, N, D) over keys and values (K, n, D): (t, N * D).
///
/// The G = N / K heads of queries that share a head of keys are so many more rows of its products:
/// keys and values are never repeated.
fn attend_one(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    mask: Option<&Tensor>,
) -> Result<Tensor> {
    let (t, heads, dim) = queries.dims3()?;
    let (key_heads, n, _) = keys.dims3()?;
    let group = heads / key_heads;
    let queries = (queries * (dim as f64).powf(-0.5))?;
    // (t, K, G, D) -> (K, G, t, D) -> (K, G * t, D)
    let queries = queries
        .reshape((t, key_heads, group, dim))?
        .permute((1, 2, 0, 3))?
        .reshape((key_heads, group * t, dim))?;
    let scores = queries.matmul(&keys.t()?)?; // (K, G * t, n)
    // The softmax runs in f32 whatever the model's type is, as transformers' does.
    let scores = scores.to_dtype(DType::F32)?;
    let scores = match mask {
        Some(mask) => scores
            .reshape((key_heads, group, t, n))?
            .broadcast_add(mask)?
            .reshape((key_heads, group * t, n))?,
        None => scores,
    };
    let weights = softmax_last_dim(&scores)?.to_dtype(queries.dtype())?;
    let mixed = weights.matmul(values)?; // (K, G * t, D)
    mixed
        .reshape((key_heads, group, t, dim))?
        .permute((2, 0, 1, 3))?
        .reshape((t, heads * dim))
}
