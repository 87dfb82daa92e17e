//! Attention over pages: each row against the keys and values of its own sequence, where they lie.
//!
//! Nothing is gathered: one head's block of keys is contiguous, and the softmax is carried from block to
//! block (Milakov and Gimelshein, 2018), so that memory does not grow with the context. The rows of a
//! prompt are taken some at a time, to read a block once for all of them, and with them the heads of
//! queries that share a head of keys. Angles of rotation come from `rotation`.

use candle_core::{DType, Result, Tensor, bail};
use half::{bf16, f16};
use rayon::prelude::*;

use super::math::{add_weighted, dot, exp};
use super::number::{Number, read, widened, write};
use super::rotation::Angle;
use crate::ops::packed::in_wide_vectors;
use crate::ops::{Attention, Heads, KV_BLOCK_TOKENS, LayerPages, Norm, NormKind, Span, StepInputs};

/// Rows of one sequence that a task takes.
const TASK_ROWS: usize = 8;
/// Fewer multiplications than this are not worth a second thread.
const PARALLEL_PRODUCTS: usize = 256 * 1024;

/// As [`crate::ops::Ops::attend`] has it: (T, (N + 2K) * D) -> (T, N * D). `rotation` is what the attention's rope makes
/// of the step: (T, D / 2).
pub(super) fn attend(
    qkv: &Tensor,
    (attention, rotation): (&Attention, Option<&[Angle]>),
    step: &StepInputs,
    pages: &LayerPages,
) -> Result<Tensor> {
    let placing = Placing::new(attention, rotation)?;
    match qkv.dtype() {
        DType::F32 => attend_as::<f32>(qkv, (attention, &placing), step, pages),
        DType::F16 => attend_as::<f16>(qkv, (attention, &placing), step, pages),
        DType::BF16 => attend_as::<bf16>(qkv, (attention, &placing), step, pages),
        other => bail!("no attention over numbers of type {other:?}"),
    }
}

fn attend_as<T: Number>(
    qkv: &Tensor,
    (attention, placing): (&Attention, &Placing<'_>),
    step: &StepInputs,
    pages: &LayerPages,
) -> Result<Tensor> {
    let heads = attention.heads;
    let queries = read::<T, _>(qkv, |qkv| {
        let rows = Rows { qkv, heads };
        write::<T>(&pages.keys, |keys| {
            placing.write_keys(&rows, step, keys);
            Ok(())
        })?;
        write::<T>(&pages.values, |values| {
            write_values(&rows, step, values);
            Ok(())
        })?;
        Ok(placing.queries(&rows, attention.scale))
    })?;
    let mixed = read::<T, _>(&pages.keys, |keys| {
        read::<T, _>(&pages.values, |values| {
            let heads_of = |task: &Task| {
                let context = Context {
                    step,
                    attention,
                    queries: &queries,
                    keys,
                    values,
                };
                in_wide_vectors(|| task.run(&context))
            };
            Ok(mix::<T>(&tasks(step, heads), heads, step, heads_of))
        })
    })?;
    Tensor::from_vec(
        mixed,
        (step.tokens.len(), heads.query_width()),
        qkv.device(),
    )
}

/// (T, (N + 2K) * D)
struct Rows<'a, T> {
    qkv: &'a [T],
    heads: Heads,
}

impl<T: Number> Rows<'_, T> {
    /// Head `index` of a row: queries from 0, keys from N, values from N + K.
    fn head(&self, row: usize, index: usize) -> &[T] {
        let Heads { queries, keys, dim } = self.heads;
        let start = (row * (queries + 2 * keys) + index) * dim;
        &self.qkv[start..start + dim]
    }
}

/// Where in the pages, (blocks, K, tokens, D), the head of a slot starts.
fn slot_start(slot: usize, head: usize, heads: Heads) -> usize {
    let (block, token) = (slot / KV_BLOCK_TOKENS, slot % KV_BLOCK_TOKENS);
    ((block * heads.keys + head) * KV_BLOCK_TOKENS + token) * heads.dim
}

fn write_values<T: Number>(rows: &Rows<'_, T>, step: &StepInputs, pages: &mut [T]) {
    let heads = rows.heads;
    for (row, &slot) in step.slots.iter().enumerate() {
        for head in 0..heads.keys {
            let start = slot_start(slot as usize, head, heads);
            let values = rows.head(row, heads.queries + heads.keys + head);
            pages[start..start + heads.dim].copy_from_slice(values);
        }
    }
}

/// What becomes of heads before they are compared: norms, and rotation by position.
struct Placing<'a> {
    query_norm: Option<HeadNorm>,
    key_norm: Option<HeadNorm>,
    /// (T, D / 2)
    rotation: Option<&'a [Angle]>,
    pairs: usize,
}

