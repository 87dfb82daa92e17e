//! The operations on any device, made of candle's own: right, and slow.
//!
//! For devices without a form of their own, and as what those forms are compared with. Each operation is many
//! launches, and attention gathers the pages of a sequence before it uses them.

use std::cell::RefCell;
use std::collections::VecDeque;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::rotary_emb::rope_thd;

use super::{
    Activation, Attention, Embedding, Epilogue, Heads, KV_BLOCK_TOKENS, LayerPages, Linear, Norm,
    Ops, Pass, PositionTable, Rope, Span, StepInputs, StepResult, StepTensors, shared,
};

/// Some device.
#[derive(Debug)]
pub(super) struct PlainOps {
    device: Device,
    /// Launched and not collected.
    results: RefCell<VecDeque<StepTensors>>,
}

impl PlainOps {
    pub(super) fn new(device: &Device) -> Self {
        Self {
            device: device.clone(),
            results: RefCell::default(),
        }
    }
}

impl Ops for PlainOps {
    fn device(&self) -> &Device {
        &self.device
    }

    fn launch(
        &self,
        _: &StepInputs,
        forward: &mut dyn FnMut() -> Result<StepTensors>,
    ) -> Result<()> {
        self.results.borrow_mut().push_back(forward()?);
        Ok(())
    }

    fn collect(&self) -> Result<StepResult> {
        let tensors = self.results.borrow_mut().pop_front();
        let StepTensors { hidden, logits } =
            tensors.ok_or_else(|| candle_core::Error::msg("no step was launched"))?;
        Ok(StepResult {
            rows: shared::rows_of(logits.as_ref())?,
            hidden,
            device_time: None,
            pass: Pass::Eager {
                reason: "plain operations",
            },
        })
    }

    fn embed(&self, step: &StepInputs, embedding: &Embedding) -> Result<Tensor> {
        let rows = shared::look_up(&embedding.tokens.dense()?, &step.tokens)?;
        shared::finish_embedding(rows, step, embedding)
    }

    fn embed_positions(&self, step: &StepInputs, positions: &PositionTable) -> Result<Tensor> {
        shared::embed_positions(step, positions)
    }

    fn project(
        &self,
        x: &Tensor,
        norm: Option<&Norm>,
        linear: &Linear,
        epilogue: Epilogue,
    ) -> Result<Tensor> {
        let normed = norm.map(|norm| self.norm(x, norm, None)).transpose()?;
        let product = product(normed.as_ref().unwrap_or(x), linear)?;
        match epilogue {
            Epilogue::None => Ok(product),
            Epilogue::Activation(activation) => activate(&product, activation),
            Epilogue::Gated(activation) => {
                let half = product.dim(1)? / 2;
                let part = |start| product.narrow(1, start, half)?.contiguous();
                activate(&part(0)?, activation)? * part(half)?
            }
        }
    }

    fn project_add(&self, x: &Tensor, linear: &Linear, residual: &Tensor) -> Result<Tensor> {
        residual + product(x, linear)?
    }

    fn norm(&self, x: &Tensor, norm: &Norm, residual: Option<&Tensor>) -> Result<Tensor> {
        shared::norm(x, norm, residual)
    }

    fn attend(
        &self,
        qkv: &Tensor,
        attention: &Attention,
        step: &StepInputs,
        pages: &LayerPages,
    ) -> Result<Tensor> {
        let Heads { queries, keys, dim } = attention.heads;
        let qkv = qkv.reshape((step.tokens.len(), queries + 2 * keys, dim))?;
        let rotation = match attention.rope.as_deref() {
            Some(rope) => Some(Rotation::new(rope, step, qkv.dtype())?),
            None => None,
        };
        let (query_norm, key_norm) = match &attention.head_norms {
            Some((queries, keys)) => (Some(queries), Some(keys)),
            None => (None, None),
        };
        let placed = |start, heads, norm: Option<&Norm>| {
            let mut part = qkv.narrow(1, start, heads)?.contiguous()?;
            if let Some(norm) = norm {
                part = self.norm(&part, norm, None)?;
            }
            match &rotation {
                Some(rotation) => rotation.apply(&part),
                None => Ok(part),
            }
        };
        let new_queries = placed(0, queries, query_norm)?; // (T, N, D)
        let new_keys = placed(queries, keys, key_norm)?; // (T, K, D)
        let new_values = qkv.narrow(1, queries + keys, keys)?.contiguous()?;
        let slots = step.slots.iter().map(|slot| *slot as usize);
        let places = places(slots, attention.heads);
        write(&pages.keys, &places, &new_keys)?;
        write(&pages.values, &places, &new_values)?;
        let mut rows = Vec::with_capacity(step.spans.len());
        for span in &step.spans {
            let queries = new_queries.narrow(0, span.start, span.len)?;
            rows.push(attend_one(&queries, attention, (step, span), pages)?);
        }
        Tensor::cat(&rows, 0)
    }

    fn wanted(&self, x: &Tensor, step: &StepInputs) -> Result<Tensor> {
        shared::wanted(x, step)
    }
}

/// x . W^T + b
fn product(x: &Tensor, linear: &Linear) -> Result<Tensor> {
    let weight = linear.weight.dense()?;
    let product = x.matmul(&weight.t()?)?;
    match &linear.bias {
        Some(bias) => product.broadcast_add(bias),
        None => Ok(product),
    }
}

fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Relu => x.relu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
        Activation::Silu => x.silu(),
    }
}

/// Rows of the pages, (blocks * K * tokens, D), of some slots, all heads of a slot together.
fn places(slots: impl Iterator<Item = usize>, heads: Heads) -> Vec<u32> {
    let rows = slots.flat_map(|slot| {
        let (block, token) = (slot / KV_BLOCK_TOKENS, slot % KV_BLOCK_TOKENS);
        (0..heads.keys).map(move |head| (block * heads.keys + head) * KV_BLOCK_TOKENS + token)
    });
    rows.map(|row| row as u32).collect()
}

/// The pages, (blocks, K, tokens, D), as rows of D.
fn rows(pages: &Tensor) -> Result<Tensor> {
    let (blocks, heads, tokens, dim) = pages.dims4()?;
    pages.reshape((blocks * heads * tokens, dim))
}

/// Writes (T, K, D) to these places.
fn write(pages: &Tensor, places: &[u32], new: &Tensor) -> Result<()> {
    let dim = new.dim(2)?;
    let places = Tensor::from_slice(places, (places.len(), 1), new.device())?;
    let places = places.repeat((1, dim))?;
    rows(pages)?.scatter_set(&places, &new.reshape(((), dim))?, 0)
}

/// Queries (t, N, D) of one span over all its keys and values: (t, N * D).
///
/// The N / K heads of queries that share a head of keys are so many more rows of its products.
fn attend_one(
    queries: &Tensor,
    attention: &Attention,
    (step, span): (&StepInputs, &Span),
    pages: &LayerPages,
) -> Result<Tensor> {
    let (t, heads, dim) = queries.dims3()?;
    let (key_heads, n) = (attention.heads.keys, span.context + span.len);
    let group = heads / key_heads;
    let table = step.table(span);
    let slot = |at: usize| table[at / KV_BLOCK_TOKENS] as usize * KV_BLOCK_TOKENS;
    let slots = (0..n).map(|at| slot(at) + at % KV_BLOCK_TOKENS);
    let places = places(slots, attention.heads);
    let places = Tensor::from_slice(&places, places.len(), queries.device())?;
    let gather = |pages: &Tensor| {
        let gathered = rows(pages)?.index_select(&places, 0)?; // (n * K, D)
        let by_head = gathered.reshape((n, key_heads, dim))?.transpose(0, 1)?;
        by_head.contiguous() // (K, n, D)
    };
    let (keys, values) = (gather(&pages.keys)?, gather(&pages.values)?);
    let queries = (queries * f64::from(attention.scale))?
        .reshape((t, key_heads, group, dim))?
        .permute((1, 2, 0, 3))?
        .reshape((key_heads, group * t, dim))?;
    let scores = queries.matmul(&keys.t()?)?.to_dtype(DType::F32)?; // (K, N / K * t, n)
    let scores = scores
        .reshape((key_heads, group, t, n))?
        .broadcast_add(&mask(span, attention.window, queries.device())?)?
        .reshape((key_heads, group * t, n))?;
    let weights = softmax_last_dim(&scores)?.to_dtype(queries.dtype())?;
    let mixed = weights.matmul(&values)?; // (K, N / K * t, D)
    mixed
        .reshape((key_heads, group, t, dim))?
        .permute((2, 0, 1, 3))?
        .reshape((t, heads * dim))
}

/// (len, context + len) of 0 where a row may look and -inf where it may not.
fn mask(span: &Span, window: Option<usize>, device: &Device) -> Result<Tensor> {
    let keys = span.context + span.len;
    let mut mask = vec![0f32; span.len * keys];
    for (row, values) in mask.chunks_exact_mut(keys).enumerate() {
        let end = span.context + row + 1;
        values[end..].fill(f32::NEG_INFINITY);
        if let Some(window) = window {
            values[..end.saturating_sub(window)].fill(f32::NEG_INFINITY);
        }
    }
    Tensor::from_vec(mask, (span.len, keys), device)
}

/// Rotation of a step's rows, (T, 1, D / 2) each.
struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    fn new(rope: &Rope, step: &StepInputs, dtype: DType) -> Result<Self> {
        let frequencies = &rope.on_device;
        let positions = step.positions.iter().map(|position| *position as f32);
        let positions = Tensor::from_iter(positions, frequencies.device())?;
        // (T, 1) x (1, D / 2) -> (T, 1, D / 2)
        let angles = positions
            .unsqueeze(1)?
            .broadcast_mul(&frequencies.unsqueeze(0)?)?
            .unsqueeze(1)?;
        Ok(Self {
            cos: angles.cos()?.to_dtype(dtype)?,
            sin: angles.sin()?.to_dtype(dtype)?,
        })
    }

    /// (T, heads, D) -> (T, heads, D)
    fn apply(&self, heads: &Tensor) -> Result<Tensor> {
        // candle's op takes batches of sequences: each row is a sequence of its own.
        let rows = heads.unsqueeze(1)?.contiguous()?; // (T, 1, heads, D)
        rope_thd(&rows, &self.cos, &self.sin)?.squeeze(1)
    }
}