struct HeadNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl HeadNorm {
    fn new(norm: &Norm) -> Result<Self> {
        if norm.kind != NormKind::Rms {
            bail!("heads have norms around 0 alone")
        }
        Ok(Self {
            weight: widened(&norm.weight)?,
            eps: norm.eps,
        })
    }

    fn apply(&self, head: &mut [f32]) {
        let mean = dot(head, head) / head.len() as f32;
        let factor = (mean + self.eps).sqrt().recip();
        for (number, weight) in head.iter_mut().zip(&self.weight) {
            *number *= factor * weight;
        }
    }
}

impl<'a> Placing<'a> {
    fn new(attention: &Attention, rotation: Option<&'a [Angle]>) -> Result<Self> {
        let (query_norm, key_norm) = match &attention.head_norms {
            Some((queries, keys)) => (Some(HeadNorm::new(queries)?), Some(HeadNorm::new(keys)?)),
            None => (None, None),
        };
        Ok(Self {
            query_norm,
            key_norm,
            rotation,
            pairs: attention.heads.dim / 2,
        })
    }

    /// One head of a row, widened, into `placed`.
    fn place<T: Number>(
        &self,
        (row, head): (usize, &[T]),
        norm: Option<&HeadNorm>,
        placed: &mut [f32],
    ) {
        for (wide, number) in placed.iter_mut().zip(head) {
            *wide = number.widen();
        }
        if let Some(norm) = norm {
            norm.apply(placed);
        }
        if let Some(rotation) = self.rotation {
            let angles = &rotation[row * self.pairs..][..self.pairs];
            let (left, right) = placed.split_at_mut(self.pairs);
            for ((left, right), Angle { cos, sin }) in left.iter_mut().zip(right).zip(angles) {
                (*left, *right) = (*left * cos - *right * sin, *right * cos + *left * sin);
            }
        }
    }

    fn write_keys<T: Number>(&self, rows: &Rows<'_, T>, step: &StepInputs, pages: &mut [T]) {
        let heads = rows.heads;
        let mut placed = vec![0.0; heads.dim];
        for (row, &slot) in step.slots.iter().enumerate() {
            for head in 0..heads.keys {
                let key = rows.head(row, heads.queries + head);
                self.place((row, key), self.key_norm.as_ref(), &mut placed);
                let start = slot_start(slot as usize, head, heads);
                for (number, placed) in pages[start..].iter_mut().zip(&placed) {
                    *number = T::narrow(*placed);
                }
            }
        }
    }

    /// All queries, scaled: (T, N, D).
    fn queries<T: Number>(&self, rows: &Rows<'_, T>, scale: f32) -> Vec<f32> {
        let Heads { queries, keys, dim } = rows.heads;
        let count = rows.qkv.len() / ((queries + 2 * keys) * dim) * queries;
        let mut all = vec![0.0; count * dim];
        let place = |(index, placed): (usize, &mut [f32])| {
            let (row, head) = (index / queries, index % queries);
            let query = rows.head(row, head);
            self.place((row, query), self.query_norm.as_ref(), placed);
            placed.iter_mut().for_each(|number| *number *= scale);
        };
        if all.len() < PARALLEL_PRODUCTS {
            all.chunks_mut(dim).enumerate().for_each(place);
        } else {
            all.par_chunks_mut(dim).enumerate().for_each(place);
        }
        all
    }
}

/// Some rows of one sequence and the heads of queries that share one head of keys.
struct Task {
    span: Span,
    /// Of the step.
    first_row: usize,
    rows: usize,
    key_head: usize,
}

fn tasks(step: &StepInputs, heads: Heads) -> Vec<Task> {
    let mut tasks = Vec::new();
    for &span in &step.spans {
        let end = span.start + span.len;
        for first_row in (span.start..end).step_by(TASK_ROWS) {
            tasks.extend((0..heads.keys).map(|key_head| Task {
                span,
                first_row,
                rows: TASK_ROWS.min(end - first_row),
                key_head,
            }));
        }
    }
    tasks
}

/// Runs all tasks and puts what they give to its places: (T, N * D).
fn mix<T: Number>(
    tasks: &[Task],
    heads: Heads,
    step: &StepInputs,
    run: impl Fn(&Task) -> Vec<f32> + Send + Sync,
) -> Vec<T> {
    let work = |span: &Span| span.len * (span.context + span.len) * heads.query_width();
    let results: Vec<_> = if step.spans.iter().map(work).sum::<usize>() < PARALLEL_PRODUCTS {
        tasks.iter().map(run).collect()
    } else {
        tasks.par_iter().map(run).collect()
    };
    let group = heads.query_width() / heads.keys;
    let mut mixed = vec![T::zero(); step.tokens.len() * heads.query_width()];
    for (task, result) in tasks.iter().zip(results) {
        for (index, heads_of_row) in result.chunks(group).enumerate() {
            let row = (task.first_row + index) * heads.query_width();
            let place = &mut mixed[row + task.key_head * group..][..group];
            for (number, value) in place.iter_mut().zip(heads_of_row) {
                *number = T::narrow(*value);
            }
        }
    }
    mixed
}

/// What all tasks of a layer read.
struct Context<'a, T> {
    step: &'a StepInputs,
    attention: &'a Attention,
    /// (T, N, D)
    queries: &'a [f32],
    /// (blocks, K, tokens, D)
    keys: &'a [T],
    /// The same.
    values: &'a [T],
}

/// A softmax as far as it has come: weights are relative to the largest score so far.
#[derive(Clone, Copy)]
struct Softmax {
    largest: f32,
    sum: f32,
}

impl Task {
    /// The heads of its rows, one row after another: (rows, N / K, D).
    #[inline(always)]
    fn run<T: Number>(&self, context: &Context<'_, T>) -> Vec<f32> {
        let Attention { heads, window, .. } = *context.attention;
        let group = heads.queries / heads.keys;
        let block_numbers = KV_BLOCK_TOKENS * heads.dim;
        let mut mixed = vec![0.0; self.rows * group * heads.dim];
        let nothing_yet = Softmax {
            largest: f32::NEG_INFINITY,
            sum: 0.0,
        };
        let mut softmaxes = vec![nothing_yet; self.rows * group];
        let mut wide_keys = vec![0.0; block_numbers];
        let mut wide_values = vec![0.0; block_numbers];
        let first_position = self.span.context + self.first_row - self.span.start;
        let visible = |position: usize| {
            let from = window.map_or(0, |window| (position + 1).saturating_sub(window));
            from..position + 1
        };
        let table = context.step.table(&self.span);
        let blocks = visible(first_position).start / KV_BLOCK_TOKENS
            ..(first_position + self.rows).div_ceil(KV_BLOCK_TOKENS);
        for index in blocks {
            let start = slot_start(
                table[index] as usize * KV_BLOCK_TOKENS,
                self.key_head,
                heads,
            );
            let block = start..start + block_numbers;
            let keys = T::widen_all(&context.keys[block.clone()], &mut wide_keys);
            let values = T::widen_all(&context.values[block], &mut wide_values);
            let block_start = index * KV_BLOCK_TOKENS;
            for row in 0..self.rows {
                let visible = visible(first_position + row);
                let from = visible.start.max(block_start) - block_start;
                let to = visible
                    .end
                    .min(block_start + KV_BLOCK_TOKENS)
                    .max(block_start);
                let tokens = from..to - block_start;
                if tokens.is_empty() {
                    continue;
                }
                let tokens = tokens.start * heads.dim..tokens.end * heads.dim;
                for head in row * group..(row + 1) * group {
                    let query = (self.first_row * heads.queries) + self.key_head * group;
                    let query = query + row * heads.queries + head % group;
                    softmaxes[head].take_in(
                        &context.queries[query * heads.dim..][..heads.dim],
                        &keys[tokens.clone()],
                        &values[tokens.clone()],
                        &mut mixed[head * heads.dim..][..heads.dim],
                    );
                }
            }
        }
        for (head, softmax) in mixed.chunks_mut(heads.dim).zip(&softmaxes) {
            let factor = softmax.sum.recip();
            head.iter_mut().for_each(|number| *number *= factor);
        }
        mixed
    }
}

impl Softmax {
    /// Adds some tokens' values, (tokens, D), to `mixed`, by the scores of their keys.
    #[inline(always)]
    fn take_in(&mut self, query: &[f32], keys: &[f32], values: &[f32], mixed: &mut [f32]) {
        let mut scores = [0.0; KV_BLOCK_TOKENS];
        let scores = &mut scores[..keys.len() / query.len()];
        let mut largest = self.largest;
        for (score, key) in scores.iter_mut().zip(keys.chunks_exact(query.len())) {
            *score = dot(query, key);
            largest = largest.max(*score);
        }
        if largest > self.largest {
            let shrink = exp(self.largest - largest);
            self.sum *= shrink;
            mixed.iter_mut().for_each(|number| *number *= shrink);
            self.largest = largest;
        }
        for score in scores.iter_mut() {
            *score = exp(*score - largest);
        }
        self.sum += scores.iter().sum::<f32>();
        add_weighted(mixed, scores, values);
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
